#include <cmath>
#include <memory>

#include "../core/quant4.h"
#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {
namespace {

constexpr int64_t stateBlock = 256;

constexpr Map8 signedMap = dynamicMap(true), unsignedMap = dynamicMap(false);

/** Operands of an optimizer's command: everything is one row without gaps. */
struct Flat {
  const Operands& args;
  int64_t n;

  explicit Flat(const Operands& args) : args(args), n(args.matrix(0, "p", 1, Operands::any).cols) {}
  float* floats(int64_t i, const char* name) const { return args.matrix(i, name, 1, n).f32(); }
  uint8_t* codes(int64_t i, const char* name) const {
    const View& v = args.shaped(i, name, 1, n);
    if (v.dtype != DType::U8) args.refuse(std::string(name) + " is " + describe(v) + ", expected u8");
    return static_cast<uint8_t*>(v.data);
  }
  float* maxima(int64_t i, const char* name) const { return args.matrix(i, name, 1, (n + stateBlock - 1) / stateBlock).f32(); }

  /** Calls fn(first, count, block) for blocks of 256. */
  template <class Fn>
  void blocks(ThreadPool& pool, const Fn& fn) const {
    const int64_t count = (n + stateBlock - 1) / stateBlock;
    forRows(pool, count, 8 * stateBlock, [&](int64_t b) { fn(b * stateBlock, std::min(stateBlock, n - b * stateBlock), b); });
  }
};

Vector<double> scalarsOf(const Operands& args, int64_t operand, int64_t group) {
  args.require(group >= 0, "group is negative");
  return args.numbers<double>(operand, "scalars", 4 + group);
}

/** Whether the step is spoilt, so that nothing may change; see clipScale. */
bool spoilt(const Vector<double>& scalars) { return std::isnan(scalars[0]); }

LionStep lionStep(const Call& call, const Vector<double>& scalars) {
  const double rate = scalars[3 + call.i(0)];
  return {static_cast<float>(scalars[0]), static_cast<float>(call.f(0)), static_cast<float>(call.f(1)), static_cast<float>(rate),
          static_cast<float>(1 - rate * call.f(2)), signedMap.at};
}

}  // namespace

void adamw8(const Call& call, ThreadPool& pool) {
  const Operands args(call, "adamw8", 7, 1, 4);
  const Flat flat(args);
  float* p = flat.floats(0, "p");
  uint8_t *m = flat.codes(1, "m"), *v = flat.codes(2, "v");
  float *absmaxM = flat.maxima(3, "absmaxM"), *absmaxV = flat.maxima(4, "absmaxV");
  const float* grad = flat.floats(5, "grad");
  const Vector<double> scalars = scalarsOf(args, 6, call.i(0));
  if (spoilt(scalars)) return;
  const double rate = scalars[3 + call.i(0)], rootC2 = std::sqrt(scalars[2]);
  const Adamw8Step step{static_cast<float>(scalars[0]),
                        static_cast<float>(call.f(0)),
                        static_cast<float>(call.f(1)),
                        static_cast<float>(rate * rootC2 / scalars[1]),
                        static_cast<float>(rootC2 * call.f(2)),
                        static_cast<float>(1 - rate * call.f(3)),
                        signedMap.at,
                        unsignedMap.at};
  const VectorKernels& kernels = vectorKernels();
  flat.blocks(pool, [&](int64_t first, int64_t count, int64_t block) {
    kernels.adamw8(p + first, m + first, v + first, absmaxM + block, absmaxV + block, grad + first, step, count);
  });
}

void lion(const Call& call, ThreadPool& pool) {
  const Operands args(call, "lion", 4, 1, 3);
  const Flat flat(args);
  float *p = flat.floats(0, "p"), *m = flat.floats(1, "m");
  const float* grad = flat.floats(2, "grad");
  const Vector<double> scalars = scalarsOf(args, 3, call.i(0));
  if (spoilt(scalars)) return;
  const LionStep step = lionStep(call, scalars);
  const VectorKernels& kernels = vectorKernels();
  flat.blocks(pool, [&](int64_t first, int64_t count, int64_t) {
    kernels.lion(p + first, m + first, grad + first, step, count);
  });
}

void lion8(const Call& call, ThreadPool& pool) {
  const Operands args(call, "lion8", 5, 1, 3);
  const Flat flat(args);
  float* p = flat.floats(0, "p");
  uint8_t* m = flat.codes(1, "m");
  float* absmax = flat.maxima(2, "absmax");
  const float* grad = flat.floats(3, "grad");
  const Vector<double> scalars = scalarsOf(args, 4, call.i(0));
  if (spoilt(scalars)) return;
  const LionStep step = lionStep(call, scalars);
  const VectorKernels& kernels = vectorKernels();
  flat.blocks(pool, [&](int64_t first, int64_t count, int64_t block) {
    kernels.lion8(p + first, m + first, absmax + block, grad + first, step, count);
  });
}

void sgd(const Call& call, ThreadPool& pool) {
  const Operands args(call, "sgd", 4, 1, 2);
  const Flat flat(args);
  float* p = flat.floats(0, "p");
  float* m = args.has(1) ? flat.floats(1, "m") : nullptr;
  const float* grad = flat.floats(2, "grad");
  const Vector<double> scalars = scalarsOf(args, 3, call.i(0));
  if (spoilt(scalars)) return;
  const auto scale = static_cast<float>(scalars[0]), rate = static_cast<float>(scalars[3 + call.i(0)]);
  const auto momentum = static_cast<float>(call.f(0)), decay = static_cast<float>(call.f(1));
  flat.blocks(pool, [&](int64_t first, int64_t count, int64_t) {
    for (int64_t i = first; i < first + count; ++i) {
      float g = scale * grad[i] + decay * p[i];
      if (m != nullptr) g = m[i] = momentum * m[i] + g;
      p[i] -= rate * g;
    }
  });
}

void adafactor(const Call& call, ThreadPool& pool) {
  const Operands args(call, "adafactor", 5, 1, 3);
  const View& p = args.matrix(0, "p", Operands::any, Operands::any);
  const bool factored = args.has(2);
  const View& first = factored ? args.matrix(1, "row", 1, p.rows) : args.matrix(1, "row", 1, p.rows * p.cols);
  const View none;
  const View& second = factored ? args.matrix(2, "column", 1, p.cols) : none;
  const View& grad = args.matrix(3, "grad", p.rows, p.cols);
  args.require(gapless(p) && gapless(grad), "p and grad must have no gaps");
  const Vector<double> scalars = scalarsOf(args, 4, call.i(0));
  if (spoilt(scalars)) return;
  const double rate = scalars[3 + call.i(0)], scale = scalars[0];
  const double beta2 = scalars[1], floor = call.f(0), clip = call.f(1), keep = 1 - rate * call.f(2);
  float* row = first.f32();
  float* column = factored ? second.f32() : nullptr;
  const int64_t rows = p.rows, cols = p.cols;
  const auto squared = [&](int64_t i) {
    const double g = scale * static_cast<double>(grad.f32()[i]);
    return g * g + floor;
  };
  const auto mix = [&](float& state, double value) {
    state = static_cast<float>(beta2 * static_cast<double>(state) + (1 - beta2) * value);
  };
  double mean = 0;
  if (factored) {
    forRows(pool, rows, cols, [&](int64_t r) {
      double sum = 0;
      for (int64_t c = 0; c < cols; ++c) sum += squared(r * cols + c);
      mix(row[r], sum / static_cast<double>(cols));
    });
    pool.parallelFor((cols + columnBlock - 1) / columnBlock, [&](int64_t task, int) {
      const int64_t from = task * columnBlock, to = std::min(cols, from + columnBlock);
      double sums[columnBlock] = {};
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = from; c < to; ++c) sums[c - from] += squared(r * cols + c);
      for (int64_t c = from; c < to; ++c) mix(column[c], sums[c - from] / static_cast<double>(rows));
    });
    for (int64_t r = 0; r < rows; ++r) mean += static_cast<double>(row[r]);
    mean /= static_cast<double>(rows);
  } else {
    forRows(pool, rows, cols, [&](int64_t r) {
      for (int64_t c = 0; c < cols; ++c) mix(row[r * cols + c], squared(r * cols + c));
    });
  }
  const auto update = [&](int64_t r, int64_t c) {
    const double g = scale * static_cast<double>(grad.f32()[r * cols + c]);
    if (!factored) return g / std::sqrt(static_cast<double>(row[r * cols + c]));
    return g / (std::sqrt(static_cast<double>(row[r]) / mean) * std::sqrt(static_cast<double>(column[c])));
  };
  auto sums = std::make_unique<double[]>(static_cast<size_t>(rows));
  forRows(pool, rows, cols, [&](int64_t r) {
    double sum = 0;
    for (int64_t c = 0; c < cols; ++c) sum += update(r, c) * update(r, c);
    sums[static_cast<size_t>(r)] = sum;
  });
  double total = 0;
  for (int64_t r = 0; r < rows; ++r) total += sums[static_cast<size_t>(r)];
  const double factor = rate / std::max(1.0, std::sqrt(total / static_cast<double>(rows * cols)) / clip);
  forRows(pool, rows, cols, [&](int64_t r) {
    for (int64_t c = 0; c < cols; ++c) {
      float& value = p.f32()[r * cols + c];
      value = static_cast<float>(keep * static_cast<double>(value) - factor * update(r, c));
    }
  });
}

}  // namespace unsloth::cpu::ops
