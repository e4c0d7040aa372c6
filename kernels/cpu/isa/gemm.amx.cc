#include "gemmIsa.inc"

#if (defined(__x86_64__) || defined(_M_X64)) && defined(__AVX512BF16__) && \
    (defined(__AMX_BF16__) || defined(UNSLOTH_AMX_EMULATOR))
#include <immintrin.h>
#ifdef UNSLOTH_AMX_EMULATOR
#include UNSLOTH_AMX_EMULATOR
#endif

namespace unsloth::cpu {
namespace {

#include "gemmSimdAvx512.inc"
#include "gemmTile.inc"
#include "gemmPack.inc"
#include "gemmPairs.inc"

constexpr int64_t tileRows = 16, wordsPerTile = 16;   // a tile is 16 rows of 64 bytes
constexpr int64_t panelRows = 32, panelColumns = 32;  // 2x2 tiles of C; two tiles each of A and B fill the other registers

/** Intel SDM vol. 1, 18.3.1: palette 1, bytes per row at 16 + 2·tile, rows at 48 + tile. */
struct alignas(64) TileConfig {
  uint8_t palette = 1, startRow = 0, reserved[14] = {};
  uint16_t rowBytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/**
 * B panels are those of the AVX-512-BF16 kernel: [word][32], a word being a pair of k. TDPBF16PS wants A by rows instead, so
 * each 16 words of an A panel are transposed in place, from [16 words][32 rows] to [2 tiles][16 rows][16 words].
 */
void packA(const PackCall& call) {
  packPairs<panelRows, wordsPerTile>(call);
  const int64_t words = (call.k + 1) / 2, depth = (words + wordsPerTile - 1) / wordsPerTile * wordsPerTile;
  const int64_t panels = (call.width + call.panelWidth - 1) / call.panelWidth;
  float* block = reinterpret_cast<float*>(call.target);
  for (int64_t i = 0; i < panels * depth / wordsPerTile; ++i, block += panelRows * wordsPerTile) {
    __m512 top[16], bottom[16];
    for (int r = 0; r < 16; ++r) {
      top[r] = Avx512::load(block + r * panelRows);
      bottom[r] = Avx512::load(block + r * panelRows + 16);
    }
    Avx512::transpose(top);
    Avx512::transpose(bottom);
    for (int r = 0; r < 16; ++r) {
      Avx512::store(block + r * wordsPerTile, top[r]);
      Avx512::store(block + (tileRows + r) * wordsPerTile, bottom[r]);
    }
  }
}

/** C of one panel pair into `sums` [32][32]; a narrow or low panel leaves the tiles out that nobody needs. */
void multiplyPanels(const uint32_t* a, const uint32_t* b, int64_t depth, bool low, bool wide, float* sums) {
  constexpr size_t rowBytes = 64, panelBytes = panelColumns * 4;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t word = 0; word < depth; word += wordsPerTile, a += panelRows * wordsPerTile, b += panelColumns * wordsPerTile) {
    _tile_loadd(4, a, rowBytes);
    _tile_loadd(6, b, panelBytes);
    _tile_dpbf16ps(0, 4, 6);
    if (wide) {
      _tile_loadd(7, b + 16, panelBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (low) {
      _tile_loadd(5, a + tileRows * wordsPerTile, rowBytes);
      _tile_dpbf16ps(2, 5, 6);
      if (wide) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, panelBytes);
  _tile_stored(1, sums + 16, panelBytes);
  _tile_stored(2, sums + tileRows * panelColumns, panelBytes);
  _tile_stored(3, sums + tileRows * panelColumns + 16, panelBytes);
}

void multiply(const BlockCall& call) {
  static constexpr TileConfig config;
  alignas(64) float sums[panelRows * panelColumns];
  _tile_loadconfig(&config);
  for (int64_t column = 0; column < call.columns; column += panelColumns) {
    const int64_t width = call.columns - column < panelColumns ? call.columns - column : panelColumns;
    const uint32_t* b = call.b + column * call.depth;
    const uint32_t* a = call.a;
    for (int64_t row = 0; row < call.rows; row += call.panelRows, a += panelRows * call.depth) {
      const int64_t height = call.rows - row < call.panelRows ? call.rows - row : call.panelRows;
      multiplyPanels(a, b, call.depth, height > tileRows, width > 16, sums);
      for (int64_t r = 0; r < height; ++r) finishRow<Avx512, 2>(sums + r * panelColumns, call, row + r, column, width);
    }
  }
  _tile_release();
}

constexpr GemmKernel bfloat16 = {"amx 32x32", panelRows, panelColumns, panelRows, panelColumns, wordsPerTile, 2, 512, packA,
                                 packPairs<panelColumns, wordsPerTile>, multiply};
constexpr GemmKernels kernels = {nullptr, &bfloat16, nullptr, nullptr};

}  // namespace

const GemmKernels* const gemmAmx = &kernels;

}  // namespace unsloth::cpu
#else
const unsloth::cpu::GemmKernels* const unsloth::cpu::gemmAmx = nullptr;
#endif
