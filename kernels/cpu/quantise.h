#pragma once
#include <cstdint>

#include "../core/device.h"
#include "threadPool.h"

namespace unsloth::cpu {

/**
 * Rows [row, row + rows) × columns [column, column + cols) of a quantised matrix, densely (row stride `cols`), rounded to the
 * type that the matrix had, then converted to `type`.
 */
void dequantise(const View& q, int64_t row, int64_t rows, int64_t column, int64_t cols, void* out, DType type);

/** What `dequantise` writes for a gemm: the rounding type, which loses nothing. */
DType dequantisedType(const View& q);

/** Bytes per element of `dequantisedType`. */
int64_t dequantisedWidth(const View& q);

/** Where the parts of one tensor in 4 bits go. Host memory. */
struct Quant4Target {
  uint8_t* codes;
  float* absmax;        // of every block; scratch when nested
  uint8_t* absmaxCode;  // null: not nested
  float* nested;        // (scale, offset) pairs
  int64_t groupShift;
};

/**
 * Quantises one tensor of a checkpoint to blocks of 4 bits as bitsandbytes does, read by all threads at once; `part.elements` of them
 * from fp32, bf16 or fp16. Returns how many elements were NaN or infinite (the result is then of no use).
 */
uint64_t quantise4(const LoadPart& part, bool fp4, const Quant4Target& target, ThreadPool& pool);

/** The same from memory. */
uint64_t quantise4(const void* values, DType type, int64_t elements, bool fp4, const Quant4Target& target, ThreadPool& pool);

/**
 * Quantises rows of `cols` elements to int8: round(x·(127 / absmax)), x and absmax in fp16, as LLM.int8 does. `scales` get the maxima.
 * Returns how many elements were NaN or infinite.
 */
uint64_t quantise8(const LoadPart& part, int64_t cols, uint8_t* numbers, float* scales, ThreadPool& pool);

}  // namespace unsloth::cpu
