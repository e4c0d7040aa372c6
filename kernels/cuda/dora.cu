// DoRA: columns scaled by their gain, and the lengths of a weight's rows with its adapter.
#include "columnReduce.cuh"
#include "launch.cuh"
#include "map.cuh"
#include "operands.h"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

/** An element of a list whose type is known at run time alone. */
__device__ __forceinline__ float element(const void* list, DType dtype, int64_t i) {
  if (dtype == DType::BF16) return widen(static_cast<const bf16*>(list)[i]);
  if (dtype == DType::F16) return widen(static_cast<const __half*>(list)[i]);
  return static_cast<const float*>(list)[i];
}

/** alpha·w⊙in[0] + bias + in[1]. Bytes: each operand once; the lists stay in the first cache. */
template <int ins>
struct ScaleColumns : MapFunction {
  static constexpr bool placed = true;
  const float* w;
  const void* bias;
  DType biasType;
  float alpha;
  template <int width>
  __device__ __forceinline__ void operator()(int64_t, int64_t column, const float (&in)[ins][width], float (&out)[1][width]) const {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      float value = alpha * w[column + i] * in[0][i];
      if (bias != nullptr) value += element(bias, biasType, column + i);
      if constexpr (ins > 1) value += in[1][i];
      out[0][i] = value;
    }
  }
};

/** Term of sumColumns: dy⊙x / norm. */
template <class T>
struct OverNorm {
  const T *dy, *x;
  const float* norm;
  int64_t ldDy, ldX;
  template <int width>
  __device__ __forceinline__ void operator()(uint32_t row, uint32_t, int64_t column, float (&sums)[width]) const {
    float d[width], v[width];
    loadVector(dy + row * ldDy + column, d);
    loadVector(x + row * ldX + column, v);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float length = norm[column + i];
      if (length > 0) sums[i] = fmaf(d[i] * v[i], __frcp_rn(length), sums[i]);
    }
  }
};

__device__ __forceinline__ double warpSum(double v) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

constexpr int threads = 128, warps = threads / 32;

/** out[r] = Σ x[r,c]², one row in each warp; fp32 over 8 neighbours, then fp64. Bytes: x once. */
template <class T>
__global__ void __launch_bounds__(threads) rowSquaresKernel(float* out, const T* x, int64_t ld, int64_t rows, int64_t cols) {
  awaitPrior();
  const int64_t row = int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (row >= rows) return;
  double sum = 0;
  for (int64_t c = threadIdx.x % 32; c < cols; c += 32 * 8) {
    float part = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (c + 32 * i < cols) {
        const float value = widen(x[row * ld + c + 32 * i]);
        part = fmaf(value, value, part);
      }
    sum += static_cast<double>(part);
  }
  sum = warpSum(sum);
  if (threadIdx.x % 32 == 0) out[row] = static_cast<float>(sum);
}

template <class T>
struct Norms {
  float *gain, *norm;
  const float *squares, *m, *wa, *gram;
  const T* b;
  int64_t ldB, ldWa, ldGram, rows, rank;
  double scale;
};

/** Share of ‖W‖² + ‖scale·B·A‖² below which sums of fp32 products cannot tell their difference from 0. */
constexpr double leastSquare = 0x1p-22;

/** One row of B in each warp: rank² + rank multiply-adds; gram and wa come from the caches after the first warps. */
template <class T>
__global__ void __launch_bounds__(threads) doraNormKernel(const Norms<T> p) {
  awaitPrior();
  const int64_t row = int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const T* b = p.b + row * p.ldB;
  double cross = 0, square = 0;
  for (int64_t l = threadIdx.x % 32; l < p.rank; l += 32) {
    float sum = 0;
    for (int64_t k = 0; k < p.rank; ++k) sum = fmaf(widen(b[k]), p.gram[k * p.ldGram + l], sum);
    const double factor = widen(b[l]);
    cross += factor * static_cast<double>(p.wa[l * p.ldWa + row]);
    square += factor * static_cast<double>(sum);
  }
  cross = warpSum(cross);
  square = p.scale * p.scale * warpSum(square);
  if (threadIdx.x % 32 != 0) return;
  const double base = p.squares[row], least = leastSquare * (base + square);
  const float length = static_cast<float>(sqrt(fmax(base + 2 * p.scale * cross + square, least)));
  p.norm[row] = length;
  p.gain[row] = length > 0 ? p.m[row] / length : 0.0f;
}

uint32_t warpBlocks(int64_t rows) { return static_cast<uint32_t>(divideUp(rows, warps)); }

}  // namespace

void scaleColumns(const Call& call, const Context& context) {
  const Operands args(call, "scaleColumns", 3, 0, 1);
  const View& x = args.matrix(1, "x");
  const View& y = args.typed(0, "y", x.dtype, x.rows, x.cols);
  const float* w = args.typed(2, "w", DType::F32, 1, x.cols).f32();
  const View bias = args.has(3) ? args.matrix(3, "bias", 1, x.cols) : View{};
  const auto alpha = static_cast<float>(call.f(0));
  withType(x.dtype, "scaleColumns", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (args.has(4)) {
      const View& add = args.typed(4, "add", x.dtype, x.rows, x.cols);
      mapElements<T, 2, 1>(context, "scaleColumns", {y}, {x, add}, ScaleColumns<2>{{}, w, bias.data, bias.dtype, alpha});
    } else {
      mapElements<T, 1, 1>(context, "scaleColumns", {y}, {x}, ScaleColumns<1>{{}, w, bias.data, bias.dtype, alpha});
    }
  });
}

void scaleColumnsGrad(const Call& call, const Context& context) {
  const Operands args(call, "scaleColumnsGrad", 6, 0, 1);
  const View& dy = args.matrix(2, "dy");
  const View& dx = args.typed(0, "dx", dy.dtype, dy.rows, dy.cols);
  const View& dm = args.typed(1, "dm", DType::F32, 1, dy.cols);
  const View& x = args.typed(3, "x", dy.dtype, dy.rows, dy.cols);
  const float* w = args.typed(4, "w", DType::F32, 1, dy.cols).f32();
  const float* norm = args.typed(5, "norm", DType::F32, 1, dy.cols).f32();
  const auto alpha = static_cast<float>(call.f(0));
  withType(dy.dtype, "scaleColumnsGrad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const OverNorm<T> term{static_cast<const T*>(dy.data), static_cast<const T*>(x.data), norm, dy.ld, x.ld};
    // The sums first: dx may take dy's memory.
    if (vectorised(dy, perVector<T>) && vectorised(x, perVector<T>))
      sumColumns<perVector<T>>(context, "scaleColumnsGrad", dm.f32(), dy.rows, 1, dy.cols, alpha, term);
    else
      sumColumns<1>(context, "scaleColumnsGrad", dm.f32(), dy.rows, 1, dy.cols, alpha, term);
    mapElements<T, 1, 1>(context, "scaleColumnsGrad", {dx}, {dy}, ScaleColumns<1>{{}, w, nullptr, DType::F32, alpha});
  });
}

void rowSquares(const Call& call, const Context& context) {
  const Operands args(call, "rowSquares", 2, 0, 0);
  const View& x = args.matrix(1, "x");
  const View& out = args.typed(0, "out", DType::F32, 1, x.rows);
  if (x.rows == 0) return;
  withType(x.dtype, "rowSquares", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* from = static_cast<const T*>(x.data);
    launchDependent(context, "rowSquares", rowSquaresKernel<T>, {warpBlocks(x.rows), threads}, out.f32(), from, x.ld, x.rows,
                    x.cols);
  });
}

void doraNorm(const Call& call, const Context& context) {
  const Operands args(call, "doraNorm", 7, 0, 1);
  const View& b = args.matrix(4, "b");
  const auto row = [&](int64_t i, const char* name) { return args.typed(i, name, DType::F32, 1, b.rows).f32(); };
  const View& wa = args.typed(5, "wa", DType::F32, b.cols, b.rows);
  const View& gram = args.typed(6, "gram", DType::F32, b.cols, b.cols);
  if (b.rows == 0) return;
  withType(b.dtype, "doraNorm", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Norms<T> p{row(0, "gain"), row(1, "norm"), row(2, "squares"), row(3, "m"), wa.f32(), gram.f32(), static_cast<const T*>(b.data),
                     b.ld, wa.ld, gram.ld, b.rows, b.cols, call.f(0)};
    launchDependent(context, "doraNorm", doraNormKernel<T>, {warpBlocks(b.rows), threads}, p);
  });
}

}  // namespace unsloth::cuda::ops
