#pragma once
#include <cstdint>
#include <vector>

#include "../core/tensor.h"
#include "threadPool.h"

namespace unsloth::cpu {

/** How the two operands of C = op(A) op(B) are stored. All matrices are row-major. */
enum class GemmMode : int32_t {
  NT = 0,  // A [m,k], B [n,k]: forward of a linear layer, Y = X Wᵀ
  NN = 1,  // A [m,k], B [k,n]: its input gradient, dX = dY W
  TN = 2,  // A [k,m], B [k,n]: its weight gradient, dW = dYᵀ X
};

/** float32: products and sums in fp32. bfloat16: both operands rounded to bf16 while packing, products exact, sums in fp32. */
enum class Precision : int32_t { float32 = 0, bfloat16 = 1 };

/** A term of small inner dimension added to a range of C's columns: C[:, column .. column+width) += alpha · A · op(B). */
struct LowRankTerm {
  View a;          // [m, r]
  View b;          // NT: [width, r]; NN: [r, width]
  int64_t column;  // first column of C that the term touches
  float alpha;
};

/**
 * C = [C +] alpha · op(A) op(B) + Σ terms + bias + add, every element written once, whole K range in a fixed order by one
 * thread: the result is bit-equal for any number of threads.
 * C fp32. A, B: fp32, bf16 or fp16 (widened while packing); B of NT and NN may be quantised (dequantised block by block).
 * bias [1, n]: fp32, bf16 or fp16. add [m, n] fp32, may alias C. Terms are allowed for NT and NN. Any dimension may be 0; with k = 0 the product is zero.
 */
struct Gemm {
  GemmMode mode = GemmMode::NT;
  Precision precision = Precision::float32;
  bool accumulate = false;
  float alpha = 1;
  View c, a, b, bias, add;
  std::vector<LowRankTerm> terms;
};

void gemm(const Gemm& g, ThreadPool& pool);

/** Name of the micro-kernel that `precision` runs on, for doctor and bench: "avx512f 14x32", "avx512bf16 …", "portable". */
const char* gemmKernelName(Precision precision);

}  // namespace unsloth::cpu
