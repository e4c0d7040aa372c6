#include "attentionTiles.cuh"
#include "element.cuh"
#include "launch.cuh"

namespace unsloth::cuda {
namespace {

constexpr int threads = 256;

/**
 * How 256 threads share tiles of R rows and D columns of fp32 in shared memory. Scores, R×R: a square of threads with `rows` ×
 * `rows` values each. Sums over keys or queries, R×D: `columns` columns of `rows` rows each, in groups of four.
 */
template <int D, int R>
struct Shape {
  static constexpr int rows = R >= 16 ? R / 16 : 1, side = R / rows, stride = D + 4, weightStride = R + 1;
  static constexpr int columns = R * D / threads / rows, across = D / columns, tileFloats = R * stride,
                       weightFloats = R * weightStride;
  static_assert(columns % 4 == 0 && side * rows == R && R / rows * across == threads);
};

__device__ float load(const View& v, int64_t r, int64_t c) {
  const int64_t i = r * v.ld + c;
  if (v.dtype == DType::F32) return static_cast<const float*>(v.data)[i];
  return v.dtype == DType::BF16 ? widen(static_cast<const bf16*>(v.data)[i]) : widen(static_cast<const __half*>(v.data)[i]);
}

__device__ void store(const View& v, int64_t r, int64_t c, float x) {
  const int64_t i = r * v.ld + c;
  if (v.dtype == DType::F32) static_cast<float*>(v.data)[i] = x;
  else if (v.dtype == DType::BF16) static_cast<bf16*>(v.data)[i] = narrow<bf16>(x);
  else static_cast<__half*>(v.data)[i] = narrow<__half>(x);
}

/** Rows from `row` on, zeros from row `valid` and column `d` on. */
template <int D, int R>
__device__ void loadTile(float* tile, const View& v, int64_t row, int64_t column, int valid, int d) {
  for (int i = threadIdx.x; i < R * D; i += threads) {
    const int r = i / D, c = i % D;
    tile[r * (D + 4) + c] = r < valid && c < d ? load(v, row + r, column + c) : 0;
  }
}

/** What a thread of the square holds: rows ty·rows + i of a times rows tx + side·j of b. */
template <int D, int R>
struct Square {
  using S = Shape<D, R>;
  static __device__ bool is() { return threadIdx.x < S::side * S::side; }
  static __device__ int row(int i) { return static_cast<int>(threadIdx.x) / S::side * S::rows + i; }
  static __device__ int column(int j) { return static_cast<int>(threadIdx.x) % S::side + S::side * j; }

  static __device__ void dots(float (&out)[S::rows][S::rows], const float* a, const float* b) {
#pragma unroll
    for (int i = 0; i < S::rows; ++i)
#pragma unroll
      for (int j = 0; j < S::rows; ++j) out[i][j] = 0;
#pragma unroll 4
    for (int c = 0; c < D; c += 4) {
      float4 x[S::rows], y[S::rows];
#pragma unroll
      for (int i = 0; i < S::rows; ++i) {
        x[i] = *reinterpret_cast<const float4*>(a + row(i) * S::stride + c);
        y[i] = *reinterpret_cast<const float4*>(b + column(i) * S::stride + c);
      }
#pragma unroll
      for (int i = 0; i < S::rows; ++i)
#pragma unroll
        for (int j = 0; j < S::rows; ++j)
          out[i][j] = fmaf(x[i].x, y[j].x, fmaf(x[i].y, y[j].y, fmaf(x[i].z, y[j].z, fmaf(x[i].w, y[j].w, out[i][j]))));
    }
  }
};

/** What a thread holds of a sum over a tile: rows ty·rows + i, columns 4·tx + 4·across·g + e. */
template <int D, int R>
struct Sum {
  using S = Shape<D, R>;
  float at[S::rows][S::columns / 4][4] = {};

  static __device__ int row(int i) { return static_cast<int>(threadIdx.x) / S::across * S::rows + i; }
  static __device__ int column(int g) { return 4 * (static_cast<int>(threadIdx.x) % S::across + S::across * g); }

  /** += weights[R, R]·b[R, D]. */
  __device__ void add(const float* weights, const float* b) {
    for (int k = 0; k < R; ++k) {
      float w[S::rows];
#pragma unroll
      for (int i = 0; i < S::rows; ++i) w[i] = weights[row(i) * S::weightStride + k];
#pragma unroll
      for (int g = 0; g < S::columns / 4; ++g) {
        const float4 x = *reinterpret_cast<const float4*>(b + k * S::stride + column(g));
#pragma unroll
        for (int i = 0; i < S::rows; ++i) {
          at[i][g][0] = fmaf(w[i], x.x, at[i][g][0]), at[i][g][1] = fmaf(w[i], x.y, at[i][g][1]);
          at[i][g][2] = fmaf(w[i], x.z, at[i][g][2]), at[i][g][3] = fmaf(w[i], x.w, at[i][g][3]);
        }
      }
    }
  }
  __device__ void write(const View& v, int64_t firstRow, int64_t firstColumn, int valid, int d, float scale) const {
#pragma unroll
    for (int i = 0; i < S::rows; ++i)
#pragma unroll
      for (int g = 0; g < S::columns / 4; ++g)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (row(i) < valid && column(g) + e < d) store(v, firstRow + row(i), firstColumn + column(g) + e, at[i][g][e] * scale);
  }
};

/** The score of a dot product, and how it changes with the dot product (without `scale`). */
__device__ float scoreOf(const AttentionArgs& a, float dot, float& bend) {
  bend = 1;
  if (a.softcap <= 0) return dot * a.scale;
  const float bent = tanhf(dot * a.scale / a.softcap);
  bend = 1 - bent * bent;
  return a.softcap * bent;
}

__device__ bool visible(const AttentionArgs& a, int position, int key) {
  return key <= position && (a.window == 0 || position - key < a.window);
}

/** o and lse of a tile of queries of one head; see attentionMmaForward.cu. 4·d FLOPs for each visible pair, on the fp32 units. */
template <int D, int R>
__global__ void __launch_bounds__(threads) simpleForwardKernel(const __grid_constant__ AttentionArgs a) {
  awaitPrior();
  using S = Shape<D, R>;
  using Q = Square<D, R>;
  AttentionTile tile;
  if (!locateQueries<threads>(a, R, blockIdx.x, tile)) return;
  const AttentionSequence s(a, tile.sequence);
  const int head = blockIdx.y, kvHead = head / a.group, queries = min(R, s.queries - tile.first),
            firstPosition = s.offset() + tile.first;
  extern __shared__ __align__(16) float shared[];
  float *q = shared, *k = q + S::tileFloats, *v = k + S::tileFloats, *weights = v + S::tileFloats,
        *rescale = weights + S::weightFloats;
  loadTile<D, R>(q, a.q, s.qStart + tile.first, head * a.headDim, queries, a.headDim);
  float top[S::rows], total[S::rows];
#pragma unroll
  for (int i = 0; i < S::rows; ++i) top[i] = -INFINITY, total[i] = 0;
  Sum<D, R> out;
  const int end = firstPosition + queries;
  for (int first = (a.window > 0 ? max(0, firstPosition - a.window + 1) : 0) / R * R; first < end; first += R) {
    __syncthreads();
    loadTile<D, R>(k, a.k, s.kvStart + first, kvHead * a.headDim, s.keys - first, a.headDim);
    loadTile<D, R>(v, a.v, s.kvStart + first, kvHead * a.headDim, s.keys - first, a.headDim);
    __syncthreads();
    if (Q::is()) {
      float dot[S::rows][S::rows], bend;
      Q::dots(dot, q, k);
#pragma unroll
      for (int i = 0; i < S::rows; ++i) {
        float most = top[i], part = 0;
#pragma unroll
        for (int j = 0; j < S::rows; ++j) {
          dot[i][j] =
              visible(a, firstPosition + Q::row(i), first + Q::column(j)) ? scoreOf(a, dot[i][j], bend) * log2e : -INFINITY;
          most = fmaxf(most, dot[i][j]);
        }
#pragma unroll
        for (int step = 1; step < S::side; step *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
        const float shift = most == -INFINITY ? 0 : most, factor = exp2f(top[i] - shift);
        top[i] = most;
#pragma unroll
        for (int j = 0; j < S::rows; ++j) {
          const float p = exp2f(dot[i][j] - shift);
          part += p;
          weights[Q::row(i) * S::weightStride + Q::column(j)] = p;
        }
#pragma unroll
        for (int step = 1; step < S::side; step *= 2) part += __shfl_xor_sync(~0u, part, step);
        total[i] = total[i] * factor + part;
        if (Q::column(0) == 0) rescale[Q::row(i)] = factor;
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < S::rows; ++i) {
      const float factor = rescale[out.row(i)];
#pragma unroll
      for (int g = 0; g < S::columns / 4; ++g)
#pragma unroll
        for (int e = 0; e < 4; ++e) out.at[i][g][e] *= factor;
    }
    out.add(weights, v);
  }
  __syncthreads();
  if (Q::is() && Q::column(0) == 0) {
#pragma unroll
    for (int i = 0; i < S::rows; ++i) {
      rescale[Q::row(i)] = 1 / total[i];
      if (Q::row(i) < queries)
        static_cast<float*>(a.lse.data)[(s.qStart + tile.first + Q::row(i)) * a.lse.ld + head] = top[i] * ln2 + logf(total[i]);
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < S::rows; ++i)
#pragma unroll
    for (int g = 0; g < S::columns / 4; ++g)
#pragma unroll
      for (int e = 0; e < 4; ++e) out.at[i][g][e] *= rescale[out.row(i)];
  out.write(a.o, s.qStart + tile.first, head * a.headDim, queries, a.headDim, 1);
}

/**
 * Probabilities P and their gradient dS (without the scale) of a tile of queries and one of keys, handed to take(query, key, P,
 * dS). `numbers`: lse and delta of the queries.
 */
template <int D, int R, class Take>
__device__ void gradientOfTile(const AttentionArgs& a, const float* q, const float* dO, const float* k, const float* v,
                               const float* numbers, int firstPosition, int queries, int firstKey, Take take) {
  using S = Shape<D, R>;
  using Q = Square<D, R>;
  if (!Q::is()) return;
  float dot[S::rows][S::rows], slope[S::rows][S::rows], bend;
  Q::dots(dot, q, k);
  Q::dots(slope, dO, v);
#pragma unroll
  for (int i = 0; i < S::rows; ++i)
#pragma unroll
    for (int j = 0; j < S::rows; ++j) {
      const int query = Q::row(i), key = Q::column(j);
      const float score = scoreOf(a, dot[i][j], bend);
      const bool is = query < queries && visible(a, firstPosition + query, firstKey + key);
      const float p = is ? exp2f((score - numbers[query]) * log2e) : 0;
      take(query, key, p, p * bend * (slope[i][j] - numbers[R + query]));
    }
}

template <int R>
__device__ void loadNumbers(float* numbers, const AttentionArgs& a, int64_t row, int head, int queries) {
  const int query = threadIdx.x % R;
  if (threadIdx.x < 2 * R) {
    const View& v = threadIdx.x < R ? a.lse : a.delta;
    numbers[threadIdx.x] = query < queries ? static_cast<const float*>(v.data)[(row + query) * v.ld + head] : 0;
  }
}

/** dk and dv of a tile of keys of one kv head, over the queries of all its heads. 8·d FLOPs for each visible pair and head. */
template <int D, int R>
__global__ void __launch_bounds__(threads) simpleGradKeysKernel(const __grid_constant__ AttentionArgs a) {
  awaitPrior();
  using S = Shape<D, R>;
  AttentionTile tile;
  if (!locateKeys<threads>(a, R, blockIdx.x, tile)) return;
  const AttentionSequence s(a, tile.sequence);
  const int kvHead = blockIdx.y, keys = min(R, s.keys - tile.first), offset = s.offset();
  extern __shared__ __align__(16) float shared[];
  float *k = shared, *v = k + S::tileFloats, *q = v + S::tileFloats, *dO = q + S::tileFloats;
  float *weights = dO + S::tileFloats, *slopes = weights + S::weightFloats, *numbers = slopes + S::weightFloats;
  loadTile<D, R>(k, a.k, s.kvStart + tile.first, kvHead * a.headDim, keys, a.headDim);
  loadTile<D, R>(v, a.v, s.kvStart + tile.first, kvHead * a.headDim, keys, a.headDim);
  Sum<D, R> dk, dv;
  const int begin = max(0, tile.first - offset);
  const int end = a.window > 0 ? min(s.queries, tile.first + keys - 1 + a.window - offset) : s.queries;
  for (int head = kvHead * a.group; head < (kvHead + 1) * a.group; ++head)
    for (int first = begin; first < end; first += R) {
      const int queries = min(R, end - first);
      __syncthreads();
      loadTile<D, R>(q, a.q, s.qStart + first, head * a.headDim, queries, a.headDim);
      loadTile<D, R>(dO, a.dO, s.qStart + first, head * a.headDim, queries, a.headDim);
      loadNumbers<R>(numbers, a, s.qStart + first, head, queries);
      __syncthreads();
      gradientOfTile<D, R>(a, q, dO, k, v, numbers, offset + first, queries, tile.first,
                           [&](int query, int key, float p, float ds) {
                             weights[key * S::weightStride + query] = p, slopes[key * S::weightStride + query] = ds;
                           });
      __syncthreads();
      dv.add(weights, dO);
      dk.add(slopes, q);
    }
  dk.write(a.dk, s.kvStart + tile.first, kvHead * a.headDim, keys, a.headDim, a.scale);
  dv.write(a.dv, s.kvStart + tile.first, kvHead * a.headDim, keys, a.headDim, 1);
}

/** dq of a tile of queries of one head. 6·d FLOPs for each visible pair and head. */
template <int D, int R>
__global__ void __launch_bounds__(threads) simpleGradQueriesKernel(const __grid_constant__ AttentionArgs a) {
  awaitPrior();
  using S = Shape<D, R>;
  AttentionTile tile;
  if (!locateQueries<threads>(a, R, blockIdx.x, tile)) return;
  const AttentionSequence s(a, tile.sequence);
  const int head = blockIdx.y, kvHead = head / a.group, queries = min(R, s.queries - tile.first),
            firstPosition = s.offset() + tile.first;
  extern __shared__ __align__(16) float shared[];
  float *k = shared, *v = k + S::tileFloats, *q = v + S::tileFloats, *dO = q + S::tileFloats;
  float *slopes = dO + S::tileFloats, *numbers = slopes + S::weightFloats;
  loadTile<D, R>(q, a.q, s.qStart + tile.first, head * a.headDim, queries, a.headDim);
  loadTile<D, R>(dO, a.dO, s.qStart + tile.first, head * a.headDim, queries, a.headDim);
  loadNumbers<R>(numbers, a, s.qStart + tile.first, head, queries);
  Sum<D, R> dq;
  const int end = firstPosition + queries;
  for (int first = (a.window > 0 ? max(0, firstPosition - a.window + 1) : 0) / R * R; first < end; first += R) {
    __syncthreads();
    loadTile<D, R>(k, a.k, s.kvStart + first, kvHead * a.headDim, s.keys - first, a.headDim);
    loadTile<D, R>(v, a.v, s.kvStart + first, kvHead * a.headDim, s.keys - first, a.headDim);
    __syncthreads();
    gradientOfTile<D, R>(a, q, dO, k, v, numbers, firstPosition, queries, first,
                         [&](int query, int key, float, float ds) { slopes[query * S::weightStride + key] = ds; });
    __syncthreads();
    dq.add(slopes, k);
  }
  dq.write(a.dq, s.qStart + tile.first, head * a.headDim, queries, a.headDim, a.scale);
}

template <int D, int R>
constexpr size_t gradientBytes = (4 * Shape<D, R>::tileFloats + 2 * Shape<D, R>::weightFloats + 2 * R) * sizeof(float);

void launch(void (*kernel)(AttentionArgs), dim3 grid, size_t bytes, const AttentionArgs& args, const Context& context,
            const char* doing) {
  if (bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), doing);
  launchDependent(context, doing, kernel, {grid, threads, bytes}, args);
}

dim3 gridOf(int64_t tiles, int heads) { return {static_cast<unsigned>(tiles), static_cast<unsigned>(heads)}; }

template <int D, int R>
void forward(const AttentionArgs& args, const Context& context) {
  constexpr size_t bytes = (3 * Shape<D, R>::tileFloats + Shape<D, R>::weightFloats + R) * sizeof(float);
  launch(simpleForwardKernel<D, R>, gridOf(args.queryTiles(R), args.heads), bytes, args, context, "running attention");
}

template <int D, int R>
void gradient(const AttentionArgs& args, const Context& context) {
  constexpr size_t bytes = gradientBytes<D, R>;
  launch(simpleGradKeysKernel<D, R>, gridOf(args.keyTiles(R), args.kvHeads), bytes, args, context, "running attentionGrad");
  launch(simpleGradQueriesKernel<D, R>, gridOf(args.queryTiles(R), args.heads), bytes, args, context, "running attentionGrad");
}

}  // namespace

void attentionSimple(const AttentionArgs& args, const Context& context) {
  if (args.headDim <= 64) forward<64, 32>(args, context);
  else if (args.headDim <= 128) forward<128, 32>(args, context);
  else forward<256, 16>(args, context);
}

void attentionGradSimple(const AttentionArgs& args, const Context& context) {
  attentionDelta(args, context);
  const bool roomy = context.gpu->sharedPerBlock >= gradientBytes<128, 32>;
  if (args.headDim <= 64) gradient<64, 32>(args, context);
  else if (args.headDim <= 128) roomy ? gradient<128, 32>(args, context) : gradient<128, 16>(args, context);
  else roomy ? gradient<256, 16>(args, context) : gradient<256, 8>(args, context);
}

}  // namespace unsloth::cuda
