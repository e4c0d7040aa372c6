#include <algorithm>

#include "gemmEpilogue.cuh"

namespace unsloth::cuda {
namespace {

constexpr int threads = 256, depth = 16, maxSources = 9;

/** A product that adds to columns [column, column + width) of c: the main one, then the low-rank terms. */
struct Source {
  const void *a, *b;
  int64_t lda, ldb, k, column, width;
  float alpha;
  DType aType, bType;
  bool aVector, bVector;  // four neighbours may be read at once
};

struct SimpleArgs {
  Source sources[maxSources];
  int sourceCount;
  int splits;              // blocks that share the main product's k; the terms belong to the first
  int64_t depthsPerSplit;  // in steps of `depth`
  float* partial;          // [tile][split][sum][thread]
  Epilogue out;
};

__device__ unsigned arrived[maxSplitTiles];

__device__ __forceinline__ float4 loadFour(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::F32) return *reinterpret_cast<const float4*>(static_cast<const float*>(data) + i);
  const auto bits = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + i);
  float2 low, high;
  if (dtype == DType::BF16) {
    low = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(bits.x));
    high = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(bits.y));
  } else {
    low = __half22float2(reinterpret_cast<const __half2&>(bits.x));
    high = __half22float2(reinterpret_cast<const __half2&>(bits.y));
  }
  return make_float4(low.x, low.y, high.x, high.y);
}

/** Elements i … i+3 of row r, zero from column `columns` on and beyond row `rows`. */
__device__ __forceinline__ float4 loadGuarded(const void* data, DType dtype, bool vector, int64_t ld, int64_t r, int64_t i,
                                              int64_t rows, int64_t columns) {
  float4 v = make_float4(0, 0, 0, 0);
  if (r < 0 || r >= rows) return v;
  const int64_t at = r * ld + i;
  if (vector && i >= 0 && i % 4 == 0 && i + 4 <= columns) return loadFour(data, dtype, at);
  if (i >= 0 && i < columns) v.x = loadAny(data, dtype, at);
  if (i + 1 >= 0 && i + 1 < columns) v.y = loadAny(data, dtype, at + 1);
  if (i + 2 >= 0 && i + 2 < columns) v.z = loadAny(data, dtype, at + 2);
  if (i + 3 >= 0 && i + 3 < columns) v.w = loadAny(data, dtype, at + 3);
  return v;
}

/** One side of a tile: `extent` rows or columns of c by `depth` of k, held in shared memory as fp32 [depth][extent + 4]. */
template <int extent, bool alongK>
struct Side {
  static constexpr int pieces = extent * depth / 4;  // of four elements
  static constexpr int perThread = (pieces + threads - 1) / threads, stride = extent + 4;
  float4 held[perThread];

  /** `first`: the first row (column) of the operand in this tile, may be negative; `count` of them exist; k from k0 below k. */
  __device__ __forceinline__ void load(const void* data, DType dtype, bool vector, int64_t ld, int64_t first, int64_t count,
                                       int64_t k0, int64_t k) {
#pragma unroll
    for (int i = 0; i < perThread; ++i) {
      const int piece = static_cast<int>(threadIdx.x) + i * threads;
      if (pieces % threads != 0 && piece >= pieces) break;
      if (alongK)
        held[i] = loadGuarded(data, dtype, vector, ld, first + piece / (depth / 4), k0 + piece % (depth / 4) * 4, count, k);
      else held[i] = loadGuarded(data, dtype, vector, ld, k0 + piece / (extent / 4), first + piece % (extent / 4) * 4, k, count);
    }
  }

  __device__ __forceinline__ void store(float* shared, float scale) const {
#pragma unroll
    for (int i = 0; i < perThread; ++i) {
      const int piece = static_cast<int>(threadIdx.x) + i * threads;
      if (pieces % threads != 0 && piece >= pieces) break;
      const float4 v = make_float4(held[i].x * scale, held[i].y * scale, held[i].z * scale, held[i].w * scale);
      if (alongK) {
        float* at = shared + piece % (depth / 4) * 4 * stride + piece / (depth / 4);
        at[0] = v.x, at[stride] = v.y, at[2 * stride] = v.z, at[3 * stride] = v.w;
      } else {
        *reinterpret_cast<float4*>(shared + piece / (extent / 4) * stride + piece % (extent / 4) * 4) = v;
      }
    }
  }
};

/**
 * c = [c +] Σ alpha·op(a)op(b) + bias + add in fp32 arithmetic, a tile of tileM×tileN for each block, rows×columns sums for each
 * thread. 2mnk FLOPs on the fp32 units (67 TFLOP/s on an H200); reads (m/tileM + n/tileN)·… of the operands through L2.
 */
template <int tileM, int tileN, int rows, int columns, int mode>
__global__ void __launch_bounds__(threads) simpleKernel(const __grid_constant__ SimpleArgs args) {
  static_assert(tileM / rows * (tileN / columns) == threads);
  using SideA = Side<tileM, mode != 2>;
  using SideB = Side<tileN, mode == 0>;
  __shared__ alignas(16) float sharedA[2][depth * SideA::stride];
  __shared__ alignas(16) float sharedB[2][depth * SideB::stride];
  __shared__ int flag;
  const int tx = threadIdx.x % (tileN / columns), ty = threadIdx.x / (tileN / columns);
  const int64_t m0 = static_cast<int64_t>(blockIdx.x) * tileM, n0 = static_cast<int64_t>(blockIdx.y) * tileN;
  const Epilogue& out = args.out;
  float sum[rows][columns] = {};

  const int lastSource = blockIdx.z == 0 ? args.sourceCount : 1;
  for (int s = 0; s < lastSource; ++s) {
    const Source& source = args.sources[s];
    const int64_t firstColumn = n0 - source.column;
    if (firstColumn >= source.width || firstColumn + tileN <= 0) continue;
    const int64_t begin = s == 0 ? blockIdx.z * args.depthsPerSplit * depth : 0;
    const int64_t end = s == 0 ? min(source.k, begin + args.depthsPerSplit * depth) : source.k;
    if (begin >= end) continue;
    SideA a;
    SideB b;
    a.load(source.a, source.aType, source.aVector, source.lda, m0, out.m, begin, end);
    b.load(source.b, source.bType, source.bVector, source.ldb, firstColumn, source.width, begin, end);
    int buffer = 0;
    a.store(sharedA[0], source.alpha);
    b.store(sharedB[0], 1);
    __syncthreads();
    for (int64_t k0 = begin; k0 < end; k0 += depth) {
      const bool more = k0 + depth < end;
      if (more) {
        a.load(source.a, source.aType, source.aVector, source.lda, m0, out.m, k0 + depth, end);
        b.load(source.b, source.bType, source.bVector, source.ldb, firstColumn, source.width, k0 + depth, end);
      }
#pragma unroll
      for (int k = 0; k < depth; ++k) {
        float x[rows], y[columns];
#pragma unroll
        for (int i = 0; i < rows; i += 4)
          *reinterpret_cast<float4*>(&x[i]) =
              *reinterpret_cast<const float4*>(&sharedA[buffer][k * SideA::stride + i / 4 * (tileM / (rows / 4)) + ty * 4]);
#pragma unroll
        for (int j = 0; j < columns; j += 4)
          *reinterpret_cast<float4*>(&y[j]) =
              *reinterpret_cast<const float4*>(&sharedB[buffer][k * SideB::stride + j / 4 * (tileN / (columns / 4)) + tx * 4]);
#pragma unroll
        for (int i = 0; i < rows; ++i)
#pragma unroll
          for (int j = 0; j < columns; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
      }
      if (more) {
        a.store(sharedA[buffer ^ 1], source.alpha);
        b.store(sharedB[buffer ^ 1], 1);
      }
      __syncthreads();
      buffer ^= 1;
    }
  }

  if (args.splits > 1) {
    const int64_t tile = blockIdx.y * gridDim.x + blockIdx.x;
    float* partial = args.partial + tile * args.splits * (rows * columns * threads) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < rows * columns; ++i)
      __stcg(partial + (static_cast<int64_t>(blockIdx.z) * rows * columns + i) * threads, sum[i / columns][i % columns]);
    if (!lastOfSplits(&arrived[tile], args.splits, &flag)) return;
#pragma unroll
    for (int i = 0; i < rows * columns; ++i) sum[i / columns][i % columns] = 0;
    for (int s = 0; s < args.splits; ++s)
#pragma unroll
      for (int i = 0; i < rows * columns; ++i)
        sum[i / columns][i % columns] += __ldcg(partial + (static_cast<int64_t>(s) * rows * columns + i) * threads);
  }
#pragma unroll
  for (int i = 0; i < rows; ++i)
#pragma unroll
    for (int j = 0; j < columns; j += 2)
      out.storePair(m0 + i / 4 * (tileM / (rows / 4)) + ty * 4 + i % 4, n0 + j / 4 * (tileN / (columns / 4)) + tx * 4 + j % 4,
                    sum[i][j], sum[i][j + 1]);
}

/** Whether four neighbours of any row can be read at once where they exist. */
bool readsInFours(const View& v) {
  return reinterpret_cast<uintptr_t>(v.data) % (4 * bytesPerElement(v.dtype)) == 0 && v.ld % 4 == 0;
}

template <int tileM, int tileN, int rows, int columns>
void launch(SimpleArgs args, int mode, const Context& context) {
  const int64_t tilesM = (args.out.m + tileM - 1) / tileM, tilesN = (args.out.n + tileN - 1) / tileN, tiles = tilesM * tilesN;
  const int64_t depths = std::max<int64_t>(1, (args.sources[0].k + depth - 1) / depth);
  const int64_t wanted = 2 * context.gpu->multiprocessors / std::max<int64_t>(1, tiles);
  const size_t bytesPerSplit = static_cast<size_t>(tiles) * tileM * tileN * sizeof(float);
  int64_t splits =
      tiles > maxSplitTiles ? 1 : std::min({wanted, depths / 8, static_cast<int64_t>(context.workspaceBytes / bytesPerSplit)});
  splits = std::clamp<int64_t>(splits, 1, 64);
  args.depthsPerSplit = (depths + splits - 1) / splits;
  args.splits = static_cast<int>((depths + args.depthsPerSplit - 1) / args.depthsPerSplit);
  args.partial = static_cast<float*>(context.workspace);
  const dim3 grid(static_cast<unsigned>(tilesM), static_cast<unsigned>(tilesN), static_cast<unsigned>(args.splits));
  if (tilesN > 65535) fail("gemm: c is wider than the fp32 kernel takes");
  if (mode == 0) simpleKernel<tileM, tileN, rows, columns, 0><<<grid, threads, 0, context.stream>>>(args);
  else if (mode == 1) simpleKernel<tileM, tileN, rows, columns, 1><<<grid, threads, 0, context.stream>>>(args);
  else simpleKernel<tileM, tileN, rows, columns, 2><<<grid, threads, 0, context.stream>>>(args);
  checkLaunch("gemmSimple");
}

Source sourceOf(const View& a, const View& b, int64_t k, int64_t column, int64_t width, float alpha) {
  return {a.data, b.data, a.ld, b.ld, k, column, width, alpha, a.dtype, b.dtype, readsInFours(a), readsInFours(b)};
}

}  // namespace

bool gemmSimple(const GemmArgs& args, const Context& context) {
  if (args.m == 0 || args.n == 0) return true;
  SimpleArgs call{};
  call.out = epilogueOf(args);
  call.sources[0] = sourceOf(args.a, args.b, args.k, 0, args.n, args.alpha);
  size_t term = 0;
  do {
    call.sourceCount = 1;
    for (; term < args.terms.size() && call.sourceCount < maxSources; ++term) {
      const GemmTerm& t = args.terms[term];
      call.sources[call.sourceCount++] = sourceOf(t.a, t.b, t.rank, t.column, t.width, t.alpha);
    }
    if (args.n <= 32) launch<128, 32, 4, 4>(call, args.mode, context);
    else if (args.m <= 32) launch<32, 128, 4, 4>(call, args.mode, context);
    else if ((args.m + 127) / 128 * ((args.n + 127) / 128) < context.gpu->multiprocessors)
      launch<64, 64, 4, 4>(call, args.mode, context);
    else launch<128, 128, 8, 8>(call, args.mode, context);
    // More terms than a launch takes: the rest is added by further ones.
    call.sources[0].k = 0;
    call.out.accumulate = true;
    call.out.bias = call.out.add = nullptr;
  } while (term < args.terms.size());
  return true;
}

}  // namespace unsloth::cuda
