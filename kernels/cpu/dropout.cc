#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {

void dropout(const Call& call, ThreadPool& pool) {
  const Operands args(call, "dropout", 4, 2, 1);
  const View& y = args.matrix(0, "y", Operands::any, Operands::any);
  const View& x = args.matrix(1, "x", y.rows, y.cols);
  const View& tokenKeys = args.shaped(2, "tokenKeys", y.rows, 2);
  const View& random = args.shaped(3, "random", 1, 2);
  args.require(tokenKeys.dtype == DType::I32 && random.dtype == DType::I32, "tokenKeys and random must be i32");
  const double p = call.f(0);
  args.require(p >= 0 && p < 1, "p must be at least 0 and below 1");
  const auto word = [](const View& v, int64_t r, int64_t c) { return static_cast<uint32_t>(v.i32()[r * v.ld + c]); };
  const float scale = static_cast<float>(1 / (1 - p));
  const bool accumulate = call.i(1) != 0;
  const VectorKernels& kernels = vectorKernels();
  forRows(pool, y.rows, 4 * y.cols, [&](int64_t r) {
    const DropoutRow row{word(tokenKeys, r, 0), word(tokenKeys, r, 1), static_cast<uint32_t>(call.i(0)),
                         word(random, 0, 0),    word(random, 0, 1),    static_cast<uint32_t>(p * 4294967296.0)};
    kernels.dropout(y.row(r), x.row(r), row, scale, accumulate, y.cols);
  });
}

}  // namespace unsloth::cpu::ops
