// Root-mean-square and layer norms of column groups, one pass over the data: a row stays in the registers of its team.
// Bytes per element of T: forward 2, gradient 3 (4 when it accumulates); the gradients of weight and bias read 2 more and 1 more.
#include "launch.cuh"
#include "norm.cuh"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

/** Vectors that a thread of a team holds at most, and the largest team; a row too wide for them is read again instead. */
constexpr int mostHeld = 4, mostHeldGrad = 2, mostTeam = 512;

template <class T>
struct NormOperands {
  NormShape shape;
  const T* x;
  T* y;
  float* stats;  // r, or (μ, r) where centred
  int64_t ldX, ldY, ldStats;
  float eps;
};

/** y = (x − μ)·r·w + b with μ = 0 unless centred. All loads of a thread are in flight before its first sum. */
template <class T, int held, int width, bool centred>
__global__ void __launch_bounds__(mostTeam) normKernel(const NormOperands<T> p) {
  awaitPrior();
  const NormShape& s = p.shape;
  const NormRow at = normRow(s);
  const T* x = p.x + at.row * p.ldX + at.group * s.width;
  T* y = p.y + at.row * p.ldY + at.group * s.width;
  const int lane = s.team > 32 ? threadIdx.x : threadIdx.x % s.team;
  const int last = at.last;
  struct Held {
    Raw<T, width> x;
    Parameters<T, width> w;
  } raw[held] = {};
  const auto load = [&](Held& v, int c) {
    v.x = loadRaw<T, width>(x + c);
    v.w.begin(s.w, at.group * s.weightStride + c);
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

  float mean = 0;
  if constexpr (centred) {
    float sum[1] = {};
    eachVector([&](const Held& v, int) {
      float value[width];
      widenRaw<T, width>(v.x, value);
#pragma unroll
      for (int i = 0; i < width; ++i) sum[0] += value[i];
    });
    teamSum<1, 1>(sum, s.team);
    mean = sum[0] / static_cast<float>(s.width);
  }
  float squares[1] = {};
  eachVector([&](const Held& v, int) {
    float value[width];
    widenRaw<T, width>(v.x, value);
#pragma unroll
    for (int i = 0; i < width; ++i) squares[0] = fmaf(value[i] - mean, value[i] - mean, squares[0]);
  });
  teamSum(squares, s.team);
  const float r = 1.0f / sqrtf(squares[0] / static_cast<float>(s.width) + p.eps);
  if (lane == 0 && last > 0) {
    float* stats = p.stats + at.row * p.ldStats + at.group * (centred ? 2 : 1);
    if constexpr (centred) *stats++ = mean;
    *stats = r;
  }
  const float one = s.plusOne ? 1.0f : 0.0f;
  eachVector([&](const Held& v, int c) {
    float value[width], w[width];
    widenRaw<T, width>(v.x, value);
    v.w.get(s.w, at.group * s.weightStride + c, 1, w);
#pragma unroll
    for (int i = 0; i < width; ++i) value[i] = (value[i] - mean) * r * (w[i] + one);
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
  awaitPrior();
  const NormShape& s = p.shape;
  const int lane = s.team > 32 ? threadIdx.x : threadIdx.x % s.team;
  const NormRow at = normRow(s);
  const T* x = p.x + at.row * p.ldX + at.group * s.width;
  const T* dy = p.dy + at.row * p.ldDy + at.group * s.width;
  T* dx = p.dx + at.row * p.ldDx + at.group * s.width;
  const int64_t parameters = at.group * s.weightStride;
  struct Vector {
    Raw<T, width> x, dy, dx;
    Parameters<T, width> w;
    float g[width];
  } vectors[held];
  const auto load = [&](int k, int c) {
    vectors[k].x = loadRaw<T, width>(x + c);
    vectors[k].dy = loadRaw<T, width>(dy + c);
    if (p.accumulate) vectors[k].dx = loadRaw<T, width>(dx + c);
    vectors[k].w.begin(s.w, parameters + c);
  };
  if constexpr (width > 1) eachColumn<held, width>(lane, s.team, at.last, load);
  const float* stats = p.stats + at.row * p.ldStats + at.group * (centred ? 2 : 1);
  const float mean = centred ? stats[0] : 0.0f, r = stats[centred ? 1 : 0];
  const float one = s.plusOne ? 1.0f : 0.0f;
  const auto weigh = [&](Vector& v, int c) {
    float w[width];
    widenRaw<T, width>(v.dy, v.g);
    v.w.get(s.w, parameters + c, 1, w);
#pragma unroll
    for (int i = 0; i < width; ++i) v.g[i] *= w[i] + one;
  };
  float sums[centred ? 2 : 1] = {};  // of g⊙x̂, and of g
  eachColumn<held, width>(lane, s.team, at.last, [&](int k, int c) {
    Vector& v = vectors[k];
    if constexpr (width == 1) load(0, c);
    weigh(v, c);
    float unit[width];
    widenRaw<T, width>(v.x, unit);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      sums[0] = fmaf(v.g[i], (unit[i] - mean) * r, sums[0]);
      if constexpr (centred) sums[1] += v.g[i];
    }
  });
  teamSum(sums, s.team);
  const float slope = sums[0] / static_cast<float>(s.width), level = centred ? sums[centred] / static_cast<float>(s.width) : 0.0f;
  eachColumn<held, width>(lane, s.team, at.last, [&](int k, int c) {
    Vector& v = vectors[k];
    if constexpr (width == 1) load(0, c), weigh(v, c);
    float unit[width], old[width];
    widenRaw<T, width>(v.x, unit);
    widenRaw<T, width>(v.dx, old);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float value = r * (v.g[i] - level - (unit[i] - mean) * r * slope);
      unit[i] = p.accumulate ? old[i] + value : value;
    }
    storeVector(dx + c, unit);
  });
}

/** Term of sumColumns: dy⊙x̂, the gradient of a norm's weight; `groupWidth` columns share their statistics. */
template <class T, bool centred>
struct WeightTerm {
  const T *dy, *x;
  const float* stats;
  int64_t ldDy, ldX, ldStats, cols;
  Division groupWidth;
  template <int width>
  __device__ __forceinline__ void operator()(uint32_t row, uint32_t group, int64_t column, float (&sums)[width]) const {
    const int64_t c = group * cols + column;
    const float* s = stats + row * ldStats + groupWidth(static_cast<uint32_t>(c)) * (centred ? 2 : 1);
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

/** Whether rows fit in registers, `most` vectors of `width` to a thread: every group then starts at a vector, and so do
 * parameters. */
bool fits(const NormShape& s, std::initializer_list<View> rows, int most, int width) {
  if (s.width % width != 0 || s.width > int64_t{mostTeam} * most * width) return false;
  for (const View& v : rows)
    if (!vectorised(v, width)) return false;
  for (const AnyFloats& p : {s.w, s.b})
    if (p.data != nullptr && reinterpret_cast<uintptr_t>(p.data) % 16 != 0) return false;
  return true;
}

/** Constants of a kernel. */
template <int heldEach, int widthEach>
struct NormForm {
  static constexpr int held = heldEach, width = widthEach;
};

/** The smallest team of 2ᵏ threads, `each` vectors to a thread. */
int teamOf(int64_t vectors, int64_t each) {
  int team = 1;
  while (team < mostTeam && team * each < vectors) team *= 2;
  return team;
}

/** Calls body(NormForm) for the forward kernel. By two vectors to a thread up to 256 of a row, then by four: measured on an H200.
 */
template <int wide, class Body>
void withForm(NormShape& s, bool inRegisters, Body&& body) {
  const int64_t vectors = s.width / wide;
  if (!inRegisters) return s.team = std::min(teamOf(s.width, mostHeld), 256), body(NormForm<1, 1>{});
  s.team = teamOf(vectors, vectors <= 32 ? 1 : vectors <= 256 ? 2 : mostHeld);
  if (vectors > 256) body(NormForm<mostHeld, wide>{});
  else if (vectors > 32) body(NormForm<2, wide>{});
  else body(NormForm<1, wide>{});
}

/** The same for the gradient. */
template <int wide, class Body>
void withGradForm(NormShape& s, bool inRegisters, Body&& body) {
  const int64_t vectors = s.width / wide;
  if (!inRegisters) return s.team = std::min(teamOf(s.width, mostHeld), 256), body(NormForm<1, 1>{});
  s.team = teamOf(vectors, vectors <= 32 ? 1 : mostHeldGrad);
  if (vectors > 32) body(NormForm<mostHeldGrad, wide>{});
  else body(NormForm<1, wide>{});
}

template <bool centred>
void norm(const Operands& args, const Call& call, const Context& context, const char* op, const View& x, const View& y,
          const View& stats, NormShape s) {
  if (s.count == 0) return;
  withType(x.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    withForm<perVector<T>>(s, fits(s, {x, y}, mostHeld, perVector<T>), [&](auto form) {
      using F = decltype(form);
      const NormOperands<T> p{s,        static_cast<const T*>(x.data), static_cast<T*>(y.data), stats.f32(), x.ld, y.ld,
                              stats.ld, static_cast<float>(call.f(0))};
      const NormLaunch launch = launchOf(s);
      launchDependent(context, op, normKernel<T, F::held, F::width, centred>, {launch.blocks, launch.threads}, p);
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
    sum(*dw, WeightTerm<T, centred>{gradient, static_cast<const T*>(x.data), stats.f32(), dy.ld, x.ld, stats.ld, dw->cols,
                                    Division(static_cast<uint32_t>(s.width))});
  if (db != nullptr) sum(*db, BiasTerm<T>{gradient, dy.ld, db->cols});
}

template <bool centred>
void normGrad(const Context& context, const char* op, const View& dx, const View& dy, const View& x, const View& stats,
              NormShape s, bool accumulate, const View* dw, const View* db) {
  if (s.count == 0) return;
  withType(x.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parameterGrads<T, centred>(context, op, dy, x, stats, s, dw, db);
    withGradForm<perVector<T>>(s, fits(s, {x, dy, dx}, mostHeldGrad, perVector<T>), [&](auto form) {
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
      const NormLaunch launch = launchOf(s);
      launchDependent(context, op, normGradKernel<T, F::held, F::width, centred>, {launch.blocks, launch.threads}, p);
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
