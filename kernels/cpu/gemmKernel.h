#pragma once
#include <cstdint>

#include "../core/tensor.h"

/** What the driver of gemm (gemm.cc) and the units built per instruction set (isa/gemm.*.cc) share. No inline code. */
namespace unsloth::cpu {

/**
 * Packing reorders a block of A or B so that a register tile reads it front to back. A packed element is a 32-bit word: one fp32
 * value, or two bf16 values of successive k. Panels follow each other, each of `panelWidth` rows of A (columns of B), laid out
 * [word along k][stride of the operand]; lanes without an element are zero.
 */
struct PackCall {
  uint32_t* target;
  const void* source;  // element (x = 0, k = 0), x being a row of A or a column of B
  DType dtype;
  int64_t ld;
  bool kContiguous;  // (x, k) is source[x·ld + k], else source[k·ld + x]
  int64_t width;     // count of x
  int64_t k;
  int64_t panelWidth;  // at most the stride
  bool round;          // round to bf16 where the packed word is fp32
};

/** C[rows, columns] = [C +] [bias +] [add +] alpha · A B from packed panels. */
struct BlockCall {
  const uint32_t* a;
  const uint32_t* b;
  int64_t depth;  // words along k
  int64_t panelRows;
  int64_t rows, columns;
  float* c;
  int64_t ldc;
  float alpha;
  bool accumulate;
  const float* bias;  // one value per column, or null
  const float* add;   // or null; may be c
  int64_t ldAdd;
};

struct GemmKernel {
  const char* name;
  int64_t tileRows, tileColumns;
  int64_t strideA, strideB;  // words per panel and word along k
  int64_t wordsAlign;        // depth is padded to a multiple of this
  int64_t perWord;           // values of k in one word
  int64_t blockWords;        // most words along k per block, so that panels stay in the first two cache levels
  void (*packA)(const PackCall&);
  void (*packB)(const PackCall&);
  void (*multiply)(const BlockCall&);
};

/**
 * C[rows, columns] from rows of A and B that are contiguous along k, nothing packed: reads every element of B once. For few rows.
 * Each element is its own sum in an order that depends on k alone.
 */
struct DotCall {
  const float* a;  // bf16 precision: values already rounded
  int64_t lda;
  const void* b;
  DType dtypeB;
  int64_t ldb;
  bool round;  // round B to bf16
  int64_t k;
  int64_t rows, columns;
  float* c;
  int64_t ldc;
  float alpha;
  bool accumulate;
  const float* bias;
  const float* add;
  int64_t ldAdd;
};

struct GemmKernels {
  const GemmKernel* float32;
  const GemmKernel* bfloat16;  // null: that of the next narrower instruction set
  void (*dot)(const DotCall&);
  /** Widens `count` elements to fp32, rounded to bf16 on demand. */
  void (*widen)(float* target, const void* source, DType dtype, int64_t count, bool round);
};

/** Null where this build has no such unit. */
extern const GemmKernels* const gemmPortable;
extern const GemmKernels* const gemmAvx2;
extern const GemmKernels* const gemmAvx512;
extern const GemmKernels* const gemmAvx512Bf16;  // bfloat16 only
extern const GemmKernels* const gemmAmx;         // bfloat16 only

}  // namespace unsloth::cpu
