// Checks gemm against double-precision loops: odd shapes, all modes, dtypes, strides and extras, and that the number of threads
// does not change a bit. Runs on the instruction set that UNSLOTH_CPU_ISA allows. Prints one line; exit status 1 on a failure.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../../kernels/cpu/gemm.h"

using namespace unsloth;
using namespace unsloth::cpu;

namespace {

std::mt19937 generator(7);
int failures = 0, checks = 0;

int64_t pick(std::initializer_list<int64_t> values) { return values.begin()[generator() % values.size()]; }

/** A matrix with a row stride of its own; what lies between the rows is NaN. */
struct Matrix {
  std::vector<std::byte> bytes;
  View view;

  Matrix(int64_t rows, int64_t cols, DType dtype) {
    const int64_t ld = cols + pick({0, 0, 1, 3, 16}), width = static_cast<int64_t>(bytesPerElement(dtype));
    bytes.resize(static_cast<size_t>((rows * ld + 1) * width));
    view = {bytes.data() + (generator() % 2) * width, dtype, rows, cols, ld};
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < ld; ++c) set(r, c, c < cols ? normal(generator) : NAN);
  }
  void set(int64_t r, int64_t c, float value) {
    const int64_t i = r * view.ld + c;
    const auto* end = bytes.data() + bytes.size();
    if (static_cast<std::byte*>(view.data) + (i + 1) * static_cast<int64_t>(bytesPerElement(view.dtype)) > end) return;
    if (view.dtype == DType::F32) view.f32()[i] = value;
    else static_cast<uint16_t*>(view.data)[i] = view.dtype == DType::BF16 ? floatToBf16(value) : floatToF16(value);
  }
};

double value(const View& v, int64_t r, int64_t c, bool round) {
  const float x = loadElement(v, r, c);
  return round ? bf16ToFloat(floatToBf16(x)) : x;
}

void check(bool right, const char* what, const Gemm& g, int64_t k) {
  ++checks;
  if (right) return;
  if (++failures < 20)
    std::printf("FAIL %s: mode %d precision %d m %ld n %ld k %ld a %d b %d terms %zu bias %d add %d accumulate %d\n", what,
                static_cast<int>(g.mode), static_cast<int>(g.precision), static_cast<long>(g.c.rows), static_cast<long>(g.c.cols),
                static_cast<long>(k), static_cast<int>(g.a.dtype), static_cast<int>(g.b.dtype), g.terms.size(), g.bias.present(),
                g.add.present(), g.accumulate);
}

void runCase(int64_t m, int64_t n, int64_t k, ThreadPool& one, ThreadPool& several) {
  Gemm g;
  g.mode = static_cast<GemmMode>(generator() % 3);
  g.precision = static_cast<Precision>(generator() % 2);
  g.accumulate = generator() % 2 == 0;
  g.alpha = pick({1, 1, -2}) * 0.75f;
  const auto dtype = [] { return static_cast<DType>(pick({0, 0, 1, 2})); };
  const bool transposedA = g.mode == GemmMode::TN, transposedB = g.mode == GemmMode::NT;
  const bool round = g.precision == Precision::bfloat16;
  Matrix a(transposedA ? k : m, transposedA ? m : k, dtype()), b(transposedB ? n : k, transposedB ? k : n, dtype());
  Matrix c(m, n, DType::F32), bias(1, n, dtype()), add(m, n, DType::F32);
  g.a = a.view;
  g.b = b.view;
  if (generator() % 2) g.bias = bias.view;
  const int addKind = static_cast<int>(generator() % 3);
  if (addKind == 1) g.add = add.view;
  std::vector<Matrix> operands;
  operands.reserve(6);
  if (!transposedA) {
    for (int64_t j = static_cast<int64_t>(generator() % 4); j > 0; --j) {
      const int64_t rank = pick({0, 1, 8, 16, 17, 64, 300});
      const int64_t column = static_cast<int64_t>(generator() % static_cast<uint64_t>(n + 1));
      const int64_t width = static_cast<int64_t>(generator() % static_cast<uint64_t>(n - column + 1));
      const Matrix& left = operands.emplace_back(m, rank, dtype());
      const Matrix& right = operands.emplace_back(transposedB ? width : rank, transposedB ? rank : width, dtype());
      g.terms.push_back({left.view, right.view, column, 0.5f * static_cast<float>(j)});
    }
  }

  std::vector<double> expected(static_cast<size_t>(m * n)), bound(expected.size());
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, size = 0;
      for (int64_t i = 0; i < k; ++i) {
        const double left = value(g.a, transposedA ? i : r, transposedA ? r : i, round);
        const double product = left * value(g.b, transposedB ? j : i, transposedB ? i : j, round);
        sum += g.alpha * product;
        size += std::abs(g.alpha * product);
      }
      for (const LowRankTerm& term : g.terms) {
        const int64_t width = transposedB ? term.b.rows : term.b.cols;
        if (j < term.column || j >= term.column + width) continue;
        const int64_t at = j - term.column;
        for (int64_t i = 0; i < term.a.cols; ++i) {
          const double product = value(term.a, r, i, round) * value(term.b, transposedB ? at : i, transposedB ? i : at, round);
          sum += term.alpha * product;
          size += std::abs(term.alpha * product);
        }
      }
      const double start = g.accumulate ? value(c.view, r, j, false) : 0;
      const double extra = g.add.present() ? value(g.add, r, j, false) : addKind == 2 ? value(c.view, r, j, false) : 0;
      const double offset = g.bias.present() ? value(g.bias, 0, j, false) : 0;
      expected[static_cast<size_t>(r * n + j)] = sum + start + extra + offset;
      bound[static_cast<size_t>(r * n + j)] = size + std::abs(start) + std::abs(extra) + std::abs(offset);
    }
  }

  const auto run = [&](ThreadPool& pool, Matrix& out) {
    g.c = out.view;
    if (addKind == 2) g.add = out.view;
    gemm(g, pool);
  };
  const auto copy = [&] {
    Matrix out(0, 0, DType::F32);
    out.bytes = c.bytes;
    out.view = c.view;
    out.view.data = out.bytes.data() + (static_cast<std::byte*>(c.view.data) - c.bytes.data());
    return out;
  };
  Matrix first = copy(), second = copy();
  run(one, first);
  bool right = true;
  constexpr double epsilon = 0x1p-24;
  for (int64_t r = 0; r < m; ++r)
    for (int64_t j = 0; j < n; ++j) {
      const auto i = static_cast<size_t>(r * n + j);
      const double limit = epsilon * (8 + std::sqrt(static_cast<double>(k))) * bound[i] + 1e-30;
      if (!(std::abs(first.view.row(r)[j] - expected[i]) <= limit)) right = false;
    }
  check(right, "value", g, k);
  run(several, second);
  check(first.bytes == second.bytes, "threads", g, k);

  bool outside = true;  // nothing between the rows was touched
  for (int64_t r = 0; r + 1 < m; ++r)
    outside = outside && std::memcmp(first.view.row(r) + n, c.view.row(r) + n, static_cast<size_t>(c.view.ld - n) * 4) == 0;
  check(outside, "stray write", g, k);
}

/** A row's bits do not depend on how many rows there are: among few rows, and among more than eight. */
void rowsAlone(ThreadPool& pool) {
  for (const int64_t most : {8, 61}) {
    const int64_t n = 131, k = 611, least = most == 8 ? 1 : 9;
    Matrix a(most, k, DType::F32), b(n, k, DType::BF16);
    std::vector<float> all(static_cast<size_t>(most * n)), some(all.size());
    for (int precision = 0; precision < 2; ++precision) {
      Gemm g;
      g.precision = static_cast<Precision>(precision);
      g.a = a.view;
      g.b = b.view;
      g.c = {all.data(), DType::F32, most, n, n};
      gemm(g, pool);
      for (int64_t rows = least; rows < most; rows += 3) {
        g.a.rows = g.c.rows = rows;
        g.c.data = some.data();
        gemm(g, pool);
        check(std::memcmp(some.data(), all.data(), static_cast<size_t>(rows * n) * 4) == 0, "rows alone", g, k);
      }
    }
  }
}

}  // namespace

int main() {
  ThreadPool one(1), two(2), five(5);
  for (int i = 0; i < 900; ++i) {
    const auto size = [] { return pick({0, 1, 2, 3, 5, 7, 8, 9, 13, 14, 15, 16, 17, 31, 32, 33, 37, 64, 65, 97}); };
    runCase(size(), size(), size(), one, i % 2 ? two : five);
  }
  const int64_t large[][3] = {{1, 301, 1031},  {8, 70, 2053},   {9, 523, 777},  {150, 16, 1100}, {16, 700, 515}, {211, 307, 521},
                              {29, 31, 40000}, {257, 260, 513}, {600, 33, 259}, {1000, 65, 67},  {3, 2000, 129}, {64, 64, 17000}};
  for (const auto& s : large)
    for (int repeat = 0; repeat < 3; ++repeat) runCase(s[0], s[1], s[2], one, repeat % 2 ? two : five);
  rowsAlone(two);
  std::printf("%s | %s: %d checks, %d failures\n", gemmKernelName(Precision::float32), gemmKernelName(Precision::bfloat16),
              checks, failures);
  return failures == 0 ? 0 : 1;
}
