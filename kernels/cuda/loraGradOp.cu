#include "../core/views.h"
#include "gemm.h"
#include "loraGrad.h"
#include "operands.h"
#include "ops.h"

namespace unsloth::cuda {
namespace ops {
namespace {

/** Two products for each part. */
void oneByOne(const LoraGradArgs& args, bool tf32, const Context& context) {
  const int64_t rank = args.b.cols, rows = args.dy.rows;
  int64_t row = 0;
  for (size_t j = 0; j < args.parts.size(); ++j) {
    const auto [column, width] = args.parts[j];
    const auto at = static_cast<int64_t>(j) * rank;
    const View dy = columnsOf(args.dy, column, width);
    GemmArgs down;
    down.mode = 1, down.m = rows, down.n = rank, down.k = width;
    down.c = columnsOf(args.du, at, rank), down.a = dy, down.b = rowsOf(args.b, row, width);
    down.alpha = args.alpha, down.tf32 = tf32;
    runGemm(down, context);
    GemmArgs up;
    up.mode = 2, up.m = width, up.n = rank, up.k = rows;
    up.c = rowsOf(args.db, row, width), up.a = dy, up.b = columnsOf(args.u, at, rank);
    up.accumulate = true, up.tf32 = tf32;
    runGemm(up, context);
    row += width;
  }
}

}  // namespace

void loraGrad(const Call& call, const Context& context) {
  const Operands operands(call, "loraGrad", 5, 3, 1);
  operands.require(call.intCount % 2 == 1, "every part has a column and a width");
  LoraGradArgs args;
  args.dy = operands.matrix(2, "dY");
  args.b = operands.matrix(4, "b");
  const int64_t parts = call.intCount / 2, rank = args.b.cols;
  args.u = operands.matrix(3, "u", args.dy.rows, parts * rank);
  args.du = operands.matrix(0, "dU", args.dy.rows, parts * rank);
  args.db = operands.matrix(1, "dB", args.b.rows, rank);
  args.alpha = static_cast<float>(call.f(0));
  int64_t width = 0;
  for (int64_t j = 0; j < parts; ++j) {
    args.parts.push_back({call.i(1 + 2 * j), call.i(2 + 2 * j)});
    const auto [column, columns] = args.parts.back();
    operands.require(column >= 0 && columns > 0 && column + columns <= args.dy.cols, "a part is outside of dY");
    width += columns;
  }
  operands.require(width == args.b.rows, "b has other rows than the parts have columns");
  if (args.dy.rows == 0 || rank == 0) return;
  if (!loraGradFused(args, context)) oneByOne(args, call.i(0) == 2, context);
}

}  // namespace ops
}  // namespace unsloth::cuda
