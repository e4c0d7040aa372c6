#pragma once
#include <algorithm>

#include "gemmEpilogue.cuh"
#include "launch.cuh"

/** Products of matrices of any type and shape by way of tiles in shared memory as fp32. */
namespace unsloth::cuda::tiles {

constexpr int threads = 256, depth = 16, maxSources = 9;

/** A product that adds to columns [column, column + width) of c: the main one, then the low-rank terms. */
struct Source {
  const void *a, *b;
  int64_t lda, ldb, k, column, width;
  float alpha;
  DType aType, bType;
  bool aVector, bVector;  // four neighbours may be read at once
};

struct TileArgs {
  Source sources[maxSources];
  int sourceCount;
  int splits;              // blocks that share the main product's k; the terms belong to the first
  int64_t depthsPerSplit;  // in steps of `depth`
  float* partial;          // [tile][split][sum][thread]
  Epilogue out;
};

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

/** The nearest number with a mantissa of 10 bits: what tensor cores multiply of fp32. */
__device__ __forceinline__ float roundToTf32(float x) {
#if __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#else
  return x;
#endif
}

/**
 * One side of a tile: `extent` rows or columns of c by `depth` of k, held in shared memory as fp32 [depth][extent + gap]; `rounded`: to
 * TF32.
 */
template <int extent, bool alongK, int gap = 4, bool rounded = false>
struct Side {
  static constexpr int pieces = extent * depth / 4;  // of four elements
  static constexpr int perThread = (pieces + threads - 1) / threads, stride = extent + gap;
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
      float4 v = make_float4(held[i].x * scale, held[i].y * scale, held[i].z * scale, held[i].w * scale);
      if constexpr (rounded) v = make_float4(roundToTf32(v.x), roundToTf32(v.y), roundToTf32(v.z), roundToTf32(v.w));
      if (alongK) {
        float* at = shared + piece % (depth / 4) * 4 * stride + piece / (depth / 4);
        at[0] = v.x, at[stride] = v.y, at[2 * stride] = v.z, at[3 * stride] = v.w;
      } else {
        *reinterpret_cast<float4*>(shared + piece / (extent / 4) * stride + piece % (extent / 4) * 4) = v;
      }
    }
  }
};

/** Whether four neighbours of any row can be read at once where they exist. */
inline bool readsInFours(const View& v) {
  return reinterpret_cast<uintptr_t>(v.data) % (4 * bytesPerElement(v.dtype)) == 0 && v.ld % 4 == 0;
}

inline Source sourceOf(const View& a, const View& b, int64_t k, int64_t column, int64_t width, float alpha) {
  return {a.data, b.data, a.ld, b.ld, k, column, width, alpha, a.dtype, b.dtype, readsInFours(a), readsInFours(b)};
}

/**
 * Adds up what the blocks of a tile have in `count` sums a thread each, in the order of their parts of k; at(i) is the i-th of this
 * thread's. Only the last block to arrive has them then, and is told so.
 */
template <int count, class At>
__device__ __forceinline__ bool addSplits(const TileArgs& args, unsigned* arrived, int* flag, At&& at) {
  const int64_t tile = blockIdx.y * gridDim.x + blockIdx.x;
  float* partial = args.partial + tile * args.splits * (count * threads) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < count; ++i) __stcg(partial + (static_cast<int64_t>(blockIdx.z) * count + i) * threads, at(i));
  if (!lastOfSplits(&arrived[tile], args.splits, flag)) return false;
#pragma unroll
  for (int i = 0; i < count; ++i) at(i) = 0;
  for (int s = 0; s < args.splits; ++s)
#pragma unroll
    for (int i = 0; i < count; ++i) at(i) += __ldcg(partial + (static_cast<int64_t>(s) * count + i) * threads);
  return true;
}

/** Launches a kernel on tiles of tileM×tileN, with the main product's k cut where there are too few of them for the GPU. */
inline void launchTiles(TileArgs args, int tileM, int tileN, void (*kernel)(const TileArgs), const char* name, const Context& context) {
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
  launchDependent(context, name, kernel, {grid, threads}, args);
}

/** launch(TileArgs) for the product and as many of its low-rank terms as one launch takes, then for the rest of them. */
template <class Launch>
void launchSources(const GemmArgs& args, Launch&& launch) {
  TileArgs call{};
  call.out = epilogueOf(args);
  call.sources[0] = sourceOf(args.a, args.b, args.k, 0, args.n, args.alpha);
  size_t term = 0;
  do {
    call.sourceCount = 1;
    for (; term < args.terms.size() && call.sourceCount < maxSources; ++term) {
      const GemmTerm& t = args.terms[term];
      call.sources[call.sourceCount++] = sourceOf(t.a, t.b, t.rank, t.column, t.width, t.alpha);
    }
    launch(call);
    call.sources[0].k = 0;
    call.out.accumulate = true;
    call.out.bias = call.out.add = nullptr;
  } while (term < args.terms.size());
}

}  // namespace unsloth::cuda::tiles
