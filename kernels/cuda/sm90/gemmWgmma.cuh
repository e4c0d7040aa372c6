#pragma once
#include "../element.cuh"
#include "../launch.cuh"
#include "gemmSplitK.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

/**
 * c[m,n] = alpha·(op(a)·op(b) + Σ_j a_j·op(b_j)) + bias + source, 16-bit operands, fp32 sums: 2mnk FLOPs. A block computes tiles
 * of 128 × tileN, one warpgroup 64 rows each, while a third warpgroup brings slices of 64 of k through the tensor memory
 * accelerator into a ring of stages. Blocks stay until the tiles are used up. Two blocks of a cluster work at tiles one above the
 * other and send each other half of b. A low-rank pair is further slices of the same sum: the maps read as zero beyond the rank
 * and outside the columns of the pair.
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
  static constexpr int sharedBytes = stages * stageBytes + 2 * chunks * chunkBytes + 2 * tileN * 4 + barriers * 8;
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

/** Issued by one thread: the slice of a from (m0, kA) on and that of b from (n0, kB) on. */
template <int tileN, bool majorM, bool majorN>
__device__ __forceinline__ void loadSlice(const CUtensorMap* a, int m0, int kA, const CUtensorMap* b, int n0, int kB,
                                          uint32_t stage, uint32_t full, uint32_t rank, uint32_t cluster) {
  using Shape = TileShape<tileN>;
  barrierExpect(full, Shape::stageBytes);
  if constexpr (majorM) {
#pragma unroll
    for (int i = 0; i < tileM / boxElements; ++i) loadBox(stage + i * sliceK * swizzleBytes, a, m0 + i * boxElements, kA, full);
  } else {
    loadBox(stage, a, kA, m0, full);
  }
  const uint32_t target = stage + Shape::bytesA;
  if constexpr (majorN) {
#pragma unroll
    for (int i = 0; i < tileN / boxElements; ++i) {
      const uint32_t box = target + i * sliceK * swizzleBytes;
      if (cluster == 1) loadBox(box, b, n0 + i * boxElements, kB, full);
      else if ((i & 1) == static_cast<int>(rank)) loadBoxToAll(box, b, n0 + i * boxElements, kB, full, 3);
    }
  } else if (cluster == 1) {
    loadBox(target, b, kB, n0, full);
  } else {
    loadBoxToAll(target + rank * (Shape::bytesB / 2), b, kB, n0 + static_cast<int>(rank) * (tileN / 2), full, 3);
  }
}

template <class T>
__device__ __forceinline__ uint32_t packPair(float x, float y) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

template <class T>
__device__ __forceinline__ float2 unpackPair(uint32_t bits) {
  if constexpr (std::is_same_v<T, __half>) return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  else return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
}

__device__ __forceinline__ float loadBias(const WgmmaParams& p, int column) {
  if (p.bias == nullptr || column >= p.n) return 0;
  if (p.biasType == DType::F32) return static_cast<const float*>(p.bias)[column];
  if (p.biasType == DType::F16) return widen(static_cast<const __half*>(p.bias)[column]);
  return widen(static_cast<const bf16*>(p.bias)[column]);
}

/** The bias of one thread's columns of a chunk, from shared memory: pair j is columns 8j and 8j + 1. */
template <int pairs>
__device__ __forceinline__ void readBias(uint32_t list, float2 (&bias)[pairs]) {
#pragma unroll
  for (int j = 0; j < pairs; ++j)
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(bias[j].x), "=f"(bias[j].y)
                 : "r"(list + 32 * j + threadIdx.x % 4 * 8)
                 : "memory");
}

/** One chunk of 64 rows × 64 columns of T, from registers d to shared memory, added to what lies there if `adds`. */
template <class T, bool adds>
__device__ __forceinline__ void writeChunk16(const float* d, float alpha, const float2 (&bias)[8], uint32_t buffer) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, row = 16 * warp + lane % 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t address = buffer + row * swizzleBytes + (((2 * i + lane / 16) ^ (row % 8)) << 4);
    float2 x[4];  // (row, pair 2i), (row + 8, pair 2i), (row, pair 2i + 1), (row + 8, pair 2i + 1)
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float2 b = bias[2 * i + q / 2];
      x[q] = make_float2(fmaf(alpha, d[8 * i + 2 * q], b.x), fmaf(alpha, d[8 * i + 2 * q + 1], b.y));
    }
    if constexpr (adds) {
      uint32_t s[4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(s[0]), "=r"(s[1]), "=r"(s[2]), "=r"(s[3])
                   : "r"(address)
                   : "memory");
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float2 v = unpackPair<T>(s[q]);
        x[q].x += v.x;
        x[q].y += v.y;
      }
    }
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(packPair<T>(x[0].x, x[0].y)), "r"(packPair<T>(x[1].x, x[1].y)), "r"(packPair<T>(x[2].x, x[2].y)),
                 "r"(packPair<T>(x[3].x, x[3].y))
                 : "memory");
  }
}

/** One chunk of 64 rows × 32 columns of fp32. */
template <bool adds>
__device__ __forceinline__ void writeChunk32(const float* d, float alpha, const float2 (&bias)[4], uint32_t buffer) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, row = 16 * warp + lane / 4;
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t address = buffer + (row + 8 * h) * swizzleBytes + (((2 * j + lane % 4 / 2) ^ (row % 8)) << 4) + lane % 2 * 8;
      float2 x = make_float2(fmaf(alpha, d[4 * j + 2 * h], bias[j].x), fmaf(alpha, d[4 * j + 2 * h + 1], bias[j].y));
      if constexpr (adds) {
        float2 s;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(s.x), "=f"(s.y) : "r"(address) : "memory");
        x.x += s.x;
        x.y += s.y;
      }
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x.x), "f"(x.y) : "memory");
    }
}

/**
 * A warpgroup's 64 rows of c, chunk after chunk through its buffers. `adds`: the buffers hold the source, which `barriers`
 * announce; `round` counts how often each was filled.
 */
template <class T, int tileN, bool wide, bool adds>
__device__ __forceinline__ void writeTile(const WgmmaParams& p, const float (&d)[tileN / 2], uint32_t buffers, uint32_t barriers,
                                          uint32_t biasList, int row0, int n0, int part, uint32_t& round) {
  using Shape = TileShape<tileN>;
  constexpr int columns = wide ? 32 : 64, count = tileN / columns;
  const bool leader = threadIdx.x % warpgroup == 0;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const uint32_t buffer = buffers + i % Shape::chunks * chunkBytes, barrier = barriers + i % Shape::chunks * 8;
    const int column = n0 + i * columns;
    float2 bias[columns / 8] = {};
    if (p.bias != nullptr) readBias(biasList + i * columns * 4, bias);
    if constexpr (adds) {
      barrierWait(barrier, round & 1);
    } else {
      if (leader) storeWaitRead<Shape::chunks - 1>();
      namedBarrier(1 + part, warpgroup);
    }
    if constexpr (wide) writeChunk32<adds>(d + i * columns / 2, p.alpha, bias, buffer);
    else writeChunk16<T, adds>(d + i * columns / 2, p.alpha, bias, buffer);
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
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = sharedAddress(memory);
  const uint32_t buffers = base + Shape::stages * Shape::stageBytes;
  const uint32_t biasLists = buffers + 2 * Shape::chunks * chunkBytes;  // tileN numbers of fp32 for each warpgroup
  const uint32_t full = biasLists + 2 * tileN * 4, empty = full + 8 * Shape::stages;
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
  awaitPrior();
  __syncthreads();
  clusterSync();

  const TileWalk walk{p.tileRows, p.tileColumns, p.band};
  PieceWalk pieces(p, blockIdx.x / cluster, gridDim.x / cluster);
  Piece piece;
  Ring<Shape::stages> ring;

  if (group == 0) {
    fewerRegisters<40>();
    if (threadIdx.x == 0) {
      const auto produce = [&](const CUtensorMap* a, const CUtensorMap* b, int m0, int n0, int k0) {
        barrierWait(empty + 8 * ring.stage, ring.parity ^ 1);
        const uint32_t stage = base + ring.stage * Shape::stageBytes;
        loadSlice<tileN, majorM, majorN>(a, m0, k0, b, n0, k0, stage, full + 8 * ring.stage, rank, cluster);
        ring.next();
      };
      while (pieces.next(piece)) {
        int row, column;
        walk.at(piece.tile, row, column);
        const int m0 = (row * static_cast<int>(cluster) + static_cast<int>(rank)) * tileM, n0 = column * tileN;
        for (int slice = piece.begin; slice < piece.end; ++slice) produce(&p.a, &p.b, m0, n0, slice * sliceK);
        for (int j = 0; piece.owned() && j < p.termCount; ++j)
          if (touches<tileN>(p.terms[j], n0))
            for (int k0 = 0; k0 < p.terms[j].rank; k0 += sliceK)
              produce(&p.terms[j].a, &p.terms[j].b, m0, n0 - p.terms[j].column, k0);
      }
    }
  } else {
    moreRegisters<232>();
    const int part = group - 1;
    const bool leader = threadIdx.x % warpgroup == 0;
    const uint32_t buffersOfGroup = buffers + part * Shape::chunks * chunkBytes;
    const uint32_t barriersOfGroup = sourceBarriers + 8 * part * Shape::chunks;
    const uint32_t biasList = biasLists + part * tileN * 4;
    const int chunkColumns = p.outType == DType::F32 ? 32 : 64;
    constexpr uint64_t stepA = (majorM ? 16 * swizzleBytes : 32) >> 4, stepB = (majorN ? 16 * swizzleBytes : 32) >> 4;
    const uint64_t descriptorA = operandDescriptor(base + part * 64 * swizzleBytes, sliceK * swizzleBytes);
    const uint64_t descriptorB = operandDescriptor(base + Shape::bytesA, sliceK * swizzleBytes);
    uint32_t round = 0;
    float d[tileN / 2];

    while (pieces.next(piece)) {
      int row, column;
      walk.at(piece.tile, row, column);
      const int row0 = (row * static_cast<int>(cluster) + static_cast<int>(rank)) * tileM + part * 64, n0 = column * tileN;
      int keep = 0, previous = -1;
      float bias[2];  // of columns t and t + 128: asked for long before it is needed, when the way from L2 is free
#pragma unroll
      for (int i = 0; i < 2; ++i) bias[i] = loadBias(p, n0 + i * warpgroup + threadIdx.x % warpgroup);
      const auto release = [&](int stage) {
        if (threadIdx.x % warpgroup < cluster) barrierArriveAt(empty + 8 * stage, threadIdx.x % warpgroup);
      };
      for (int slice = piece.begin; slice < piece.end; ++slice) {
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
        if (slice > piece.begin) {
          release(previous);
        } else if (p.hasSource && leader && piece.owned()) {
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
      for (int j = 0; piece.owned() && j < p.termCount; ++j) {
        if (!touches<tileN>(p.terms[j], n0)) continue;
        for (int k0 = 0; k0 < p.terms[j].rank; k0 += sliceK) {
          barrierWait(full + 8 * ring.stage, ring.parity);
          const uint64_t at = static_cast<uint64_t>(ring.stage * (Shape::stageBytes >> 4));
          const int steps = min(sliceK, p.terms[j].rank - k0 + 15) / 16;
          wgmmaFence();
#pragma unroll 1
          for (int k = 0; k < steps; ++k)
            wgmma<T, tileN, majorM, majorN>(d, descriptorA + at + k * stepA, descriptorB + at + k * stepB, 1);
          wgmmaCommit();
          wgmmaWait<1>();
          release(previous);
          previous = ring.stage;
          ring.next();
        }
      }
      wgmmaWait<0>();
      release(previous);
      if (!piece.owned()) {
        leavePartial(p, d, part);
        continue;
      }
      if (piece.end < p.slices) addPartials(p, d, piece, part, static_cast<int>(cluster));
      if (p.bias != nullptr) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = i * warpgroup + threadIdx.x % warpgroup;
          if (column < tileN) asm volatile("st.shared.f32 [%0], %1;" ::"r"(biasList + 4 * column), "f"(bias[i]) : "memory");
        }
        namedBarrier(1 + part, warpgroup);
      }
      const auto write = [&]<bool wide, bool adds>() {
        writeTile<T, tileN, wide, adds>(p, d, buffersOfGroup, barriersOfGroup, biasList, row0, n0, part, round);
      };
      if (p.outType == DType::F32)
        p.hasSource ? write.template operator()<true, true>() : write.template operator()<true, false>();
      else p.hasSource ? write.template operator()<false, true>() : write.template operator()<false, false>();
    }
    if (leader) storeWaitRead<0>();
  }
  clusterSync();
}

}  // namespace unsloth::cuda::sm90
