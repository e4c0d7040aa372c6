#include "../core/views.h"
#include "gemm.h"
#include "operands.h"
#include "ops.h"

namespace unsloth::cpu::ops {

void loraGrad(const Call& call, ThreadPool& pool) {
  const Operands operands(call, "loraGrad", 5, 3, 1);
  operands.require(call.intCount % 2 == 1, "every part has a column and a width");
  operands.require(call.i(0) == 0 || call.i(0) == 1, "the precision is unknown");
  const View& dy = operands.matrix(2, "dY", Operands::any, Operands::any);
  const View& b = operands.weight(4, "b", Operands::any, Operands::any);
  const int64_t parts = call.intCount / 2, rank = b.cols, rows = dy.rows;
  const View &u = operands.matrix(3, "u", rows, parts * rank), &du = operands.matrix(0, "dU", rows, parts * rank);
  const View& db = operands.matrix(1, "dB", b.rows, rank);
  int64_t row = 0;
  for (int64_t j = 0; j < parts; ++j) {
    const int64_t column = call.i(1 + 2 * j), width = call.i(2 + 2 * j);
    operands.require(column >= 0 && width > 0 && column + width <= dy.cols, "a part is outside of dY");
    operands.require(row + width <= b.rows, "b has fewer rows than the parts have columns");
    const View mine = columnsOf(dy, column, width);
    Gemm down;
    down.mode = GemmMode::NN;
    down.precision = static_cast<Precision>(call.i(0));
    down.alpha = static_cast<float>(call.f(0));
    down.c = columnsOf(du, j * rank, rank), down.a = mine, down.b = rowsOf(b, row, width);
    cpu::gemm(down, pool);
    Gemm up;
    up.mode = GemmMode::TN;
    up.precision = down.precision;
    up.accumulate = true;
    up.c = rowsOf(db, row, width), up.a = mine, up.b = columnsOf(u, j * rank, rank);
    cpu::gemm(up, pool);
    row += width;
  }
  operands.require(row == b.rows, "b has more rows than the parts have columns");
}

}  // namespace unsloth::cpu::ops
