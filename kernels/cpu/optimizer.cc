#include <cmath>

#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {
namespace {

constexpr int64_t squaresBlock = 4096;

}  // namespace

void sumSquares(const Call& call, ThreadPool& pool) {
  const Operands args(call, "sumSquares", 2, 2, 0);
  const View& x = args.matrix(1, "x", Operands::any, Operands::any);
  const int64_t slot = call.i(0);
  args.require(slot >= 0, "slot is negative");
  const Vector<double> out = args.numbers<double>(0, "out", slot + 1);
  const int64_t elements = x.rows * x.cols, blocks = (elements + squaresBlock - 1) / squaresBlock;
  const int64_t atOnce = static_cast<int64_t>(ThreadPool::sharedScratchBytes / sizeof(double));
  double* sums = reinterpret_cast<double*>(pool.sharedScratch());
  const VectorKernels& kernels = vectorKernels();
  double total = 0;
  for (int64_t first = 0; first < blocks; first += atOnce) {
    const int64_t count = std::min(atOnce, blocks - first);
    forRows(pool, count, squaresBlock, [&](int64_t i) {
      const int64_t start = (first + i) * squaresBlock, length = std::min(squaresBlock, elements - start);
      if (gapless(x)) {
        sums[i] = kernels.sumSquares(x.f32() + start, length);
        return;
      }
      float block[squaresBlock];  // the same blocks, whatever the stride
      for (int64_t done = 0; done < length;) {
        const int64_t row = (start + done) / x.cols, column = (start + done) % x.cols,
                      piece = std::min(length - done, x.cols - column);
        std::copy_n(x.row(row) + column, piece, block + done);
        done += piece;
      }
      sums[i] = kernels.sumSquares(block, length);
    });
    for (int64_t i = 0; i < count; ++i) total += sums[i];
  }
  double& target = const_cast<double*>(out.data)[slot * out.stride];
  target = call.i(1) != 0 ? target + total : total;
}

void dot(const Call& call, ThreadPool&) {
  const Operands args(call, "dot", 3, 1, 0);
  const Vector<double> out = args.numbers<double>(0, "out", 1);
  const Vector<float> a = args.numbers<float>(1, "a", 0), b = args.numbers<float>(2, "b", a.count);
  args.require(a.count == b.count, "the lists differ in length");
  double sum = 0;
  for (int64_t i = 0; i < a.count; ++i) sum += static_cast<double>(a[i]) * b[i];
  double& target = *const_cast<double*>(out.data);
  target = call.i(0) != 0 ? target + sum : sum;
}

void clipScale(const Call& call, ThreadPool&) {
  const Operands args(call, "clipScale", 3, 0, 1);
  const Vector<double> scalars = args.numbers<double>(0, "scalars", 1);
  const double squares = args.numbers<double>(1, "squares", 1)[0], loss = args.numbers<double>(2, "loss", 1)[0], most = call.f(0);
  const double scale = most > 0 ? std::min(1.0, most / (std::sqrt(squares) + 1e-6)) : 1.0;
  *const_cast<double*>(scalars.data) = std::isfinite(squares) && std::isfinite(loss) ? scale : std::nan("");
}

void adamw(const Call& call, ThreadPool& pool) {
  const Operands args(call, "adamw", 5, 1, 4);
  const View& p = args.matrix(0, "p", Operands::any, Operands::any);
  const View& m = args.matrix(1, "m", p.rows, p.cols);
  const View& v = args.matrix(2, "v", p.rows, p.cols);
  const View& grad = args.matrix(3, "grad", p.rows, p.cols);
  const int64_t group = call.i(0);
  args.require(group >= 0, "group is negative");
  const Vector<double> scalars = args.numbers<double>(4, "scalars", 4 + group);
  if (std::isnan(scalars[0])) return;
  const double beta1 = call.f(0), beta2 = call.f(1), rate = scalars[3 + group];
  const AdamwStep step{static_cast<float>(scalars[0]),
                       static_cast<float>(1 - rate * call.f(3)),
                       static_cast<float>(1 - beta1),
                       static_cast<float>(beta2),
                       static_cast<float>(1 - beta2),
                       static_cast<float>(rate / scalars[1]),
                       static_cast<float>(std::sqrt(scalars[2])),
                       static_cast<float>(call.f(2))};
  const bool flat = gapless(p) && gapless(m) && gapless(v) && gapless(grad);
  const VectorKernels& kernels = vectorKernels();
  forPieces(pool, flat ? 1 : p.rows, flat ? p.rows * p.cols : p.cols, [&](int64_t r, int64_t c, int64_t n) {
    kernels.adamw(p.row(r) + c, m.row(r) + c, v.row(r) + c, grad.row(r) + c, step, n);
  });
}

}  // namespace unsloth::cpu::ops
