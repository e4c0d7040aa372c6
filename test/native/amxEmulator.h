#pragma once
// AMX tile instructions in plain C++ (Intel SDM, TDPBF16PS), to run gemm.amx.cc on a processor without them.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps

namespace amxEmulator {

struct Tiles {
  bool configured = false;
  int rows[8] = {}, rowBytes[8] = {};
  unsigned char data[8][16][64] = {};
};
inline thread_local Tiles tiles;

inline void need(bool condition) {
  if (!condition) std::abort();
}
inline void loadConfig(const void* p) {
  const auto* bytes = static_cast<const unsigned char*>(p);
  need(bytes[0] == 1);
  tiles = {};
  tiles.configured = true;
  for (int i = 0; i < 8; ++i) {
    tiles.rowBytes[i] = bytes[16 + 2 * i] | (bytes[17 + 2 * i] << 8);
    tiles.rows[i] = bytes[48 + i];
    need(tiles.rowBytes[i] <= 64 && tiles.rows[i] <= 16);
  }
  for (int i = 1; i < 16; ++i) need(bytes[i] == 0);
  for (int i = 56; i < 64; ++i) need(bytes[i] == 0);
}
inline void release() { tiles.configured = false; }
inline void zero(int t) {
  need(tiles.configured);
  std::memset(tiles.data[t], 0, sizeof tiles.data[t]);
}
inline void load(int t, const void* p, size_t stride) {
  need(tiles.configured);
  zero(t);
  const auto bytes = static_cast<size_t>(tiles.rowBytes[t]);
  for (int r = 0; r < tiles.rows[t]; ++r) std::memcpy(tiles.data[t][r], static_cast<const char*>(p) + r * stride, bytes);
}
inline void store(int t, void* p, size_t stride) {
  need(tiles.configured);
  const auto bytes = static_cast<size_t>(tiles.rowBytes[t]);
  for (int r = 0; r < tiles.rows[t]; ++r) std::memcpy(static_cast<char*>(p) + r * stride, tiles.data[t][r], bytes);
}
inline float widen(const unsigned char* p) {
  const uint32_t bits = (static_cast<uint32_t>(p[0]) << 16) | (static_cast<uint32_t>(p[1]) << 24);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline void multiply(int c, int a, int b) {
  need(tiles.configured && c != a && c != b && a != b);
  need(tiles.rows[c] == tiles.rows[a] && tiles.rowBytes[c] == tiles.rowBytes[b] && tiles.rowBytes[a] == 4 * tiles.rows[b]);
  for (int m = 0; m < tiles.rows[c]; ++m)
    for (int k = 0; k < tiles.rowBytes[a] / 4; ++k)
      for (int n = 0; n < tiles.rowBytes[c] / 4; ++n) {
        float sum;
        std::memcpy(&sum, &tiles.data[c][m][4 * n], sizeof sum);
        sum += widen(&tiles.data[a][m][4 * k]) * widen(&tiles.data[b][k][4 * n]);
        sum += widen(&tiles.data[a][m][4 * k + 2]) * widen(&tiles.data[b][k][4 * n + 2]);
        std::memcpy(&tiles.data[c][m][4 * n], &sum, sizeof sum);
      }
}

}  // namespace amxEmulator

#define _tile_loadconfig(p) amxEmulator::loadConfig(p)
#define _tile_release() amxEmulator::release()
#define _tile_zero(t) amxEmulator::zero(t)
#define _tile_loadd(t, p, stride) amxEmulator::load(t, p, stride)
#define _tile_stored(t, p, stride) amxEmulator::store(t, p, stride)
#define _tile_dpbf16ps(c, a, b) amxEmulator::multiply(c, a, b)
