#include <cstring>

#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {

void gatherRows(const Call& call, ThreadPool& pool) {
  const Operands args(call, "gatherRows", 3, 0, 0);
  const View& y = args.matrix(0, "y", Operands::any, Operands::any);
  const View& x = args.matrix(1, "x", Operands::any, y.cols);
  const Vector<int32_t> index = args.indices(2, "index", y.rows, x.rows, "x", -1);
  const size_t bytes = static_cast<size_t>(y.cols) * sizeof(float);
  forRows(pool, y.rows, y.cols, [&](int64_t r) {
    if (index[r] < 0) std::memset(y.row(r), 0, bytes);
    else std::memcpy(y.row(r), x.row(index[r]), bytes);
  });
}

void scatterRows(const Call& call, ThreadPool& pool) {
  const Operands args(call, "scatterRows", 3, 1, 0);
  const View& y = args.matrix(0, "y", Operands::any, Operands::any);
  const View& x = args.matrix(1, "x", Operands::any, y.cols);
  const Vector<int32_t> index = args.indices(2, "index", x.rows, y.rows, "y", -1);
  const size_t bytes = static_cast<size_t>(y.cols) * sizeof(float);
  if (call.i(0) != 0) {
    const VectorKernels& kernels = vectorKernels();
    return forRows(pool, x.rows, y.cols, [&](int64_t r) {
      if (index[r] >= 0) kernels.scaleAdd(y.row(index[r]), y.row(index[r]), x.row(r), 1, 1, y.cols);
    });
  }
  forRows(pool, y.rows, y.cols, [&](int64_t r) { std::memset(y.row(r), 0, bytes); });
  forRows(pool, x.rows, y.cols, [&](int64_t r) {
    if (index[r] >= 0) std::memcpy(y.row(index[r]), x.row(r), bytes);
  });
}

void storeRows(const Call& call, ThreadPool& pool) {
  const Operands args(call, "storeRows", 3, 0, 0);
  const View& x = args.matrix(1, "x", Operands::any, Operands::any);
  const View& cache = args.matrix(0, "cache", Operands::any, x.cols);
  const Vector<int32_t> slots = args.indices(2, "slots", x.rows, cache.rows, "cache");
  forRows(pool, x.rows, x.cols,
          [&](int64_t r) { std::memcpy(cache.row(slots[r]), x.row(r), static_cast<size_t>(x.cols) * sizeof(float)); });
}

}  // namespace unsloth::cpu::ops
