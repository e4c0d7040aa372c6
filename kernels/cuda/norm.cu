// Root-mean-square and layer norms of column groups, one pass over the data: a row stays in the registers of its team.
// Bytes per element of T: forward 2, gradient 3 (4 when it accumulates); the gradients of weight and bias read 2 more and 1 more.
#include "norm.cuh"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

/** Vectors that a thread of a wide team holds. A wider row than the largest team holds is read again instead. */
constexpr int mostHeld = 4, mostTeam = 512;

template <class T>
struct NormOperands {
  NormShape shape;
  const T* x;
  T* y;
  float* stats;  // r, or (μ, r) where centred
  int64_t ldX, ldY, ldStats;
  float eps;
};

/** y = (x − μ)·r·w + b with μ = 0 unless centred; `held` vectors of `width` columns in each thread, or any number by reading
 * again. */
template <class T, int held, int width, bool centred>
__global__ void __launch_bounds__(mostTeam) normKernel(const NormOperands<T> p) {
  const NormShape& s = p.shape;
  const NormRow at = normRow(s);
  const T* x = p.x + at.row * p.ldX + at.group * s.width;
  T* y = p.y + at.row * p.ldY + at.group * s.width;
  const int lane = s.team > 32 ? threadIdx.x : threadIdx.x % s.team;
  const int last = at.live ? static_cast<int>(s.width) : 0;
  Raw<T, width> raw[held] = {};
  const auto eachVector = [&](auto&& body) {
    if constexpr (width > 1) {
#pragma unroll
      for (int k = 0; k < held; ++k)
        if (const int c = (lane + k * s.team) * width; c < last) body(raw[k], c);
    } else {
      for (int c = lane; c < last; c += s.team) raw[0] = loadRaw<T, 1>(x + c), body(raw[0], c);
    }
  };
  if constexpr (width > 1) eachVector([&](Raw<T, width>& v, int c) { v = loadRaw<T, width>(x + c); });

  float mean = 0;
  if constexpr (centred) {
    float sum[1] = {};
    eachVector([&](const Raw<T, width>& v, int) {
      float value[width];
      widenRaw<T, width>(v, value);
#pragma unroll
      for (int i = 0; i < width; ++i) sum[0] += value[i];
    });
    teamSum(sum, s.team, 0);
    mean = sum[0] / static_cast<float>(s.width);
  }
  float squares[1] = {};
  eachVector([&](const Raw<T, width>& v, int) {
    float value[width];
    widenRaw<T, width>(v, value);
#pragma unroll
    for (int i = 0; i < width; ++i) squares[0] = fmaf(value[i] - mean, value[i] - mean, squares[0]);
  });
  teamSum(squares, s.team, 1);
  const float r = 1.0f / sqrtf(squares[0] / static_cast<float>(s.width) + p.eps);
  if (lane == 0 && at.live) {
    float* stats = p.stats + at.row * p.ldStats + at.group * (centred ? 2 : 1);
    if constexpr (centred) *stats++ = mean;
    *stats = r;
  }
  eachVector([&](const Raw<T, width>& v, int c) {
    float value[width], w[width];
    widenRaw<T, width>(v, value);
    loadWeight(s, at.group, c, w);
#pragma unroll
    for (int i = 0; i < width; ++i) value[i] = (value[i] - mean) * r * w[i];
    if (centred && s.b.data != nullptr) {
      s.b.load(at.group * s.weightStride + c, w);
#pragma unroll
      for (int i = 0; i < width; ++i) value[i] += w[i];
    }
    storeRaw<T, width>(y + c, narrowRaw<T, width>(value));
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
template <class T, int held, int width, bool centred>
__global__ void __launch_bounds__(mostTeam) normGradKernel(const NormGradOperands<T> p) {
  const NormShape& s = p.shape;
  const NormRow at = normRow(s);
  const T* x = p.x + at.row * p.ldX + at.group * s.width;
  const T* dy = p.dy + at.row * p.ldDy + at.group * s.width;
  T* dx = p.dx + at.row * p.ldDx + at.group * s.width;
  const int lane = s.team > 32 ? threadIdx.x : threadIdx.x % s.team;
  const int last = at.live ? static_cast<int>(s.width) : 0;
  const float* stats = p.stats + at.row * p.ldStats + at.group * (centred ? 2 : 1);
  struct Held {
    Raw<T, width> x, dy, dx;
  } raw[held] = {};
  const auto load = [&](Held& v, int c) {
    v.x = loadRaw<T, width>(x + c);
    v.dy = loadRaw<T, width>(dy + c);
    if (p.accumulate) v.dx = loadRaw<T, width>(dx + c);
  };
  const auto eachVector = [&](auto&& body) {
    if constexpr (width > 1) {
#pragma unroll
      for (int k = 0; k < held; ++k)
        if (const int c = (lane + k * s.team) * width; c < last) body(raw[k], c);
    } else {
      for (int c = lane; c < last; c += s.team) load(raw[0], c), body(raw[0], c);
    }
  };
  if constexpr (width > 1) eachVector(load);
  const float mean = centred && at.live ? stats[0] : 0.0f, r = at.live ? stats[centred ? 1 : 0] : 0.0f;
  const auto units = [&](const Held& v, int c, float (&g)[width], float (&unit)[width]) {
    float w[width];
    widenRaw<T, width>(v.dy, g);
    widenRaw<T, width>(v.x, unit);
    loadWeight(s, at.group, c, w);
#pragma unroll
    for (int i = 0; i < width; ++i) g[i] *= w[i], unit[i] = (unit[i] - mean) * r;
  };
  float sums[centred ? 2 : 1] = {};
  eachVector([&](const Held& v, int c) {
    float g[width], unit[width];
    units(v, c, g, unit);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      sums[0] = fmaf(g[i], unit[i], sums[0]);
      if constexpr (centred) sums[1] += g[i];
    }
  });
  teamSum(sums, s.team, 0);
  const float slope = sums[0] / static_cast<float>(s.width), level = centred ? sums[centred] / static_cast<float>(s.width) : 0.0f;
  eachVector([&](const Held& v, int c) {
    float g[width], unit[width], old[width];
    units(v, c, g, unit);
    widenRaw<T, width>(v.dx, old);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float value = r * (g[i] - level - unit[i] * slope);
      g[i] = p.accumulate ? old[i] + value : value;
    }
    storeRaw<T, width>(dx + c, narrowRaw<T, width>(g));
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

/** Calls body(held, width) as constants, after choosing the team. */
template <int wide, class Body>
void withHeld(NormShape& s, bool inRegisters, Body&& body) {
  const int64_t vectors = inRegisters ? s.width / wide : s.width, each = !inRegisters || vectors > 32 ? mostHeld : 1;
  while (s.team < mostTeam && s.team * each < vectors) s.team *= 2;
  if (!inRegisters) s.team = std::min(s.team, 256), body(std::integral_constant<int, 1>{}, std::integral_constant<int, 1>{});
  else if (each == 1) body(std::integral_constant<int, 1>{}, std::integral_constant<int, wide>{});
  else body(std::integral_constant<int, mostHeld>{}, std::integral_constant<int, wide>{});
}

template <bool centred>
void norm(const Operands& args, const Call& call, const Context& context, const char* op, const View& x, const View& y,
          const View& stats, NormShape s) {
  if (s.count == 0) return;
  withType(x.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    withHeld<perVector<T>>(s, fits(s, {x, y}, perVector<T>), [&](auto held, auto width) {
      const NormOperands<T> p{s,        static_cast<const T*>(x.data), static_cast<T*>(y.data), stats.f32(), x.ld, y.ld,
                              stats.ld, static_cast<float>(call.f(0))};
      const NormLaunch launch = launchOf(s);
      normKernel<T, decltype(held)::value, decltype(width)::value, centred>
          <<<launch.blocks, launch.threads, 0, context.stream>>>(p);
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
    withHeld<perVector<T>>(s, fits(s, {x, dy, dx}, perVector<T>), [&](auto held, auto width) {
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
      const NormLaunch launch = launchOf(s);
      normGradKernel<T, decltype(held)::value, decltype(width)::value, centred>
          <<<launch.blocks, launch.threads, 0, context.stream>>>(p);
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
