#include <algorithm>
#include <cmath>

#include "operands.h"
#include "ops.h"

namespace unsloth::cpu::ops {

void scaleLoss(const Call& call, ThreadPool& pool) {
  const Operands args(call, "scaleLoss", 3, 0, 0);
  const View& y = args.matrix(0, "y", Operands::any, Operands::any);
  const View& x = args.matrix(1, "x", y.rows, y.cols);
  const auto scale = static_cast<float>(args.numbers<double>(2, "scaling", 1)[0]);
  forPieces(pool, y.rows, y.cols, [&](int64_t r, int64_t c, int64_t n) {
    for (int64_t i = c; i < c + n; ++i) y.row(r)[i] = scale * x.row(r)[i];
  });
}

void updateScale(const Call& call, ThreadPool&) {
  const Operands args(call, "updateScale", 5, 2, 1);
  const int64_t interval = call.i(0), width = call.i(1);
  args.require(interval > 0 && width > 0, "interval and width are positive");
  const Vector<double> scalars = args.numbers<double>(0, "scalars", 1 + width), scaling = args.numbers<double>(1, "scaling", 4);
  const double squares = args.numbers<double>(2, "squares", 1)[0], loss = args.numbers<double>(3, "loss", 1)[0], most = call.f(0);
  const Vector<double> choices = args.numbers<double>(4, "choices", 1 + width);
  const auto set = [](const Vector<double>& v, int64_t i, double value) { const_cast<double*>(v.data)[i * v.stride] = value; };
  const double scale = scaling[0], skipped = scaling[2];
  const int64_t rows = (choices.count - 1) / width;
  const int64_t row = std::clamp<int64_t>(static_cast<int64_t>(skipped - choices[0]), 0, rows - 1);
  for (int64_t i = 0; i < width; ++i) set(scalars, 1 + i, choices[1 + row * width + i]);
  set(scaling, 3, scale);
  if (!std::isfinite(squares) || !std::isfinite(loss)) {
    set(scalars, 0, std::nan(""));
    set(scaling, 0, 0.5 * scale);
    set(scaling, 1, 0);
    set(scaling, 2, skipped + 1);
    return;
  }
  const double clip = most > 0 ? std::min(1.0, most / (std::sqrt(squares) / scale + 1e-6)) : 1.0;
  set(scalars, 0, clip / scale);
  const bool grows = scaling[1] + 1 >= static_cast<double>(interval);
  if (grows && 2 * scale <= 0x1p127) set(scaling, 0, 2 * scale);
  set(scaling, 1, grows ? 0 : scaling[1] + 1);
}

}  // namespace unsloth::cpu::ops
