#include <cmath>

#include "../core/views.h"
#include "gemm.h"
#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {
namespace {

void multiply(GemmMode mode, Precision precision, float alpha, const View& c, const View& a, const View& b, bool accumulate,
              ThreadPool& pool, const View* bias = nullptr) {
  Gemm g;
  g.mode = mode, g.precision = precision, g.alpha = alpha, g.accumulate = accumulate;
  g.c = c, g.a = a, g.b = b;
  if (bias != nullptr) g.bias = *bias;
  gemm(g, pool);
}

}  // namespace

void headLoss(const Call& call, ThreadPool& pool) {
  const Operands args(call, "headLoss", 9, 1, 2);
  const View& h = args.matrix(5, "h", Operands::any, Operands::any);
  const View& w = args.weight(6, "w", Operands::any, h.cols);
  const View& logits = args.matrix(3, "logits", Operands::any, w.rows);
  const int64_t rows = h.rows, vocabulary = w.rows;
  const View& nll = args.matrix(0, "nll", rows, 1);
  const bool wantsDH = call.has(1), wantsDW = call.has(2), wantsDBias = call.has(4), hasBias = call.has(9);
  if (wantsDH) args.matrix(1, "dH", rows, h.cols);
  if (wantsDW) args.matrix(2, "dW", vocabulary, h.cols);
  args.require(wantsDH || !(wantsDW || wantsDBias), "dW and dBias need dH");
  args.require(hasBias || !wantsDBias, "dBias needs bias");
  if (wantsDBias) args.matrix(4, "dBias", 1, vocabulary);
  args.require(logits.rows > 0 || rows == 0, "logits has no rows");
  const Vector<int32_t> labels = args.indices(7, "labels", rows, vocabulary, "w");
  const Vector<float> weights = args.numbers<float>(8, "weights", rows);
  const float scale = static_cast<float>(call.f(0)), softcap = static_cast<float>(call.f(1));
  const Precision precision = call.i(0) != 0 ? Precision::bfloat16 : Precision::float32;
  args.require(!hasBias || softcap == 0, "a bias goes without softcap");
  const VectorKernels& kernels = vectorKernels();

  for (int64_t first = 0; first < rows; first += logits.rows) {
    const int64_t count = std::min(logits.rows, rows - first);
    const View z = rowsOf(logits, 0, count), hidden = rowsOf(h, first, count);
    multiply(GemmMode::NT, precision, softcap == 0 ? scale : 1, z, hidden, w, false, pool,
             hasBias ? &args.weight(9, "bias", 1, vocabulary) : nullptr);
    pool.parallelFor(count, [&](int64_t i, int) {
      float* row = z.row(i);
      const int32_t label = labels[first + i];
      if (softcap != 0) kernels.logitCap(row, scale, softcap, vocabulary);
      const float top = kernels.largest(row, vocabulary), target = row[label];
      const double total = kernels.sumExp(row, top, vocabulary);
      *nll.row(first + i) = static_cast<float>(std::log(total) + (static_cast<double>(top) - static_cast<double>(target)));
      if (!wantsDH) return;
      // ∂nll/∂z = softmax − onehot; then through softcap·tanh(scale·a/softcap): scale·(1 − (z/softcap)²).
      const double weight = static_cast<double>(weights[first + i]) * static_cast<double>(scale);
      kernels.softmaxGrad(row, top, static_cast<float>(weight / total), softcap, vocabulary);
      const double bent = softcap != 0 ? static_cast<double>(target) / static_cast<double>(softcap) : 0;
      const double p = std::exp(static_cast<double>(target) - static_cast<double>(top)) / total;
      row[label] = static_cast<float>(weight * (p - 1) * (1 - bent * bent));
    });
    if (!wantsDH) continue;
    if (wantsDBias)  // ∂z/∂bias is 1, where ∂z/∂(h·wᵀ) is the scale
      sumRows(pool, count, vocabulary, call.t(4).f32(), 1 / scale, [&](int64_t r, int64_t column, int64_t n, float* sums) {
        kernels.scaleAdd(sums, sums, z.row(r) + column, 1, 1, n);
      });
    multiply(GemmMode::NN, precision, 1, rowsOf(call.t(1), first, count), z, w, false, pool);
    if (wantsDW) multiply(GemmMode::TN, precision, 1, call.t(2), z, hidden, true, pool);
  }
}

}  // namespace unsloth::cpu::ops
