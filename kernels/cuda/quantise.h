#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "../core/tensor.h"

/**
 * Quantising on the device, the same bytes as the processor's (cpu/quantise.h); `values` of f32, bf16 or f16, aligned to 256 bytes.
 * NaN and infinite elements are added to *bad. Everything is device memory, enqueued on `stream`.
 */
namespace unsloth::cuda {

/** Blocks of 64 to codes of 4 bits, aligned to 4 bytes, and their maxima in fp32. */
void packBlocks(const void* values, DType type, int64_t elements, bool fp4, uint8_t* codes, float* absmax,
                unsigned long long* bad, cudaStream_t stream);

/** Maxima to 8 bits relative to their mean, which is left in `mean`; (scale, offset) for each 2^groupShift of them. */
void nestMaxima(const float* absmax, int64_t blocks, int64_t groupShift, uint8_t* codes, float* nested, float* mean,
                cudaStream_t stream);

/** Rows to int8 and their maxima. */
void packRows(const void* values, DType type, int64_t rows, int64_t cols, uint8_t* numbers, float* scales,
              unsigned long long* bad, cudaStream_t stream);

}  // namespace unsloth::cuda
