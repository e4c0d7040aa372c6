// Root-mean-square and layer norms of column groups, one pass over the data: a row stays in the registers of its team.
// Bytes per element of T: 2.
#include "norm.cuh"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

/**
 * Vectors that a thread of a team holds at most; a row too wide for them is read again instead. For rows of at most 32 vectors:
 * threads of a block, and most rows of a team.
 */
constexpr int mostHeld = 4, shortThreads = 128, mostShortRows = 4;

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
  const NormRow at = normRow(s, blockIdx.x);
  const T* x = p.x + at.row * p.ldX + at.group * s.width;
  T* y = p.y + at.row * p.ldY + at.group * s.width;
  const int lane = normLane(s);
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

/**
 * The same for `rows` rows of every team, a vector of each to a thread of at most 32: all loads of a thread are in flight before
 * its first sum, and the threads of a team share the roots of its rows.
 */
template <class T, int width, bool centred, int rows>
__global__ void __launch_bounds__(shortThreads) shortNormKernel(const NormOperands<T> p) {
  awaitPrior();
  const NormShape& s = p.shape;
  const int lane = normLane(s), c = lane * width;
  const float one = s.plusOne ? 1.0f : 0.0f, cols = static_cast<float>(s.width);
  NormRow at[rows];
  Raw<T, width> raw[rows] = {};
#pragma unroll
  for (int k = 0; k < rows; ++k) {
    at[k] = normRow(s, blockIdx.x * rows + k);
    if (c < at[k].last) raw[k] = loadRaw<T, width>(p.x + at[k].row * p.ldX + at[k].group * s.width + c);
  }
  Parameters<T, width> w, b;
  if (s.weightStride == 0 && c < s.width) {
    w.begin(s.w, c);
    if constexpr (centred) b.begin(s.b, c);
  }
  float mean[rows] = {}, squares[rows] = {};
  if constexpr (centred) {
#pragma unroll
    for (int k = 0; k < rows; ++k) {
      float value[width];
      widenRaw<T, width>(raw[k], value);
#pragma unroll
      for (int i = 0; i < width; ++i) mean[k] += value[i];
    }
    teamSum(mean, s.team);
#pragma unroll
    for (int k = 0; k < rows; ++k) mean[k] /= cols;
  }
  if (!centred || c < s.width)
#pragma unroll
    for (int k = 0; k < rows; ++k) {
      float value[width];
      widenRaw<T, width>(raw[k], value);
#pragma unroll
      for (int i = 0; i < width; ++i) squares[k] = fmaf(value[i] - mean[k], value[i] - mean[k], squares[k]);
    }
  teamSum(squares, s.team);
  float mine = squares[0];
#pragma unroll
  for (int k = 1; k < rows; ++k)
    if (lane == k) mine = squares[k];
  mine = 1.0f / sqrtf(mine / cols + p.eps);
#pragma unroll
  for (int k = 0; k < rows; ++k) {
    const float r = __shfl_sync(0xffffffffu, mine, k, s.team);
    if (lane == k && at[k].last > 0) {
      float* stats = p.stats + at[k].row * p.ldStats + at[k].group * (centred ? 2 : 1);
      if constexpr (centred) *stats++ = mean[k];
      *stats = r;
    }
    if (c >= at[k].last) continue;
    float value[width], parameter[width];
    widenRaw<T, width>(raw[k], value);
    const int64_t own = at[k].group * s.weightStride + c;
    if (s.weightStride != 0) w.begin(s.w, own);
    w.get(s.w, own, 1, parameter);
#pragma unroll
    for (int i = 0; i < width; ++i) value[i] = (value[i] - mean[k]) * r * (parameter[i] + one);
    if (centred && s.b.data != nullptr) {
      if (s.weightStride != 0) b.begin(s.b, own);
      b.get(s.b, own, 0, parameter);
#pragma unroll
      for (int i = 0; i < width; ++i) value[i] += parameter[i];
    }
    storeRaw<T, width>(p.y + at[k].row * p.ldY + at[k].group * s.width + c, narrowRaw<T, width>(value));
  }
}

/** By two vectors to a thread up to 256 of a row, then by four: measured on an H200. */
template <int wide, class Body>
void withForm(NormShape& s, bool inRegisters, Body&& body) {
  const int64_t vectors = s.width / wide;
  if (!inRegisters) return takeTeamOfElements(s), body(NormForm<1, 1>{});
  takeTeam(s, vectors, vectors <= 256 ? 2 : mostHeld);
  if (vectors > 256) body(NormForm<mostHeld, wide>{});
  else body(NormForm<2, wide>{});
}

template <bool centred>
void norm(const Operands& args, const Call& call, const Context& context, const char* op, const View& x, const View& y,
          const View& stats, NormShape s) {
  if (s.count == 0) return;
  withType(x.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int wide = perVector<T>;
    const auto operands = [&] {
      return NormOperands<T>{s,        static_cast<const T*>(x.data), static_cast<T*>(y.data), stats.f32(), x.ld, y.ld,
                             stats.ld, static_cast<float>(call.f(0))};
    };
    const bool inRegisters = fits(s, {x, y}, mostHeld, wide);
    if (inRegisters && s.width <= 32 * wide) {
      takeTeam(s, s.width / wide, 1, mostShortRows);
      const int64_t blocks = launchOf(s, shortThreads).blocks;
      const auto go = [&](auto kernel, int rows) {
        launchDependent(context, op, kernel, {static_cast<uint32_t>(divideUp(blocks, rows)), shortThreads}, operands());
      };
      if (blocks < 16 * context.gpu->multiprocessors) return go(shortNormKernel<T, wide, centred, 2>, 2);
      return go(shortNormKernel<T, wide, centred, mostShortRows>, mostShortRows);
    }
    withForm<wide>(s, inRegisters, [&](auto form) {
      using F = decltype(form);
      const NormLaunch launch = launchOf(s);
      launchDependent(context, op, normKernel<T, F::held, F::width, centred>, {launch.blocks, launch.threads}, operands());
    });
  });
}

}  // namespace

void rmsNorm(const Call& call, const Context& context) {
  const Operands args(call, "rmsNorm", 4, 2, 1);
  const View& x = args.matrix(2, "x");
  const View& y = args.typed(0, "y", x.dtype, x.rows, x.cols);
  const View& rstd = args.typed(1, "rstd", DType::F32, x.rows, call.i(0));
  norm<false>(args, call, context, "rmsNorm", x, y, rstd, shapeOf(args, call, x, call.i(0), 3, -1, call.i(1) != 0));
}

void layerNorm(const Call& call, const Context& context) {
  const Operands args(call, "layerNorm", 4, 1, 1);
  const View& x = args.matrix(2, "x");
  const View& y = args.typed(0, "y", x.dtype, x.rows, x.cols);
  const View& stats = args.typed(1, "stats", DType::F32, x.rows, 2 * int64_t{call.i(0)});
  norm<true>(args, call, context, "layerNorm", x, y, stats, shapeOf(args, call, x, call.i(0), 3, 4, false));
}

}  // namespace unsloth::cuda::ops
