#include "operands.h"
#include "ops.h"
#include "random.h"

namespace unsloth::cpu::ops {

void noise(const Call& call, ThreadPool& pool) {
  const Operands args(call, "noise", 5, 1, 1);
  const View& y = args.matrix(0, "y", Operands::any, Operands::any);
  const View& x = args.matrix(1, "x", y.rows, y.cols);
  const View& scale = args.matrix(2, "scale", y.rows, 1);
  const View& tokenKeys = args.integers(3, "tokenKeys", y.rows, 2);
  const View& random = args.integers(4, "random", 1, 2);
  const auto word = [](const View& v, int64_t r, int64_t c) { return static_cast<uint32_t>(v.i32()[r * v.ld + c]); };
  const std::array<uint32_t, 2> key{word(random, 0, 0), word(random, 0, 1)};
  const auto site = static_cast<uint32_t>(call.i(0));
  const auto alpha = static_cast<float>(call.f(0));
  forRows(pool, y.rows, 8 * y.cols, [&](int64_t r) {
    const float size = alpha * *scale.row(r);
    for (int64_t c = 0; c < y.cols; c += 4) {
      const auto words = philox4x32({word(tokenKeys, r, 0), word(tokenKeys, r, 1), site, static_cast<uint32_t>(c / 4)}, key);
      for (int64_t i = 0; i < 4 && c + i < y.cols; ++i)
        y.row(r)[c + i] = x.row(r)[c + i] + size * (static_cast<float>(words[static_cast<size_t>(i)] >> 8) * 0x1p-23f - 1.0f);
    }
  });
}

}  // namespace unsloth::cpu::ops
