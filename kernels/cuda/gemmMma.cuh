#pragma once
#include <algorithm>

#include "gemmEpilogue.cuh"
#include "gemmFeed.cuh"
#include "launch.cuh"

namespace unsloth::cuda::mma {

constexpr int depth = 64;  // of k, for each stage: rows of 128 bytes where k runs along them
constexpr int maxSources = 9;
constexpr int raster = 16;  // tile rows that run side by side, so that L2 serves both operands

/** A product that adds to columns [column, column + width) of c: the main one, then the low-rank terms. */
struct Source {
  const void *a, *b;
  int64_t lda, ldb;
  int k, column, width;
  float alpha;
  bool aAligned, bAligned;  // rows may be copied in 16-byte pieces
};

struct MmaArgs {
  Source sources[maxSources];
  int sourceCount, stages;
  int splits;                 // blocks that share the main product's k; the terms belong to the first
  int chunksPerSplit;         // of `depth`
  int tilesM, tilesN, units;  // units: tiles times splits
  float4* partial;            // [tile][split][sums / 4][thread]
  Epilogue out;
};

/** How many splits of a tile are done; each file that includes this has its own. */
static __device__ unsigned arrived[maxSplitTiles];

/** Shapes of a block: tileM×tileN of c, its warps across and down, blocks that share a multiprocessor. */
template <int tileM_, int tileN_, int warpsM_, int warpsN_, int blocks_>
struct Shape {
  static constexpr int tileM = tileM_, tileN = tileN_, warpsM = warpsM_, warpsN = warpsN_, blocks = blocks_;
  static constexpr int threads = warpsM * warpsN * 32, warpRows = tileM / warpsM, warpColumns = tileN / warpsN;
  static constexpr int rowTiles = warpRows / 16, columnTiles = warpColumns / 8;
  static constexpr int aBytes = tileM * depth * 2, bBytes = tileN * depth * 2, stageBytes = aBytes + bBytes;
  static constexpr int outBytes = warpsM * warpsN * 8 * warpColumns * 4;  // 8 rows of each warp's sums on their way out
};

using Large = Shape<128, 256, 2, 4, 1>;
using Medium = Shape<128, 128, 2, 2, 2>;
using Small = Shape<64, 64, 2, 2, 3>;  // the only one whose two stages the shared memory of sm_75 holds, and that is compiled for it

/** The part of a tile's k that one unit of work covers, source by source. */
struct Unit {
  int m0, n0, tile, split;

  __device__ __forceinline__ static Unit at(const MmaArgs& args, int unit, int tileM, int tileN) {
    Unit u;
    const int tiles = args.tilesM * args.tilesN;
    u.split = unit / tiles;
    u.tile = unit - u.split * tiles;
    const int perGroup = raster * args.tilesN, group = u.tile / perGroup, inGroup = u.tile - group * perGroup;
    const int rows = min(raster, args.tilesM - group * raster), column = inGroup / rows;
    u.m0 = (group * raster + inGroup - column * rows) * tileM;
    u.n0 = column * tileN;
    return u;
  }
  /** The next source from `s` on that this unit adds up; `sourceCount` when there is none. */
  __device__ __forceinline__ int next(const MmaArgs& args, int s, int tileN) const {
    for (; s < args.sourceCount; ++s) {
      if (s > 0 && split > 0) return args.sourceCount;
      const Source& source = args.sources[s];
      if (n0 < source.column + source.width && n0 + tileN > source.column && first(args, s) < source.k) break;
    }
    return s;
  }
  __device__ __forceinline__ int first(const MmaArgs& args, int s) const {
    return s == 0 ? split * args.chunksPerSplit * depth : 0;
  }
  __device__ __forceinline__ int end(const MmaArgs& args, int s) const {
    return s == 0 ? min(args.sources[0].k, (split + 1) * args.chunksPerSplit * depth) : args.sources[s].k;
  }
};

/** Copies the stages of all units of this block one after another, from one unit into the next. */
template <class T, class S, int mode>
struct Producer {
  using FeedA = Feed<T, S::tileM, depth, mode != 2, S::threads, true>;
  using FeedB = Feed<T, S::tileN, depth, mode == 0, S::threads, true>;
  static constexpr int pieces = FeedA::pieces + FeedB::pieces;
  const MmaArgs& args;
  int unitNumber;
  Unit unit;
  int source;
  int k0, end;
  bool more;
  FeedA a;
  FeedB b;

  __device__ __forceinline__ explicit Producer(const MmaArgs& given) : args(given), unitNumber(blockIdx.x), more(true) {
    enter();
  }

  __device__ __forceinline__ void enter() {
    while (unitNumber < args.units) {
      unit = Unit::at(args, unitNumber, S::tileM, S::tileN);
      source = unit.next(args, 0, S::tileN);
      if (source < args.sourceCount) return beginSource();
      unitNumber += gridDim.x;
    }
    more = false;
  }

  __device__ __forceinline__ void beginSource() {
    const Source& s = args.sources[source];
    k0 = unit.first(args, source);
    end = unit.end(args, source);
    a.begin(s.a, s.lda, unit.m0, static_cast<int>(args.out.m), k0);
    b.begin(s.b, s.ldb, unit.n0 - s.column, s.width, k0);
  }

  /** Pieces [from, to) of the current stage; all of the slow operands with the first. */
  template <int from, int to>
  __device__ __forceinline__ void copy(unsigned char* bytes, uint32_t shared) const {
    if (!more) return;
    const Source& s = args.sources[source];
    if (from == 0 && !s.aAligned)
      FeedA::copySlowly(bytes, static_cast<const T*>(s.a), s.lda, unit.m0, static_cast<int>(args.out.m), k0, end);
    if (from == 0 && !s.bAligned)
      FeedB::copySlowly(bytes + S::aBytes, static_cast<const T*>(s.b), s.ldb, unit.n0 - s.column, s.width, k0, end);
    const int left = end - k0;
#pragma unroll
    for (int i = from; i < to; ++i) {
      if (i < FeedA::pieces) {
        if (s.aAligned) a.copy(shared, i, left);
      } else {
        if (s.bAligned) b.copy(shared + S::aBytes, i - FeedA::pieces, left);
      }
    }
  }

  __device__ __forceinline__ void step() {
    if (!more) return;
    k0 += depth;
    a.next();
    b.next();
    if (k0 < end) return;
    source = unit.next(args, source + 1, S::tileN);
    if (source < args.sourceCount) return beginSource();
    unitNumber += gridDim.x;
    enter();
  }
};

/**
 * c = [c +] Σ alpha·op(a)op(b) + bias + add: each block takes one unit (a tile, or a part of its k) after another; copies run
 * `stages − 1` steps ahead, across units, so that the loads of the next tile pass behind the stores of this one. The low-rank
 * terms are further steps of k, with zeros up to a whole step. 2mnk FLOPs on the tensor cores.
 */
template <class T, class S, int mode>
__global__ void __launch_bounds__(S::threads, S::blocks) mmaKernel(const __grid_constant__ MmaArgs args) {
  awaitPrior();
#if __CUDA_ARCH__ < 800
  if constexpr (std::is_same_v<T, bf16> || !std::is_same_v<S, Small>) return neverLaunched();
#endif
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  __shared__ int flag;
  const uint32_t shared = sharedAddress(sharedBytes);
  constexpr int steps = depth / 16, third = (Producer<T, S, mode>::pieces + 2) / 3;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warpRow = warp / S::warpsN * S::warpRows, warpColumn = warp % S::warpsN * S::warpColumns;
  const Fragments<typename Producer<T, S, mode>::FeedA, mode != 2, true, false> fragmentsA(warpRow);
  const Fragments<typename Producer<T, S, mode>::FeedB, mode == 0, true, true> fragmentsB(warpColumn);
  uint32_t a[2][S::rowTiles][4], b[2][S::columnTiles / 2][4];
  auto loadFragments = [&](int buffer, uint32_t stage, int step) {
#pragma unroll
    for (int i = 0; i < S::rowTiles; ++i) fragmentsA.load(a[buffer][i], stage, i, step);
#pragma unroll
    for (int j = 0; j < S::columnTiles / 2; ++j) fragmentsB.load(b[buffer][j], stage + S::aBytes, j, step);
  };

  Producer<T, S, mode> producer(args);
  const int ahead = args.stages - 1;
  for (int s = 0; s < ahead; ++s) {
    producer.template copy<0, Producer<T, S, mode>::pieces>(sharedBytes + s * S::stageBytes, shared + s * S::stageBytes);
    producer.step();
    commitCopies();
  }
  int slot = 0, freeSlot = ahead;
  waitCopies(ahead - 1);
  __syncthreads();
  loadFragments(0, shared, 0);

  for (int number = blockIdx.x; number < args.units; number += gridDim.x) {
    const Unit unit = Unit::at(args, number, S::tileM, S::tileN);
    float sum[S::rowTiles][S::columnTiles][4] = {};
    float scale = 1;
    for (int source = unit.next(args, 0, S::tileN); source < args.sourceCount; source = unit.next(args, source + 1, S::tileN)) {
      const float ratio = scale / args.sources[source].alpha;  // sums are kept in units of the current factor
      scale = args.sources[source].alpha;
      if (ratio != 1) {
#pragma unroll
        for (int i = 0; i < S::rowTiles; ++i)
#pragma unroll
          for (int j = 0; j < S::columnTiles; ++j)
#pragma unroll
            for (int q = 0; q < 4; ++q) sum[i][j][q] *= ratio;
      }
      const int chunks = (unit.end(args, source) - unit.first(args, source) + depth - 1) / depth;
      for (int chunk = 0; chunk < chunks; ++chunk) {
        uint32_t stage = shared + slot * S::stageBytes;
        const int target = freeSlot * S::stageBytes;
#pragma unroll
        for (int step = 0; step < steps; ++step) {
          if (step == steps - 1) {
            freeSlot = slot;
            slot = slot == ahead ? 0 : slot + 1;
            stage = shared + slot * S::stageBytes;
            waitCopies(ahead - 1);
            __syncthreads();
          }
          loadFragments((step + 1) % 2, stage, (step + 1) % steps);
          if (step == 0) producer.template copy<0, third>(sharedBytes + target, shared + target);
          if (step == 1) producer.template copy<third, 2 * third>(sharedBytes + target, shared + target);
          if (step == 2) {
            producer.template copy<2 * third, Producer<T, S, mode>::pieces>(sharedBytes + target, shared + target);
            producer.step();
            commitCopies();
          }
#pragma unroll
          for (int i = 0; i < S::rowTiles; ++i)
#pragma unroll
            for (int j = 0; j < S::columnTiles; ++j)
              multiplyAdd<T>(sum[i][j], a[step % 2][i], b[step % 2][j / 2][j % 2 * 2], b[step % 2][j / 2][j % 2 * 2 + 1]);
        }
      }
    }

    if (args.splits > 1) {
      constexpr int quads = S::rowTiles * S::columnTiles;
      float4* partial = args.partial + static_cast<int64_t>(unit.tile) * args.splits * quads * S::threads + threadIdx.x;
#pragma unroll
      for (int i = 0; i < quads; ++i) {
        const float (&s)[4] = sum[i / S::columnTiles][i % S::columnTiles];
        __stcg(partial + (unit.split * quads + i) * S::threads,
               make_float4(s[0] * scale, s[1] * scale, s[2] * scale, s[3] * scale));
      }
      if (!lastOfSplits(&arrived[unit.tile], args.splits, &flag)) continue;
      scale = 1;
#pragma unroll
      for (int i = 0; i < quads; ++i)
#pragma unroll
        for (int q = 0; q < 4; ++q) sum[i / S::columnTiles][i % S::columnTiles][q] = 0;
      for (int split = 0; split < args.splits; ++split)
#pragma unroll
        for (int i = 0; i < quads; ++i) {
          const float4 v = __ldcg(partial + (split * quads + i) * S::threads);
          float (&s)[4] = sum[i / S::columnTiles][i % S::columnTiles];
          s[0] += v.x, s[1] += v.y, s[2] += v.z, s[3] += v.w;
        }
    }
    // Through shared memory, 8 rows at a time, so that whole rows of the warp's columns leave together. Eights of columns are
    // swizzled by the row.
    float* out = reinterpret_cast<float*>(sharedBytes + args.stages * S::stageBytes) + warp * 8 * S::warpColumns;
    constexpr int eights = S::warpColumns / 8;
#pragma unroll
    for (int half = 0; half < 2 * S::rowTiles; ++half) {
      __syncwarp();
#pragma unroll
      for (int j = 0; j < S::columnTiles; ++j) {
        const float* s = &sum[half / 2][j][half % 2 * 2];
        *reinterpret_cast<float2*>(out + lane / 4 * S::warpColumns + (j ^ (lane / 4 & 3)) * 8 + lane % 4 * 2) =
            make_float2(scale * s[0], scale * s[1]);
      }
      __syncwarp();
#pragma unroll 1
      for (int at = lane; at < 8 * eights; at += 32) {
        const int row = at / eights, eight = at % eights;
        const auto* from = reinterpret_cast<const float4*>(out + row * S::warpColumns + (eight ^ (row & 3)) * 8);
        const float4 low = from[0], high = from[1];
        float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        args.out.storeEight(unit.m0 + warpRow + half * 8 + row, unit.n0 + warpColumn + eight * 8, v);
      }
    }
  }
}

/** How a product would be cut for one shape, and about how long that takes, in steps of a multiprocessor's tensor cores. */
struct Cut {
  int64_t splits = 1;
  double time = 0;
  int stages = 0;
};

template <class S>
Cut planCut(const MmaArgs& args, const Context& context, double efficiency) {
  Cut best;
  if (context.gpu->capability < 80 && !std::is_same_v<S, Small>) return best;
  constexpr int fixedBytes = S::outBytes + 64;
  int blocks = S::blocks;
  const auto stagesOf = [&] {
    return std::min(4, (static_cast<int>(context.gpu->sharedPerBlock + 1024) / blocks - 1024 - fixedBytes) / S::stageBytes);
  };
  best.stages = stagesOf();
  if (best.stages < 3 && blocks > 1) {
    blocks = 1;
    best.stages = stagesOf();
  }
  if (best.stages < 2) return best;
  const int64_t tiles = ((args.out.m + S::tileM - 1) / S::tileM) * ((args.out.n + S::tileN - 1) / S::tileN);
  const int64_t chunks = std::max<int64_t>(1, (args.sources[0].k + depth - 1) / depth);
  const double tileTime = static_cast<double>(S::tileM) * S::tileN * blocks / efficiency;  // of one chunk, blocks side by side
  const int64_t slots = static_cast<int64_t>(context.gpu->multiprocessors) * blocks;
  for (int64_t splits = 1; splits <= 32; ++splits) {
    const size_t scratchBytes = static_cast<size_t>(splits * tiles) * S::tileM * S::tileN * sizeof(float);
    if (splits > 1 && (tiles > maxSplitTiles || chunks < 4 * splits || scratchBytes > context.workspaceBytes)) break;
    const int64_t each = (chunks + splits - 1) / splits, waves = (tiles * splits + slots - 1) / slots;
    // A first tile waits about three chunks for memory; sums that pass through L2 cost about one chunk for each split.
    const double time = (static_cast<double>(waves * each) + 3 + (splits > 1 ? 3 + static_cast<double>(splits) : 0)) * tileTime;
    if (best.time == 0 || time < best.time) best.time = time, best.splits = splits;
  }
  return best;
}

template <class T, class S, int mode>
void launch(MmaArgs args, const Cut& cut, const Context& context) {
  args.tilesM = static_cast<int>((args.out.m + S::tileM - 1) / S::tileM);
  args.tilesN = static_cast<int>((args.out.n + S::tileN - 1) / S::tileN);
  const int64_t chunks = std::max<int64_t>(1, (args.sources[0].k + depth - 1) / depth);
  args.chunksPerSplit = static_cast<int>((chunks + cut.splits - 1) / cut.splits);
  args.splits = static_cast<int>((chunks + args.chunksPerSplit - 1) / args.chunksPerSplit);
  args.units = args.tilesM * args.tilesN * args.splits;
  args.stages = cut.stages;
  args.partial = static_cast<float4*>(context.workspace);
  const auto kernel = mmaKernel<T, S, mode>;
  const int bytes = cut.stages * S::stageBytes + S::outBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "gemmMma: shared memory");
  const int grid = std::min(args.units, context.gpu->multiprocessors * S::blocks);
  launchDependent(context, "gemmMma", kernel, {static_cast<unsigned>(grid), S::threads, static_cast<size_t>(bytes)}, args);
}

template <class T, int mode>
void chooseShape(const MmaArgs& args, const Context& context) {
  const Cut large = planCut<Large>(args, context, 1), medium = planCut<Medium>(args, context, 0.9),
            small = planCut<Small>(args, context, 0.5);
  if (large.stages >= 3 && large.time <= medium.time && large.time <= small.time) launch<T, Large, mode>(args, large, context);
  else if (medium.stages >= 2 && medium.time <= small.time) launch<T, Medium, mode>(args, medium, context);
  else launch<T, Small, mode>(args, small, context);
}

template <class T>
void multiply(const MmaArgs& args, int mode, const Context& context) {
  if (mode == 0) chooseShape<T, 0>(args, context);
  else if (mode == 1) chooseShape<T, 1>(args, context);
  else chooseShape<T, 2>(args, context);
}

// Of the two files gemmMmaBf16.cu and gemmMmaF16.cu, so that they compile side by side.
extern template void multiply<bf16>(const MmaArgs& args, int mode, const Context& context);
extern template void multiply<__half>(const MmaArgs& args, int mode, const Context& context);

}  // namespace unsloth::cuda::mma
