#include <algorithm>

#include "gemmEpilogue.cuh"
#include "gemmFeed.cuh"
#include "launch.cuh"

namespace unsloth::cuda {
namespace {

constexpr int largestCluster = 8;  // that every GPU with clusters takes

template <int rows_, int depth_>
struct Tile {
  static constexpr int rows = rows_;    // (columns) of the big side for each block
  static constexpr int depth = depth_;  // of k, for each stage
  static constexpr int warps = 8, threads = 32 * warps;
};

/** Stages of shared memory, where there is room for them. */
template <int width>
constexpr int stagesOf = width > 64 ? 3 : 4;

/** Measured on an H200: 128 bytes of each row where k runs along them, else 256 bytes of twice as many. */
template <bool bigAlongK>
using TileOf = std::conditional_t<bigAlongK, Tile<128, 64>, Tile<128, 128>>;

/**
 * The big matrix times the small one. Either is stored with k along its rows ([side, k]) or down its columns ([k, side]);
 * c[big, small], or [small, big] when `transposed`.
 */
struct SkinnyArgs {
  const void *big, *small;
  int64_t bigLd, smallLd;
  int bigCount, smallCount, k;
  bool smallAligned;  // rows of the small matrix can be copied in 16-byte pieces
  bool transposed;
  float alpha;
  int stages;
  int splits;          // blocks that share a tile's k
  bool clustered;      // they form a cluster and add up through each other's shared memory, else through scratch
  int chunksPerSplit;  // of a stage's depth
  float4* partial;     // [tile][split][sums / 4][thread]
  Epilogue out;
};

__device__ unsigned arrived[maxSplitTiles];

/** Piece of 16 bytes from the shared memory of block `rank` of this cluster. */
__device__ __forceinline__ float4 loadFromCluster(uint32_t shared, int rank) {
  float4 v = make_float4(0, 0, 0, 0);
#if __CUDA_ARCH__ >= 900
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(there)
               : "memory");
#endif
  return v;
}

__device__ __forceinline__ void syncCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/**
 * c = [c +] alpha·big·small + bias + add, in one pass over the big matrix: bound by reading it. A block owns some rows (columns)
 * of it and a part of k; the small matrix comes from L2, once for each block. 2·big·small·k FLOPs on the tensor cores.
 */
template <class T, int width, bool bigAlongK, bool smallAlongK>
__global__ void __launch_bounds__(TileOf<bigAlongK>::threads, width > 64 ? 1 : 2)
    skinnyKernel(const __grid_constant__ SkinnyArgs args) {
  awaitPrior();
#if __CUDA_ARCH__ < 800
  if constexpr (std::is_same_v<T, bf16>) return neverLaunched();
#endif
  using TileHere = TileOf<bigAlongK>;
  constexpr int tileRows = TileHere::rows, depth = TileHere::depth, warps = TileHere::warps, threads = TileHere::threads;
  using Big = Feed<T, tileRows, depth, bigAlongK, threads, false>;
  using Small = Feed<T, width, depth, smallAlongK, threads, false>;
  constexpr int stageBytes = Big::bytes + Small::bytes;
  constexpr int warpsAcross = width > 64 ? 2 : 1, rowTiles = tileRows / (warps / warpsAcross) / 16,
                columnTiles = width / warpsAcross / 8;
  static_assert(columnTiles % 2 == 0);
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  __shared__ int flag;
  const uint32_t shared = sharedAddress(sharedBytes);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warpRow = warp / warpsAcross * (rowTiles * 16), warpColumn = warp % warpsAcross * (columnTiles * 8);
  const int first = blockIdx.x * tileRows;
  const int64_t tile = blockIdx.x;
  const int begin = blockIdx.y * args.chunksPerSplit,
            chunks = min((args.k + depth - 1) / depth, begin + args.chunksPerSplit) - begin;
  Big big;
  Small small;
  big.begin(args.big, args.bigLd, first, args.bigCount, begin * depth);
  small.begin(args.small, args.smallLd, 0, args.smallCount, begin * depth);
  int toCopy = chunks;
  int k0 = begin * depth;
  const auto copyStage = [&](int slot) {
    if (toCopy-- > 0) {
      const int left = args.k - k0;
#pragma unroll
      for (int i = 0; i < Big::pieces; ++i) big.copy(shared + slot * stageBytes, i, left);
      if (args.smallAligned) {
#pragma unroll
        for (int i = 0; i < Small::pieces; ++i) small.copy(shared + slot * stageBytes + Big::bytes, i, left);
      } else {
        Small::copySlowly(sharedBytes + slot * stageBytes + Big::bytes, static_cast<const T*>(args.small), args.smallLd, 0,
                          args.smallCount, k0, args.k);
      }
      big.next();
      small.next();
      k0 += depth;
    }
    commitCopies();
  };

  const Fragments<Big, bigAlongK, false, false> bigFragments(warpRow);
  const Fragments<Small, smallAlongK, false, true> smallFragments(warpColumn);
  float sum[rowTiles][columnTiles][4] = {};
  const int ahead = args.stages - 1;
  for (int s = 0; s < ahead; ++s) copyStage(s);
  int slot = 0, freeSlot = ahead;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    waitCopies(args.stages - 2);
    __syncthreads();
    copyStage(freeSlot);
    const uint32_t stage = shared + slot * stageBytes;
    freeSlot = slot;
    slot = slot == ahead ? 0 : slot + 1;
#pragma unroll
    for (int step = 0; step < depth / 16; ++step) {
      uint32_t a[rowTiles][4], b[columnTiles / 2][4];
#pragma unroll
      for (int i = 0; i < rowTiles; ++i) bigFragments.load(a[i], stage, i, step);
#pragma unroll
      for (int j = 0; j < columnTiles / 2; ++j) smallFragments.load(b[j], stage + Big::bytes, j, step);
#pragma unroll
      for (int i = 0; i < rowTiles; ++i)
#pragma unroll
        for (int j = 0; j < columnTiles; ++j) multiplyAdd<T>(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }

  if (args.splits > 1 && !args.clustered) {
    constexpr int quads = rowTiles * columnTiles;
    float4* partial = args.partial + tile * args.splits * quads * threads + threadIdx.x;
#pragma unroll
    for (int i = 0; i < quads; ++i) {
      const float (&s)[4] = sum[i / columnTiles][i % columnTiles];
      __stcg(partial + (blockIdx.y * quads + i) * threads, make_float4(s[0], s[1], s[2], s[3]));
    }
    if (!lastOfSplits(&arrived[tile], args.splits, &flag)) return;
#pragma unroll
    for (int i = 0; i < quads; ++i)
#pragma unroll
      for (int q = 0; q < 4; ++q) sum[i / columnTiles][i % columnTiles][q] = 0;
#pragma unroll 4
    for (int split = 0; split < args.splits; ++split)
#pragma unroll
      for (int i = 0; i < quads; ++i) {
        const float4 v = __ldcg(partial + (split * quads + i) * threads);
        float (&s)[4] = sum[i / columnTiles][i % columnTiles];
        s[0] += v.x, s[1] += v.y, s[2] += v.z, s[3] += v.w;
      }
  }

  // Through shared memory, in the order of c: each thread finishes eight neighbours, each block of a cluster its share of them.
  waitCopies<0>();
  __syncthreads();
  auto* tileSums = reinterpret_cast<float*>(sharedBytes);
  const int outStride = args.transposed ? tileRows + 4 : width + 8;
#pragma unroll
  for (int i = 0; i < rowTiles; ++i)
#pragma unroll
    for (int j = 0; j < columnTiles; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = warpRow + i * 16 + h * 8 + lane / 4, column = warpColumn + j * 8 + lane % 4 * 2;
        if (args.transposed) {
          tileSums[column * outStride + row] = sum[i][j][2 * h];
          tileSums[(column + 1) * outStride + row] = sum[i][j][2 * h + 1];
        } else {
          *reinterpret_cast<float2*>(tileSums + row * outStride + column) = make_float2(sum[i][j][2 * h], sum[i][j][2 * h + 1]);
        }
      }
  const int members = args.clustered ? args.splits : 1, rank = args.clustered ? static_cast<int>(blockIdx.y) : 0;
  if (args.clustered) syncCluster();
  else __syncthreads();
  const int perRow = (args.transposed ? tileRows : width) / 8;
  for (int piece = rank * threads + static_cast<int>(threadIdx.x); piece < tileRows * width / 8; piece += members * threads) {
    const int row = piece / perRow, column = piece % perRow * 8;
    if (row >= (args.transposed ? args.smallCount : tileRows)) break;
    const int at = row * outStride + column;
    float v[8] = {};
    for (int member = 0; member < members; ++member) {
      float4 low, high;
      if (args.clustered) {
        low = loadFromCluster(shared + at * 4, member);
        high = loadFromCluster(shared + at * 4 + 16, member);
      } else {
        low = *reinterpret_cast<const float4*>(tileSums + at);
        high = *reinterpret_cast<const float4*>(tileSums + at + 4);
      }
      v[0] += low.x, v[1] += low.y, v[2] += low.z, v[3] += low.w;
      v[4] += high.x, v[5] += high.y, v[6] += high.z, v[7] += high.w;
    }
#pragma unroll
    for (float& x : v) x *= args.alpha;
    if (args.transposed) args.out.storeEight(row, first + column, v);
    else args.out.storeEight(first + row, column, v);
  }
  if (args.clustered) syncCluster();  // others may still read this block's sums
}

template <class T, int width, bool bigAlongK, bool smallAlongK>
bool launch(SkinnyArgs args, const Context& context) {
  using TileHere = TileOf<bigAlongK>;
  constexpr int tileRows = TileHere::rows, depth = TileHere::depth, threads = TileHere::threads;
  constexpr int stageBytes =
      Feed<T, tileRows, depth, bigAlongK, threads, false>::bytes + Feed<T, width, depth, smallAlongK, threads, false>::bytes;
  constexpr int sumBytes = 4 * std::max(tileRows * (width + 8), (tileRows + 4) * width);
  constexpr size_t tileBytes = sizeof(float) * tileRows * width;
  constexpr int fixedBytes = 128;
  const int fitting = (static_cast<int>(context.gpu->sharedPerBlock) - fixedBytes) / stageBytes;
  if (fitting < 2 || sumBytes > static_cast<int>(context.gpu->sharedPerBlock)) return false;
  args.stages = std::min(stagesOf<width>, fitting);
  // About one block for each multiprocessor: that many read at full speed. Rows of 128 bytes leave room for a second one.
  constexpr int64_t least = 256, most = 16;  // k of a split; splits, whose sums cost time of their own
  const int64_t tiles = (args.bigCount + tileRows - 1) / tileRows, chunks = (int64_t{args.k} + depth - 1) / depth;
  int64_t splits = (context.gpu->multiprocessors + (bigAlongK ? tiles / 2 : 0)) / tiles;
  splits = std::clamp<int64_t>(std::min({splits, args.k / least, most}), 1, std::max<int64_t>(chunks, 1));
  const auto kernel = skinnyKernel<T, width, bigAlongK, smallAlongK>;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "gemmSkinny: attributes");
  // Code that the driver made from PTX for older GPUs knows no clusters. The blocks of one must find room close to each other:
  // with many large ones that leaves multiprocessors idle.
  const bool hasClusters = context.gpu->capability / 10 >= 9 && context.gpu->capability / 10 <= 10 && attributes.ptxVersion >= 90;
  args.clustered = hasClusters && splits > 1 && splits <= largestCluster &&
                   (splits == 2 || tiles * splits <= context.gpu->multiprocessors / 2);
  if (!args.clustered)
    splits = tiles > maxSplitTiles
                 ? 1
                 : std::clamp<int64_t>(static_cast<int64_t>(context.workspaceBytes / (tileBytes * tiles)), 1, splits);
  args.chunksPerSplit = static_cast<int>(std::max<int64_t>(1, (chunks + splits - 1) / splits));
  args.splits = static_cast<int>(std::max<int64_t>(1, (chunks + args.chunksPerSplit - 1) / args.chunksPerSplit));
  args.clustered = args.clustered && args.splits > 1;
  args.partial = static_cast<float4*>(context.workspace);
  const int bytes = std::max(args.stages * stageBytes, sumBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "gemmSkinny: shared memory");
  const auto grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(args.splits));
  const auto cluster = args.clustered ? dim3(1, grid.y) : dim3(1);
  launchDependent(context, "gemmSkinny", kernel, {grid, threads, static_cast<size_t>(bytes), cluster}, args);
  return true;
}

template <class T, bool bigAlongK, bool smallAlongK>
bool chooseWidth(const SkinnyArgs& args, const Context& context) {
  if (args.smallCount <= 16) return launch<T, 16, bigAlongK, smallAlongK>(args, context);
  if (args.smallCount <= 32) return launch<T, 32, bigAlongK, smallAlongK>(args, context);
  if (args.smallCount <= 48) return launch<T, 48, bigAlongK, smallAlongK>(args, context);
  if (args.smallCount <= 64) return launch<T, 64, bigAlongK, smallAlongK>(args, context);
  return launch<T, 128, bigAlongK, smallAlongK>(args, context);
}

template <class T>
bool chooseLayout(const SkinnyArgs& args, bool bigAlongK, bool smallAlongK, const Context& context) {
  if (bigAlongK) return smallAlongK ? chooseWidth<T, true, true>(args, context) : chooseWidth<T, true, false>(args, context);
  return smallAlongK ? chooseWidth<T, false, true>(args, context) : chooseWidth<T, false, false>(args, context);
}

/** Whether rows can be copied in 16-byte pieces; the last of a row may be shorter. */
bool alignedRows(const View& v) { return reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && v.ld % 8 == 0; }

}  // namespace

bool gemmSkinny(const GemmArgs& args, const Context& context) {
  constexpr int64_t widest = 128;
  if (!args.terms.empty() || args.a.dtype != args.b.dtype || !hasTensorCores(args.a.dtype, context.gpu->capability)) return false;
  const bool bigIsA = args.n <= widest && (args.m > widest || args.m >= args.n);
  const View &big = bigIsA ? args.a : args.b, &small = bigIsA ? args.b : args.a;
  const int64_t smallCount = bigIsA ? args.n : args.m;
  if (smallCount > widest || !alignedRows(big) || !fitsFeed(args)) return false;
  if (args.m == 0 || args.n == 0) return true;
  const bool aAlongK = args.mode != 2, bAlongK = args.mode == 0;
  SkinnyArgs call{};
  call.big = big.data, call.small = small.data;
  call.bigLd = big.ld, call.smallLd = small.ld;
  call.bigCount = static_cast<int>(bigIsA ? args.m : args.n);
  call.smallCount = static_cast<int>(smallCount);
  call.k = static_cast<int>(args.k);
  call.smallAligned = alignedRows(small);
  call.transposed = !bigIsA;
  call.alpha = args.alpha;
  call.out = epilogueOf(args);
  const bool bigAlongK = bigIsA ? aAlongK : bAlongK, smallAlongK = bigIsA ? bAlongK : aAlongK;
  if (args.a.dtype == DType::BF16) return chooseLayout<bf16>(call, bigAlongK, smallAlongK, context);
  return chooseLayout<__half>(call, bigAlongK, smallAlongK, context);
}

}  // namespace unsloth::cuda
