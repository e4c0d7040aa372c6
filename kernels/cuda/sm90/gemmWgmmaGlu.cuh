#pragma once
#include "../activation.cuh"
#include "gemmWgmmaEpilogue.cuh"

/**
 * h = act(gate)⊙up of a product [gate | up], from the sums that are still in registers, rounded first as c holds them, so that h
 * is what `glu` makes of c, to the bit.
 */
namespace unsloth::cuda::sm90 {

constexpr int gluStep = 128;    // columns of gate, and of up, in a tile that has both
constexpr int gluBoxRows = 16;  // of one warp
constexpr int gluBoxBytes = gluBoxRows * swizzleBytes;

/** One warp's 16 rows × 64 columns of T, as stmatrix takes them, to shared memory. */
__device__ __forceinline__ void writeBox(const uint32_t (&words)[16], uint32_t buffer) {
  const int lane = threadIdx.x % 32, row = lane % 16;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     buffer + row * swizzleBytes + (((2 * i + lane / 16) ^ (row % 8)) << 4)),
                 "r"(words[4 * i]), "r"(words[4 * i + 1]), "r"(words[4 * i + 2]), "r"(words[4 * i + 3])
                 : "memory");
}

template <class T>
__device__ __forceinline__ void roundSums(const float* d, float alpha, uint32_t (&words)[16]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) words[i] = packPair<T>(fmaf(alpha, d[2 * i], 0.0f), fmaf(alpha, d[2 * i + 1], 0.0f));
}

/**
 * A warp's 16 rows of columns n0 … n0 + 127 of gate, up and h, whose sums are d[0 … 63] and d[64 … 127], by way of two boxes of
 * its own: no warp waits for another.
 */
template <class T, int kind>
__device__ __forceinline__ void writeGlu(const WgmmaParams& p, const float (&d)[128], uint32_t boxes, int row0, int n0) {
  const bool leader = threadIdx.x % 32 == 0;
  int next = 0;
  const auto store = [&](const uint32_t (&words)[16], const CUtensorMap* map, int column) {
    const uint32_t box = boxes + next * gluBoxBytes;
    next ^= 1;
    if (leader) storeWaitRead<1>();
    __syncwarp();
    writeBox(words, box);
    proxyFence();
    __syncwarp();
    if (leader) {
      storeBox(map, column, row0, box);
      storeCommit();
    }
  };
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t gate[16], up[16];
    roundSums<T>(d + 32 * half, p.alpha, gate);
    store(gate, &p.c, n0 + 64 * half);
    roundSums<T>(d + 64 + 32 * half, p.alpha, up);
    store(up, &p.c, n0 + p.apart + 64 * half);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float2 g = unpackPair<T>(gate[i]), u = unpackPair<T>(up[i]);
      gate[i] = packPair<T>(activate<T, kind>(g.x).value * u.x, activate<T, kind>(g.y).value * u.y);
    }
    store(gate, &p.h, n0 + 64 * half);
  }
}

}  // namespace unsloth::cuda::sm90
