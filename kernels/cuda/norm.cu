// Root-mean-square and layer norms of column groups, one pass over the data: a row stays in the registers of its team.
// Bytes per element of T: forward 2, gradient 3 (4 when it accumulates); the gradients of weight and bias read 2 more and 1 more.
#include "norm.cuh"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

/** Vectors that a thread of a wide team holds; a wider row than the largest team holds is read again instead. Rows of a small
 * team. */
constexpr int mostHeld = 4, mostTeam = 512, severalRows = 4;

/**
 * Calls body(vector, row, column) for a thread's vectors: those in registers, or, one element wide, any number of them which
 * `load` reads each time.
 */
template <int rows, int held, int width, class Vectors, class Load, class Body>
__device__ __forceinline__ void eachVector(Vectors& vectors, const NormRow (&at)[rows], int lane, int team, const Load& load,
                                           const Body& body) {
  if constexpr (width > 1) {
#pragma unroll
    for (int q = 0; q < rows; ++q)
#pragma unroll
      for (int k = 0; k < held; ++k)
        if (const int c = (lane + k * team) * width; c < at[q].last) body(vectors[q][k], q, c);
  } else {
    for (int c = lane; c < at[0].last; c += team) load(vectors[0][0], 0, c), body(vectors[0][0], 0, c);
  }
}

template <class T>
struct NormOperands {
  NormShape shape;
  const T* x;
  T* y;
  float* stats;  // r, or (μ, r) where centred
  int64_t ldX, ldY, ldStats;
  float eps;
};

/** y = (x − μ)·r·w + b with μ = 0 unless centred. */
template <class T, int rows, int held, int width, bool centred>
__global__ void __launch_bounds__(mostTeam) normKernel(const NormOperands<T> p) {
  const NormShape& s = p.shape;
  const int lane = s.team > 32 ? threadIdx.x : threadIdx.x % s.team;
  struct Vector {
    Raw<T, width> x;
    Parameters<T, width> w, b;
  } vectors[rows][held] = {};
  NormRow at[rows];
  const T* x[rows];
#pragma unroll
  for (int q = 0; q < rows; ++q) at[q] = normRow(s, rows, q), x[q] = p.x + at[q].row * p.ldX + at[q].group * s.width;
  const auto load = [&](Vector& v, int q, int c) {
    v.x = loadRaw<T, width>(x[q] + c);
    v.w.begin(s.w, at[q].group * s.weightStride + c);
    if constexpr (centred) v.b.begin(s.b, at[q].group * s.weightStride + c);
  };
  const auto each = [&](const auto& body) { eachVector<rows, held, width>(vectors, at, lane, s.team, load, body); };
  if constexpr (width > 1) each(load);

  float mean[rows] = {};
  if constexpr (centred) {
    each([&](const Vector& v, int q, int) {
      float value[width];
      widenRaw<T, width>(v.x, value);
#pragma unroll
      for (int i = 0; i < width; ++i) mean[q] += value[i];
    });
    teamSum(mean, s.team, 0);
#pragma unroll
    for (int q = 0; q < rows; ++q) mean[q] /= static_cast<float>(s.width);
  }
  float r[rows] = {};
  each([&](const Vector& v, int q, int) {
    float value[width];
    widenRaw<T, width>(v.x, value);
#pragma unroll
    for (int i = 0; i < width; ++i) r[q] = fmaf(value[i] - mean[q], value[i] - mean[q], r[q]);
  });
  teamSum(r, s.team, 1);
#pragma unroll
  for (int q = 0; q < rows; ++q) {
    r[q] = 1.0f / sqrtf(r[q] / static_cast<float>(s.width) + p.eps);
    if (lane > 0 || at[q].last == 0) continue;
    float* stats = p.stats + at[q].row * p.ldStats + at[q].group * (centred ? 2 : 1);
    if constexpr (centred) *stats++ = mean[q];
    *stats = r[q];
  }
  const float one = s.plusOne ? 1.0f : 0.0f;
  each([&](const Vector& v, int q, int c) {
    float value[width], w[width];
    widenRaw<T, width>(v.x, value);
    v.w.get(s.w, at[q].group * s.weightStride + c, 1, w);
#pragma unroll
    for (int i = 0; i < width; ++i) value[i] = (value[i] - mean[q]) * r[q] * (w[i] + one);
    if constexpr (centred) {
      v.b.get(s.b, at[q].group * s.weightStride + c, 0, w);
#pragma unroll
      for (int i = 0; i < width; ++i) value[i] += w[i];
    }
    storeRaw<T, width>(p.y + at[q].row * p.ldY + at[q].group * s.width + c, narrowRaw<T, width>(value));
  });
}

template <class T>
struct NormGradOperands {
  NormShape shape;
  T* dx;
  const T *dy, *x;
  const float* stats;
  int64_t ldDx, ldDy, ldX, ldStats;
  bool accumulate;
};

/** dx (+)= r·(g − mean g − x̂·mean(g⊙x̂)) with g = dy⊙w and x̂ = (x − μ)·r; without the mean of g unless centred. */
template <class T, int rows, int held, int width, bool centred>
__global__ void __launch_bounds__(mostTeam) normGradKernel(const NormGradOperands<T> p) {
  const NormShape& s = p.shape;
  const int lane = s.team > 32 ? threadIdx.x : threadIdx.x % s.team;
  struct Vector {
    Raw<T, width> x, dy, dx;
    Parameters<T, width> w;
  } vectors[rows][held] = {};
  NormRow at[rows];
  T* dx[rows];
#pragma unroll
  for (int q = 0; q < rows; ++q) at[q] = normRow(s, rows, q), dx[q] = p.dx + at[q].row * p.ldDx + at[q].group * s.width;
  const auto load = [&](Vector& v, int q, int c) {
    v.x = loadRaw<T, width>(p.x + at[q].row * p.ldX + at[q].group * s.width + c);
    v.dy = loadRaw<T, width>(p.dy + at[q].row * p.ldDy + at[q].group * s.width + c);
    if (p.accumulate) v.dx = loadRaw<T, width>(dx[q] + c);
    v.w.begin(s.w, at[q].group * s.weightStride + c);
  };
  const auto each = [&](const auto& body) { eachVector<rows, held, width>(vectors, at, lane, s.team, load, body); };
  if constexpr (width > 1) each(load);
  float mean[rows], r[rows];
#pragma unroll
  for (int q = 0; q < rows; ++q) {
    const float* stats = p.stats + at[q].row * p.ldStats + at[q].group * (centred ? 2 : 1);
    mean[q] = centred ? stats[0] : 0.0f;
    r[q] = stats[centred ? 1 : 0];
  }
  const float one = s.plusOne ? 1.0f : 0.0f;
  const auto units = [&](const Vector& v, int q, int c, float (&g)[width], float (&unit)[width]) {
    float w[width];
    widenRaw<T, width>(v.dy, g);
    widenRaw<T, width>(v.x, unit);
    v.w.get(s.w, at[q].group * s.weightStride + c, 1, w);
#pragma unroll
    for (int i = 0; i < width; ++i) g[i] *= w[i] + one, unit[i] = (unit[i] - mean[q]) * r[q];
  };
  float sums[centred ? 2 * rows : rows] = {};  // of g⊙x̂, then of g
  each([&](const Vector& v, int q, int c) {
    float g[width], unit[width];
    units(v, q, c, g, unit);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      sums[q] = fmaf(g[i], unit[i], sums[q]);
      if constexpr (centred) sums[rows + q] += g[i];
    }
  });
  teamSum(sums, s.team, 0);
  each([&](const Vector& v, int q, int c) {
    const float slope = sums[q] / static_cast<float>(s.width),
                level = centred ? sums[centred * rows + q] / static_cast<float>(s.width) : 0.0f;
    float g[width], unit[width], old[width];
    units(v, q, c, g, unit);
    widenRaw<T, width>(v.dx, old);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float value = r[q] * (g[i] - level - unit[i] * slope);
      g[i] = p.accumulate ? old[i] + value : value;
    }
    storeRaw<T, width>(dx[q] + c, narrowRaw<T, width>(g));
  });
}

/** Term of sumColumns: dy⊙x̂, the gradient of a norm's weight; `groupWidth` columns share their statistics. */
template <class T, bool centred>
struct WeightTerm {
  const T *dy, *x;
  const float* stats;
  int64_t ldDy, ldX, ldStats, cols, groupWidth;
  template <int width>
  __device__ __forceinline__ void operator()(uint32_t row, uint32_t group, int64_t column, float (&sums)[width]) const {
    const int64_t c = group * cols + column;
    const float* s = stats + row * ldStats + (c / groupWidth) * (centred ? 2 : 1);
    const float mean = centred ? s[0] : 0.0f, r = s[centred ? 1 : 0];
    float d[width], v[width];
    loadVector(dy + row * ldDy + c, d);
    loadVector(x + row * ldX + c, v);
#pragma unroll
    for (int i = 0; i < width; ++i) sums[i] = fmaf(d[i], (v[i] - mean) * r, sums[i]);
  }
};

/** Term of sumColumns: dy, the gradient of a bias. */
template <class T>
struct BiasTerm {
  const T* dy;
  int64_t ld, cols;
  template <int width>
  __device__ __forceinline__ void operator()(uint32_t row, uint32_t group, int64_t column, float (&sums)[width]) const {
    float d[width];
    loadVector(dy + row * ld + group * cols + column, d);
#pragma unroll
    for (int i = 0; i < width; ++i) sums[i] += d[i];
  }
};

/** The shape of a norm over x with the parameters at operands `weightAt` and `biasAt` (−1: none). */
NormShape shapeOf(const Operands& args, const Call& call, const View& x, int64_t groups, int64_t weightAt, int64_t biasAt,
                  bool plusOne) {
  if (groups < 1 || x.cols % groups != 0)
    args.refuse(std::to_string(groups) + " groups do not divide x, which is " + Operands::describe(x));
  if (x.rows * groups >= int64_t{1} << 31) args.refuse("more than 2^31 rows and column groups");
  NormShape s{x.rows * groups, x.cols / groups, 0, Division(static_cast<uint32_t>(groups)), 1, plusOne, {}, {}};
  const auto parameter = [&](int64_t i, const char* name) {
    const View& v = args.matrix(i, name, 1);
    if (v.cols != s.width && v.cols != x.cols)
      args.refuse(std::string(name) + " is " + Operands::describe(v) + ", expected " + std::to_string(s.width) + " or " +
                  std::to_string(x.cols) + " columns");
    const int64_t stride = v.cols == x.cols ? s.width : 0;
    if (biasAt >= 0 && args.has(weightAt) && args.has(biasAt))
      args.require(call.t(weightAt).cols == call.t(biasAt).cols, "w and b differ in width");
    s.weightStride = stride;
    return AnyFloats(v);
  };
  if (args.has(weightAt)) s.w = parameter(weightAt, "w");
  if (biasAt >= 0 && args.has(biasAt)) s.b = parameter(biasAt, "b");
  return s;
}

/** Whether rows fit in registers by vectors of `width`: every group then starts at a vector, and so do the parameters. */
bool fits(const NormShape& s, std::initializer_list<View> rows, int width) {
  if (s.width % width != 0 || s.width > int64_t{mostTeam} * mostHeld * width) return false;
  for (const View& v : rows)
    if (!vectorised(v, width)) return false;
  for (const AnyFloats& p : {s.w, s.b})
    if (p.data != nullptr && reinterpret_cast<uintptr_t>(p.data) % 16 != 0) return false;
  return true;
}

/** Numbers of a launch that are constants of the kernel. */
template <int rowsEach, int heldEach, int widthEach>
struct NormForm {
  static constexpr int rows = rowsEach, held = heldEach, width = widthEach;
};

/**
 * Calls body(NormForm) after choosing the team. Small rows go several to a team where that leaves enough teams for the GPU; wider
 * ones go by two vectors to a thread up to `fewVectors`, then by four: measured best on an H200 at hidden sizes 896 and 4096.
 */
template <int wide, class Body>
void withForm(const Context& context, NormShape& s, bool inRegisters, int64_t fewVectors, Body&& body) {
  const int64_t vectors = inRegisters ? s.width / wide : s.width;
  const int64_t each = !inRegisters ? mostHeld : vectors <= 32 ? 1 : vectors <= fewVectors ? 2 : mostHeld;
  while (s.team < mostTeam && s.team * each < vectors) s.team *= 2;
  if (!inRegisters) s.team = std::min(s.team, 256), body(NormForm<1, 1, 1>{});
  else if (each == 2) body(NormForm<1, 2, wide>{});
  else if (each > 2) body(NormForm<1, mostHeld, wide>{});
  else if (s.count * s.team >= int64_t{2048} * severalRows * context.gpu->multiprocessors) body(NormForm<severalRows, 1, wide>{});
  else body(NormForm<1, 1, wide>{});
}

template <bool centred>
void norm(const Operands& args, const Call& call, const Context& context, const char* op, const View& x, const View& y,
          const View& stats, NormShape s) {
  if (s.count == 0) return;
  withType(x.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    withForm<perVector<T>>(context, s, fits(s, {x, y}, perVector<T>), 256, [&](auto form) {
      using F = decltype(form);
      const NormOperands<T> p{s,        static_cast<const T*>(x.data), static_cast<T*>(y.data), stats.f32(), x.ld, y.ld,
                              stats.ld, static_cast<float>(call.f(0))};
      const NormLaunch launch = launchOf(s, F::rows);
      normKernel<T, F::rows, F::held, F::width, centred><<<launch.blocks, launch.threads, 0, context.stream>>>(p);
      checkLaunch(op);
    });
  });
}

/** dw and db before dx, which may take dy's memory. */
template <class T, bool centred>
void parameterGrads(const Context& context, const char* op, const View& dy, const View& x, const View& stats, const NormShape& s,
                    const View* dw, const View* db) {
  const bool fast = vectorised(dy, perVector<T>) && vectorised(x, perVector<T>) && s.width % perVector<T> == 0;
  const auto sum = [&](const View& out, const auto& term) {
    const int64_t groups = x.cols / out.cols;
    if (fast) sumColumns<perVector<T>>(context, op, out.f32(), x.rows, groups, out.cols, 1, term);
    else sumColumns<1>(context, op, out.f32(), x.rows, groups, out.cols, 1, term);
  };
  const T* gradient = static_cast<const T*>(dy.data);
  if (dw != nullptr)
    sum(*dw,
        WeightTerm<T, centred>{gradient, static_cast<const T*>(x.data), stats.f32(), dy.ld, x.ld, stats.ld, dw->cols, s.width});
  if (db != nullptr) sum(*db, BiasTerm<T>{gradient, dy.ld, db->cols});
}

template <bool centred>
void normGrad(const Context& context, const char* op, const View& dx, const View& dy, const View& x, const View& stats,
              NormShape s, bool accumulate, const View* dw, const View* db) {
  if (s.count == 0) return;
  withType(x.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parameterGrads<T, centred>(context, op, dy, x, stats, s, dw, db);
    withForm<perVector<T>>(context, s, fits(s, {x, dy, dx}, perVector<T>), 1024, [&](auto form) {
      using F = decltype(form);
      const NormGradOperands<T> p{s,
                                  static_cast<T*>(dx.data),
                                  static_cast<const T*>(dy.data),
                                  static_cast<const T*>(x.data),
                                  stats.f32(),
                                  dx.ld,
                                  dy.ld,
                                  x.ld,
                                  stats.ld,
                                  accumulate};
      const NormLaunch launch = launchOf(s, F::rows);
      normGradKernel<T, F::rows, F::held, F::width, centred><<<launch.blocks, launch.threads, 0, context.stream>>>(p);
      checkLaunch(op);
    });
  });
}

/** The gradient of a parameter, in fp32; nullptr where it is not wanted. */
const View* parameterGrad(const Operands& args, int64_t at, const char* name, const View& x, const NormShape& s) {
  if (!args.has(at)) return nullptr;
  const View& v = args.typed(at, name, DType::F32, 1);
  if (v.cols != s.width && v.cols != x.cols)
    args.refuse(std::string(name) + " is " + Operands::describe(v) + ", x is " + Operands::describe(x));
  return &v;
}

}  // namespace

void rmsNorm(const Call& call, const Context& context) {
  const Operands args(call, "rmsNorm", 4, 2, 1);
  const View& x = args.matrix(2, "x");
  const View& y = args.typed(0, "y", x.dtype, x.rows, x.cols);
  const View& rstd = args.typed(1, "rstd", DType::F32, x.rows, call.i(0));
  norm<false>(args, call, context, "rmsNorm", x, y, rstd, shapeOf(args, call, x, call.i(0), 3, -1, call.i(1) != 0));
}

void rmsNormGrad(const Call& call, const Context& context) {
  const Operands args(call, "rmsNormGrad", 6, 3, 0);
  const View& x = args.matrix(3, "x");
  const View& dx = args.typed(0, "dx", x.dtype, x.rows, x.cols);
  const View& dy = args.typed(2, "dy", x.dtype, x.rows, x.cols);
  const View& rstd = args.typed(5, "rstd", DType::F32, x.rows, call.i(0));
  const NormShape s = shapeOf(args, call, x, call.i(0), 4, -1, call.i(1) != 0);
  normGrad<false>(context, "rmsNormGrad", dx, dy, x, rstd, s, call.i(2) != 0, parameterGrad(args, 1, "dw", x, s), nullptr);
}

void layerNorm(const Call& call, const Context& context) {
  const Operands args(call, "layerNorm", 4, 1, 1);
  const View& x = args.matrix(2, "x");
  const View& y = args.typed(0, "y", x.dtype, x.rows, x.cols);
  const View& stats = args.typed(1, "stats", DType::F32, x.rows, 2 * int64_t{call.i(0)});
  norm<true>(args, call, context, "layerNorm", x, y, stats, shapeOf(args, call, x, call.i(0), 3, 4, false));
}

void layerNormGrad(const Call& call, const Context& context) {
  const Operands args(call, "layerNormGrad", 7, 2, 0);
  const View& x = args.matrix(4, "x");
  const View& dx = args.typed(0, "dx", x.dtype, x.rows, x.cols);
  const View& dy = args.typed(3, "dy", x.dtype, x.rows, x.cols);
  const View& stats = args.typed(6, "stats", DType::F32, x.rows, 2 * int64_t{call.i(0)});
  const NormShape s = shapeOf(args, call, x, call.i(0), 5, -1, false);
  normGrad<true>(context, "layerNormGrad", dx, dy, x, stats, s, call.i(1) != 0, parameterGrad(args, 1, "dw", x, s),
                 parameterGrad(args, 2, "db", x, s));
}

}  // namespace unsloth::cuda::ops
