#include <algorithm>

#include "../../core/wholeNumbers.h"
#include "../headLoss.h"
#include "clusters.cuh"
#include "tensorMap.h"

namespace unsloth::cuda {
namespace sm90 {
namespace {

template <int tileN>
struct GradShape {
  static constexpr int boxes = (tileN + boxElements - 1) / boxElements;
  static constexpr int bytesA = tileM * sliceK * 2, stageBytes = bytesA + boxes * boxElements * sliceK * 2;
  static constexpr int stages = tileN > 192 ? 4 : 5;
  static constexpr int sharedBytes = stages * stageBytes + 2 * stages * 8;
};

struct GradParams {
  CUtensorMap a, w;
  int rows, width, slices, perGroup, groups, tileRows, tileColumns;  // tile rows of clusters; slices of k in all and to a group
  const float* factors;
  float* partial;  // [group, rows, width], where there are several groups
  void* out;
  int64_t ldOut;
};

/** Slices begin … end − 1 of a tile. */
struct GradPiece {
  int row, column, group, begin, end;
};

/** The pieces of one cluster: those of all tiles at equal places of k run side by side and share what they read in L2. */
class GradPieces {
 public:
  __device__ __forceinline__ GradPieces(const GradParams& p, int cluster, int clusters) : p_(p), at_(cluster), step_(clusters) {}

  __device__ __forceinline__ bool next(GradPiece& piece) {
    const int tiles = p_.tileRows * p_.tileColumns;
    if (at_ >= tiles * p_.groups) return false;
    const int tile = at_ % tiles;
    piece.group = at_ / tiles;
    piece.row = tile % p_.tileRows, piece.column = tile / p_.tileRows;
    piece.begin = piece.group * p_.perGroup, piece.end = min(piece.begin + p_.perGroup, p_.slices);
    at_ += step_;
    return true;
  }

 private:
  const GradParams& p_;
  int at_, step_;
};

template <class T>
__device__ __forceinline__ void storePair(const GradParams& p, const GradPiece& piece, int row, int column, float x, float y) {
  if (row >= p.rows || column >= p.width) return;
  if (p.groups > 1) {
    const int64_t at = (static_cast<int64_t>(piece.group) * p.rows + row) * p.width + column;
    *reinterpret_cast<float2*>(p.partial + at) = make_float2(x, y);
    return;
  }
  const float factor = p.factors == nullptr ? 1 : p.factors[row];
  *reinterpret_cast<uint32_t*>(static_cast<T*>(p.out) + row * p.ldOut + column) = packPair<T>(x * factor, y * factor);
}

/**
 * a[rows, V]·w[V, width]: 2·rows·V·width FLOPs, in tiles of 128 × tileN and, where these are too few, in groups of slices of V.
 * One warpgroup brings slices, two compute 64 rows each.
 */
template <class T, int tileN>
__global__ void __launch_bounds__(blockThreads, 1) headGradKernel(const __grid_constant__ GradParams p) {
  using Shape = GradShape<tileN>;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = sharedAddress(memory), full = base + Shape::stages * Shape::stageBytes, empty = full + 8 * Shape::stages;
  const ClusterPlace here = clusterPlace();
  const int group = __shfl_sync(0xffffffff, threadIdx.x / warpgroup, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::stages; ++i) {
      barrierInit(full + 8 * i, 1);
      barrierInit(empty + 8 * i, 2 * here.size);
    }
    barrierInitFence();
  }
  awaitPrior();
  __syncthreads();
  clusterSync();

  GradPieces pieces(p, static_cast<int>(blockIdx.x) / here.size, static_cast<int>(gridDim.x) / here.size);
  GradPiece piece;
  Ring<Shape::stages> ring;
  if (group == 0) {
    fewerRegisters<40>();
    if (threadIdx.x == 0) {
      while (pieces.next(piece)) {
        const int m0 = here.tileRow(piece.row) * tileM, n0 = piece.column * tileN;
        for (int slice = piece.begin; slice < piece.end; ++slice) {
          const uint32_t stage = base + ring.stage * Shape::stageBytes, barrier = full + 8 * ring.stage;
          barrierWait(empty + 8 * ring.stage, ring.parity ^ 1);
          barrierExpect(barrier, Shape::stageBytes);
          loadBox(stage, &p.a, slice * sliceK, m0, barrier);
#pragma unroll
          for (int i = 0; i < Shape::boxes; ++i) {
            const uint32_t box = stage + Shape::bytesA + i * sliceK * swizzleBytes;
            if (here.size == 1) loadBox(box, &p.w, n0 + i * boxElements, slice * sliceK, barrier);
            else if (i % 2 == here.rank) loadBoxToAll(box, &p.w, n0 + i * boxElements, slice * sliceK, barrier, 3);
          }
          ring.next();
        }
      }
    }
  } else {
    moreRegisters<232>();
    const int part = group - 1, lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    constexpr uint64_t stepB = (16 * swizzleBytes) >> 4;
    const uint64_t descriptorA = operandDescriptor(base + part * 64 * swizzleBytes);
    const uint64_t descriptorB = operandDescriptor(base + Shape::bytesA, sliceK * swizzleBytes);
    float d[tileN / 2];
    while (pieces.next(piece)) {
      int keep = 0, previous = -1;
      const auto release = [&](int stage) { here.release(empty + 8 * stage); };
      for (int slice = piece.begin; slice < piece.end; ++slice) {
        barrierWait(full + 8 * ring.stage, ring.parity);
        const uint64_t at = static_cast<uint64_t>(ring.stage * (Shape::stageBytes >> 4));
        wgmmaFence();
#pragma unroll
        for (int k = 0; k < sliceK / 16; ++k) {
          wgmma<T, tileN, 0, 1>(d, descriptorA + at + 2 * k, descriptorB + at + k * stepB, keep);
          keep = 1;
        }
        wgmmaCommit();
        wgmmaWait<1>();
        if (slice > piece.begin) release(previous);
        __syncwarp();
        previous = ring.stage;
        ring.next();
      }
      wgmmaWait<0>();
      pin(d);
      release(previous);
      __syncwarp();
      const int row = here.tileRow(piece.row) * tileM + part * 64 + 16 * warp + lane / 4;
      const int column = piece.column * tileN + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < tileN / 8; ++j) {
        storePair<T>(p, piece, row, column + 8 * j, d[4 * j], d[4 * j + 1]);
        storePair<T>(p, piece, row + 8, column + 8 * j, d[4 * j + 2], d[4 * j + 3]);
      }
    }
  }
  clusterSync();
}

/** out = factors ⊙ Σ_groups partial, groups in order: 4 bytes read of each group and 2 written. */
template <class T>
__global__ void __launch_bounds__(256) addGroupsKernel(const GradParams p) {
  awaitPrior();
  const int64_t pairs = p.width / 2, i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x, row = i / pairs;
  if (row >= p.rows) return;
  const int64_t column = i % pairs * 2, each = static_cast<int64_t>(p.rows) * p.width;
  float2 sum = make_float2(0, 0);
#pragma unroll 4
  for (int group = 0; group < p.groups; ++group) {
    const float2 v = *reinterpret_cast<const float2*>(p.partial + group * each + row * p.width + column);
    sum.x += v.x, sum.y += v.y;
  }
  const float factor = p.factors == nullptr ? 1 : p.factors[row];
  *reinterpret_cast<uint32_t*>(static_cast<T*>(p.out) + row * p.ldOut + column) = packPair<T>(sum.x * factor, sum.y * factor);
}

template <class T, int tileN>
void launchGrad(const GradParams& p, int cluster, int64_t most, const Context& context) {
  const int64_t count = std::min(int64_t{p.tileRows} * p.tileColumns * p.groups, most);
  launchClusters(headGradKernel<T, tileN>, p, cluster, count, GradShape<tileN>::sharedBytes, context,
                 "headLoss: gradient");
  if (p.groups == 1) return;
  constexpr int threads = 256;
  const int64_t pairs = int64_t{p.rows} * p.width / 2;
  launchDependent(context, "headLoss: sums of the gradient", addGroupsKernel<T>,
                  {static_cast<unsigned>(divideUp(pairs, threads)), threads}, p);
}

struct GradTiling {
  int tileN = 0;
  int64_t groups = 1;
};

/** The least time, in units of 1/256 of what a slice of 256 columns takes; `most` clusters run at once. */
GradTiling chooseGrad(int64_t tileRows, int64_t width, int64_t slices, int64_t most, int64_t partialBytes, size_t room) {
  constexpr int64_t mostGroups = 16;
  GradTiling best;
  double least = 0;
  for (const int tileN : {256, 224, 192})
    for (int64_t groups = 1; groups <= std::min(mostGroups, slices); ++groups) {
      if (groups > 1 && static_cast<size_t>(partialBytes * groups) > room) break;
      const int64_t tiles = tileRows * divideUp(width, tileN), perGroup = divideUp(slices, groups);
      if (divideUp(slices, perGroup) != groups) continue;
      const double perSlice = tileN == 192 ? 198 : tileN, perTile = 2.0 * tileN + 256 + (groups > 1 ? 1500 : 0);
      const auto waves = static_cast<double>(divideUp(tiles * groups, most));
      const double time = waves * (static_cast<double>(perGroup) * perSlice + perTile);
      if (best.tileN == 0 || time < least) least = time, best = {tileN, groups};
    }
  return best;
}

}  // namespace
}  // namespace sm90

bool headGradWgmma(const View& dH, const View& a, const View& w, const float* factors, const Context& context) {
  using namespace sm90;
  const DType type = a.dtype;
  const int64_t rows = a.rows, width = w.cols;
  const bool pairs = width % 2 == 0 && dH.ld % 2 == 0 && reinterpret_cast<uintptr_t>(dH.data) % 4 == 0;
  if (context.gpu->capability != 90 || (type != DType::BF16 && type != DType::F16)) return false;
  if (w.dtype != type || dH.dtype != type || !pairs || !tensorMapFits(a) || !tensorMapFits(w)) return false;
  if (dH.rows == 0) return true;

  GradParams p{};
  p.rows = static_cast<int>(rows), p.width = static_cast<int>(width);
  p.slices = static_cast<int>(divideUp(w.rows, sliceK));
  const int64_t tiles = divideUp(rows, tileM), partialBytes = rows * width * static_cast<int64_t>(sizeof(float));
  const int cluster = clusterSizeFor(tiles);
  const int64_t tileRows = divideUp(tiles, cluster), most = context.gpu->multiprocessors / cluster;
  const GradTiling tiling = chooseGrad(tileRows, width, p.slices, most, partialBytes, context.workspaceBytes);
  p.a = tensorMap(a, tileM, sliceK);
  p.w = tensorMap(w, sliceK, boxElements);
  p.groups = static_cast<int>(tiling.groups);
  p.perGroup = static_cast<int>(divideUp(p.slices, p.groups));
  p.tileRows = static_cast<int>(tileRows);
  p.tileColumns = static_cast<int>(divideUp(width, tiling.tileN));
  p.factors = factors;
  if (p.groups > 1) p.partial = scratch<float>(context, 0, static_cast<size_t>(rows * width * p.groups), "headLoss");
  p.out = dH.data, p.ldOut = dH.ld;
  const auto launch = [&]<class T>(Tag<T>) {
    if (tiling.tileN == 256) launchGrad<T, 256>(p, cluster, most, context);
    else if (tiling.tileN == 224) launchGrad<T, 224>(p, cluster, most, context);
    else launchGrad<T, 192>(p, cluster, most, context);
  };
  if (type == DType::F16) launch(Tag<__half>{});
  else launch(Tag<bf16>{});
  return true;
}

}  // namespace unsloth::cuda
