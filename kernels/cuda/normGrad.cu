// Gradients of root-mean-square and layer norms of column groups, one pass over the data: a row stays in its team's registers.
// Bytes per element of T: 3, or 4 when it accumulates; parameters that rows do not share, or rows too wide, cost 2 or 3 more.
#include "norm.cuh"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

constexpr int mostHeldGrad = 2;
/** With the gradients of parameters in one pass: most threads of a block, and how often it takes rows at least. */
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
 * also the block's Σ dy⊙x̂ and Σ dy over its rows, which share their weights; with `ahead` the next row is loaded meanwhile.
 */
template <class T, int held, int width, bool centred, bool sums, bool ahead>
__global__ void __launch_bounds__(sums ? gradThreads : mostTeam, !sums ? 1 : centred || (ahead && held > 1) ? 2 : 3)
    normGradKernel(const NormGradOperands<T> p) {
  awaitPrior();
  const NormShape& s = p.shape;
  const int lane = normLane(s);
  const float one = s.plusOne ? 1.0f : 0.0f, perColumn = 1.0f / static_cast<float>(s.width);
  struct Row {
    NormRow at;
    float mean, r;
    struct {
      Raw<T, width> x, dy, dx;
    } raw[held];
  } row, next;
  Parameters<T, width> weights[held];
  const auto load = [&](Row& to, int k, int c) {
    const NormRow& at = to.at;
    to.raw[k].x = loadRaw<T, width>(p.x + at.row * p.ldX + at.group * s.width + c);
    to.raw[k].dy = loadRaw<T, width>(p.dy + at.row * p.ldDy + at.group * s.width + c);
    if (p.accumulate) to.raw[k].dx = loadRaw<T, width>(p.dx + at.row * p.ldDx + at.group * s.width + c);
    if constexpr (!sums) weights[k].begin(s.w, at.group * s.weightStride + c);
  };
  const auto begin = [&](Row& to, uint32_t block) {
    to.at = normRow(s, block);
    if constexpr (width > 1) eachColumn<held, width>(lane, s.team, to.at.last, [&](int k, int c) { load(to, k, c); });
    const float* stats = p.stats + to.at.row * p.ldStats + to.at.group * (centred ? 2 : 1);
    to.mean = centred ? stats[0] : 0.0f;
    to.r = stats[centred ? 1 : 0];
  };
  float g[held][width], shared[held][width], dw[held][width] = {}, db[held][width] = {};
  if constexpr (sums)
    eachColumn<held, width>(lane, s.team, static_cast<int>(s.width), [&](int k, int c) {
      weights[k].begin(s.w, c);
      weights[k].get(s.w, c, 1, shared[k]);
#pragma unroll
      for (int i = 0; i < width; ++i) shared[k][i] += one;
    });
  uint32_t block = blockIdx.x;
  if constexpr (ahead) begin(row, block);
  for (int turn = 0;; turn ^= 1) {
    if constexpr (ahead) begin(next, block + gridDim.x);
    else begin(row, block);
    const float mean = row.mean, r = row.r;
    const auto weigh = [&](int k, int c) {
      widenRaw<T, width>(row.raw[k].dy, g[k]);
      if constexpr (!sums) weights[k].get(s.w, row.at.group * s.weightStride + c, 1, shared[k]);
#pragma unroll
      for (int i = 0; i < width; ++i) g[k][i] *= sums ? shared[k][i] : shared[k][i] + one;
    };
    float means[centred ? 2 : 1] = {};  // sums of g⊙(x − μ) and of g
    eachColumn<held, width>(lane, s.team, row.at.last, [&](int k, int c) {
      if constexpr (width == 1) load(row, 0, c);
      weigh(k, c);
      float unit[width];
      widenRaw<T, width>(row.raw[k].x, unit);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        means[0] = fmaf(g[k][i], unit[i] - mean, means[0]);
        if constexpr (centred) means[1] += g[k][i];
      }
    });
    teamSum(means, s.team, turn);
    const float slope = means[0] * r * perColumn, level = centred ? means[centred] * perColumn : 0.0f;
    T* dx = p.dx + row.at.row * p.ldDx + row.at.group * s.width;
    eachColumn<held, width>(lane, s.team, row.at.last, [&](int k, int c) {
      if constexpr (width == 1) load(row, 0, c);
      if constexpr (sums) forget(row.raw[k].dy), forget(row.raw[k].x);
      if constexpr (width == 1 || sums) weigh(k, c);
      float unit[width], old[width];
      widenRaw<T, width>(row.raw[k].x, unit);
      widenRaw<T, width>(row.raw[k].dx, old);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        unit[i] = (unit[i] - mean) * r;
        const float value = r * (g[k][i] - level - unit[i] * slope);
        g[k][i] = p.accumulate ? old[i] + value : value;
      }
      storeVector(dx + c, g[k]);
      if constexpr (sums) {
        widenRaw<T, width>(row.raw[k].dy, old);
#pragma unroll
        for (int i = 0; i < width; ++i) {
          dw[k][i] = fmaf(old[i], unit[i], dw[k][i]);
          if constexpr (centred) db[k][i] += old[i];
        }
      }
    });
    if constexpr (!sums) return;
    block += gridDim.x;
    if (block * (blockDim.x >> s.teamLog) >= s.count) break;
    if constexpr (ahead) row = next;
  }
  if constexpr (sums) {
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
    const bool parameters = dw != nullptr || db != nullptr;
    const auto operandBytes = static_cast<size_t>(2 * s.count * s.width) * sizeof(T);
    withGradForm<perVector<T>>(s, inRegisters, [&](auto form) {
      using F = decltype(form);
      // What the L2 holds is read twice faster than sums of wide rows are kept and added.
      const bool worth = F::held == 1 || operandBytes > context.gpu->l2Bytes;
      const bool onePass = parameters && inRegisters && shared && s.team <= gradThreads && worth;
      if (parameters && !onePass) parameterGrads<T, centred>(context, op, dy, x, stats, s, dw, db);
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
          // Loads of the next row in flight: not with two vectors and the sums of a bias, for which registers do not suffice.
          const auto kernel = normGradKernel<T, F::held, F::width, centred, true, F::held == 1 || !centred>;
          launch = launchOf(s, gradThreads);
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
      const auto kernel = normGradKernel<T, F::held, F::width, centred, false, false>;
      launchDependent(context, op, kernel, {launch.blocks, launch.threads}, p);
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
