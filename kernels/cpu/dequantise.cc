#include <algorithm>
#include <array>

#include "../core/error.h"
#include "../core/quant4.h"
#include "../core/quant8.h"
#include "operands.h"
#include "ops.h"
#include "quantise.h"
#include "vectorKernels.h"

namespace unsloth::cpu {
namespace {

constexpr int64_t block = Quant4Layout::block;

/** A matrix of 4 bits, ready to be read. */
class Reader4 {
 public:
  explicit Reader4(const View& v) : q_(v), header_(quant4Header(q_)), kernels_(vectorKernels()) {}

  DType rounding() const { return static_cast<DType>(header_.rounding); }

  float absmax(int64_t index) const {
    if (q_.absmax != nullptr) return q_.absmax[index];
    const float* group = q_.nested + 2 * (index >> header_.groupShift);
    return q_.nestedCode[q_.absmaxCode[index]] * group[0] + group[1];
  }

  /** Elements [first, first + count) of the flattened matrix, not rounded. */
  void read(float* y, int64_t first, int64_t count) const {
    while (count > 0) {
      const int64_t index = first / block, into = first % block, length = std::min(block - into, count);
      const uint8_t* codes = q_.codes + first / 2;
      const float scale = absmax(index);
      if (first % 2 == 0) {
        kernels_.unpack4(y, codes, q_.code, scale, length);
      } else {
        y[0] = q_.code[*codes & 15] * scale;
        if (length > 1) kernels_.unpack4(y + 1, codes + 1, q_.code, scale, length - 1);
      }
      y += length, first += length, count -= length;
    }
  }

 private:
  Quant4View q_;
  Quant4Header header_;
  const VectorKernels& kernels_;
};

/** A matrix of 8 bits, ready to be read. */
class Reader8 {
 public:
  explicit Reader8(const View& v)
      : q_(v), header_(quant8Header(q_)), cols_(v.cols), kernels_(vectorKernels()) {
    if (header_.blockRows == 0 || header_.blockCols == 0) fail("a matrix of 8 bits has no header");
    across_ = (v.cols + header_.blockCols - 1) / header_.blockCols;
  }

  DType rounding() const { return static_cast<DType>(header_.rounding); }

  /** Elements [first, first + count) of the flattened matrix, not rounded. */
  void read(float* y, int64_t first, int64_t count) const {
    static const std::array<float, 256> e4m3 = [] {
      std::array<float, 256> table;
      for (int i = 0; i < 256; ++i) table[static_cast<size_t>(i)] = e4m3ToFloat(static_cast<uint8_t>(i));
      return table;
    }();
    const float* table = header_.kind == 0 ? nullptr : e4m3.data();
    const int64_t blockRows = header_.blockRows, blockCols = header_.blockCols;
    while (count > 0) {
      const int64_t row = first / cols_, column = first % cols_, length = std::min({blockCols - column % blockCols, cols_ - column, count});
      const float scale = q_.scales[row / blockRows * across_ + column / blockCols];
      kernels_.unpack8(y, q_.numbers + first, table, scale, header_.divisor, length);
      y += length, first += length, count -= length;
    }
  }

 private:
  Quant8View q_;
  Quant8Header header_;
  int64_t cols_, across_ = 0;
  const VectorKernels& kernels_;
};

template <class Reader>
void dequantiseWith(const Reader& reader, const View& q, int64_t row, int64_t rows, int64_t column, int64_t cols, void* out, DType type) {
  const VectorKernels& kernels = vectorKernels();
  const DType rounding = reader.rounding();
  constexpr int64_t piece = 1024;
  float values[piece];
  uint16_t rounded[piece];
  auto* to = static_cast<std::byte*>(out);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; c += piece) {
      const int64_t count = std::min(piece, cols - c);
      reader.read(values, (row + r) * q.cols + column + c, count);
      std::byte* at = to + static_cast<size_t>(r * cols + c) * bytesPerElement(type);
      if (type == rounding || rounding == DType::F32) {
        kernels.narrow(at, type, values, count);
        continue;
      }
      kernels.narrow(rounded, rounding, values, count);
      kernels.widen(values, rounded, rounding, count);
      kernels.narrow(at, type, values, count);
    }
}

}  // namespace

DType dequantisedType(const View& q) {
  return static_cast<DType>(q.dtype == DType::Q8 ? quant8Header(Quant8View(q)).rounding : quant4Header(Quant4View(q)).rounding);
}

int64_t dequantisedWidth(const View& q) { return static_cast<int64_t>(bytesPerElement(dequantisedType(q))); }

void dequantise(const View& q, int64_t row, int64_t rows, int64_t column, int64_t cols, void* out, DType type) {
  if (q.dtype == DType::Q8) dequantiseWith(Reader8(q), q, row, rows, column, cols, out, type);
  else dequantiseWith(Reader4(q), q, row, rows, column, cols, out, type);
}

namespace ops {

void dequantise(const Call& call, ThreadPool& pool) {
  const Operands args(call, "dequantise", 2, 1, 0);
  const View& y = args.weight(0, "y", Operands::any, Operands::any);
  const View& x = args.shaped(1, "x", Operands::any, y.cols);
  args.require(isQuantised(x.dtype), "x is not quantised");
  const int64_t first = call.i(0);
  args.require(first >= 0 && first + y.rows <= x.rows, "the rows are not in x");
  const size_t width = bytesPerElement(y.dtype);
  forRows(pool, y.rows, y.cols, [&](int64_t r) {
    cpu::dequantise(x, first + r, 1, 0, y.cols, static_cast<std::byte*>(y.data) + static_cast<size_t>(r * y.ld) * width, y.dtype);
  });
}

}  // namespace ops
}  // namespace unsloth::cpu
