#include <algorithm>

#include "../core/views.h"
#include "element.cuh"
#include "gemm.h"
#include "headLoss.h"
#include "launch.cuh"
#include "operands.h"
#include "ops.h"

namespace unsloth::cuda {
namespace {

constexpr int threads = 1024, warps = threads / 32;
constexpr float log2e = 1.4426950408889634f;

struct RowArgs {
  void* logits;  // h·wᵀ, times the scale where there is no softcap
  int64_t ld;
  int vocabulary;
  int kept;  // 16-byte pieces of a row that stay in shared memory between the two passes
  const int32_t* labels;
  const float* weights;
  float* nll;
  int64_t nllStride;
  float scale, softcap;
  bool gradient;
};

__device__ __forceinline__ float exponential(float x) { return exp2f(x * log2e); }

/** Largest value and Σ exp(value − largest) of what has been seen. */
struct RunningSum {
  float top = -INFINITY, sum = 0;

  __device__ __forceinline__ void add(const RunningSum& other) {
    const float highest = fmaxf(top, other.top);
    if (highest == -INFINITY) return;
    sum = sum * exponential(top - highest) + other.sum * exponential(other.top - highest);
    top = highest;
  }
};

/** softcap·tanh(scale·x/softcap); for 16-bit logits with an absolute error of some 1e-7 of the softcap. */
template <class T, bool capped>
__device__ __forceinline__ float logit(T raw, const RowArgs& args) {
  const float x = widen(raw);
  if constexpr (!capped) return x;
  const float inner = x * (args.scale / args.softcap);
  if constexpr (sizeof(T) == 4) return args.softcap * tanhf(inner);
  else return args.softcap * (1 - __fdividef(2, exponential(2 * inner) + 1));
}

/** The sums of all threads, in a fixed order. */
__device__ RunningSum reduceBlock(RunningSum mine) {
  __shared__ RunningSum parts[warps];
#pragma unroll
  for (int shift = 16; shift > 0; shift /= 2) {
    const RunningSum other{__shfl_xor_sync(~0u, mine.top, shift), __shfl_xor_sync(~0u, mine.sum, shift)};
    mine.add(other);
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = mine;
  __syncthreads();
  RunningSum all = parts[0];
  for (int i = 1; i < warps; ++i) all.add(parts[i]);
  return all;
}

/**
 * One row of logits z for each block: nll = log Σ exp(z) − z[label], then with `gradient` the row becomes
 * weight·scale·(softmax(z) − onehot)·(1 − (z/softcap)²). Reads the row once from device memory and writes it once (4V bytes in 16
 * bits): what does not fit into shared memory in between comes from L2 again. About 20V FLOPs.
 */
template <class T, int width, bool capped>
__global__ void __launch_bounds__(threads) rowKernel(const RowArgs args) {
  awaitPrior();
  using Piece = Pack<T, width>;
  constexpr int together = 4;  // loads under way in each thread
  extern __shared__ __align__(16) unsigned char keptBytes[];
  auto* kept = reinterpret_cast<Piece*>(keptBytes);
  const int64_t row = blockIdx.x;
  T* const logits = static_cast<T*>(args.logits) + row * args.ld;
  auto* const pieces = reinterpret_cast<Piece*>(logits);
  const int count = args.vocabulary / width, tail = count * width + static_cast<int>(threadIdx.x);
  const bool hasTail = tail < args.vocabulary;

  RunningSum mine;
  const auto take = [&](const Piece& piece) {
    float z[width], highest = mine.top;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      z[i] = logit<T, capped>(piece.at[i], args);
      highest = fmaxf(highest, z[i]);
    }
    if (highest > mine.top) mine.sum *= exponential(mine.top - highest);
    mine.top = highest;
#pragma unroll
    for (int i = 0; i < width; ++i) mine.sum += exponential(z[i] - highest);
  };
  for (int first = threadIdx.x; first < count; first += threads * together) {
    Piece held[together];
#pragma unroll
    for (int i = 0; i < together; ++i)
      if (first + i * threads < count) held[i] = pieces[first + i * threads];
#pragma unroll
    for (int i = 0; i < together; ++i) {
      const int at = first + i * threads;
      if (at >= count) break;
      if (at < args.kept) kept[at] = held[i];
      take(held[i]);
    }
  }
  if (hasTail) mine.add({logit<T, capped>(logits[tail], args), 1});
  const RunningSum all = reduceBlock(mine);

  const int label = args.labels[row];
  const bool known = label >= 0 && label < args.vocabulary;
  const float target = known ? logit<T, capped>(logits[label], args) : NAN;
  if (threadIdx.x == 0) args.nll[row * args.nllStride] = logf(all.sum) + (all.top - target);
  if (!args.gradient) return;
  __syncthreads();  // the label's logit has been read

  const float weight = args.weights[row] * args.scale, factor = weight / all.sum;
  const auto gradient = [&](T x, int at) {
    const float z = logit<T, capped>(x, args);
    float d = exponential(z - all.top) * factor;
    if (at == label) d -= weight;
    if (capped) d *= 1 - z / args.softcap * (z / args.softcap);
    return weight == 0 ? 0.f : d;
  };
  const auto give = [&](const Piece& piece, int at) {
    Piece out;
#pragma unroll
    for (int i = 0; i < width; ++i) out.at[i] = narrow<T>(gradient(piece.at[i], at * width + i));
    pieces[at] = out;
  };
  for (int first = threadIdx.x; first < count; first += threads * together) {
    Piece held[together];
#pragma unroll
    for (int i = 0; i < together; ++i) {
      const int at = first + i * threads;
      if (at < count) held[i] = at < args.kept ? kept[at] : pieces[at];
    }
#pragma unroll
    for (int i = 0; i < together; ++i)
      if (first + i * threads < count) give(held[i], first + i * threads);
  }
  if (hasTail) logits[tail] = narrow<T>(gradient(logits[tail], tail));
}

/** sums[v] += factor · Σ_rows x[row, v], rows in order; reads x once. */
template <class T>
__global__ void __launch_bounds__(128) biasKernel(float* sums, const T* x, int64_t ld, int rows, int vocabulary, float factor) {
  awaitPrior();
  const int v = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (v >= vocabulary) return;
  float sum = 0;
#pragma unroll 8
  for (int row = 0; row < rows; ++row) sum += widen(x[row * ld + v]);
  sums[v] += factor * sum;
}

template <class T, int width, bool capped>
void launchRows(RowArgs args, int64_t rows, const Context& context) {
  const auto kernel = rowKernel<T, width, capped>;
  constexpr int reserved = 1024;  // for the sums of the warps
  const int64_t room =
      static_cast<int64_t>(context.gpu->sharedPerBlock - reserved) / static_cast<int64_t>(sizeof(Pack<T, width>));
  args.kept = args.gradient && width > 1 ? static_cast<int>(std::min<int64_t>(room, args.vocabulary / width)) : 0;
  const size_t bytes = static_cast<size_t>(args.kept) * sizeof(Pack<T, width>);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "headLoss: shared memory");
  launchDependent(context, "headLoss", kernel, {static_cast<unsigned>(rows), threads, bytes}, args);
}

void lossOfRows(const RowArgs& args, const View& logits, const Context& context) {
  withType(logits.dtype, "headLoss", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool aligned =
        reinterpret_cast<uintptr_t>(logits.data) % 16 == 0 && static_cast<size_t>(logits.ld) * sizeof(T) % 16 == 0;
    if (aligned && args.softcap != 0) launchRows<T, perVector<T>, true>(args, logits.rows, context);
    else if (aligned) launchRows<T, perVector<T>, false>(args, logits.rows, context);
    else if (args.softcap != 0) launchRows<T, 1, true>(args, logits.rows, context);
    else launchRows<T, 1, false>(args, logits.rows, context);
  });
}

void addToBias(float* sums, const View& x, float factor, const Context& context) {
  withType(x.dtype, "headLoss", [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int block = 128;
    launchDependent(context, "headLoss bias", biasKernel<T>, {static_cast<unsigned>((x.cols + block - 1) / block), block}, sums,
                    static_cast<const T*>(x.data), x.ld, static_cast<int>(x.rows), static_cast<int>(x.cols), factor);
  });
}

/** The scratch, when it has no gaps, with rows that start at multiples of 128 bytes (at least one): fast products need that. */
View alignedRows(const View& logits) {
  const int64_t unit = 128 / static_cast<int64_t>(bytesPerElement(logits.dtype)), ld = (logits.cols + unit - 1) / unit * unit;
  const int64_t rows = logits.rows * logits.cols / ld;
  View v = logits;
  if (logits.ld == logits.cols && rows > 0) v.ld = ld, v.rows = rows;
  return v;
}

void multiply(int mode, float alpha, const View& c, const View& a, const View& b, bool accumulate, const View& bias, bool tf32,
              const Context& context) {
  GemmArgs g;
  g.mode = mode;
  g.tf32 = tf32;
  g.m = c.rows, g.n = c.cols, g.k = mode == 2 ? a.rows : a.cols;
  g.c = c, g.a = a, g.b = b, g.bias = bias;
  g.accumulate = accumulate;
  g.alpha = alpha;
  runGemm(g, context);
}

}  // namespace

namespace ops {

void headLoss(const Call& call, const Context& context) {
  const Operands args(call, "headLoss", 9, 1, 2);
  const View& h = args.matrix(5, "h");
  const View& w = args.matrix(6, "w", Operands::any, h.cols);
  const View logits = alignedRows(args.matrix(3, "logits", Operands::any, w.rows));
  const int64_t rows = h.rows, vocabulary = w.rows;
  const View& nll = args.typed(0, "nll", DType::F32, rows, 1);
  const bool wantsDH = call.has(1), wantsDW = call.has(2), wantsDBias = call.has(4), hasBias = call.has(9);
  if (wantsDH) args.matrix(1, "dH", rows, h.cols);
  if (wantsDW) args.matrix(2, "dW", vocabulary, h.cols);
  args.require(wantsDH || !(wantsDW || wantsDBias), "dW and dBias need dH");
  args.require(hasBias || !wantsDBias, "dBias needs bias");
  float* const dBias = wantsDBias ? const_cast<float*>(args.list<float>(4, "dBias", DType::F32, vocabulary)) : nullptr;
  const View bias = hasBias ? args.matrix(9, "bias", 1, vocabulary) : View{};
  args.require(logits.rows > 0 || rows == 0, "logits has no rows");
  const auto* labels = args.list<int32_t>(7, "labels", DType::I32, rows);
  const auto* weights = args.list<float>(8, "weights", DType::F32, rows);
  const auto scale = static_cast<float>(call.f(0)), softcap = static_cast<float>(call.f(1));
  const bool tf32 = call.i(0) == 2;
  args.require(!hasBias || softcap == 0, "a bias goes without softcap");
  if (rows == 0) return;

  if (!hasBias && softcap == 0) {
    const View dH = wantsDH ? call.t(1) : View{}, dW = wantsDW ? call.t(2) : View{};
    if (headLossWgmma({nll, dH, dW, logits, h, w, labels, weights, scale}, context)) return;
  }
  // Chunks of about equal size, so that the last product is no small one.
  constexpr int64_t unit = 128;
  const int64_t chunks = (rows + logits.rows - 1) / logits.rows;
  const int64_t perChunk = std::min(logits.rows, ((rows + chunks - 1) / chunks + unit - 1) / unit * unit);
  for (int64_t first = 0; first < rows; first += perChunk) {
    const int64_t count = std::min(perChunk, rows - first);
    const View z = rowsOf(logits, 0, count), hidden = rowsOf(h, first, count);
    multiply(0, softcap == 0 ? scale : 1, z, hidden, w, false, bias, tf32, context);
    lossOfRows({z.data, z.ld, static_cast<int>(vocabulary), 0, labels + first, weights + first, nll.f32() + first * nll.ld,
                nll.ld, scale, softcap, wantsDH},
               z, context);
    if (!wantsDH) continue;
    if (wantsDBias) addToBias(dBias, z, 1 / scale, context);  // ∂z/∂bias is 1, where ∂z/∂(h·wᵀ) is the scale
    const View dH = rowsOf(call.t(1), first, count);
    if (!headGradWgmma(dH, z, w, nullptr, context)) multiply(1, 1, dH, z, w, false, View{}, tf32, context);
    if (wantsDW) multiply(2, 1, call.t(2), z, hidden, true, View{}, tf32, context);
  }
}

}  // namespace ops
}  // namespace unsloth::cuda
