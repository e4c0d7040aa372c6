#pragma once
#include "../core/command.h"
#include "context.h"

/** Matrices of 4 bits (core/quant4.h) and of 8 (core/quant8.h), in kernels of their own. */
namespace unsloth::cuda {

/** y = rows [row, row + y.rows) of x, rounded to the type that x had. */
void dequantise4(const View& y, const View& x, int64_t row, const Context& context);
void dequantise8(const View& y, const View& x, int64_t row, const Context& context);

/** c[m,n] = alpha·a·Wᵀ [+ c | bias | add] for m ≤ 8 rows; all of one type but W [n,k]. */
struct FewRows {
  const void *a, *bias, *add;
  void* c;
  int64_t ldA, ldAdd, ldC, n, k;
  int m;
  float alpha;
  bool accumulate;

  /** Whether rows of a begin and go on in pieces of 8 numbers that one instruction reads. */
  bool inEights(size_t width) const { return ldA % 8 == 0 && k % 8 == 0 && reinterpret_cast<uintptr_t>(a) % (8 * width) == 0; }
};

/** k is a multiple of 64 and a is `inEights`. */
void fewRows4(DType type, const FewRows& g, const View& w, const Context& context);
void fewRows8(DType type, const FewRows& g, const View& w, const Context& context);

/**
 * c[s] = alpha·a[s]·W_eᵀ + lowAlpha·lowA[s]·lowB_eᵀ for few slots s, e the expert with first[e] ≤ s < first[e+1]. W is a quantised stack
 * [experts·n, k]; lowB as in `expertGemm`, by rows or by columns. Types may differ.
 */
struct FewSlots {
  View c, a, w, lowA, lowB;
  const int32_t* first;
  int64_t experts, n, k;
  float alpha, lowAlpha;
  bool lowByColumns;
};

void expertFewSlots(const FewSlots& g, const Context& context);

}  // namespace unsloth::cuda
