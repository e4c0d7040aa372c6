#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {
namespace {

/** Column groups that are normalised by themselves, and the fp32 weights that apply to each. */
struct Groups {
  int64_t count, width;
  const float* weight;
  int64_t weightStride;  // from one group's weights to the next: 0 when all share

  const float* of(int64_t group) const { return weight + group * weightStride; }
};

/** Widens the weight into shared scratch from `at` on; `plusOne` adds the one of the (1 + w) form. Without a weight: ones. */
Groups groupsOf(const Operands& args, const View& x, int64_t weightAt, const char* name, int64_t groups, bool plusOne,
                ThreadPool& pool, size_t at = 0) {
  if (groups < 1 || x.cols % groups != 0)
    args.refuse(std::to_string(groups) + " groups do not divide x, which is " + describe(x));
  const int64_t width = x.cols / groups;
  if (!args.has(weightAt)) {
    if (static_cast<size_t>(width) * sizeof(float) > ThreadPool::sharedScratchBytes)
      args.refuse("the rows are too wide: " + describe(x));
    float* ones = reinterpret_cast<float*>(pool.sharedScratch());
    std::fill_n(ones, width, 1.0f);
    return {groups, width, ones, 0};
  }
  const View& w = args.weight(weightAt, name, 1, Operands::any);
  if (w.cols != width && w.cols != x.cols)
    args.refuse(std::string(name) + " is " + describe(w) + ", expected " + std::to_string(width) + " or " +
                std::to_string(x.cols) + " columns");
  if ((at + static_cast<size_t>(w.cols)) * sizeof(float) > ThreadPool::sharedScratchBytes)
    args.refuse("the rows are too wide: " + describe(x));
  float* wide = reinterpret_cast<float*>(pool.sharedScratch()) + at;
  vectorKernels().widen(wide, w.data, w.dtype, w.cols);
  if (plusOne)
    for (int64_t c = 0; c < w.cols; ++c) wide[c] += 1;
  return {groups, width, wide, w.cols == x.cols ? width : 0};
}

/** dw += Σ dy⊙x̂ over rows, and over groups where they share their weights. Reads (μ, r) or r at stats + group·statsWidth. */
void addWeightGrad(ThreadPool& pool, const View& dw, const View& dy, const View& x, const View& stats, const Groups& groups,
                   bool centred) {
  const VectorKernels& kernels = vectorKernels();
  const auto addGroup = [&](int64_t r, int64_t group, int64_t column, int64_t count, float* sums) {
    const float* s = stats.row(r) + group * (centred ? 2 : 1);
    kernels.addNormWeightGrad(sums, dy.row(r) + column, x.row(r) + column, centred ? s[0] : 0, centred ? s[1] : s[0], count);
  };
  sumRows(pool, x.rows, dw.cols, dw.f32(), 1, [&](int64_t r, int64_t column, int64_t count, float* sums) {
    if (dw.cols == groups.width) {
      for (int64_t g = 0; g < groups.count; ++g) addGroup(r, g, g * groups.width + column, count, sums);
      return;
    }
    for (int64_t c = column; c < column + count;) {  // a block of columns may reach over several groups
      const int64_t group = c / groups.width, end = std::min(column + count, (group + 1) * groups.width);
      addGroup(r, group, c, end - c, sums + (c - column));
      c = end;
    }
  });
}

const View& weightGrad(const Operands& args, int64_t at, const char* name, const View& w) {
  return args.matrix(at, name, 1, w.cols);
}

}  // namespace

void rmsNorm(const Call& call, ThreadPool& pool) {
  const Operands args(call, "rmsNorm", 4, 2, 1);
  const View& x = args.matrix(2, "x", Operands::any, Operands::any);
  const View& y = args.matrix(0, "y", x.rows, x.cols);
  const View& rstd = args.matrix(1, "rstd", x.rows, call.i(0));
  const Groups groups = groupsOf(args, x, 3, "w", call.i(0), call.i(1) != 0, pool);
  const double eps = call.f(0);
  const VectorKernels& kernels = vectorKernels();
  forRows(pool, x.rows, x.cols, [&](int64_t r) {
    for (int64_t g = 0; g < groups.count; ++g) {
      const int64_t column = g * groups.width;
      rstd.row(r)[g] = kernels.rmsNorm(y.row(r) + column, x.row(r) + column, groups.of(g), eps, groups.width);
    }
  });
}

void rmsNormGrad(const Call& call, ThreadPool& pool) {
  const Operands args(call, "rmsNormGrad", 6, 3, 0);
  const View& x = args.matrix(3, "x", Operands::any, Operands::any);
  const View& dx = args.matrix(0, "dx", x.rows, x.cols);
  const View& dy = args.matrix(2, "dy", x.rows, x.cols);
  const View& rstd = args.matrix(5, "rstd", x.rows, call.i(0));
  const bool accumulate = call.i(2) != 0;
  const Groups groups = groupsOf(args, x, 4, "w", call.i(0), call.i(1) != 0, pool);
  // dw first: dx may take dy's place.
  if (call.has(1)) addWeightGrad(pool, weightGrad(args, 1, "dw", call.t(4)), dy, x, rstd, groups, false);
  const VectorKernels& kernels = vectorKernels();
  forRows(pool, x.rows, x.cols, [&](int64_t r) {
    for (int64_t g = 0; g < groups.count; ++g) {
      const int64_t column = g * groups.width;
      kernels.rmsNormGrad(dx.row(r) + column, dy.row(r) + column, x.row(r) + column, groups.of(g), rstd.row(r)[g], accumulate,
                          groups.width);
    }
  });
}

void layerNorm(const Call& call, ThreadPool& pool) {
  const Operands args(call, "layerNorm", 4, 1, 1);
  const View& x = args.matrix(2, "x", Operands::any, Operands::any);
  const View& y = args.matrix(0, "y", x.rows, x.cols);
  const View& stats = args.matrix(1, "stats", x.rows, 2 * int64_t{call.i(0)});
  const Groups groups = groupsOf(args, x, 3, "w", call.i(0), false, pool);
  const bool hasBias = call.has(4);
  const auto width = static_cast<size_t>(call.has(3) ? call.t(3).cols : groups.width);
  const Groups bias = hasBias ? groupsOf(args, x, 4, "b", call.i(0), false, pool, width) : groups;
  const double eps = call.f(0);
  const VectorKernels& kernels = vectorKernels();
  forRows(pool, x.rows, x.cols, [&](int64_t r) {
    for (int64_t g = 0; g < groups.count; ++g) {
      const int64_t column = g * groups.width;
      kernels.layerNorm(y.row(r) + column, stats.row(r) + 2 * g, x.row(r) + column, groups.of(g), hasBias ? bias.of(g) : nullptr,
                        eps, groups.width);
    }
  });
}

void layerNormGrad(const Call& call, ThreadPool& pool) {
  const Operands args(call, "layerNormGrad", 7, 2, 0);
  const View& x = args.matrix(4, "x", Operands::any, Operands::any);
  const View& dx = args.matrix(0, "dx", x.rows, x.cols);
  const View& dy = args.matrix(3, "dy", x.rows, x.cols);
  const View& stats = args.matrix(6, "stats", x.rows, 2 * int64_t{call.i(0)});
  const bool accumulate = call.i(1) != 0;
  const Groups groups = groupsOf(args, x, 5, "w", call.i(0), false, pool);
  const VectorKernels& kernels = vectorKernels();
  if (call.has(1)) addWeightGrad(pool, weightGrad(args, 1, "dw", call.t(5)), dy, x, stats, groups, true);
  if (call.has(2)) {
    const View& db = args.matrix(2, "db", 1, Operands::any);
    if (db.cols != groups.width && db.cols != x.cols) args.refuse("db is " + describe(db) + ", x is " + describe(x));
    sumRows(pool, x.rows, db.cols, db.f32(), 1, [&](int64_t r, int64_t column, int64_t count, float* sums) {
      for (int64_t c = column; c < x.cols; c += db.cols) kernels.scaleAdd(sums, sums, dy.row(r) + c, 1, 1, count);
    });
  }
  forRows(pool, x.rows, x.cols, [&](int64_t r) {
    for (int64_t g = 0; g < groups.count; ++g) {
      const int64_t column = g * groups.width;
      const float* s = stats.row(r) + 2 * g;
      kernels.layerNormGrad(dx.row(r) + column, dy.row(r) + column, x.row(r) + column, groups.of(g), s[0], s[1], accumulate,
                            groups.width);
    }
  });
}

}  // namespace unsloth::cpu::ops
