#include <algorithm>

#include "gemmEpilogue.cuh"
#include "mma.cuh"

namespace unsloth::cuda {
namespace {

constexpr int threads = 256, warps = 8;
constexpr int gap = 8;  // elements between rows in shared memory: no bank conflicts, rows stay 16-byte aligned
constexpr int maxStages = 5, largestCluster = 8;

#ifndef SKINNY_ROWS
#define SKINNY_ROWS 128
#define SKINNY_DEPTH 64
#endif

/** Rows (columns) of the big side for each block, and k for each stage. */
template <bool bigAlongK>
constexpr int tileRowsOf = bigAlongK ? 128 : SKINNY_ROWS;
template <bool bigAlongK>
constexpr int depthOf = bigAlongK ? 64 : SKINNY_DEPTH;

/**
 * The big matrix times the small one. Either is stored with k along its rows ([side, k]) or down its columns ([k, side]);
 * c[big, small], or [small, big] when `transposed`.
 */
struct SkinnyArgs {
  const void *big, *small;
  int64_t bigLd, smallLd, bigCount, k;
  int smallCount;
  bool smallAligned;  // rows of the small matrix can be copied in 16-byte pieces
  bool transposed;
  float alpha;
  int stages;
  int splits;              // blocks that share a tile's k
  bool clustered;          // they form a cluster and add up through each other's shared memory, else through scratch
  int64_t chunksPerSplit;  // of a stage's depth
  float4* partial;         // [tile][split][sums / 4][thread]
  Epilogue out;
};

__device__ unsigned arrived[maxSplitTiles];

__device__ __forceinline__ int bytesLeft(int64_t elements) {
  return static_cast<int>(elements >= 8 ? 16 : elements <= 0 ? 0 : elements * 2);
}

/** Copies a stage of one side to shared memory: alongK [extent][depth + gap], else [depth][extent + gap]; zeros beyond its ends. */
template <class T, int extent, int depth, bool alongK>
struct Stage {
  static constexpr int stride = (alongK ? depth : extent) + gap;
  static constexpr int bytes = (alongK ? extent : depth) * stride * 2;
  static constexpr int perRow = (alongK ? depth : extent) / 8, pieces = extent * depth / 8;

  /** `first`: the side's first row or column of the tile, of `count`. */
  static __device__ __forceinline__ void copy(uint32_t shared, const T* data, int64_t ld, int64_t first, int64_t count, int64_t k0, int64_t k) {
#pragma unroll
    for (int i = 0; i < (pieces + threads - 1) / threads; ++i) {
      const int piece = static_cast<int>(threadIdx.x) + i * threads;
      if (pieces % threads != 0 && piece >= pieces) break;
      const int row = piece / perRow, column = piece % perRow * 8;
      const int64_t r = (alongK ? first : k0) + row, c = (alongK ? k0 : first) + column;
      const int left = r < (alongK ? count : k) ? bytesLeft((alongK ? k : count) - c) : 0;
      copyAsync16(shared + (row * stride + column) * 2, left > 0 ? data + r * ld + c : data, left);
    }
  }

  /** The same for any alignment, element by element. */
  static __device__ void copySlowly(T* shared, const T* data, int64_t ld, int64_t first, int64_t count, int64_t k0, int64_t k) {
    for (int i = threadIdx.x; i < extent * depth; i += threads) {
      const int row = i / (perRow * 8), column = i % (perRow * 8);
      const int64_t r = (alongK ? first : k0) + row, c = (alongK ? k0 : first) + column;
      shared[row * stride + column] = r < (alongK ? count : k) && c < (alongK ? k : count) ? data[r * ld + c] : narrow<T>(0.f);
    }
  }
};

__device__ __forceinline__ void waitPending(int groups) {
  switch (groups) {
    case 0: return waitCopies<0>();
    case 1: return waitCopies<1>();
    case 2: return waitCopies<2>();
    default: return waitCopies<3>();
  }
}

/** Piece of 16 bytes from the shared memory of block `rank` of this cluster. */
__device__ __forceinline__ float4 loadFromCluster(uint32_t shared, int rank) {
  float4 v = make_float4(0, 0, 0, 0);
#if __CUDA_ARCH__ >= 900
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(there) : "memory");
#endif
  return v;
}

__device__ __forceinline__ void syncCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/**
 * c = [c +] alpha·big·small + bias + add, in one pass over the big matrix: bound by reading it. A block owns some rows (columns) of
 * it and a part of k; the small matrix comes from L2, once for each block. 2·big·small·k FLOPs on the tensor cores.
 */
template <class T, int width, bool bigAlongK, bool smallAlongK>
__global__ void __launch_bounds__(threads, width > 64 ? 1 : 2) skinnyKernel(const __grid_constant__ SkinnyArgs args) {
  constexpr int tileRows = tileRowsOf<bigAlongK>, depth = depthOf<bigAlongK>;
  using Big = Stage<T, tileRows, depth, bigAlongK>;
  using Small = Stage<T, width, depth, smallAlongK>;
  constexpr int stageBytes = Big::bytes + Small::bytes;
  constexpr int warpsAcross = width > 64 ? 2 : 1, rowTiles = tileRows / (warps / warpsAcross) / 16, columnTiles = width / warpsAcross / 8;
  static_assert(columnTiles % 2 == 0);
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  __shared__ int flag;
  const uint32_t shared = sharedAddress(sharedBytes);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warpRow = warp / warpsAcross * (rowTiles * 16), warpColumn = warp % warpsAcross * (columnTiles * 8);
  const int64_t tile = blockIdx.x, first = tile * tileRows;
  const auto* big = static_cast<const T*>(args.big);
  const auto* small = static_cast<const T*>(args.small);

  const int64_t begin = blockIdx.y * args.chunksPerSplit;
  const int chunks = static_cast<int>(min((args.k + depth - 1) / depth, begin + args.chunksPerSplit) - begin);
  auto copyStage = [&](int chunk, int slot) {
    if (chunk < chunks) {
      const int64_t k0 = (begin + chunk) * depth;
      Big::copy(shared + slot * stageBytes, big, args.bigLd, first, args.bigCount, k0, args.k);
      const int offset = slot * stageBytes + Big::bytes;
      if (args.smallAligned) Small::copy(shared + offset, small, args.smallLd, 0, args.smallCount, k0, args.k);
      else Small::copySlowly(reinterpret_cast<T*>(sharedBytes + offset), small, args.smallLd, 0, args.smallCount, k0, args.k);
    }
    commitCopies();
  };

  // Rows of 8×8 matrices that this lane addresses, for each of the four layouts; see multiplyAdd for the order of the four.
  const int low = lane % 8, half = lane / 8 % 2 * 8, upper = lane / 16 * 8;
  const uint32_t bigLane = bigAlongK ? ((warpRow + low + half) * Big::stride + upper) * 2 : ((low + upper) * Big::stride + warpRow + half) * 2;
  const uint32_t smallLane = Big::bytes + (smallAlongK ? ((warpColumn + low + upper) * Small::stride + half) * 2
                                                       : ((low + half) * Small::stride + warpColumn + upper) * 2);
  float sum[rowTiles][columnTiles][4] = {};
  const int ahead = args.stages - 1;
  for (int s = 0; s < ahead; ++s) copyStage(s, s);
  int slot = 0, freeSlot = ahead;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    waitPending(ahead - 1);
    __syncthreads();
    copyStage(chunk + ahead, freeSlot);
    const uint32_t stage = shared + slot * stageBytes;
    freeSlot = slot;
    slot = slot == ahead ? 0 : slot + 1;
#pragma unroll
    for (int k = 0; k < depth; k += 16) {
      uint32_t a[rowTiles][4], b[columnTiles / 2][4];
#pragma unroll
      for (int i = 0; i < rowTiles; ++i) {
        if (bigAlongK) loadMatrices(a[i], stage + bigLane + (i * 16 * Big::stride + k) * 2);
        else loadMatricesTransposed(a[i], stage + bigLane + (k * Big::stride + i * 16) * 2);
      }
#pragma unroll
      for (int j = 0; j < columnTiles / 2; ++j) {
        if (smallAlongK) loadMatrices(b[j], stage + smallLane + (j * 16 * Small::stride + k) * 2);
        else loadMatricesTransposed(b[j], stage + smallLane + (k * Small::stride + j * 16) * 2);
      }
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
      const float(&s)[4] = sum[i / columnTiles][i % columnTiles];
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
        float(&s)[4] = sum[i / columnTiles][i % columnTiles];
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

#ifndef SKINNY_WAVES
#define SKINNY_WAVES 1
#endif

template <class T, int width, bool bigAlongK, bool smallAlongK>
void launch(SkinnyArgs args, const Context& context) {
  constexpr int tileRows = tileRowsOf<bigAlongK>, depth = depthOf<bigAlongK>;
  constexpr int stageBytes = Stage<T, tileRows, depth, bigAlongK>::bytes + Stage<T, width, depth, smallAlongK>::bytes;
  constexpr int sumBytes = 4 * std::max(tileRows * (width + 8), (tileRows + 4) * width);
  constexpr size_t tileBytes = sizeof(float) * tileRows * width;
  // Two blocks share a multiprocessor; the system takes 1 KB of each.
  args.stages = std::clamp(static_cast<int>((context.gpu->sharedPerBlock / 2 - 1024) / stageBytes), 2, maxStages);
  const int64_t tiles = (args.bigCount + tileRows - 1) / tileRows, chunks = (args.k + depth - 1) / depth;
  const bool hasClusters = context.gpu->capability >= 90;
  int64_t splits = std::min(2 * SKINNY_WAVES * context.gpu->multiprocessors / tiles, chunks / 2);
  if (hasClusters) splits = std::min<int64_t>(splits, largestCluster);
  else splits = tiles > maxSplitTiles ? 1 : std::min({splits, int64_t{64}, static_cast<int64_t>(context.workspaceBytes / (tileBytes * tiles))});
  splits = std::max<int64_t>(splits, 1);
  args.chunksPerSplit = std::max<int64_t>(1, (chunks + splits - 1) / splits);
  args.splits = static_cast<int>(std::max<int64_t>(1, (chunks + args.chunksPerSplit - 1) / args.chunksPerSplit));
  args.clustered = hasClusters && args.splits > 1;
  args.partial = static_cast<float4*>(context.workspace);
  const auto kernel = skinnyKernel<T, width, bigAlongK, smallAlongK>;
  const int bytes = std::max(args.stages * stageBytes, sumBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "gemmSkinny: shared memory");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(args.splits));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = context.stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = 1;
  cluster.val.clusterDim.y = static_cast<unsigned>(args.splits);
  cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = args.clustered ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args), "gemmSkinny");
  checkLaunch("gemmSkinny");
}

template <class T, bool bigAlongK, bool smallAlongK>
void chooseWidth(const SkinnyArgs& args, const Context& context) {
  if (args.smallCount <= 16) launch<T, 16, bigAlongK, smallAlongK>(args, context);
  else if (args.smallCount <= 32) launch<T, 32, bigAlongK, smallAlongK>(args, context);
  else if (args.smallCount <= 48) launch<T, 48, bigAlongK, smallAlongK>(args, context);
  else if (args.smallCount <= 64) launch<T, 64, bigAlongK, smallAlongK>(args, context);
  else launch<T, 128, bigAlongK, smallAlongK>(args, context);
}

template <class T>
void chooseLayout(const SkinnyArgs& args, bool bigAlongK, bool smallAlongK, const Context& context) {
  if (bigAlongK && smallAlongK) chooseWidth<T, true, true>(args, context);
  else if (bigAlongK) chooseWidth<T, true, false>(args, context);
  else if (smallAlongK) chooseWidth<T, false, true>(args, context);
  else chooseWidth<T, false, false>(args, context);
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
  if (smallCount > widest || !alignedRows(big)) return false;
  if (args.m == 0 || args.n == 0) return true;
  const bool aAlongK = args.mode != 2, bAlongK = args.mode == 0;
  SkinnyArgs call{};
  call.big = big.data, call.small = small.data;
  call.bigLd = big.ld, call.smallLd = small.ld;
  call.bigCount = bigIsA ? args.m : args.n;
  call.smallCount = static_cast<int>(smallCount);
  call.k = args.k;
  call.smallAligned = alignedRows(small);
  call.transposed = !bigIsA;
  call.alpha = args.alpha;
  call.out = epilogueOf(args);
  if (args.a.dtype == DType::BF16) chooseLayout<bf16>(call, bigIsA ? aAlongK : bAlongK, bigIsA ? bAlongK : aAlongK, context);
  else chooseLayout<__half>(call, bigIsA ? aAlongK : bAlongK, bigIsA ? bAlongK : aAlongK, context);
  return true;
}

}  // namespace unsloth::cuda
