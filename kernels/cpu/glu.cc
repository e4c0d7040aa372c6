#include <algorithm>

#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {
namespace {

Activation kindOf(const Operands& args, int32_t kind, Activation last) {
  if (kind < 0 || kind > static_cast<int32_t>(last)) args.refuse("unknown activation kind " + std::to_string(kind));
  return static_cast<Activation>(kind);
}

}  // namespace

void glu(const Call& call, ThreadPool& pool) {
  const Operands args(call, "glu", 3, 1, 0);
  const View& h = args.matrix(0, "h", Operands::any, Operands::any);
  const View& gate = args.matrix(1, "gate", h.rows, h.cols);
  const View& up = args.matrix(2, "up", h.rows, h.cols);
  const Activation kind = kindOf(args, call.i(0), Activation::geluErf);
  const VectorKernels& kernels = vectorKernels();
  forPieces(pool, h.rows, h.cols,
            [&](int64_t r, int64_t c, int64_t n) { kernels.glu(h.row(r) + c, gate.row(r) + c, up.row(r) + c, kind, n); });
}

void gluGrad(const Call& call, ThreadPool& pool) {
  const Operands args(call, "gluGrad", 6, 1, 0);
  const View& dH = args.matrix(3, "dH", Operands::any, Operands::any);
  const View& dGate = args.matrix(0, "dGate", dH.rows, dH.cols);
  const View& dUp = args.matrix(1, "dUp", dH.rows, dH.cols);
  const View& gate = args.matrix(4, "gate", dH.rows, dH.cols);
  const View& up = args.matrix(5, "up", dH.rows, dH.cols);
  const View h = args.has(2) ? args.matrix(2, "h", dH.rows, dH.cols) : View{};
  const Activation kind = kindOf(args, call.i(0), Activation::geluErf);
  const VectorKernels& kernels = vectorKernels();
  const auto gradient = [&](int64_t r, int64_t c, int64_t n) {
    kernels.gluGrad(dGate.row(r) + c, dUp.row(r) + c, dH.row(r) + c, gate.row(r) + c, up.row(r) + c, kind, n);
  };
  if (!h.present()) return forPieces(pool, dH.rows, dH.cols, gradient);
  forPieces(pool, dH.rows, dH.cols, [&](int64_t r, int64_t from, int64_t count) {
    constexpr int64_t atOnce = 512;
    float held[atOnce];  // h may have the memory of dH, and dGate that of gate
    for (int64_t c = from; c < from + count; c += atOnce) {
      const int64_t n = std::min(atOnce, from + count - c);
      kernels.glu(held, gate.row(r) + c, up.row(r) + c, kind, n);
      gradient(r, c, n);
      std::copy_n(held, n, h.row(r) + c);
    }
  });
}

void activation(const Call& call, ThreadPool& pool) {
  const Operands args(call, "activation", 2, 1, 0);
  const View& y = args.matrix(0, "y", Operands::any, Operands::any);
  const View& x = args.matrix(1, "x", y.rows, y.cols);
  const Activation kind = kindOf(args, call.i(0), Activation::sigmoid);
  const VectorKernels& kernels = vectorKernels();
  forPieces(pool, y.rows, y.cols,
            [&](int64_t r, int64_t c, int64_t n) { kernels.activation(y.row(r) + c, x.row(r) + c, kind, n); });
}

void activationGrad(const Call& call, ThreadPool& pool) {
  const Operands args(call, "activationGrad", 3, 1, 0);
  const View& dx = args.matrix(0, "dx", Operands::any, Operands::any);
  const View& dy = args.matrix(1, "dy", dx.rows, dx.cols);
  const View& x = args.matrix(2, "x", dx.rows, dx.cols);
  const Activation kind = kindOf(args, call.i(0), Activation::sigmoid);
  const VectorKernels& kernels = vectorKernels();
  forPieces(pool, dx.rows, dx.cols, [&](int64_t r, int64_t c, int64_t n) {
    kernels.activationGrad(dx.row(r) + c, dy.row(r) + c, x.row(r) + c, kind, n);
  });
}

}  // namespace unsloth::cpu::ops
