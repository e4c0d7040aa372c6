#pragma once
#include "../element.cuh"
#include "gemmWgmma.h"
#include "tma.cuh"

/**
 * Products of few tiles: several blocks share a tile, each with a run of its slices of k. Those of a cluster add up through each
 * other's shared memory, and each writes a part of the tile. Where clusters of that size would leave multiprocessors idle, blocks
 * stand apart: who has the first slice owns the tile, adds what the others leave in the scratch, and writes c; all are at work at
 * once, and nobody but an owner waits. Either way the order of the sums is always the same.
 */
namespace unsloth::cuda::sm90 {

/** Slices begin … end − 1 of a tile. */
struct Piece {
  int tile, begin, end;
  __device__ __forceinline__ bool owned() const { return begin == 0; }
};

/** What a block works at, in order: whole tiles, or its share of one where several share it. */
class PieceWalk {
 public:
  __device__ __forceinline__ PieceWalk(const WgmmaParams& p, int cluster, int clusters, int share)
      : p_(p),
        share_(p.partial != nullptr ? cluster % p.shares : share),
        at_(p.partial != nullptr ? cluster / p.shares : cluster),
        step_(p.shares > 1 ? 1 << 30 : clusters) {}

  __device__ __forceinline__ bool next(Piece& piece) {
    if (at_ >= p_.tileRows * p_.tileColumns) return false;
    piece = {at_, p_.slices * share_ / p_.shares, p_.slices * (share_ + 1) / p_.shares};
    at_ += step_;
    return true;
  }

 private:
  const WgmmaParams& p_;
  int share_, at_, step_;
};

/** Sums that a warpgroup leaves for the owner of its tile: its own place in p.partial, [sums / 4][thread]. */
template <int sums>
__device__ __forceinline__ void leavePartial(const WgmmaParams& p, const float (&d)[sums], int part) {
  const int thread = threadIdx.x % 128, place = blockIdx.x * 2 + part;
  float4* const out = reinterpret_cast<float4*>(p.partial) + static_cast<size_t>(place) * (sums / 4) * 128 + thread;
#pragma unroll
  for (int i = 0; i < sums / 4; ++i) __stcg(out + i * 128, make_float4(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]));
  __threadfence();
  namedBarrier(1 + part, 128);
  if (thread == 0) asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p.flags + place), "r"(1) : "memory");
  __syncwarp();
}

/** Adds what the blocks after this one left for its tile; clears their flags. */
template <int sums>
__device__ __forceinline__ void addPartials(const WgmmaParams& p, float (&d)[sums], int part) {
  const int thread = threadIdx.x % 128;
  for (int share = 1; share < p.shares; ++share) {
    const int place = (blockIdx.x + share * p.pair) * 2 + part;
    unsigned* const flag = p.flags + place;
    if (thread == 0) {
      unsigned ready;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(flag) : "memory");
      } while (ready == 0);
      *flag = 0;
    }
    namedBarrier(1 + part, 128);
    const float4* const in = reinterpret_cast<const float4*>(p.partial) + static_cast<size_t>(place) * (sums / 4) * 128 + thread;
#pragma unroll
    for (int i = 0; i < sums / 4; ++i) {
      const float4 v = __ldcg(in + i * 128);
      d[4 * i] += v.x, d[4 * i + 1] += v.y, d[4 * i + 2] += v.z, d[4 * i + 3] += v.w;
    }
  }
}

/** Floats from one row of a block's sums to the next: eight rows of a fragment meet in different banks. */
template <int tileN>
constexpr int sumStride = tileN + 8;

/** A warpgroup's 64 rows of sums, to the block's shared memory. */
template <int tileN>
__device__ __forceinline__ void leaveSums(const float (&d)[tileN / 2], uint32_t sums, int part) {
  const int lane = threadIdx.x % 32, row = part * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < tileN / 8; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(sums + ((row + 8 * h) * sumStride<tileN> + 8 * j + lane % 4 * 2) * 4),
                   "f"(d[4 * j + 2 * h]), "f"(d[4 * j + 2 * h + 1])
                   : "memory");
}

/** Adds eight floats at the address `place` of block `rank`. */
__device__ __forceinline__ void addFrom(uint32_t place, uint32_t rank, float (&x)[8]) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(place), "r"(rank));
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(there + 16 * i)
                 : "memory");
    x[4 * i] += v.x, x[4 * i + 1] += v.y, x[4 * i + 2] += v.z, x[4 * i + 3] += v.w;
  }
}

__device__ __forceinline__ float loadBias(const WgmmaParams& p, int column) {
  if (p.bias == nullptr || column >= p.n) return 0;
  if (p.biasType == DType::F32) return static_cast<const float*>(p.bias)[column];
  if (p.biasType == DType::F16) return widen(static_cast<const __half*>(p.bias)[column]);
  return widen(static_cast<const bf16*>(p.bias)[column]);
}

/** `count` ≤ 8 elements at `from`, widened and added. All eight lie in one or two 16-byte pieces. */
template <class T>
__device__ __forceinline__ void addRow(const T* from, int count, float (&x)[8]) {
  if (count == 8) {
    constexpr int each = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < 8 / each; ++i) {
      const uint4 bits = reinterpret_cast<const uint4*>(from)[i];
      const T* const v = reinterpret_cast<const T*>(&bits);
#pragma unroll
      for (int j = 0; j < each; ++j) x[i * each + j] += widen(v[j]);
    }
  } else {
    for (int i = 0; i < count; ++i) x[i] += widen(from[i]);
  }
}

template <class T>
__device__ __forceinline__ void writeRow(T* to, int count, const float (&x)[8]) {
  if (count == 8) {
    constexpr int each = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < 8 / each; ++i) {
      uint4 bits;
      T* const v = reinterpret_cast<T*>(&bits);
#pragma unroll
      for (int j = 0; j < each; ++j) v[j] = narrow<T>(x[i * each + j]);
      reinterpret_cast<uint4*>(to)[i] = bits;
    }
  } else {
    for (int i = 0; i < count; ++i) to[i] = narrow<T>(x[i]);
  }
}

/**
 * This block's part of a shared tile, from the sums that the blocks `rank`, rank + pair, … left at the same place: alpha·sum +
 * bias + source, eight columns at a time. 256 threads.
 */
template <class T, int tileN>
__device__ __forceinline__ void writeShare(const WgmmaParams& p, uint32_t sums, int share, uint32_t rank, int thread, int m0,
                                           int n0) {
  constexpr int groups = tileN / 8;
  for (int at = share * 256 + thread; at < 128 * groups; at += p.shares * 256) {
    const int row = at / groups, column = at % groups * 8, m = m0 + row, n = n0 + column;
    if (m >= p.m || n >= p.n) continue;
    float x[8] = {};
#pragma unroll 4
    for (int q = 0; q < p.shares; ++q)
      addFrom(sums + (row * sumStride<tileN> + column) * 4, rank + static_cast<uint32_t>(q * p.pair), x);
#pragma unroll
    for (float& each : x) each *= p.alpha;
    const int count = min(8, p.n - n);
    for (int i = 0; p.bias != nullptr && i < count; ++i) x[i] += loadBias(p, n + i);
    const int64_t place = m * p.outLd + n;
    if (p.outType == DType::F32) {
      if (p.hasSource) addRow(static_cast<const float*>(p.added) + m * p.addedLd + n, count, x);
      writeRow(static_cast<float*>(p.out) + place, count, x);
    } else {
      if (p.hasSource) addRow(static_cast<const T*>(p.added) + m * p.addedLd + n, count, x);
      writeRow(static_cast<T*>(p.out) + place, count, x);
    }
  }
}

}  // namespace unsloth::cuda::sm90
