#pragma once
#include "gemmWgmma.h"
#include "tma.cuh"

/**
 * Products of few tiles: several clusters share a tile, each with an equal run of its slices of k. Who has the first slice owns
 * the tile, adds what the others leave in the scratch, always in the same order, and writes c. All blocks are at work at once,
 * and nobody but an owner waits.
 */
namespace unsloth::cuda::sm90 {

/** Slices begin … end − 1 of a tile. */
struct Piece {
  int tile, begin, end;
  __device__ __forceinline__ bool owned() const { return begin == 0; }
};

/** The pieces of one cluster in order: whole tiles, or its run of slices where p.run is not 0. */
class PieceWalk {
 public:
  __device__ __forceinline__ PieceWalk(const WgmmaParams& p, int cluster, int clusters)
      : p_(p),
        at_(p.run > 0 ? cluster * p.run : cluster),
        end_(p.run > 0 ? min(at_ + p.run, p.tileRows * p.tileColumns * p.slices) : p.tileRows * p.tileColumns),
        step_(clusters) {}

  __device__ __forceinline__ bool next(Piece& piece) {
    if (at_ >= end_) return false;
    if (p_.run == 0) {
      piece = {at_, 0, p_.slices};
      at_ += step_;
      return true;
    }
    const int tile = at_ / p_.slices, begin = at_ - tile * p_.slices;
    piece = {tile, begin, min(p_.slices, begin + end_ - at_)};
    at_ += piece.end - begin;
    return true;
  }

 private:
  const WgmmaParams& p_;
  int at_, end_, step_;
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

/** Adds what the blocks after this one left for a tile of which this one has slices 0 … end − 1; clears their flags. */
template <int sums>
__device__ __forceinline__ void addPartials(const WgmmaParams& p, float (&d)[sums], const Piece& piece, int part, int cluster) {
  const int thread = threadIdx.x % 128, tileEnd = (piece.tile + 1) * p.slices;
  int block = blockIdx.x;
  for (int at = piece.tile * p.slices + piece.end; at < tileEnd; at += p.run) {
    block += cluster;
    unsigned* const flag = p.flags + block * 2 + part;
    if (thread == 0) {
      unsigned ready;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(flag) : "memory");
      } while (ready == 0);
      *flag = 0;
    }
    namedBarrier(1 + part, 128);
    const float4* const in =
        reinterpret_cast<const float4*>(p.partial) + static_cast<size_t>(block * 2 + part) * (sums / 4) * 128 + thread;
#pragma unroll
    for (int i = 0; i < sums / 4; ++i) {
      const float4 v = __ldcg(in + i * 128);
      d[4 * i] += v.x, d[4 * i + 1] += v.y, d[4 * i + 2] += v.z, d[4 * i + 3] += v.w;
    }
  }
}

}  // namespace unsloth::cuda::sm90
