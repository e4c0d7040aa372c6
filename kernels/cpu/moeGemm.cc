#include <vector>

#include "../core/views.h"
#include "gemm.h"
#include "operands.h"
#include "quantise.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {
namespace {

/** The matrices of all experts in one operand. */
class Stack {
 public:
  Stack(const Operands& args, const View& v, const char* name, int64_t experts, bool byColumns)
      : view_(v), experts_(experts), byColumns_(byColumns) {
    const int64_t divided = byColumns ? v.cols : v.rows;
    if (divided % experts != 0)
      args.refuse(std::string(name) + " is " + describe(v) + ", which is no stack of " + std::to_string(experts));
    if (isQuantised(v.dtype)) {
      if (byColumns) args.refuse(std::string(name) + " is " + describe(v) + ", which goes by rows only");
      type_ = dequantisedType(v);
    }
    if (byColumns && v.dtype != DType::F32) args.refuse(std::string(name) + " is " + describe(v) + ", expected f32");
    rows_ = byColumns ? v.rows : v.rows / experts;
    cols_ = byColumns ? v.cols / experts : v.cols;
    if (byColumns || isQuantised(v.dtype)) buffer_.resize(static_cast<size_t>(rows_ * cols_));
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

  /** Matrix e; one by columns or quantised is copied into memory that the next call overwrites. */
  View matrix(int64_t e, ThreadPool& pool) {
    if (isQuantised(view_.dtype)) {
      const size_t width = bytesPerElement(type_);
      auto* to = reinterpret_cast<std::byte*>(buffer_.data());
      forRows(pool, rows_, cols_, [&](int64_t r) {
        cpu::dequantise(view_, e * rows_ + r, 1, 0, cols_, to + static_cast<size_t>(r * cols_) * width, type_);
      });
      return {buffer_.data(), type_, rows_, cols_, cols_};
    }
    if (!byColumns_) return rowsOf(view_, e * rows_, rows_);
    forRows(pool, rows_, cols_, [&](int64_t r) {
      for (int64_t c = 0; c < cols_; ++c) buffer_[static_cast<size_t>(r * cols_ + c)] = view_.row(r)[c * experts_ + e];
    });
    return {buffer_.data(), DType::F32, rows_, cols_, cols_};
  }

  /** Writes a matrix that `matrix` copied back into its columns. */
  void put(int64_t e, ThreadPool& pool) const {
    if (!byColumns_) return;
    forRows(pool, rows_, cols_, [&](int64_t r) {
      for (int64_t c = 0; c < cols_; ++c) view_.row(r)[c * experts_ + e] = buffer_[static_cast<size_t>(r * cols_ + c)];
    });
  }

 private:
  View view_;
  int64_t experts_, rows_ = 0, cols_ = 0;
  bool byColumns_;
  DType type_ = DType::F32;  // of a quantised matrix once it is unpacked
  std::vector<float> buffer_;
};

}  // namespace

void expertGemm(const Call& call, ThreadPool& pool) {
  const Operands args(call, "expertGemm", 4, 3, 2);
  args.require(call.i(0) >= 0 && call.i(0) <= 2, "the mode is unknown");
  const auto mode = static_cast<GemmMode>(call.i(0));
  const bool gradient = mode == GemmMode::TN, transposed = mode == GemmMode::NT, hasLow = call.has(4);
  const View& c = args.matrix(0, "c", Operands::any, Operands::any);
  const View& a = args.weight(1, "a", Operands::any, Operands::any);
  const bool quantised = call.has(2) && isQuantised(call.t(2).dtype);
  args.require(!quantised || !gradient, "a quantised b has no gradient");
  const View& b = quantised ? call.t(2) : args.weight(2, "b", gradient ? a.rows : Operands::any, Operands::any);
  const View& firstView = args.integers(3, "first", Operands::any, 1);
  const int64_t experts = firstView.rows - 1, slots = a.rows;
  args.require(experts >= 1, "first is empty");
  const Vector<int32_t> first = args.numbers<int32_t>(3, "first", experts + 1);
  args.require(first[0] == 0 && first[experts] == slots, "first does not span the rows of a");
  for (int64_t e = 0; e < experts; ++e) args.require(first[e] <= first[e + 1], "first does not rise");
  args.require(gradient || c.rows == slots, "c has other rows than a");

  Stack stack(args, gradient ? c : b, gradient ? "c" : "b", experts, call.i(2) == 1);
  const int64_t width = transposed ? stack.rows() : stack.cols(), depth = transposed ? stack.cols() : stack.rows();
  if (gradient ? depth != a.cols || width != b.cols : depth != a.cols || width != c.cols)
    args.refuse("c " + describe(c) + ", a " + describe(a) + " and b " + describe(b) + " do not fit for " +
                std::to_string(experts) + " experts");
  args.require(!hasLow || !gradient, "low-rank terms need mode 0 or 1");
  const View none;
  const View& lowA = hasLow ? args.matrix(4, "lowA", slots, Operands::any) : none;
  const View& lowB = hasLow ? args.matrix(5, "lowB", Operands::any, Operands::any) : none;
  std::vector<Stack> low;
  if (hasLow) {
    low.emplace_back(args, lowB, "lowB", experts, call.i(2) == 2);
    const int64_t lowWidth = transposed ? low[0].rows() : low[0].cols(), rank = transposed ? low[0].cols() : low[0].rows();
    args.require(lowWidth == width && rank == lowA.cols, "lowA and lowB do not fit");
  }

  for (int64_t e = 0; e < experts; ++e) {
    const int64_t from = first[e], count = first[e + 1] - from;
    if (count == 0) continue;
    Gemm g;
    g.mode = mode;
    g.precision = call.i(1) != 0 ? Precision::bfloat16 : Precision::float32;
    g.alpha = static_cast<float>(call.f(0));
    g.accumulate = gradient;
    g.a = rowsOf(a, from, count);
    g.c = gradient ? stack.matrix(e, pool) : rowsOf(c, from, count);
    g.b = gradient ? rowsOf(b, from, count) : stack.matrix(e, pool);
    if (hasLow) g.terms.push_back({rowsOf(lowA, from, count), low[0].matrix(e, pool), 0, static_cast<float>(call.f(1))});
    cpu::gemm(g, pool);
    if (gradient) stack.put(e, pool);
  }
}

void expertDelta(const Call& call, ThreadPool& pool) {
  const Operands args(call, "expertDelta", 3, 2, 1);
  const View& c = args.matrix(0, "c", Operands::any, Operands::any);
  const View& a = args.matrix(1, "a", Operands::any, c.cols);
  const View& b = args.matrix(2, "b", Operands::any, a.rows);
  const int64_t row = call.i(0), experts = call.i(1), width = b.rows;
  args.require(experts >= 1 && row >= 0 && row + c.rows <= experts * width, "the rows of c are not in the stack");
  Stack down(args, a, "a", experts, false), up(args, b, "b", experts, true);
  for (int64_t at = row; at < row + c.rows;) {
    const int64_t e = at / width, end = std::min(row + c.rows, (e + 1) * width);
    Gemm g;
    g.mode = GemmMode::NN;
    g.accumulate = true;
    g.alpha = static_cast<float>(call.f(0));
    g.c = rowsOf(c, at - row, end - at);
    g.a = rowsOf(up.matrix(e, pool), at - e * width, end - at);
    g.b = down.matrix(e, pool);
    cpu::gemm(g, pool);
    at = end;
  }
}

void combineRows(const Call& call, ThreadPool& pool) {
  const Operands args(call, "combineRows", 3, 1, 0);
  const View& y = args.matrix(0, "y", Operands::any, Operands::any);
  const View& x = args.matrix(1, "x", Operands::any, y.cols);
  const View& place = args.integers(2, "place", y.rows, Operands::any);
  args.entries(place, "place", x.rows);
  const bool accumulate = call.i(0) != 0, adds = call.has(3);
  const View* add = adds ? &args.matrix(3, "add", y.rows, y.cols) : nullptr;
  const VectorKernels& kernels = vectorKernels();
  forRows(pool, y.rows, y.cols * (place.cols + 1), [&](int64_t r) {
    const int32_t* from = place.i32() + r * place.ld;
    float* out = y.row(r);
    int64_t j = 0;
    if (!accumulate) {
      const float* base = adds ? add->row(r) : x.row(from[j++]);
      kernels.scale(out, base, 1, y.cols);
    } else if (adds) {
      kernels.scaleAdd(out, out, add->row(r), 1, 1, y.cols);
    }
    for (; j < place.cols; ++j) kernels.scaleAdd(out, out, x.row(from[j]), 1, 1, y.cols);
  });
}

void scaleRows(const Call& call, ThreadPool& pool) {
  const Operands args(call, "scaleRows", 3, 0, 0);
  const View& x = args.matrix(1, "x", Operands::any, Operands::any);
  const View& y = args.matrix(0, "y", x.rows, x.cols);
  const View& w = args.matrix(2, "w", x.rows, 1);
  const VectorKernels& kernels = vectorKernels();
  forRows(pool, x.rows, x.cols, [&](int64_t r) { kernels.scale(y.row(r), x.row(r), *w.row(r), x.cols); });
}

void scaleRowsGrad(const Call& call, ThreadPool& pool) {
  const Operands args(call, "scaleRowsGrad", 5, 0, 0);
  const View& x = args.matrix(3, "x", Operands::any, Operands::any);
  const View& dx = args.matrix(0, "dx", x.rows, x.cols);
  const View& dy = args.matrix(2, "dy", x.rows, x.cols);
  const View& w = args.matrix(4, "w", x.rows, 1);
  const bool wantsWeight = call.has(1);
  const View none;
  const View& dw = wantsWeight ? args.matrix(1, "dw", x.rows, 1) : none;
  const VectorKernels& kernels = vectorKernels();
  forRows(pool, x.rows, 2 * x.cols, [&](int64_t r) {
    // dw first: dx may take dy's place.
    if (wantsWeight) *dw.row(r) = kernels.dot(dy.row(r), x.row(r), x.cols);
    kernels.scale(dx.row(r), dy.row(r), *w.row(r), x.cols);
  });
}

}  // namespace unsloth::cpu::ops
