#include <cmath>

#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {

void ropeTable(const Call& call, ThreadPool& pool) {
  const Operands args(call, "ropeTable", 5, 0, 0);
  const View& cosSin = args.matrix(0, "cosSin", Operands::any, Operands::any);
  const int64_t rows = cosSin.rows, half = cosSin.cols / 2;
  const View& inverseFrequency = args.matrix(3, "inverseFrequency", Operands::any, half);
  args.require(cosSin.cols % 2 == 0, "cosSin has an odd number of columns");
  const Vector<int32_t> positions = args.numbers<int32_t>(1, "positions", rows);
  const Vector<int32_t> table = args.indices(2, "table", rows, inverseFrequency.rows, "inverseFrequency");
  const Vector<float> factor = args.numbers<float>(4, "factor", inverseFrequency.rows);
  forRows(pool, rows, 32 * half, [&](int64_t r) {
    const float* frequencies = inverseFrequency.row(table[r]);
    const float position = static_cast<float>(positions[r]), scale = factor[table[r]];
    float* out = cosSin.row(r);
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position * frequencies[i]);
      out[i] = static_cast<float>(std::cos(angle)) * scale;
      out[half + i] = static_cast<float>(std::sin(angle)) * scale;
    }
  });
}

void rope(const Call& call, ThreadPool& pool) {
  const Operands args(call, "rope", 3, 4, 0);
  const int64_t heads = call.i(0), headDim = call.i(1);
  const bool interleaved = call.i(2) != 0;
  const float direction = call.i(3) != 0 ? -1.0f : 1.0f;
  const View& x = args.matrix(1, "x", Operands::any, heads * headDim);
  const View& y = args.matrix(0, "y", x.rows, x.cols);
  const View& cosSin = args.matrix(2, "cosSin", x.rows, Operands::any);
  const int64_t half = cosSin.cols / 2;
  if (cosSin.cols % 2 != 0 || 2 * half > headDim)
    args.refuse("cosSin is " + describe(cosSin) + ", expected an even number of columns, at most " + std::to_string(headDim));
  const VectorKernels& kernels = vectorKernels();
  forRows(pool, x.rows, 2 * x.cols, [&](int64_t r) {
    const float* cosine = cosSin.row(r);
    for (int64_t h = 0; h < heads; ++h) {
      const float* from = x.row(r) + h * headDim;
      float* into = y.row(r) + h * headDim;
      (interleaved ? kernels.rotatePairs : kernels.rotateHalves)(into, from, cosine, cosine + half, direction, half);
      if (into != from) std::copy(from + 2 * half, from + headDim, into + 2 * half);
    }
  });
}

}  // namespace unsloth::cpu::ops
