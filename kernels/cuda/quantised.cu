// Which kernel reads a quantised matrix.
#include "quantised.h"

#include "../core/quant4.h"
#include "gemm.h"
#include "operands.h"
#include "ops.h"

namespace unsloth::cuda {
namespace {

void dequantiseInto(const View& y, const View& x, int64_t row, const Context& context) {
  if (x.dtype == DType::Q8) dequantise8(y, x, row, context);
  else dequantise4(y, x, row, context);
}

}  // namespace

void gemmQuantised(const GemmArgs& args, const Context& context) {
  if (args.m == 0 || args.n == 0) return;
  const FewRows g{args.a.data, args.bias.data, args.add.data, args.c.data, args.a.ld, args.add.ld, args.c.ld, args.n, args.k,
                  static_cast<int>(args.m), args.alpha, args.accumulate};
  const View* all[] = {&args.c, &args.a, &args.bias, &args.add};
  bool few = args.mode == 0 && args.m <= 8;
  for (const View* v : all) few = few && (!v->present() || v->dtype == args.c.dtype);
  if (few && args.b.dtype == DType::Q8) return fewRows8(args.c.dtype, g, args.b, context);
  if (few && args.k % Quant4Layout::block == 0 && g.inEights(bytesPerElement(args.a.dtype)))
    return fewRows4(args.c.dtype, g, args.b, context);
  // Anything else goes through plain numbers in the scratch.
  GemmArgs plain = args;
  plain.terms.clear();
  plain.b = args.b;
  plain.b.dtype = args.a.dtype;
  plain.b.data = scratch<std::byte>(context, 0, static_cast<size_t>(args.b.rows * args.b.cols) * bytesPerElement(plain.b.dtype), "gemm");
  dequantiseInto(plain.b, args.b, 0, context);
  gemmSimple(plain, context);
}

namespace ops {

void dequantise(const Call& call, const Context& context) {
  const Operands args(call, "dequantise", 2, 1, 0);
  const View& y = args.matrix(0, "y");
  const View& x = args.shaped(1, "x", Operands::any, y.cols);
  args.require(isQuantised(x.dtype), "x is not quantised");
  const int64_t row = call.i(0);
  args.require(row >= 0 && row + y.rows <= x.rows, "the rows are not in x");
  dequantiseInto(y, x, row, context);
}

}  // namespace ops
}  // namespace unsloth::cuda
