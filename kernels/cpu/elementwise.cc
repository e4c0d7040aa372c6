#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {

void add(const Call& call, ThreadPool& pool) {
  const Operands args(call, "add", 2, 0, 2);
  const View& y = args.matrix(0, "y", Operands::any, Operands::any);
  const View& a = args.matrix(1, "a", y.rows, y.cols);
  const float alpha = static_cast<float>(call.f(0)), beta = static_cast<float>(call.f(1));
  const VectorKernels& kernels = vectorKernels();
  if (!call.has(2))
    return forPieces(pool, y.rows, y.cols,
                     [&](int64_t r, int64_t c, int64_t n) { kernels.scale(y.row(r) + c, a.row(r) + c, alpha, n); });
  const View& b = args.matrix(2, "b", y.rows, y.cols);
  forPieces(pool, y.rows, y.cols,
            [&](int64_t r, int64_t c, int64_t n) { kernels.scaleAdd(y.row(r) + c, a.row(r) + c, b.row(r) + c, alpha, beta, n); });
}

void columnSum(const Call& call, ThreadPool& pool) {
  const Operands args(call, "columnSum", 2, 0, 1);
  const View& x = args.matrix(1, "x", Operands::any, Operands::any);
  const View& out = args.matrix(0, "out", 1, x.cols);
  const VectorKernels& kernels = vectorKernels();
  sumRows(pool, x.rows, x.cols, out.f32(), static_cast<float>(call.f(0)),
          [&](int64_t r, int64_t column, int64_t count, float* sums) {
            kernels.scaleAdd(sums, sums, x.row(r) + column, 1, 1, count);
          });
}

void logitCap(const Call& call, ThreadPool& pool) {
  const Operands args(call, "logitCap", 1, 0, 2);
  const View& x = args.matrix(0, "x", Operands::any, Operands::any);
  const float scale = static_cast<float>(call.f(0)), softcap = static_cast<float>(call.f(1));
  if (softcap == 0 && scale == 1) return;
  const VectorKernels& kernels = vectorKernels();
  forPieces(pool, x.rows, x.cols, [&](int64_t r, int64_t c, int64_t n) { kernels.logitCap(x.row(r) + c, scale, softcap, n); });
}

}  // namespace unsloth::cpu::ops
