// Commands of the processor on matrices of more than 2³¹ elements, whose last rows are checked against the same command on those
// rows alone. Takes 9 GB of memory and some minutes: only with UNSLOTH_LARGE=1. The rest of a matrix is zeros that nobody wrote,
// which take no memory.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../../kernels/core/quant4.h"
#include "../../kernels/cpu/ops.h"
#include "../../kernels/cpu/threadPool.h"

using namespace unsloth;

namespace {

using Op = void (*)(const Call&, cpu::ThreadPool&);

constexpr int64_t rows = 75008, cols = 28672, last = 16;  // rows · cols = 2.151e9
static_assert(rows * cols > int64_t{1} << 31);

int checks = 0, failures = 0, notRun = 0;
cpu::ThreadPool* pool;

/** Zeros. */
struct Matrix : View {
  std::unique_ptr<void, decltype(&std::free)> memory;
  Matrix(DType type, int64_t r, int64_t c) : View{nullptr, type, r, c, c}, memory(nullptr, &std::free) {
    memory.reset(std::calloc(static_cast<size_t>(r * c), bytesPerElement(type)));
    if (memory == nullptr) throw std::bad_alloc();
    data = memory.get();
  }
  /** Rows from `first` on. */
  View from(int64_t first) const {
    View v = *this;
    v.data = static_cast<std::byte*>(data) + static_cast<size_t>(first * ld) * bytesPerElement(dtype);
    v.rows = View::rows - first;
    return v;
  }
};

float numberAt(int64_t i) { return static_cast<float>((i * 7919 + 13) % 2003 - 1001) / 1001.0f; }

/** Numbers between −1 and 1 into all of a view. */
void fill(const View& v) {
  for (int64_t r = 0; r < v.rows; ++r)
    for (int64_t c = 0; c < v.cols; ++c) {
      const float x = numberAt(r * v.cols + c);
      const int64_t at = r * v.ld + c;
      if (v.dtype == DType::F32) static_cast<float*>(v.data)[at] = x;
      else static_cast<uint16_t*>(v.data)[at] = floatToBf16(x);
    }
}

Matrix list(const std::vector<int32_t>& values) {
  Matrix m(DType::I32, static_cast<int64_t>(values.size()), 1);
  std::memcpy(m.data, values.data(), values.size() * 4);
  return m;
}

void run(Op op, const std::vector<View>& tensors, const std::vector<int32_t>& ints = {}, const std::vector<double>& floats = {},
         Dims dims = {}) {
  op({tensors.data(), static_cast<int64_t>(tensors.size()), ints.data(), static_cast<int64_t>(ints.size()), floats.data(),
      static_cast<int64_t>(floats.size()), dims},
     *pool);
}

/** ‖a − b‖ ≤ tolerance·‖b‖, and b is not all zeros. */
void expectSame(const char* what, const View& a, const View& b, double tolerance = 0) {
  double difference = 0, norm = 0;
  for (int64_t r = 0; r < b.rows; ++r)
    for (int64_t c = 0; c < b.cols; ++c) {
      const double x = loadElement(a, r, c), y = loadElement(b, r, c);
      difference += (x - y) * (x - y), norm += y * y;
    }
  const bool same = norm > 0 && std::sqrt(difference) <= tolerance * std::sqrt(norm);
  ++checks, failures += !same;
  if (!same) std::printf("WRONG %s: off by %.3g of %.3g\n", what, std::sqrt(difference), std::sqrt(norm));
}

void tables() {
  const int64_t first = rows - last;
  std::vector<int32_t> numbers, own;
  for (int64_t i = 1; i <= last; ++i) {
    numbers.push_back(static_cast<int32_t>(rows - i));
    own.push_back(static_cast<int32_t>(last - i));
  }
  const Matrix at = list(numbers), ownAt = list(own), some = [] {
    Matrix m(DType::F32, last, cols);
    fill(m);
    return m;
  }();
  using Command = std::function<void(const View& table, const View& index, const View& few)>;
  const auto compare = [&](const char* what, DType type, bool filled, bool reads, const Command& command) {
    const Matrix large(type, rows, cols), alone(type, last, cols), a(DType::F32, last, cols), b(DType::F32, last, cols);
    if (filled) fill(large.from(first)), fill(alone);
    command(large, at, a), command(alone, ownAt, b);
    if (reads) expectSame(what, a, b);
    else expectSame(what, large.from(first), alone);
  };
  compare("embed", DType::BF16, true, true,
          [](auto& table, auto& ids, auto& out) { run(cpu::ops::embed, {out, ids, table}, {}, {1}); });
  compare("embedGrad", DType::F32, false, false,
          [&](auto& table, auto& ids, auto&) { run(cpu::ops::embedGrad, {table, ids, some}, {}, {0.5}); });
  compare("gatherRows", DType::F32, true, true,
          [](auto& x, auto& index, auto& y) { run(cpu::ops::gatherRows, {y, x, index}); });
  compare("scatterRows", DType::F32, true, false,
          [&](auto& y, auto& index, auto&) { run(cpu::ops::scatterRows, {y, some, index}, {1}); });
  compare("storeRows", DType::F32, false, false,
          [&](auto& cache, auto& slots, auto&) { run(cpu::ops::storeRows, {cache, some, slots}); });
}

void gemm(int mode, const View& c, const View& a, const View& b) {
  run(cpu::ops::gemm, {c, a, b, {}, {}}, {mode, 0, 0}, {1});
}

/** gemm with one operand large; the rest of it is zero. */
void products() {
  for (const DType type : {DType::F32, DType::BF16}) {
    const Matrix large(type, rows, cols);
    const View end = large.from(rows - last);
    fill(end);
    const std::string name = type == DType::F32 ? " of fp32" : " of bf16";
    {
      const Matrix b(DType::BF16, 8, cols), c(DType::F32, rows, 8), alone(DType::F32, last, 8);
      fill(b);
      gemm(0, c, large, b), gemm(0, alone, end, b);
      expectSame(("gemm: XWᵀ, X" + name).c_str(), c.from(rows - last), alone, 1e-6);
    }
    for (const int64_t m : {2, 16}) {
      const Matrix a(DType::F32, m, cols), c(DType::F32, m, rows), alone(DType::F32, m, last);
      fill(a);
      gemm(0, c, a, large), gemm(0, alone, a, end);
      View part = c;
      part.data = c.f32() + rows - last, part.cols = last;
      expectSame(("gemm: XWᵀ, W" + name).c_str(), part, alone, 1e-6);
    }
    const Matrix a(DType::F32, 2, rows), b(DType::F32, rows, 8);
    fill(a), fill(b);
    View ends = a;
    ends.data = a.f32() + rows - last, ends.cols = last;
    const Matrix c(DType::F32, 2, cols), alone(DType::F32, 2, cols);
    gemm(1, c, a, large), gemm(1, alone, ends, end);
    expectSame(("gemm: dYW, W" + name).c_str(), c, alone, 1e-6);
    const Matrix dW(DType::F32, cols, 8), dWAlone(DType::F32, cols, 8);
    gemm(2, dW, large, b), gemm(2, dWAlone, end, b.from(rows - last));
    expectSame(("gemm: dYᵀX, dY" + name).c_str(), dW, dWAlone, 1e-6);
  }
}

void sums() {
  const Matrix x(DType::F32, rows, cols);
  const View end = x.from(rows - last);
  fill(end);
  const Matrix total(DType::F32, 1, cols), alone(DType::F32, 1, cols);
  run(cpu::ops::columnSum, {total, x}, {}, {1}), run(cpu::ops::columnSum, {alone, end}, {}, {1});
  expectSame("columnSum", total, alone, 1e-6);
  const Matrix squares(DType::F64, 1, 1), fewSquares(DType::F64, 1, 1);
  run(cpu::ops::sumSquares, {squares, x}, {0, 0}), run(cpu::ops::sumSquares, {fewSquares, end}, {0, 0});
  expectSame("sumSquares", squares, fewSquares, 1e-12);
}

/** 4-bit codes: those of the last rows are not zero, which stands for −1. */
void quantised() {
  const auto make = [](int64_t r) {
    const Quant4Layout layout{r * cols, false};
    Matrix m(DType::U8, layout.leastBytes(), 1);
    auto* bytes = static_cast<uint8_t*>(m.data);
    std::memcpy(bytes, nf4Code, sizeof nf4Code);
    const Quant4Header header{8, static_cast<uint32_t>(DType::BF16)};
    std::memcpy(bytes + 64, &header, sizeof header);
    for (int64_t i = 0; i < last * cols / 2; ++i)
      bytes[Quant4Layout::codesAt + (r - last) * cols / 2 + i] = static_cast<uint8_t>(i * 37 + i / 256);
    auto* absmax = reinterpret_cast<float*>(bytes + layout.absmaxAt());
    for (int64_t i = 0; i < last * cols / 64; ++i) absmax[(r - last) * cols / 64 + i] = 1 + numberAt(i) / 2;
    return m;
  };
  const Matrix large = make(rows), few = make(last);
  const View q{large.data, DType::Q4, rows, cols, cols}, alone{few.data, DType::Q4, last, cols, cols};
  const Matrix y(DType::BF16, last, cols), wanted(DType::BF16, last, cols);
  run(cpu::ops::dequantise, {y, q}, {static_cast<int32_t>(rows - last)}), run(cpu::ops::dequantise, {wanted, alone}, {0});
  expectSame("dequantise", y, wanted);
  for (const int64_t m : {1, 16}) {
    const Matrix a(DType::F32, m, cols), c(DType::F32, m, rows), ends(DType::F32, m, last);
    fill(a);
    gemm(0, c, a, q), gemm(0, ends, a, alone);
    View part = c;
    part.data = c.f32() + rows - last, part.cols = last;
    expectSame("gemm of 4 bits", part, ends, 1e-6);
  }
}

/** What writes all of its matrix, in place where it may: 8.6 GB. */
void elements() {
  const Matrix x(DType::F32, rows, cols), alone(DType::F32, last, cols);
  const View end = x.from(rows - last);
  const auto both = [&](const char* what, const std::function<void(const View&)>& command) {
    command(x), command(alone);
    expectSame(what, end, alone);
  };
  both("fill", [](auto& v) { run(cpu::ops::fill, {v}, {}, {0.25}); });
  fill(end), fill(alone);
  both("add", [](auto& v) { run(cpu::ops::add, {v, v, View{}}, {}, {1.5, 0}); });
  both("logitCap", [](auto& v) { run(cpu::ops::logitCap, {v}, {}, {0.5, 3}); });
  both("activation", [](auto& v) { run(cpu::ops::activation, {v, v}, {0}); });
  constexpr int64_t headDim = 128;
  Matrix cosSin(DType::F32, rows, headDim);
  fill(cosSin.from(rows - last));
  both("rope", [&](auto& v) {
    run(cpu::ops::rope, {v, v, cosSin.from(rows - v.rows)}, {cols / headDim, headDim, 0, 0});
  });
  const Matrix scalars(DType::F64, 1, 4);
  scalars.f64()[0] = 0.5, scalars.f64()[3] = 0.1;
  const Matrix grad(DType::F32, rows, cols);
  fill(grad.from(rows - last));
  both("sgd", [&](auto& v) {
    const auto flat = [](View m) { return m.cols *= m.rows, m.ld = m.cols, m.rows = 1, m; };
    run(cpu::ops::sgd, {flat(v), View{}, flat(grad.from(rows - v.rows)), scalars}, {0}, {0, 0.01});
  });
}

void normsAndCasts() {
  const Matrix x(DType::F32, rows, cols);
  const View end = x.from(rows - last);
  fill(end);
  {
    const Matrix y(DType::BF16, rows, cols), alone(DType::BF16, last, cols);
    run(cpu::ops::cast, {y, x}), run(cpu::ops::cast, {alone, end});
    expectSame("cast", y.from(rows - last), alone);
  }
  const Matrix y(DType::F32, rows, cols), alone(DType::F32, last, cols), r(DType::F32, rows, 1), rAlone(DType::F32, last, 1);
  const Matrix w(DType::BF16, 1, cols);
  fill(w);
  run(cpu::ops::rmsNorm, {y, r, x, w}, {1, 0}, {1e-5}), run(cpu::ops::rmsNorm, {alone, rAlone, end, w}, {1, 0}, {1e-5});
  expectSame("rmsNorm", y.from(rows - last), alone);
}

/** Packed sequences of 8 tokens, the last of which are not zero. */
void attentions() {
  constexpr int64_t length = 8, heads = 32, width = heads * 128, tokens = 524416;
  static_assert(tokens * width > int64_t{1} << 31 && tokens % length == 0 && last % length == 0);
  const Matrix q(DType::F32, tokens, width), o(DType::F32, tokens, width), lse(DType::F32, tokens, heads);
  const Matrix few(DType::F32, last, width), fewLse(DType::F32, last, heads);
  fill(q.from(tokens - last));
  const auto attend = [](const View& out, const View& sums, const View& x) {
    std::vector<int32_t> starts, lengths;
    for (int64_t at = 0; at <= x.rows; at += length) starts.push_back(static_cast<int32_t>(at)), lengths.push_back(length);
    const Matrix qStart = list(starts), kvLength = list(lengths);
    const std::vector<View> tensors{out, sums, x, x, x, qStart, qStart, kvLength};
    run(cpu::ops::attention, tensors, {heads, heads, 0}, {0.1, 0}, {x.rows, 0, x.rows / length});
  };
  attend(o, lse, q), attend(few, fewLse, q.from(tokens - last));
  expectSame("attention", o.from(tokens - last), few);
  expectSame("attention: lse", lse.from(tokens - last), fewLse);
}

}  // namespace

int main(int count, char** words) {
  const std::string only = count > 1 ? words[1] : "";
  const char* const large = std::getenv("UNSLOTH_LARGE");
  cpu::ThreadPool threads(2);
  pool = &threads;
  const std::pair<const char*, void (*)()> parts[] = {
      {"tables", tables},     {"products", products},           {"sums", sums},            {"quantised", quantised},
      {"elements", elements}, {"normsAndCasts", normsAndCasts}, {"attentions", attentions}};
  for (const auto& [name, part] : parts) {
    if (!only.empty() && only != name) continue;
    if (large == nullptr || std::string(large) != "1") {
      ++notRun;
      continue;
    }
    try {
      part();
    } catch (const std::bad_alloc&) {
      ++notRun;
      std::printf("%s: not run: there is too little memory\n", name);
    } catch (const std::exception& error) {
      ++checks, ++failures;
      std::printf("WRONG %s: %s\n", name, error.what());
    }
  }
  std::printf("largeTest: %d passed, %d failed, %d not run%s\n", checks - failures, failures, notRun,
              large == nullptr ? " (UNSLOTH_LARGE=1 runs them, in 9 GB)" : "");
  return failures == 0 ? 0 : 1;
}
