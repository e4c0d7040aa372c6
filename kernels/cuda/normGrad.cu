// Gradients of root-mean-square and layer norms of column groups, one pass over the data: a row stays in its team's registers.
// Bytes per element of T: 3, or 4 when it accumulates; parameters that rows do not share, or rows too wide, cost 2 or 3 more.
#include "norm.cuh"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

constexpr int mostHeldGrad = 2;
/** With the gradients of parameters: threads of a block whose teams are within warps, and how often it takes rows at least. */
constexpr int gradThreads = 256, leastTurns = 2;

template <class T>
struct NormGradOperands {
  NormShape shape;
  T* dx;
  const T *dy, *x;
  const float* stats;
  int64_t ldDx, ldDy, ldX, ldStats;
  bool accumulate;
  float *dw, *db;  // [blocks, width]: what each block adds to the gradients of weight and bias
};

/** Keeps the compiler from holding what it computed of raw elements: computing it again costs less than the registers. */
template <class Words>
__device__ __forceinline__ void forget(Words& raw) {
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof raw / sizeof(uint32_t)); ++i)
    asm volatile("" : "+r"(reinterpret_cast<uint32_t*>(&raw)[i]));
}

/** partial[c] = Σ over the block's teams of a thread's sums for its columns, in their order. */
template <int held, int width>
__device__ __forceinline__ void storePartial(float* partial, const NormShape& s, int lane, const float (&sums)[held][width]) {
  const auto columns = static_cast<int>(s.width);
  if (s.team > 32)
    return eachColumn<held, width>(lane, s.team, columns, [&](int k, int c) { storeVector(partial + c, sums[k]); });
  __shared__ __align__(16) float teams[held][gradThreads][width];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < held; ++k) storeVector(teams[k][threadIdx.x], sums[k]);
  __syncthreads();
  for (int c = threadIdx.x; c < columns; c += gradThreads) {
    const int vector = c / width, k = vector >> s.teamLog;
    float total = 0;
    for (int first = vector & (s.team - 1); first < gradThreads; first += s.team) total += teams[k][first][c % width];
    partial[c] = total;
  }
}

/**
 * dx (+)= r·(g − mean g − x̂·mean(g⊙x̂)) with g = dy⊙w and x̂ = (x − μ)·r; without the mean of g unless centred. With `sums`
 * also the block's Σ dy⊙x̂ and Σ dy over its rows, which share their weights.
 */
template <class T, int held, int width, bool centred, int sums>
__global__ void __launch_bounds__(sums > 0 ? sums : mostTeam, sums == gradThreads ? (centred ? 2 : 3) : 1)
    normGradKernel(const NormGradOperands<T> p) {
  awaitPrior();
  const NormShape& s = p.shape;
  const int lane = normLane(s);
  const float one = s.plusOne ? 1.0f : 0.0f;
  struct Vector {
    Raw<T, width> x, dy, dx;
    Parameters<T, width> w;
    float g[width];
  } vectors[held];
  float shared[width], dw[held][width] = {}, db[held][width] = {};
  if constexpr (sums > 0)
    eachColumn<held, width>(lane, s.team, static_cast<int>(s.width), [&](int k, int c) {
      vectors[k].w.begin(s.w, c);
      if constexpr (held == 1) vectors[k].w.get(s.w, c, 1, shared);
    });
  int turn = 0;
  for (uint32_t block = blockIdx.x;; turn ^= 1) {
    const NormRow at = normRow(s, block);
    const T* x = p.x + at.row * p.ldX + at.group * s.width;
    const T* dy = p.dy + at.row * p.ldDy + at.group * s.width;
    T* dx = p.dx + at.row * p.ldDx + at.group * s.width;
    const int64_t parameters = at.group * s.weightStride;
    const auto load = [&](int k, int c) {
      vectors[k].x = loadRaw<T, width>(x + c);
      vectors[k].dy = loadRaw<T, width>(dy + c);
      if (p.accumulate) vectors[k].dx = loadRaw<T, width>(dx + c);
      if constexpr (sums == 0) vectors[k].w.begin(s.w, parameters + c);
    };
    if constexpr (width > 1) eachColumn<held, width>(lane, s.team, at.last, load);
    const float* stats = p.stats + at.row * p.ldStats + at.group * (centred ? 2 : 1);
    const float mean = centred ? stats[0] : 0.0f, r = stats[centred ? 1 : 0];
    const auto weigh = [&](Vector& v, int c) {
      float own[width];
      constexpr bool widened = sums > 0 && held == 1;
      widenRaw<T, width>(v.dy, v.g);
      if constexpr (!widened) v.w.get(s.w, parameters + c, 1, own);
#pragma unroll
      for (int i = 0; i < width; ++i) v.g[i] *= (widened ? shared[i] : own[i]) + one;
    };
    float means[centred ? 2 : 1] = {};  // of g⊙x̂, and of g
    eachColumn<held, width>(lane, s.team, at.last, [&](int k, int c) {
      Vector& v = vectors[k];
      if constexpr (width == 1) load(0, c);
      weigh(v, c);
      float unit[width];
      widenRaw<T, width>(v.x, unit);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        means[0] = fmaf(v.g[i], (unit[i] - mean) * r, means[0]);
        if constexpr (centred) means[1] += v.g[i];
      }
    });
    teamSum(means, s.team, turn);
    const float slope = means[0] / static_cast<float>(s.width);
    const float level = centred ? means[centred] / static_cast<float>(s.width) : 0.0f;
    eachColumn<held, width>(lane, s.team, at.last, [&](int k, int c) {
      Vector& v = vectors[k];
      if constexpr (width == 1) load(0, c);
      if constexpr (sums > 0) {
        forget(v.dy), forget(v.x);
        if constexpr (held > 1) forget(v.w.raw);
      }
      if constexpr (width == 1 || sums > 0) weigh(v, c);
      float unit[width], old[width];
      widenRaw<T, width>(v.x, unit);
      widenRaw<T, width>(v.dx, old);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        unit[i] = (unit[i] - mean) * r;
        const float value = r * (v.g[i] - level - unit[i] * slope);
        v.g[i] = p.accumulate ? old[i] + value : value;
      }
      storeVector(dx + c, v.g);
      if constexpr (sums > 0) {
        widenRaw<T, width>(v.dy, old);
#pragma unroll
        for (int i = 0; i < width; ++i) {
          dw[k][i] = fmaf(old[i], unit[i], dw[k][i]);
          if constexpr (centred) db[k][i] += old[i];
        }
      }
    });
    if constexpr (sums == 0) return;
    block += gridDim.x;
    if (block * (blockDim.x >> s.teamLog) >= s.count) break;
  }
  if constexpr (sums > 0) {
    if (p.dw != nullptr) storePartial(p.dw + blockIdx.x * s.width, s, lane, dw);
    if (p.db != nullptr) storePartial(p.db + blockIdx.x * s.width, s, lane, db);
  }
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

/** Calls body(NormForm) for the kernel. */
template <int wide, class Body>
void withGradForm(NormShape& s, bool inRegisters, Body&& body) {
  const int64_t vectors = s.width / wide;
  if (!inRegisters) return takeTeamOfElements(s), body(NormForm<1, 1>{});
  takeTeam(s, vectors, vectors <= 32 ? 1 : mostHeldGrad);
  if (vectors > 32) body(NormForm<mostHeldGrad, wide>{});
  else body(NormForm<1, wide>{});
}

/** dw and db in passes of their own, before dx, which may take dy's memory. */
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
    const bool inRegisters = fits(s, {x, dy, dx}, mostHeldGrad, perVector<T>);
    const bool shared = s.weightStride == 0 && (dw == nullptr || dw->cols == s.width) && (db == nullptr || db->cols == s.width);
    const bool parameters = dw != nullptr || db != nullptr, onePass = parameters && inRegisters && shared;
    if (parameters && !onePass) parameterGrads<T, centred>(context, op, dy, x, stats, s, dw, db);
    withGradForm<perVector<T>>(s, inRegisters, [&](auto form) {
      using F = decltype(form);
      NormGradOperands<T> p{s,
                            static_cast<T*>(dx.data),
                            static_cast<const T*>(dy.data),
                            static_cast<const T*>(x.data),
                            stats.f32(),
                            dx.ld,
                            dy.ld,
                            x.ld,
                            stats.ld,
                            accumulate,
                            nullptr,
                            nullptr};
      NormLaunch launch = launchOf(s);
      if constexpr (F::width > 1) {
        if (onePass) {
          launch = launchOf(s, gradThreads);
          const auto kernel = s.team > gradThreads ? normGradKernel<T, F::held, F::width, centred, mostTeam>
                                                   : normGradKernel<T, F::held, F::width, centred, gradThreads>;
          launch.blocks = std::min(static_cast<uint32_t>(divideUp(launch.blocks, leastTurns)),
                                   residentBlocks(context, kernel, launch.threads, op));
          const auto partial = static_cast<size_t>(launch.blocks * s.width);
          if (dw != nullptr) p.dw = scratch<float>(context, 0, partial, op);
          if (db != nullptr) p.db = scratch<float>(context, partial * sizeof(float), partial, op);
          launchDependent(context, op, kernel, {launch.blocks, launch.threads}, p);
          if (dw != nullptr) totalColumns<manyTotalLanes>(context, op, dw->f32(), p.dw, s.width, launch.blocks, 1);
          if (db != nullptr) totalColumns<manyTotalLanes>(context, op, db->f32(), p.db, s.width, launch.blocks, 1);
          return;
        }
      }
      launchDependent(context, op, normGradKernel<T, F::held, F::width, centred, 0>, {launch.blocks, launch.threads}, p);
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

void rmsNormGrad(const Call& call, const Context& context) {
  const Operands args(call, "rmsNormGrad", 6, 3, 0);
  const View& x = args.matrix(3, "x");
  const View& dx = args.typed(0, "dx", x.dtype, x.rows, x.cols);
  const View& dy = args.typed(2, "dy", x.dtype, x.rows, x.cols);
  const View& rstd = args.typed(5, "rstd", DType::F32, x.rows, call.i(0));
  const NormShape s = shapeOf(args, call, x, call.i(0), 4, -1, call.i(1) != 0);
  normGrad<false>(context, "rmsNormGrad", dx, dy, x, rstd, s, call.i(2) != 0, parameterGrad(args, 1, "dw", x, s), nullptr);
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
