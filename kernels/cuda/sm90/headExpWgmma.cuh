#pragma once
#include "clusters.cuh"
#include "gemmWgmma.cuh"

/** The logits of a head, turned into e (sm90/headLossWgmma.cu) on their way out of the product. */
namespace unsloth::cuda::sm90 {

constexpr int expColumns = 192, expStages = 5, expRows = 128;
constexpr int bytesH = expRows * sliceK * 2, expStageBytes = bytesH + expColumns * sliceK * 2;
constexpr int expSharedBytes = expStages * expStageBytes + 2 * chunkBytes + 2 * expStages * 8;
constexpr float mostSum = 0x1p86f;  // of e in one row of a tile: V times as much, and its product with w, stay finite

struct ExpParams {
  CUtensorMap h, w, e;
  TileWalk walk;
  int rows, vocabulary, slices, ldSums;
  float scaleLog2;        // scale·log2(e) > 0
  const int32_t* labels;  // of the rows of this chunk, like the next two
  const float* base;      // the logarithm, to base 2, of what exp(z) is divided by
  float* highest;         // base, or the largest where that overflows
  unsigned* again;        // for each row of clusters' tiles: whether one of its rows overflows
  float* sums;            // [192 columns each, ldSums]
  bool repair;            // only rows of tiles with `again`, relative to `highest`, which nobody changes then
};

__device__ __forceinline__ float exp2Fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/** atomicMax for numbers that are not NaN. */
__device__ __forceinline__ void raise(float* at, float value) {
  if (value >= 0) atomicMax(reinterpret_cast<int*>(at), __float_as_int(value));
  else atomicMin(reinterpret_cast<unsigned*>(at), __float_as_uint(value));
}

struct TilePlace {
  int row, column;  // of clusters' tiles
};

/** The tiles of one cluster in order. */
class ExpTiles {
 public:
  __device__ __forceinline__ ExpTiles(const ExpParams& p, int cluster, int clusters) : p_(p), at_(cluster), step_(clusters) {}

  __device__ __forceinline__ bool next(TilePlace& place) {
    for (; at_ < p_.walk.rows * p_.walk.columns; at_ += step_) {
      p_.walk.at(at_, place.row, place.column);
      if (p_.repair && p_.again[place.row] == 0) continue;
      at_ += step_;
      return true;
    }
    return false;
  }

 private:
  const ExpParams& p_;
  int at_, step_;
};

/** What a thread knows of its two rows among 64: row and row + 8. */
struct RowPair {
  int row;  // of the chunk
  float base[2];
  int label[2];  // column within the tile; < 0 or beyond the tile where it is none of its
};

__device__ __forceinline__ RowPair rowPair(const ExpParams& p, int first, int n0) {
  RowPair pair;
  pair.row = first + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = pair.row + 8 * i;
    const bool inside = row < p.rows;
    pair.base[i] = inside ? (p.repair ? p.highest : p.base)[row] : 0;
    pair.label[i] = inside ? p.labels[row] - n0 : -1;
  }
  return pair;
}

/** 64 rows of a tile: e and its sums. `limit`: columns of the tile that there are. `tileRow`: as for `again`. */
template <bool writes>
__device__ __forceinline__ void finishRows(const ExpParams& p, float (&d)[expColumns / 2], const RowPair& rows, int row0, int n0,
                                           int limit, int tileRow, uint32_t buffer, int part) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const bool leader = threadIdx.x % warpgroup == 0;
  const auto inTile = [](int label) { return static_cast<unsigned>(label) < expColumns; };
  if (__any_sync(~0u, limit < expColumns || inTile(rows.label[0]) || inTile(rows.label[1]))) {
#pragma unroll
    for (int j = 0; j < expColumns / 2; ++j) {
      const int c = j / 4 * 8 + lane % 4 * 2 + j % 2;
      if (c >= limit || c == rows.label[j / 2 % 2]) d[j] = -INFINITY;
    }
  }
  float sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < expColumns / 64; ++i) {
    uint32_t packed[16];
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const float base = -rows.base[j % 2];
      const float x = exp2Fast(fmaf(d[32 * i + 2 * j], p.scaleLog2, base));
      const float y = exp2Fast(fmaf(d[32 * i + 2 * j + 1], p.scaleLog2, base));
      sum[j % 2] += x + y;
      if constexpr (writes) packed[j] = packPair<bf16>(x, y);
    }
    if constexpr (writes) {
      if (leader) storeWaitRead<0>();
      namedBarrier(1 + part, warpgroup);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int row = 16 * warp + lane % 16;
        const uint32_t address = buffer + row * swizzleBytes + (((2 * q + lane / 16) ^ (row % 8)) << 4);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(packed[4 * q]),
                     "r"(packed[4 * q + 1]), "r"(packed[4 * q + 2]), "r"(packed[4 * q + 3])
                     : "memory");
      }
      proxyFence();
      namedBarrier(1 + part, warpgroup);
      if (leader) {
        storeBox(&p.e, n0 + 64 * i, row0, buffer);
        storeCommit();
      }
      __syncwarp();
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = rows.row + 8 * i;
    sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
    sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
    if (row >= p.rows) continue;
    if (lane % 4 == 0) p.sums[static_cast<int64_t>(n0 / expColumns) * p.ldSums + row] = sum[i];
    if (p.repair || sum[i] <= mostSum) continue;
    float top = -INFINITY;
#pragma unroll
    for (int j = 0; j < expColumns / 4; ++j) top = fmaxf(top, fmaxf(d[4 * (j / 2) + 2 * i], d[4 * (j / 2) + 2 * i + 1]));
    raise(p.highest + row, top * p.scaleLog2);
    p.again[tileRow] = 1;
  }
}

/**
 * e[rows, V] = exp(scale·h·wᵀ − base) and its sums over each tile: 2mHV FLOPs. A block's two warpgroups take turns: while one
 * computes the product of a tile of 128 × 192, the other turns its own into e. `writes`: e itself is wanted.
 */
template <bool writes>
__global__ void __launch_bounds__(blockThreads, 1) headExpKernel(const __grid_constant__ ExpParams p) {
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = sharedAddress(memory), buffers = base + expStages * expStageBytes;
  const uint32_t full = buffers + 2 * chunkBytes, empty = full + 8 * expStages;
  const ClusterPlace here = clusterPlace();
  const int group = __shfl_sync(0xffffffff, threadIdx.x / warpgroup, 0);

  awaitPrior();
  if (p.repair) {
    unsigned any = 0;
    for (int i = 0; i < p.walk.rows; ++i) any |= p.again[i];
    if (any == 0) return;
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < expStages; ++i) {
      barrierInit(full + 8 * i, 1);
      barrierInit(empty + 8 * i, here.size);
    }
    barrierInitFence();
  }
  __syncthreads();
  clusterSync();

  ExpTiles tiles(p, static_cast<int>(blockIdx.x) / here.size, static_cast<int>(gridDim.x) / here.size);
  TilePlace place;
  Ring<expStages> ring;

  if (group == 0) {
    fewerRegisters<24>();
    if (threadIdx.x == 0) {
      while (tiles.next(place)) {
        const int m0 = here.tileRow(place.row) * expRows, n0 = place.column * expColumns;
        for (int slice = 0; slice < p.slices; ++slice) {
          const uint32_t stage = base + ring.stage * expStageBytes, barrier = full + 8 * ring.stage;
          barrierWait(empty + 8 * ring.stage, ring.parity ^ 1);
          barrierExpect(barrier, expStageBytes);
          loadBox(stage, &p.h, slice * sliceK, m0, barrier);
          here.loadColumns<expColumns>(stage + bytesH, &p.w, slice * sliceK, n0, barrier);
          ring.next();
        }
      }
    }
  } else {
    moreRegisters<240>();
    const int part = group - 1;
    constexpr int turn = 3;  // named barriers turn and turn + 1: the warpgroup's turn at the tensor cores
    const uint64_t descriptorH = operandDescriptor(base), descriptorW = operandDescriptor(base + bytesH);
    constexpr uint64_t half = (64 * swizzleBytes) >> 4;
    float upper[expColumns / 2], lower[expColumns / 2];
    TilePlace following;
    bool left = tiles.next(place);
    for (int index = 0; left; ++index) {
      const bool more = tiles.next(following);
      if (index % 2 != part) {
        for (int slice = 0; slice < p.slices; ++slice) ring.next();
      } else {
        if (index > 0) namedBarrier(turn + part, 2 * warpgroup);
        const auto release = [&](int stage) { here.release(empty + 8 * stage); };
        int keep = 0, previous = -1;
        for (int slice = 0; slice < p.slices; ++slice) {
          barrierWait(full + 8 * ring.stage, ring.parity);
          const uint64_t at = static_cast<uint64_t>(ring.stage * (expStageBytes >> 4));
          wgmmaFence();
#pragma unroll
          for (int k = 0; k < sliceK / 16; ++k) {
            wgmma<bf16, expColumns, 0, 0>(upper, descriptorH + at + 2 * k, descriptorW + at + 2 * k, keep);
            wgmma<bf16, expColumns, 0, 0>(lower, descriptorH + at + half + 2 * k, descriptorW + at + 2 * k, keep);
            keep = 1;
          }
          wgmmaCommit();
          wgmmaWait<1>();
          if (slice > 0) release(previous);
          __syncwarp();
          previous = ring.stage;
          ring.next();
        }
        if (more) namedArrive(turn + 1 - part, 2 * warpgroup);
        const int m0 = here.tileRow(place.row) * expRows, n0 = place.column * expColumns;
        const RowPair rows = rowPair(p, m0, n0);
        wgmmaWait<0>();
        pin(upper);
        pin(lower);
        release(previous);
        __syncwarp();
        const int limit = p.vocabulary - n0;
        const uint32_t buffer = buffers + part * chunkBytes;
        finishRows<writes>(p, upper, rows, m0, n0, limit, place.row, buffer, part);
        finishRows<writes>(p, lower, rowPair(p, m0 + 64, n0), m0 + 64, n0, limit, place.row, buffer, part);
      }
      place = following;
      left = more;
    }
    if (threadIdx.x % warpgroup == 0) storeWaitRead<0>();
  }
  clusterSync();
}

}  // namespace unsloth::cuda::sm90
