#pragma once
#include "../launch.cuh"
#include "gemmWgmmaGlu.cuh"
#include "wgmma.cuh"

/**
 * c[m,n] = alpha·(op(a)·op(b) + Σ_j a_j·op(b_j)) + bias + source, 16-bit operands, fp32 sums: 2mnk FLOPs. A block computes tiles
 * of 128 × tileN, one warpgroup 64 rows each, while a third warpgroup brings slices of 64 of k through the tensor memory
 * accelerator into a ring of stages. Blocks stay until the tiles are used up. Two blocks of a cluster work at tiles one above the
 * other and send each other half of b. A low-rank pair is further slices of the same sum: the maps read as zero beyond the rank
 * and outside the columns of the pair.
 */
namespace unsloth::cuda::sm90 {

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

/**
 * Issued by one thread: the slice of a from (m0, kA) on and that of b from (n0, kB) on. Blocks first … first + cluster − 1 of the
 * hardware's cluster share b; this is number `rank` of them. `apart`: how far from the first tileN / 2
 * rows of b (K-major) its others lie, where that is not next to them.
 */
template <int tileN, bool majorM, bool majorN, bool split = false>
__device__ __forceinline__ void loadSlice(const CUtensorMap* a, int m0, int kA, const CUtensorMap* b, int n0, int kB,
                                          uint32_t stage, uint32_t full, uint32_t rank, uint32_t cluster, int apart = tileN / 2,
                                          uint32_t first = 0) {
  using Shape = TileShape<tileN>;
  barrierExpect(full, Shape::bytesA + (majorN ? Shape::bytesB : tileN * swizzleBytes));
  if constexpr (majorM) {
#pragma unroll
    for (int i = 0; i < tileM / boxElements; ++i) loadBox(stage + i * sliceK * swizzleBytes, a, m0 + i * boxElements, kA, full);
  } else {
    loadBox(stage, a, kA, m0, full);
  }
  const uint32_t target = stage + Shape::bytesA;
  const auto sharers = static_cast<uint16_t>(3 << first);
  if constexpr (majorN) {
#pragma unroll
    for (int i = 0; i < Shape::boxesB; ++i) {
      const uint32_t box = target + i * sliceK * swizzleBytes;
      if (cluster == 1) loadBox(box, b, n0 + i * boxElements, kB, full);
      else if ((i & 1) == static_cast<int>(rank)) loadBoxToAll(box, b, n0 + i * boxElements, kB, full, sharers);
    }
  } else if (cluster == 1) {
    loadBox(target, b, kB, n0, full);
    if constexpr (split) loadBox(target + Shape::bytesB / 2, b, kB, n0 + apart, full);
  } else {
    loadBoxToAll(target + rank * (tileN / 2 * swizzleBytes), b, kB, n0 + static_cast<int>(rank) * apart, full, sharers);
  }
}

/** `withGlu`: the columns of a tile are 128 of gate and those of up that belong to them; see writeGlu. */
template <class T, int tileN, bool majorM, bool majorN, bool withGlu = false>
__global__ void __launch_bounds__(blockThreads, 1) gemmWgmmaKernel(const __grid_constant__ WgmmaParams p) {
  static_assert(!withGlu || (tileN == 2 * gluStep && !majorM && !majorN));
  using Shape = TileShape<tileN>;
  constexpr int stepN = withGlu ? gluStep : tileN;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = sharedAddress(memory);
  const uint32_t buffers = base + Shape::stages * Shape::stageBytes;
  const uint32_t biasLists = buffers + 2 * Shape::chunks * chunkBytes;  // tileN numbers of fp32 for each warpgroup
  const uint32_t full = biasLists + 2 * tileN * 4, empty = full + 8 * Shape::stages;
  const uint32_t sourceBarriers = empty + 8 * Shape::stages;
  const uint32_t cluster = static_cast<uint32_t>(p.pair), rank = clusterRank() % cluster, first = clusterRank() - rank;
  const int share = static_cast<int>(first / cluster);
  const bool together = !withGlu && p.shares > 1 && p.partial == nullptr;
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
  const int apart = withGlu ? p.apart : tileN / 2;
  const auto within = [&](const WgmmaTerm& term, int n0) {
    return touches<stepN>(term, n0) || (withGlu && touches<stepN>(term, n0 + apart));
  };
  PieceWalk pieces(p, blockIdx.x / clusterSize(), gridDim.x / clusterSize(), share);
  Piece piece;
  Ring<Shape::stages> ring;

  if (group == 0) {
    fewerRegisters<40>();
    if (threadIdx.x == 0) {
      const auto produce = [&](const CUtensorMap* a, const CUtensorMap* b, int m0, int n0, int k0) {
        barrierWait(empty + 8 * ring.stage, ring.parity ^ 1);
        const uint32_t stage = base + ring.stage * Shape::stageBytes;
        loadSlice<tileN, majorM, majorN, withGlu>(a, m0, k0, b, n0, k0, stage, full + 8 * ring.stage, rank, cluster, apart,
                                                 first);
        ring.next();
      };
      while (pieces.next(piece)) {
        int row, column;
        walk.at(piece.tile, row, column);
        const int m0 = (row * static_cast<int>(cluster) + static_cast<int>(rank)) * tileM, n0 = column * stepN;
        for (int slice = piece.begin; slice < piece.end; ++slice) produce(&p.a, &p.b, m0, n0, slice * sliceK);
        for (int j = 0; piece.owned() && j < p.termCount; ++j)
          if (within(p.terms[j], n0))
            for (int k0 = 0; k0 < p.terms[j].rank; k0 += sliceK)
              produce(&p.terms[j].a, &p.terms[j].b, m0, n0 - p.terms[j].column, k0);
      }
    }
    if (together) clusterSync();
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
      const int row0 = (row * static_cast<int>(cluster) + static_cast<int>(rank)) * tileM + part * 64, n0 = column * stepN;
      int keep = 0, previous = -1;
      float bias[2];  // of columns t and t + 128: asked for long before it is needed, when the way from L2 is free
#pragma unroll
      for (int i = 0; i < 2; ++i) bias[i] = withGlu ? 0 : loadBias(p, n0 + i * warpgroup + threadIdx.x % warpgroup);
      const auto release = [&](int stage) {
        if (threadIdx.x % warpgroup < cluster) barrierArriveAt(empty + 8 * stage, first + threadIdx.x % warpgroup);
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
        } else if (!withGlu && p.hasSource && leader && piece.owned() && !together) {
          storeWaitRead<0>();
          const auto startOf = [&](int chunk) { return n0 + min(chunk * chunkColumns, tileN - chunkColumns); };
          for (int i = 0; i < Shape::chunks; ++i) {
            barrierExpect(barriersOfGroup + 8 * i, chunkBytes);
            loadBox(buffersOfGroup + i * chunkBytes, &p.source, startOf(i), row0, barriersOfGroup + 8 * i);
          }
          for (int i = Shape::chunks; i * chunkColumns < tileN; ++i) prefetchBox(&p.source, startOf(i), row0);
        }
        __syncwarp();
        previous = ring.stage;
        ring.next();
      }
      for (int j = 0; piece.owned() && j < p.termCount; ++j) {
        if (!within(p.terms[j], n0)) continue;
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
      if (together) {
        namedBarrier(3, 2 * warpgroup);  // nobody reads stages any more: the sums take their place
        leaveSums<tileN>(d, base, part);
        clusterSync();
        writeShare<T, tileN>(p, base, share, rank, threadIdx.x - warpgroup, row0 - part * 64, n0);
        continue;
      }
      if (!piece.owned()) {
        leavePartial(p, d, part);
        continue;
      }
      if (p.shares > 1) addPartials(p, d, part);
      if constexpr (withGlu) {
        const int warp = threadIdx.x / 32 % 4;
        withKind<3>(p.activation, [&](auto kind) {
          writeGlu<T, decltype(kind)::value>(p, d, buffersOfGroup + 2 * warp * gluBoxBytes, row0 + gluBoxRows * warp, n0);
        });
        continue;
      }
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
      if (takesWide<tileN> && p.outType == DType::F32)
        p.hasSource ? write.template operator()<takesWide<tileN>, true>() : write.template operator()<takesWide<tileN>, false>();
      else p.hasSource ? write.template operator()<false, true>() : write.template operator()<false, false>();
    }
    if (withGlu ? threadIdx.x % 32 == 0 : leader) storeWaitRead<0>();
  }
  clusterSync();
}

}  // namespace unsloth::cuda::sm90
