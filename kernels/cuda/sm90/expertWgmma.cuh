#pragma once
#include "../launch.cuh"
#include "gemmWgmma.cuh"

/**
 * expertGemm for 16-bit operands in tiles of 128 × tileN, with the pipeline of gemmWgmma.cuh. The blocks walk through the
 * experts' tiles on the device, so that nothing but `first` says how many slots an expert has. Mode 0 and 1: an expert's last
 * tile may reach into the next one's slots, whose rows are computed and not written. Mode 2: the rows of a beyond the expert's
 * are set to zero in shared memory. 2·slots·n·k FLOPs.
 */
namespace unsloth::cuda::sm90 {

struct ExpertParams {
  CUtensorMap a, b, c, lowA, lowB;
  const int32_t* first;
  int experts, m, n, slices;  // mode 0 and 1: m is unused; mode 2: slices is unused
  int stepB, stepLow;         // rows from one expert's matrix to the next; 0 where the expert's columns of k start at k0 = 0
  int rank;                   // 0: no low-rank pair
  float alpha, lowScale;      // lowScale: lowAlpha / alpha
  void* out;                  // c: 16 bits in mode 0 and 1, fp32 in mode 2
  int64_t ld, rowStep, columnScale, columnStep;  // element (r, j) of c_e: (r + e·rowStep)·ld + j·columnScale + e·columnStep
};

struct ExpertTile {
  int expert, row0, column0, end;  // mode 0 and 1: slots row0 … end − 1; mode 2: row0 of c_e, slots first[e] … end − 1
};

/** Visits every tile of a block in order. */
template <int tileN, bool gradient>
class ExpertWalk {
 public:
  __device__ __forceinline__ explicit ExpertWalk(const ExpertParams& p)
      : p_(p), columns_((p.n + tileN - 1) / tileN), index_(blockIdx.x) {
    if (p.experts > 0) count();
  }
  __device__ __forceinline__ bool next(ExpertTile& tile) {
    while (index_ >= base_ + tiles_) {
      base_ += tiles_;
      if (++expert_ >= p_.experts) return false;
      count();
    }
    const int in = index_ - base_, column = in / rows_, row = in - column * rows_;
    tile = {expert_, (gradient ? 0 : begin_) + row * tileM, column * tileN, end_};
    index_ += gridDim.x;
    return true;
  }
  __device__ __forceinline__ int begin() const { return begin_; }

 private:
  __device__ __forceinline__ void count() {
    begin_ = __ldg(p_.first + expert_);
    end_ = __ldg(p_.first + expert_ + 1);
    rows_ = ((gradient ? (end_ > begin_ ? p_.m : 0) : end_ - begin_) + tileM - 1) / tileM;
    tiles_ = rows_ * columns_;
  }
  const ExpertParams& p_;
  int columns_, index_, base_ = 0, expert_ = 0, begin_ = 0, end_ = 0, rows_ = 0, tiles_ = 0;
};

/** Zeroes rows `left` … 63 of a warpgroup's box of a, which is M-major. */
__device__ __forceinline__ void clearRows(uint32_t box, int left) {
  for (int i = left * 8 + threadIdx.x % warpgroup; i < sliceK * 8; i += warpgroup)
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(box + 16 * i), "r"(0) : "memory");
}

/** Writes rows below `rows` of a chunk that lies in shared memory, 16 bytes at a time. */
template <class T>
__device__ __forceinline__ void copyChunk(const ExpertParams& p, uint32_t buffer, int row0, int rows, int column) {
  for (int i = threadIdx.x % warpgroup; i < rows * 8; i += warpgroup) {
    const int row = i / 8, piece = i % 8;
    if (column + piece * 8 >= p.n) continue;
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(buffer + row * swizzleBytes + ((piece ^ (row % 8)) << 4))
                 : "memory");
    *reinterpret_cast<uint4*>(static_cast<T*>(p.out) + int64_t{row0 + row} * p.ld + column + piece * 8) = v;
  }
}

/** A warpgroup's 64 rows of c from row0 on, of which `rows` are the expert's. */
template <class T, int tileN>
__device__ __forceinline__ void writeSlots(const ExpertParams& p, const float (&d)[tileN / 2], uint32_t buffers, int row0,
                                           int rows, int n0, int part) {
  using Shape = TileShape<tileN>;
  const bool leader = threadIdx.x % warpgroup == 0;
  const float2 noBias[8] = {};
#pragma unroll
  for (int i = 0; i < tileN / 64; ++i) {
    const uint32_t buffer = buffers + i % Shape::chunks * chunkBytes;
    const int column = n0 + i * 64;
    if (column >= p.n) continue;
    if (leader) storeWaitRead<0>();
    namedBarrier(1 + part, warpgroup);
    writeChunk16<T, false>(d + i * 32, p.alpha, noBias, buffer);
    proxyFence();
    namedBarrier(1 + part, warpgroup);
    if (rows >= 64) {
      if (leader) {
        storeBox(&p.c, column, row0, buffer);
        storeCommit();
      }
    } else {
      copyChunk<T>(p, buffer, row0, rows, column);
    }
    __syncwarp();
  }
}

/** c_e += alpha·d for 64 rows of c_e from row0 on. */
template <int tileN>
__device__ __forceinline__ void addMatrix(const ExpertParams& p, const float (&d)[tileN / 2], int expert, int row0, int n0) {
  const int lane = threadIdx.x % 32, row = row0 + threadIdx.x / 32 % 4 * 16 + lane / 4;
  float* const out = static_cast<float*>(p.out) + expert * (p.rowStep * p.ld + p.columnStep);
#pragma unroll
  for (int j = 0; j < tileN / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int r = row + e / 2 * 8, column = n0 + j * 8 + 2 * (lane % 4) + e % 2;
      if (r < p.m && column < p.n) out[r * p.ld + column * p.columnScale] += p.alpha * d[4 * j + e];
    }
}

template <class T, int tileN, bool majorM, bool majorN>
__global__ void __launch_bounds__(blockThreads, 1) expertWgmmaKernel(const __grid_constant__ ExpertParams p) {
  using Shape = TileShape<tileN>;
  constexpr bool gradient = majorM;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = sharedAddress(memory);
  const uint32_t buffers = base + Shape::stages * Shape::stageBytes;
  const uint32_t full = buffers + 2 * Shape::chunks * chunkBytes, empty = full + 8 * Shape::stages;
  const int group = __shfl_sync(0xffffffff, threadIdx.x / warpgroup, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::stages; ++i) {
      barrierInit(full + 8 * i, 1);
      barrierInit(empty + 8 * i, 2);
    }
    barrierInitFence();
  }
  awaitPrior();
  __syncthreads();
  ExpertWalk<tileN, gradient> walk(p);
  ExpertTile tile;
  Ring<Shape::stages> ring;

  if (group == 0) {
    fewerRegisters<40>();
    if (threadIdx.x == 0) {
      const auto produce = [&](const CUtensorMap* a, const CUtensorMap* b, int rowA, int kA, int rowB, int kB) {
        barrierWait(empty + 8 * ring.stage, ring.parity ^ 1);
        const uint32_t stage = base + ring.stage * Shape::stageBytes;
        loadSlice<tileN, majorM, majorN>(a, rowA, kA, b, rowB, kB, stage, full + 8 * ring.stage, 0, 1);
        ring.next();
      };
      while (walk.next(tile)) {
        if constexpr (gradient) {
          for (int k0 = walk.begin(); k0 < tile.end; k0 += sliceK) produce(&p.a, &p.b, tile.row0, k0, tile.column0, k0);
        } else {
          const int rowB = (majorN ? 0 : tile.expert * p.stepB) + tile.column0, k = majorN ? tile.expert * p.stepB : 0;
          const int rowLow = (majorN ? 0 : tile.expert * p.stepLow) + tile.column0, kLow = majorN ? tile.expert * p.stepLow : 0;
          for (int k0 = 0; k0 < p.rank; k0 += sliceK) produce(&p.lowA, &p.lowB, tile.row0, k0, rowLow, kLow + k0);
          for (int slice = 0; slice < p.slices; ++slice) produce(&p.a, &p.b, tile.row0, slice * sliceK, rowB, k + slice * sliceK);
        }
      }
    }
  } else {
    moreRegisters<232>();
    const int part = group - 1;
    const bool leader = threadIdx.x % warpgroup == 0;
    constexpr uint64_t stepA = (majorM ? 16 * swizzleBytes : 32) >> 4, stepB = (majorN ? 16 * swizzleBytes : 32) >> 4;
    const uint64_t descriptorA = operandDescriptor(base + part * 64 * swizzleBytes, sliceK * swizzleBytes);
    const uint64_t descriptorB = operandDescriptor(base + Shape::bytesA, sliceK * swizzleBytes);
    float d[tileN / 2];
    const auto multiply = [&](int slices, int keep, int rows) {
      int previous = -1;
      for (int slice = 0; slice < slices; ++slice) {
        barrierWait(full + 8 * ring.stage, ring.parity);
        const int left = rows - slice * sliceK;
        if (gradient && left < sliceK) {
          clearRows(base + ring.stage * Shape::stageBytes + part * 64 * swizzleBytes, left);
          proxyFence();
          namedBarrier(1 + part, warpgroup);
        }
        const uint64_t at = static_cast<uint64_t>(ring.stage * (Shape::stageBytes >> 4));
        wgmmaFence();
#pragma unroll
        for (int k = 0; k < sliceK / 16; ++k) {
          wgmma<T, tileN, majorM, majorN>(d, descriptorA + at + k * stepA, descriptorB + at + k * stepB, keep);
          keep = 1;
        }
        wgmmaCommit();
        wgmmaWait<1>();
        if (slice > 0 && leader) barrierArrive(empty + 8 * previous);
        __syncwarp();
        previous = ring.stage;
        ring.next();
      }
      wgmmaWait<0>();
      if (leader) barrierArrive(empty + 8 * previous);
      __syncwarp();
    };
    while (walk.next(tile)) {
      if constexpr (gradient) {
        multiply((tile.end - walk.begin() + sliceK - 1) / sliceK, 0, tile.end - walk.begin());
      } else {
        if (p.rank > 0) {
          multiply((p.rank + sliceK - 1) / sliceK, 0, 0);
#pragma unroll
          for (int i = 0; i < tileN / 2; ++i) d[i] *= p.lowScale;
        }
        multiply(p.slices, p.rank > 0, 0);
      }
      const int row0 = tile.row0 + part * 64;
      if constexpr (gradient) addMatrix<tileN>(p, d, tile.expert, row0, tile.column0);
      else writeSlots<T, tileN>(p, d, buffers + part * Shape::chunks * chunkBytes, row0, tile.end - row0, tile.column0, part);
    }
    if (leader) storeWaitRead<0>();
  }
}

}  // namespace unsloth::cuda::sm90
