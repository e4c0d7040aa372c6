#pragma once
#include "attention.h"

namespace unsloth::cuda {

/** A tile of consecutive query or key rows of one sequence, `first` counted from the sequence's own start. */
struct AttentionTile {
  int sequence, first;
};

/** Where one sequence's rows stand; see AttentionArgs. */
struct AttentionSequence {
  int qStart, queries, kvStart, keys;

  __device__ AttentionSequence(const AttentionArgs& a, int j)
      : qStart(a.qStart[j]), queries(a.qStart[j + 1] - qStart), kvStart(a.kvStart[j]), keys(a.kvLength[j]) {}
  /** Position of the first query. */
  __device__ int offset() const { return keys - queries; }
};

/**
 * Tile number `index` when all sequences, from the last to the first, are cut into tiles of `size` rows and those of a sequence
 * are numbered from its end; false when there are fewer. length(j): rows of sequence j. All threads of a block of `threads` call
 * it.
 */
template <int threads, class Length>
__device__ bool locateTile(int sequences, int size, int index, Length length, AttentionTile& tile) {
  __shared__ int warpTotals[threads / 32];
  __shared__ AttentionTile found;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int base = 0; base < sequences; base += threads) {
    const int j = sequences - 1 - base - static_cast<int>(threadIdx.x);
    const int tiles = j >= 0 ? (length(j) + size - 1) / size : 0;
    int sum = tiles;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    if (lane == 31) warpTotals[warp] = sum;
    __syncthreads();
    int before = 0, all = 0;
#pragma unroll
    for (int w = 0; w < threads / 32; ++w) {
      if (w < warp) before += warpTotals[w];
      all += warpTotals[w];
    }
    if (index < all) {
      const int after = before + sum;
      if (index < after && index >= after - tiles) found = {j, (after - 1 - index) * size};
      __syncthreads();
      tile = found;
      return true;
    }
    index -= all;
    __syncthreads();
  }
  return false;
}

/** The block's tile of query rows, longest causal rows of a sequence first. */
template <int threads>
__device__ bool locateQueries(const AttentionArgs& a, int size, int index, AttentionTile& tile) {
  return locateTile<threads>(a.sequences, size, index, [&](int j) { return a.qStart[j + 1] - a.qStart[j]; }, tile);
}

/** The block's tile of key rows, those that most queries see first. */
template <int threads>
__device__ bool locateKeys(const AttentionArgs& a, int size, int index, AttentionTile& tile) {
  const bool is = locateTile<threads>(a.sequences, size, index, [&](int j) { return a.kvLength[j]; }, tile);
  if (is) tile.first = (a.kvLength[tile.sequence] - 1) / size * size - tile.first;
  return is;
}

constexpr float log2e = 1.4426950408889634f, ln2 = 0.69314718055994531f;

__device__ __forceinline__ float exp2Fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/** tanh with an absolute error of some 1e-7, which is what matters for a capped score. */
__device__ __forceinline__ float tanhFast(float x) { return 1.0f - __fdividef(2.0f, exp2Fast(2.0f * log2e * x) + 1.0f); }

/**
 * delta = rowsum(dO⊙o) of every row and head, and zeros in rows of dq, dk and dv that belong to no sequence. Reads 2·n·heads·d
 * elements; bound by memory.
 */
void attentionDelta(const AttentionArgs& args, const Context& context);

}  // namespace unsloth::cuda
