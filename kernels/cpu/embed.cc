#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {

void embed(const Call& call, ThreadPool& pool) {
  const Operands args(call, "embed", 3, 0, 1);
  const View& out = args.matrix(0, "out", Operands::any, Operands::any);
  const View& table = args.weight(2, "table", Operands::any, out.cols);
  const Vector<int32_t> ids = args.indices(1, "ids", out.rows, table.rows, "table");
  const float scale = static_cast<float>(call.f(0));
  const VectorKernels& kernels = vectorKernels();
  const size_t width = bytesPerElement(table.dtype);
  forRows(pool, out.rows, out.cols, [&](int64_t r) {
    const std::byte* from = static_cast<const std::byte*>(table.data) + static_cast<size_t>(ids[r] * table.ld) * width;
    kernels.widen(out.row(r), from, table.dtype, out.cols);
    if (scale != 1) kernels.scale(out.row(r), out.row(r), scale, out.cols);
  });
}

void embedGrad(const Call& call, ThreadPool& pool) {
  const Operands args(call, "embedGrad", 3, 0, 1);
  const View& dTable = args.matrix(0, "dTable", Operands::any, Operands::any);
  const View& dOut = args.matrix(2, "dOut", Operands::any, dTable.cols);
  const Vector<int32_t> ids = args.indices(1, "ids", dOut.rows, dTable.rows, "dTable");
  const float scale = static_cast<float>(call.f(0));
  const VectorKernels& kernels = vectorKernels();
  // Rows may share an id, so a task owns columns and walks the rows in order.
  pool.parallelFor((dTable.cols + columnBlock - 1) / columnBlock, [&](int64_t task, int) {
    const int64_t column = task * columnBlock, count = std::min(columnBlock, dTable.cols - column);
    for (int64_t r = 0; r < dOut.rows; ++r) {
      float* into = dTable.row(ids[r]) + column;
      kernels.scaleAdd(into, into, dOut.row(r) + column, 1, scale, count);
    }
  });
}

}  // namespace unsloth::cpu::ops
