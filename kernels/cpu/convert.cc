#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {
namespace {

std::byte* at(const View& v, int64_t r, int64_t c) {
  return static_cast<std::byte*>(v.data) + static_cast<size_t>(r * v.ld + c) * bytesPerElement(v.dtype);
}

template <class T>
void fillWith(std::byte* to, T value, int64_t n) {
  std::fill_n(reinterpret_cast<T*>(to), n, value);
}

}  // namespace

void fill(const Call& call, ThreadPool& pool) {
  const Operands args(call, "fill", 1, 0, 1);
  const View& x = args.shaped(0, "x", Operands::any, Operands::any);
  const double value = call.f(0);
  const float single = static_cast<float>(value);
  const bool flat = gapless(x);
  forPieces(pool, flat ? 1 : x.rows, flat ? x.rows * x.cols : x.cols, [&](int64_t r, int64_t c, int64_t n) {
    std::byte* to = at(x, r, c);
    switch (x.dtype) {
      case DType::F32: return fillWith<float>(to, single, n);
      case DType::F64: return fillWith<double>(to, value, n);
      case DType::I32: return fillWith<int32_t>(to, static_cast<int32_t>(value), n);
      case DType::BF16: return fillWith<uint16_t>(to, floatToBf16(single), n);
      case DType::F16: return fillWith<uint16_t>(to, floatToF16(single), n);
      case DType::U8: return fillWith<uint8_t>(to, static_cast<uint8_t>(value), n);
      case DType::Q4:
      case DType::Q4N:
      case DType::Q8:
      case DType::F8: args.refuse("x is quantised");
    }
  });
}

void cast(const Call& call, ThreadPool& pool) {
  const Operands args(call, "cast", 2, 0, 0);
  const View& x = args.shaped(1, "x", Operands::any, Operands::any);
  const View& y = args.weight(0, "y", x.rows, x.cols);
  args.require(x.dtype != DType::U8 && !isQuantised(x.dtype), "x has no numbers");
  const bool flat = gapless(x) && gapless(y);
  const VectorKernels& kernels = vectorKernels();
  forPieces(pool, flat ? 1 : x.rows, flat ? x.rows * x.cols : x.cols, [&](int64_t r, int64_t c, int64_t n) {
    if (y.dtype == DType::F32) return kernels.widen(reinterpret_cast<float*>(at(y, r, c)), at(x, r, c), x.dtype, n);
    if (x.dtype == DType::F32) return kernels.narrow(at(y, r, c), y.dtype, reinterpret_cast<const float*>(at(x, r, c)), n);
    constexpr int64_t piece = 512;
    float wide[piece];
    for (int64_t i = 0; i < n; i += piece) {
      const int64_t count = std::min(piece, n - i);
      kernels.widen(wide, at(x, r, c + i), x.dtype, count);
      kernels.narrow(at(y, r, c + i), y.dtype, wide, count);
    }
  });
}

}  // namespace unsloth::cpu::ops
