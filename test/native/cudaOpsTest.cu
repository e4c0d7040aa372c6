// Checks elementwise commands, activations and norms of the GPU against those of the CPU; see cudaCase.h.
#include "cudaCase.h"

using namespace unsloth;
using namespace unsloth::test;

namespace {

void elementwise() {
  over("add", mapShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (int form = 0; form < 4; ++form) {  // apart, over a, over b, one operand
      Case c = CASE(add);
      if (form == 1 || form == 2) c.outputOver(form, t, rows, cols, fp32, fp32);
      else c.output(t, rows, cols, fp32, fp32);
      c.input(t, rows, cols);
      if (form == 3) c.absent();
      else c.input(t, rows, cols);
      c.floats = {0.75, -1.5};
      c.run();
    }
  });
  over("logitCap", mapShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const double cap : {0.0, 30.0}) {
      Case c = CASE(logitCap);
      c.output(t, rows, cols, fp32, 0, c.normal(rows * cols, 40));
      c.floats = {0.7, cap};
      c.run();
    }
  });
  over("columnSum", {{1, 1}, {3, 7}, {700, 130}, {257, 896}, {1030, 4096}},
       [](DType t, Layout layout, int64_t rows, int64_t cols) {
         Case c = CASE(columnSum);
         c.output(DType::F32, 1, cols, fp32, 4 * fp32, c.normal(cols));
         c.input(t, rows, cols);
         c.floats = {-0.5};
         c.run();
       });
  over("fill", mapShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const DType type : {t, DType::I32, DType::F64, DType::U8}) {
      Case c = CASE(fill);
      c.output(type, rows, cols, 0, 0, {}, false);
      c.floats = {type == DType::U8 ? 7.0 : -3.3};
      c.run();
    }
  });
  over("cast", mapShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const DType from : {DType::F32, DType::BF16, DType::F16, DType::I32, DType::F64}) {
      Case c = CASE(cast);
      c.output(t, rows, cols, 0, 0, {}, false);
      c.fixed(from, rows, cols,
              from == DType::I32 ? whole(rows * cols, [](int64_t i) { return i * 7919 % 100003 - 50000; })
                                 : c.normal(rows * cols, 3));
      c.run();
    }
  });
}

void activations() {
  // 16-bit results pass through the fast exponential and quotient: some 4 units of fp32, below 1e-6 of the result.
  over("glu", mapShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (int kind = 0; kind < 3; ++kind) {
      Case c = CASE(glu);
      c.output(t, rows, cols, 4 * fp32, 1e-7);
      c.input(t, rows, cols, c.normal(rows * cols, 4));
      c.input(t, rows, cols);
      c.ints = {kind};
      c.run();
    }
  });
  over("gluGrad", mapShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (int kind = 0; kind < 3; ++kind)
      for (const int way : {0, 1, 2, 3}) {
        const bool inPlace = way % 2 == 1, restores = way >= 2;
        Case c = CASE(gluGrad);
        if (inPlace) c.outputOver(4, t, rows, cols, 4 * fp32, 1e-6), c.outputOver(5, t, rows, cols, 4 * fp32, 1e-6);
        else c.output(t, rows, cols, 4 * fp32, 1e-6), c.output(t, rows, cols, 4 * fp32, 1e-6);
        if (!restores) c.absent();
        else if (inPlace) c.outputOver(3, t, rows, cols, 4 * fp32, 1e-7);
        else c.output(t, rows, cols, 4 * fp32, 1e-7);
        c.input(t, rows, cols);
        c.input(t, rows, cols, c.normal(rows * cols, 4));
        c.input(t, rows, cols);
        c.ints = {kind};
        c.run();
      }
  });
  over("activation", mapShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (int kind = 0; kind < 6; ++kind) {
      Case c = CASE(activation);
      c.output(t, rows, cols, 4 * fp32, 1e-7);
      c.input(t, rows, cols, c.normal(rows * cols, 4));
      c.ints = {kind};
      c.run();
    }
  });
  over("activationGrad", mapShapes, [](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (int kind = 0; kind < 6; ++kind)
      for (const bool inPlace : {false, true}) {
        Case c = CASE(activationGrad);
        if (inPlace) c.outputOver(1, t, rows, cols, 4 * fp32, 1e-6);
        else c.output(t, rows, cols, 4 * fp32, 1e-6);
        c.input(t, rows, cols);
        c.input(t, rows, cols, c.normal(rows * cols, 4));
        c.ints = {kind};
        c.run();
      }
  });
}

struct Groups {
  int64_t groups;
  bool shared;
};

void norms() {
  const std::initializer_list<Shape> shapes = {{1, 1},   {3, 7},    {5, 48},   {33, 128},  {130, 160},
                                               {9, 896}, {9, 4096}, {2, 8192}, {2, 14336}, {1, 20000}};
  const auto groupings = [](int64_t cols) {
    std::vector<Groups> all = {{1, true}};
    if (cols % 8 == 0) all.push_back({cols % 128 == 0 ? cols / 128 : 4, true}), all.push_back({4, false});
    return all;
  };
  over("rmsNorm", shapes, [&](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const DType w : floatTypes)
      for (const Groups g : groupings(cols))
        for (const int plusOne : {0, 1}) {
          const int64_t width = g.shared ? cols / g.groups : cols;
          Case c = CASE(rmsNorm);
          c.output(t, rows, cols, 4 * fp32, fp32);
          c.output(DType::F32, rows, g.groups, 4 * fp32, 0);
          c.input(t, rows, cols, c.normal(rows * cols, 2));
          c.fixed(w, 1, width, c.normal(width));
          c.ints = {static_cast<int32_t>(g.groups), plusOne};
          c.floats = {1e-5};
          c.run();
        }
  });
  over("rmsNormGrad", shapes, [&](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const DType w : {DType::F32, t})
      for (const Groups g : groupings(cols))
        for (int form = 0; form < 3; ++form) {  // with dw, accumulating, over dy
          const int64_t width = g.shared ? cols / g.groups : cols;
          Case c = CASE(rmsNormGrad);
          if (form == 2) c.outputOver(2, t, rows, cols, 4 * fp32, 4 * fp32);
          else c.output(t, rows, cols, 4 * fp32, 4 * fp32, form == 1 ? c.normal(rows * cols) : std::vector<double>{});
          if (form == 1) c.absent();
          else c.output(DType::F32, 1, width, 4 * fp32, 4 * fp32, c.normal(width));
          c.input(t, rows, cols);
          c.input(t, rows, cols, c.normal(rows * cols, 2));
          c.fixed(w, 1, width, c.normal(width));
          std::vector<double> r = c.normal(rows * g.groups, 0.1);
          for (double& v : r) v += 0.5;
          c.input(DType::F32, rows, g.groups, std::move(r));
          c.ints = {static_cast<int32_t>(g.groups), form % 2, form == 1};
          c.run();
        }
  });
  over("layerNorm", shapes, [&](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const DType w : {DType::F32, t})
      for (const Groups g : groupings(cols))
        for (int form = 0; form < 4; ++form) {  // bit 0: w, bit 1: b
          const int64_t width = g.shared ? cols / g.groups : cols;
          Case c = CASE(layerNorm);
          c.output(t, rows, cols, 4 * fp32, 4 * fp32);
          c.output(DType::F32, rows, 2 * g.groups, 4 * fp32, fp32);
          std::vector<double> x = c.normal(rows * cols, 2);
          for (double& v : x) v += 0.5;
          c.input(t, rows, cols, std::move(x));
          for (const int bit : {1, 2})
            if ((form & bit) != 0) c.fixed(w, 1, width, c.normal(width));
            else c.absent();
          c.ints = {static_cast<int32_t>(g.groups)};
          c.floats = {1e-5};
          c.run();
        }
  });
  over("layerNormGrad", shapes, [&](DType t, Layout layout, int64_t rows, int64_t cols) {
    for (const Groups g : groupings(cols))
      for (int form = 0; form < 4; ++form) {  // with dw and db, accumulating, over dy, without a weight
        const int64_t width = g.shared ? cols / g.groups : cols;
        Case c = CASE(layerNormGrad);
        if (form == 2) c.outputOver(3, t, rows, cols, 4 * fp32, 4 * fp32);
        else c.output(t, rows, cols, 4 * fp32, 4 * fp32, form == 1 ? c.normal(rows * cols) : std::vector<double>{});
        if (form == 1 || form == 3) c.absent(), c.absent();
        else
          c.output(DType::F32, 1, width, 4 * fp32, 4 * fp32, c.normal(width)),
              c.output(DType::F32, 1, width, 4 * fp32, 4 * fp32, c.normal(width));
        c.input(t, rows, cols);
        c.input(t, rows, cols, c.normal(rows * cols, 2));
        if (form == 3) c.absent();
        else c.fixed(t, 1, width, c.normal(width));
        std::vector<double> stats = c.normal(rows * 2 * g.groups, 0.1);
        for (size_t i = 1; i < stats.size(); i += 2) stats[i] += 0.5;
        c.input(DType::F32, rows, 2 * g.groups, std::move(stats));
        c.ints = {static_cast<int32_t>(g.groups), form == 1};
        c.run();
      }
  });
}

}  // namespace

int main(int count, char** arguments) { return runCases("cudaOpsTest", count, arguments, {elementwise, activations, norms}); }
