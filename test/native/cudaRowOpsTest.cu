// Checks rope, rows, optimizers and the routing of experts on the GPU against those of the CPU; see cudaCase.h.
#include <numeric>

#include "cudaCase.h"

using namespace unsloth;
using namespace unsloth::test;

namespace {

struct Heads {
  int64_t heads, headDim, half;
};

struct Mixture {
  int64_t rows, experts, choices;
};

constexpr std::initializer_list<Shape> rowShapes = {{1, 1}, {6, 7}, {200, 17}, {30, 896}, {12, 4096}};

/** Distinct numbers below 2·count in a mixed order, every seventh replaced by −1. */
std::vector<double> someRows(int64_t count) {
  const int64_t total = 2 * count;
  int64_t step = 7;
  while (std::gcd(step, total) != 1) ++step;
  return whole(count, [=](int64_t i) { return i % 7 == 3 ? -1 : i * step % total; });
}

void rotary() {
  const Heads shapes[] = {{1, 2, 1},   {3, 10, 3},  {5, 64, 32},   {40, 128, 64},
                          {7, 80, 16}, {9, 96, 48}, {6, 256, 128}, {14, 64, 8}};
  if (wanted("rope"))
    for (const DType t : floatTypes)
      for (const Layout layout : layouts)
        for (const Heads& s : shapes)
          for (int form = 0; form < 8; ++form) {  // bit 0: interleaved, 1: inverse, 2: in place
            const int64_t rows = 37, cols = s.heads * s.headDim;
            Case c = CASE(rope);
            if ((form & 4) != 0) c.outputOver(1, t, rows, cols, fp32, fp32);
            else c.output(t, rows, cols, fp32, fp32);
            c.input(t, rows, cols);
            c.input(DType::F32, rows, 2 * s.half);
            c.ints = {static_cast<int32_t>(s.heads), static_cast<int32_t>(s.headDim), form & 1, form >> 1 & 1};
            c.run();
          }
  if (wanted("ropeTable"))
    for (const Layout layout : layouts)
      for (const int64_t half : {1, 7, 64}) {
        const int64_t rows = 301;
        Case c = CASE(ropeTable);
        c.output(DType::F32, rows, 2 * half, 2e-7, 2e-7);
        c.list(DType::I32, rows, whole(rows, [](int64_t i) { return i * i % 131072; }));
        c.list(DType::I32, rows, whole(rows, [](int64_t i) { return i % 2; }));
        std::vector<double> frequencies;
        for (int64_t i = 0; i < 2 * half; ++i)
          frequencies.push_back(std::pow(1e-5, static_cast<double>(i % half) / static_cast<double>(half)));
        c.input(DType::F32, 2, half, frequencies);
        c.list(DType::F32, 2, {1, 1.25});
        c.run();
      }
}

void rows() {
  over("embed", rowShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const DType w : floatTypes) {
      Case c = CASE(embed);
      c.output(t, rows, cols, fp32, 0);
      c.list(DType::I32, rows, whole(rows, [](int64_t i) { return i * 31 % 50; }));
      c.fixed(w, 50, cols, c.normal(50 * cols));
      c.floats = {w == DType::F32 ? 1.0 : 8.5};
      c.run();
    }
  });
  over("embedGrad", {{1, 1}, {6, 7}, {300, 17}, {90, 896}, {400, 1100}}, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const int64_t entries : {5, 150}) {
      Case c = CASE(embedGrad);
      c.output(DType::F32, entries, cols, 4 * fp32, 4 * fp32, c.normal(entries * cols));
      c.list(DType::I32, rows, whole(rows, [=](int64_t i) { return i % 5 == 0 ? 0 : i * i * 31 % entries; }));
      c.input(t, rows, cols);
      c.floats = {0.75};
      c.run();
    }
  });
  over("gatherRows", rowShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    Case c = CASE(gatherRows);
    c.output(t, rows, cols, 0, 0);
    c.input(t, 2 * rows, cols);
    c.list(DType::I32, rows, someRows(rows));
    c.run();
  });
  over("scatterRows", rowShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const int accumulate : {0, 1}) {
      Case c = CASE(scatterRows);
      c.output(t, 2 * rows, cols, accumulate * fp32, 0, accumulate != 0 ? c.normal(2 * rows * cols) : std::vector<double>{});
      c.input(t, rows, cols);
      c.list(DType::I32, rows, someRows(rows));
      c.ints = {accumulate};
      c.run();
    }
  });
  over("storeRows", rowShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    Case c = CASE(storeRows);
    c.output(t, 3 * rows, cols, 0, 0, c.normal(3 * rows * cols));
    c.input(t, rows, cols);
    c.list(DType::I32, rows, whole(rows, [=](int64_t i) { return 3 * rows - 1 - 2 * i; }));
    c.run();
  });
  over("combineRows", rowShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const int64_t choices : {1, 3, 8})
      for (int form = 0; form < 4; ++form) {  // bit 0: accumulate, bit 1: add
        Case c = CASE(combineRows);
        c.output(t, rows, cols, 4 * fp32, fp32, (form & 1) != 0 ? c.normal(rows * cols) : std::vector<double>{});
        c.input(t, rows * choices, cols);
        c.fixed(DType::I32, rows, choices, whole(rows * choices, [=](int64_t i) { return rows * choices - 1 - i; }));
        if ((form & 2) != 0) c.input(t, rows, cols);
        else c.absent();
        c.ints = {form & 1};
        c.run();
      }
  });
  over("scaleRows", rowShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const bool inPlace : {false, true}) {
      Case c = CASE(scaleRows);
      if (inPlace) c.outputOver(1, t, rows, cols, fp32, 0);
      else c.output(t, rows, cols, fp32, 0);
      c.input(t, rows, cols);
      c.input(DType::F32, rows, 1);
      c.run();
    }
  });
  over("scaleRowsGrad", rowShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (int form = 0; form < 4; ++form) {  // bit 0: dw, bit 1: over dy
      Case c = CASE(scaleRowsGrad);
      if ((form & 2) != 0) c.outputOver(2, t, rows, cols, fp32, 0);
      else c.output(t, rows, cols, fp32, 0);
      if ((form & 1) != 0) c.output(DType::F32, rows, 1, 4 * fp32, 4 * fp32);
      else c.absent();
      c.input(t, rows, cols);
      c.input(t, rows, cols);
      c.input(DType::F32, rows, 1);
      c.run();
    }
  });
  over("dropout", rowShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const int accumulate : {0, 1}) {
      Case c = CASE(dropout);
      c.output(t, rows, cols, fp32, 0, accumulate != 0 ? c.normal(rows * cols) : std::vector<double>{});
      c.input(t, rows, cols);
      c.fixed(DType::I32, rows, 2, whole(2 * rows, [](int64_t i) { return i * 77 % 1000003 - 500; }));
      c.fixed(DType::I32, 1, 2, {1234567, 89});
      c.ints = {5, accumulate};
      c.floats = {0.1};
      c.run();
    }
  });
}

void optimizer() {
  over("sumSquares", {{1, 1}, {3, 7}, {130, 33}, {1, 300001}, {17, 14336}}, [](DType, Layout layout, int64_t rows, int64_t cols) {
    for (const int accumulate : {0, 1}) {
      Case c = CASE(sumSquares);
      c.output(DType::F64, 1, 3, 1e-12, 1e-12, c.normal(3), false);
      c.input(DType::F32, rows, cols, c.normal(rows * cols, 100));
      c.ints = {1, accumulate};
      c.run();
    }
  });
  over("adamw", {{1, 1}, {3, 7}, {130, 33}, {1, 300001}}, [](DType, Layout layout, int64_t rows, int64_t cols) {
    Case c = CASE(adamw);
    c.output(DType::F32, rows, cols, 1.2e-7, 0, c.normal(rows * cols));
    c.output(DType::F32, rows, cols, 1.2e-7, 0, c.normal(rows * cols, 0.01));
    std::vector<double> squares = c.normal(rows * cols, 0.01);
    for (double& v : squares) v *= v;
    c.output(DType::F32, rows, cols, 1.2e-7, 0, std::move(squares));
    c.input(DType::F32, rows, cols);
    c.fixed(DType::F64, 1, 5, {0.37, 1 - std::pow(0.9, 3), 1 - std::pow(0.999, 3), 1e-3, 2e-4});
    c.ints = {1};
    c.floats = {0.9, 0.999, 1e-8, 0.01};
    c.run();
  });
}

void flatOptimizers() {
  for (const Layout layout : layouts)
    for (const int64_t n : {1, 7, 300, 4096, 70001})
      for (const bool spoilt : {false, true}) {
        const double scale = spoilt ? std::nan("") : 0.37;
        const std::vector<double> scalars = {scale, 1 - std::pow(0.9, 3), 1 - std::pow(0.999, 3), 1e-3, 2e-3};
        const auto parameters = [&](Case& c) { c.output(DType::F32, 1, n, 0, 0, c.normal(n)); };
        const auto finish = [&](Case& c, std::vector<double> floats) {
          c.input(DType::F32, 1, n);
          c.fixed(DType::F64, 1, 5, scalars);
          c.ints = {1};
          c.floats = std::move(floats);
          c.run();
        };
        if (wanted("lion")) {
          Case c = CASE(lion);
          parameters(c), parameters(c);
          finish(c, {0.9, 0.99, 0.01});
        }
        for (const bool momentum : {false, true})
          if (wanted("sgd")) {
            Case c = CASE(sgd);
            parameters(c);
            if (momentum) parameters(c);
            else c.absent();
            finish(c, {0.9, 0.01});
          }
        if (wanted("adamw") && spoilt) {
          Case c = CASE(adamw);
          parameters(c), parameters(c), parameters(c);
          finish(c, {0.9, 0.999, 1e-8, 0.01});
        }
      }
}

void mixture() {
  const Mixture shapes[] = {{1, 2, 1}, {13, 5, 2}, {130, 64, 8}, {1000, 128, 8}, {3000, 33, 4}, {2100, 256, 8}};
  for (const DType t : floatTypes)
    for (const Layout layout : layouts)
      for (const Mixture& s : shapes) {
        if (small && s.rows > 200) continue;
        const int64_t slots = s.rows * s.choices;
        for (int form = 0; form < 4 && wanted("route"); ++form) {  // bit 0: renormalise, bit 1: balance
          Case c = CASE(route);
          c.output(DType::F32, slots, 1, 4 * fp32, 0);
          c.output(DType::I32, slots, 1, 0, 0, {}, false);
          c.output(DType::I32, s.rows, s.choices, 0, 0, {}, false);
          c.output(DType::I32, s.experts + 1, 1, 0, 0, {}, false);
          if ((form & 2) != 0) c.output(DType::F64, 1, 2 * s.experts, fp32, 0, {}, false);
          else c.absent();
          c.input(t, s.rows, s.experts, c.normal(s.rows * s.experts, 2));
          c.ints = {form & 1};
          c.run();
        }
        for (int form = 0; form < 4 && wanted("routeGrad"); ++form) {
          Case c = CASE(routeGrad);
          const std::vector<double> logits = c.normal(s.rows * s.experts, 2);
          std::vector<double> place(static_cast<size_t>(slots)), first(static_cast<size_t>(s.experts + 1));
          std::vector<int64_t> expert(static_cast<size_t>(slots));
          for (int64_t i = 0; i < slots; ++i) expert[static_cast<size_t>(i)] = (i / s.choices * 7 + i % s.choices) % s.experts;
          int64_t slot = 0;
          for (int64_t e = 0; e < s.experts; ++e) {
            first[static_cast<size_t>(e)] = static_cast<double>(slot);
            for (int64_t i = 0; i < slots; ++i)
              if (expert[static_cast<size_t>(i)] == e) place[static_cast<size_t>(i)] = static_cast<double>(slot++);
          }
          first.back() = static_cast<double>(slots);
          c.output(t, s.rows, s.experts, 2e-5, 3e-7);
          c.ofSize(1);  // differences of numbers of about that size
          c.input(DType::F32, slots, 1);
          c.input(t, s.rows, s.experts, logits);
          c.fixed(DType::I32, s.rows, s.choices, std::move(place));
          c.list(DType::I32, s.experts + 1, std::move(first));
          if ((form & 2) != 0) c.input(DType::F32, 1, s.experts), c.fixed(DType::F32, 1, 1, {0.75});
          else c.absent(), c.absent();
          c.ints = {form & 1};
          c.run();
        }
      }
  if (wanted("balanceLoss"))
    for (const int64_t layers : {1, 3, 130})
      for (const int64_t experts : {2, 128, 300}) {
        constexpr Layout layout = Layout::dense;
        Case c = CASE(balanceLoss);
        c.output(DType::F32, 1, 1, fp32, 0);
        c.output(DType::F32, 1, experts, fp32, 0);
        for (int64_t l = 0; l < layers; ++l)
          c.fixed(DType::F64, 1, 2 * experts, whole(2 * experts, [=](int64_t i) { return (i * 37 + l) % 100; }));
        c.ints = {4};
        c.run();
      }
}

}  // namespace

int main(int count, char** arguments) {
  return runCases("cudaRowOpsTest", count, arguments, {rotary, rows, optimizer, flatOptimizers, mixture});
}
