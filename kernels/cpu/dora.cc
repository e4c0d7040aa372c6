#include <cmath>
#include <vector>

#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {
namespace {

/** A row of any floating-point type as fp32. */
std::vector<float> widened(const View& v) {
  std::vector<float> values(static_cast<size_t>(v.cols));
  vectorKernels().widen(values.data(), v.data, v.dtype, v.cols);
  return values;
}

/** Share of ‖W‖² + ‖scale·B·A‖² below which sums of fp32 products cannot tell their difference from 0. */
constexpr double leastSquare = 0x1p-22;

}  // namespace

void scaleColumns(const Call& call, ThreadPool& pool) {
  const Operands args(call, "scaleColumns", 3, 0, 1);
  const View& x = args.matrix(1, "x", Operands::any, Operands::any);
  const View& y = args.matrix(0, "y", x.rows, x.cols);
  const View& w = args.matrix(2, "w", 1, x.cols);
  const std::vector<float> bias = args.has(3) ? widened(args.weight(3, "bias", 1, x.cols)) : std::vector<float>{};
  const View add = args.has(4) ? args.matrix(4, "add", x.rows, x.cols) : View{};
  const float alpha = static_cast<float>(call.f(0));
  forPieces(pool, x.rows, x.cols, [&](int64_t r, int64_t column, int64_t n) {
    const float *from = x.row(r) + column, *factor = w.f32() + column, *offset = bias.empty() ? nullptr : bias.data() + column;
    const float* plus = add.present() ? add.row(r) + column : nullptr;
    float* to = y.row(r) + column;
    for (int64_t c = 0; c < n; ++c) {
      float value = alpha * factor[c] * from[c];
      if (offset != nullptr) value += offset[c];
      to[c] = plus == nullptr ? value : value + plus[c];
    }
  });
}

void scaleColumnsGrad(const Call& call, ThreadPool& pool) {
  const Operands args(call, "scaleColumnsGrad", 6, 0, 1);
  const View& dy = args.matrix(2, "dy", Operands::any, Operands::any);
  const View& dx = args.matrix(0, "dx", dy.rows, dy.cols);
  const View& dm = args.matrix(1, "dm", 1, dy.cols);
  const View& x = args.matrix(3, "x", dy.rows, dy.cols);
  const View& w = args.matrix(4, "w", 1, dy.cols);
  const View& norm = args.matrix(5, "norm", 1, dy.cols);
  const float alpha = static_cast<float>(call.f(0));
  const VectorKernels& kernels = vectorKernels();
  std::vector<float> sums(static_cast<size_t>(dy.cols));
  sumRows(pool, dy.rows, dy.cols, sums.data(), alpha, [&](int64_t r, int64_t column, int64_t count, float* to) {
    kernels.addNormWeightGrad(to, dy.row(r) + column, x.row(r) + column, 0, 1, count);
  });
  for (int64_t c = 0; c < dy.cols; ++c)
    if (norm.f32()[c] > 0) dm.f32()[c] += sums[static_cast<size_t>(c)] / norm.f32()[c];
  forPieces(pool, dy.rows, dy.cols, [&](int64_t r, int64_t column, int64_t n) {
    const float *from = dy.row(r) + column, *factor = w.f32() + column;
    float* to = dx.row(r) + column;
    for (int64_t c = 0; c < n; ++c) to[c] = alpha * factor[c] * from[c];
  });
}

void rowSquares(const Call& call, ThreadPool& pool) {
  const Operands args(call, "rowSquares", 2, 0, 0);
  const View& x = args.weight(1, "x", Operands::any, Operands::any);
  const View& out = args.matrix(0, "out", 1, x.rows);
  const VectorKernels& kernels = vectorKernels();
  constexpr int64_t piece = 1024;
  forRows(pool, x.rows, x.cols, [&](int64_t r) {
    const auto* row = static_cast<const std::byte*>(x.data) + static_cast<size_t>(r * x.ld) * bytesPerElement(x.dtype);
    float wide[piece];
    double sum = 0;
    for (int64_t c = 0; c < x.cols; c += piece) {
      const int64_t count = std::min(piece, x.cols - c);
      kernels.widen(wide, row + static_cast<size_t>(c) * bytesPerElement(x.dtype), x.dtype, count);
      sum += kernels.sumSquares(wide, count);
    }
    out.f32()[r] = static_cast<float>(sum);
  });
}

void doraNorm(const Call& call, ThreadPool& pool) {
  const Operands args(call, "doraNorm", 7, 0, 1);
  const View& b = args.matrix(4, "b", Operands::any, Operands::any);
  const int64_t rows = b.rows, rank = b.cols;
  const View& gain = args.matrix(0, "gain", 1, rows);
  const View& norm = args.matrix(1, "norm", 1, rows);
  const View& squares = args.matrix(2, "squares", 1, rows);
  const View& m = args.matrix(3, "m", 1, rows);
  const View& wa = args.matrix(5, "wa", rank, rows);
  const View& gram = args.matrix(6, "gram", rank, rank);
  const double scale = call.f(0);
  const VectorKernels& kernels = vectorKernels();
  forRows(pool, rows, rank * rank, [&](int64_t o) {
    double cross = 0, square = 0;
    for (int64_t k = 0; k < rank; ++k) {
      const double factor = b.row(o)[k];
      cross += factor * static_cast<double>(wa.row(k)[o]);
      square += factor * static_cast<double>(kernels.dot(gram.row(k), b.row(o), rank));
    }
    square *= scale * scale;
    const double base = squares.f32()[o], least = leastSquare * (base + square);
    const auto length = static_cast<float>(std::sqrt(std::max(base + 2 * scale * cross + square, least)));
    norm.f32()[o] = length;
    gain.f32()[o] = length > 0 ? m.f32()[o] / length : 0;
  });
}

}  // namespace unsloth::cpu::ops
