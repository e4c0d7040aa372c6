#pragma once
#include "../element.cuh"
#include "gemmWgmma.h"
#include "tma.cuh"
#include "wgmma.cuh"

/**
 * c[m,n] = alpha·(op(a)·op(b) + Σ_j a_j·op(b_j)) + bias + source, 16-bit operands, fp32 sums: 2mnk FLOPs. A block computes tiles of
 * 128 × tileN, one warpgroup 64 rows each, while a third warpgroup brings slices of 64 of k through the tensor memory accelerator
 * into a ring of stages. Blocks stay until the tiles are used up. Two blocks of a cluster work at tiles one above the other
 * and send each other half of b. A low-rank pair is further slices of the same sum: the maps read as zero beyond the rank and
 * outside the columns of the pair.
 */
namespace unsloth::cuda::sm90 {

constexpr int tileM = 128, sliceK = 64, boxElements = 64, swizzleBytes = 128;
constexpr int warpgroup = 128, blockThreads = 3 * warpgroup;
constexpr int chunkRows = 64, chunkBytes = chunkRows * swizzleBytes;

template <int tileN>
struct TileShape {
  static constexpr int bytesA = tileM * sliceK * 2, bytesB = tileN * sliceK * 2, stageBytes = bytesA + bytesB;
  static constexpr int chunks = tileN == 192 ? 3 : 2;  // buffers of each warpgroup for its part of c
  static constexpr int stages = tileN == 128 ? 6 : 4;
  static constexpr int barriers = 2 * stages + 2 * chunks;
  static constexpr int sharedBytes = 1024 + stages * stageBytes + 2 * chunks * chunkBytes + barriers * 8;
};

/** Walks the tiles of a cluster: bands of `band` tile rows, in each column after column, back and forth. */
struct TileWalk {
  int rows, columns, band;  // in clusters' tiles
  __device__ __forceinline__ void at(int index, int& row, int& column) const {
    const int perBand = band * columns, b = index / perBand, inBand = index - b * perBand;
    const int height = min(band, rows - b * band);
    column = inBand / height;
    row = b * band + inBand - column * height;
    if (b & 1) column = columns - 1 - column;
  }
};

/** Low-rank pairs that touch columns n0 … n0 + tileN − 1. */
template <int tileN>
__device__ __forceinline__ bool touches(const WgmmaTerm& term, int n0) {
  return n0 < term.column + term.width && n0 + tileN > term.column;
}

/** A position in the ring of stages. */
template <int stages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/** Issued by one thread: slice k0 of a and b of one tile. */
template <int tileN, bool majorM, bool majorN>
__device__ __forceinline__ void loadSlice(const CUtensorMap* a, const CUtensorMap* b, int m0, int n0, int k0, uint32_t stage,
                                          uint32_t full, uint32_t rank, uint32_t cluster) {
  using Shape = TileShape<tileN>;
  barrierExpect(full, Shape::stageBytes);
  if constexpr (majorM) {
#pragma unroll
    for (int i = 0; i < tileM / boxElements; ++i) loadBox(stage + i * sliceK * swizzleBytes, a, m0 + i * boxElements, k0, full);
  } else {
    loadBox(stage, a, k0, m0, full);
  }
  const uint32_t target = stage + Shape::bytesA;
  if constexpr (majorN) {
#pragma unroll
    for (int i = 0; i < tileN / boxElements; ++i) {
      const uint32_t box = target + i * sliceK * swizzleBytes;
      if (cluster == 1) loadBox(box, b, n0 + i * boxElements, k0, full);
      else if ((i & 1) == static_cast<int>(rank)) loadBoxToAll(box, b, n0 + i * boxElements, k0, full, 3);
    }
  } else if (cluster == 1) {
    loadBox(target, b, k0, n0, full);
  } else {
    loadBoxToAll(target + rank * (Shape::bytesB / 2), b, k0, n0 + static_cast<int>(rank) * (tileN / 2), full, 3);
  }
}

__device__ __forceinline__ uint32_t packPair(float x, float y, bool half) {
  if (half) {
    const __half2 pair = __floats2half2_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float2 unpackPair(uint32_t bits, bool half) {
  if (half) return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
}

__device__ __forceinline__ float loadBias(const WgmmaParams& p, int column) {
  if (column >= p.n) return 0;
  const int64_t i = column * p.biasStride;
  if (p.biasType == DType::F32) return static_cast<const float*>(p.bias)[i];
  if (p.biasType == DType::F16) return widen(static_cast<const __half*>(p.bias)[i]);
  return widen(static_cast<const bf16*>(p.bias)[i]);
}

/** Adds alpha and bias to one thread's two columns in two rows: x = (row, row, row + 8, row + 8). */
__device__ __forceinline__ void finish(const WgmmaParams& p, int column, const float* d, float (&x)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) x[e] = d[e] * p.alpha;
  if (p.bias != nullptr) {
    const float first = loadBias(p, column), second = loadBias(p, column + 1);
    x[0] += first;
    x[1] += second;
    x[2] += first;
    x[3] += second;
  }
}

/** One chunk of 64 rows × 64 columns of 16 bits, from registers d to shared memory, added to what lies there if `adds`. */
template <bool adds>
__device__ __forceinline__ void writeChunk16(const WgmmaParams& p, const float* d, uint32_t buffer, int column0, bool half) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, row = 16 * warp + lane % 16;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const uint32_t address = buffer + row * swizzleBytes + (((2 * pair + lane / 16) ^ (row % 8)) << 4);
    const int column = column0 + 16 * pair + 2 * (lane % 4);
    float x[4], y[4];
    finish(p, column, d + 8 * pair, x);
    finish(p, column + 8, d + 8 * pair + 4, y);
    if constexpr (adds) {
      uint32_t s[4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(s[0]), "=r"(s[1]), "=r"(s[2]), "=r"(s[3])
                   : "r"(address)
                   : "memory");
      const float2 s0 = unpackPair(s[0], half), s1 = unpackPair(s[1], half), s2 = unpackPair(s[2], half), s3 = unpackPair(s[3], half);
      x[0] += s0.x, x[1] += s0.y, x[2] += s1.x, x[3] += s1.y;
      y[0] += s2.x, y[1] += s2.y, y[2] += s3.x, y[3] += s3.y;
    }
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(packPair(x[0], x[1], half)),
                 "r"(packPair(x[2], x[3], half)), "r"(packPair(y[0], y[1], half)), "r"(packPair(y[2], y[3], half))
                 : "memory");
  }
}

/** One chunk of 64 rows × 32 columns of fp32. */
template <bool adds>
__device__ __forceinline__ void writeChunk32(const WgmmaParams& p, const float* d, uint32_t buffer, int column0) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, row = 16 * warp + lane / 4;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float x[4];
    finish(p, column0 + 8 * j + 2 * (lane % 4), d + 4 * j, x);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t address = buffer + (row + 8 * h) * swizzleBytes + (((2 * j + lane % 4 / 2) ^ (row % 8)) << 4) + lane % 2 * 8;
      if constexpr (adds) {
        float s0, s1;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(s0), "=f"(s1) : "r"(address) : "memory");
        x[2 * h] += s0;
        x[2 * h + 1] += s1;
      }
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x[2 * h]), "f"(x[2 * h + 1]) : "memory");
    }
  }
}

/**
 * A warpgroup's 64 rows of c, chunk after chunk through its buffers. `adds`: the buffers hold the source, which `barriers` announce;
 * `round` counts how often each was filled.
 */
template <int tileN, bool wide, bool adds>
__device__ __forceinline__ void writeTile(const WgmmaParams& p, const float (&d)[tileN / 2], uint32_t buffers, uint32_t barriers, int row0,
                                          int n0, int part, uint32_t& round) {
  using Shape = TileShape<tileN>;
  constexpr int columns = wide ? 32 : 64, count = tileN / columns;
  const bool leader = threadIdx.x % warpgroup == 0;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const uint32_t buffer = buffers + i % Shape::chunks * chunkBytes, barrier = barriers + i % Shape::chunks * 8;
    const int column = n0 + i * columns;
    if constexpr (adds) {
      barrierWait(barrier, round & 1);
    } else {
      if (leader) storeWaitRead<Shape::chunks - 1>();
      namedBarrier(1 + part, warpgroup);
    }
    if constexpr (wide) writeChunk32<adds>(p, d + i * columns / 2, buffer, column);
    else writeChunk16<adds>(p, d + i * columns / 2, buffer, column, p.outType == DType::F16);
    proxyFence();
    namedBarrier(1 + part, warpgroup);
    if (leader) {
      storeBox(&p.c, column, row0, buffer);
      storeCommit();
      if (adds && i + Shape::chunks < count) {
        storeWaitRead<0>();
        barrierExpect(barrier, chunkBytes);
        loadBox(buffer, &p.source, column + Shape::chunks * columns, row0, barrier);
      }
    }
    __syncwarp();
    if (i % Shape::chunks == Shape::chunks - 1) ++round;
  }
}

template <class T, int tileN, bool majorM, bool majorN>
__global__ void __launch_bounds__(blockThreads, 1) gemmWgmmaKernel(const __grid_constant__ WgmmaParams p) {
  using Shape = TileShape<tileN>;
  extern __shared__ uint8_t memory[];
  const uint32_t base = (sharedAddress(memory) + 1023) & ~1023u;
  const uint32_t buffers = base + Shape::stages * Shape::stageBytes;
  const uint32_t full = buffers + 2 * Shape::chunks * chunkBytes, empty = full + 8 * Shape::stages;
  const uint32_t sourceBarriers = empty + 8 * Shape::stages;
  const uint32_t rank = clusterRank(), cluster = clusterSize();
  const int group = __shfl_sync(0xffffffff, threadIdx.x / warpgroup, 0);  // the same in a warp, and known to be

  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::stages; ++i) {
      barrierInit(full + 8 * i, 1);
      barrierInit(empty + 8 * i, 2 * cluster);
    }
    for (int i = 0; i < 2 * Shape::chunks; ++i) barrierInit(sourceBarriers + 8 * i, 1);
    barrierInitFence();
  }
  __syncthreads();
  clusterSync();

  const TileWalk walk{p.tileRows, p.tileColumns, p.band};
  const int tiles = p.tileRows * p.tileColumns;
  const int first = blockIdx.x / cluster, step = gridDim.x / cluster;
  Ring<Shape::stages> ring;

  if (group == 0) {
    fewerRegisters<40>();
    if (threadIdx.x == 0) {
      const auto produce = [&](const CUtensorMap* a, const CUtensorMap* b, int m0, int n0, int k0) {
        barrierWait(empty + 8 * ring.stage, ring.parity ^ 1);
        loadSlice<tileN, majorM, majorN>(a, b, m0, n0, k0, base + ring.stage * Shape::stageBytes, full + 8 * ring.stage, rank, cluster);
        ring.next();
      };
      for (int tile = first; tile < tiles; tile += step) {
        int row, column;
        walk.at(tile, row, column);
        const int m0 = (row * static_cast<int>(cluster) + static_cast<int>(rank)) * tileM, n0 = column * tileN;
        for (int slice = 0; slice < p.slices; ++slice) produce(&p.a, &p.b, m0, n0, slice * sliceK);
        for (int j = 0; j < p.termCount; ++j)
          if (touches<tileN>(p.terms[j], n0))
            for (int k0 = 0; k0 < p.terms[j].rank; k0 += sliceK) produce(&p.terms[j].a, &p.terms[j].b, m0, n0 - p.terms[j].column, k0);
      }
    }
  } else {
    moreRegisters<232>();
    const int part = group - 1;
    const bool leader = threadIdx.x % warpgroup == 0;
    const uint32_t buffersOfGroup = buffers + part * Shape::chunks * chunkBytes;
    const uint32_t barriersOfGroup = sourceBarriers + 8 * part * Shape::chunks;
    const int chunkColumns = p.outType == DType::F32 ? 32 : 64;
    constexpr uint64_t stepA = (majorM ? 16 * swizzleBytes : 32) >> 4, stepB = (majorN ? 16 * swizzleBytes : 32) >> 4;
    const uint64_t descriptorA = operandDescriptor(base + part * 64 * swizzleBytes, sliceK * swizzleBytes);
    const uint64_t descriptorB = operandDescriptor(base + Shape::bytesA, sliceK * swizzleBytes);
    uint32_t round = 0;
    float d[tileN / 2];

    for (int tile = first; tile < tiles; tile += step) {
      int row, column;
      walk.at(tile, row, column);
      const int row0 = (row * static_cast<int>(cluster) + static_cast<int>(rank)) * tileM + part * 64, n0 = column * tileN;
      int keep = 0, previous = -1;
      const auto release = [&](int stage) {
        if (threadIdx.x % warpgroup < cluster) barrierArriveAt(empty + 8 * stage, threadIdx.x % warpgroup);
      };
      for (int slice = 0; slice < p.slices; ++slice) {
        barrierWait(full + 8 * ring.stage, ring.parity);
        const uint64_t at = static_cast<uint64_t>(ring.stage * (Shape::stageBytes >> 4));
        wgmmaFence();
#pragma unroll
        for (int k = 0; k < sliceK / 16; ++k) {
          wgmma<T, tileN, majorM, majorN>(d, descriptorA + at + k * stepA, descriptorB + at + k * stepB, keep);
          keep = 1;
        }
        wgmmaCommit();
        wgmmaWait<1>();
        if (slice > 0) {
          release(previous);
        } else if (p.hasSource && leader) {
          storeWaitRead<0>();
          for (int i = 0; i < Shape::chunks; ++i) {
            barrierExpect(barriersOfGroup + 8 * i, chunkBytes);
            loadBox(buffersOfGroup + i * chunkBytes, &p.source, n0 + i * chunkColumns, row0, barriersOfGroup + 8 * i);
          }
          for (int i = Shape::chunks; i * chunkColumns < tileN; ++i) prefetchBox(&p.source, n0 + i * chunkColumns, row0);
        }
        __syncwarp();
        previous = ring.stage;
        ring.next();
      }
      for (int j = 0; j < p.termCount; ++j) {
        if (!touches<tileN>(p.terms[j], n0)) continue;
        for (int k0 = 0; k0 < p.terms[j].rank; k0 += sliceK) {
          barrierWait(full + 8 * ring.stage, ring.parity);
          const uint64_t at = static_cast<uint64_t>(ring.stage * (Shape::stageBytes >> 4));
          const int steps = min(sliceK, p.terms[j].rank - k0 + 15) / 16;
          wgmmaFence();
#pragma unroll 1
          for (int k = 0; k < steps; ++k) wgmma<T, tileN, majorM, majorN>(d, descriptorA + at + k * stepA, descriptorB + at + k * stepB, 1);
          wgmmaCommit();
          wgmmaWait<1>();
          release(previous);
          previous = ring.stage;
          ring.next();
        }
      }
      wgmmaWait<0>();
      release(previous);
      const auto write = [&]<bool wide, bool adds>() {
        writeTile<tileN, wide, adds>(p, d, buffersOfGroup, barriersOfGroup, row0, n0, part, round);
      };
      if (p.outType == DType::F32) p.hasSource ? write.template operator()<true, true>() : write.template operator()<true, false>();
      else p.hasSource ? write.template operator()<false, true>() : write.template operator()<false, false>();
    }
    if (leader) storeWaitRead<0>();
  }
  clusterSync();
}

}  // namespace unsloth::cuda::sm90
