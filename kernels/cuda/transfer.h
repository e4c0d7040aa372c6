#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "../core/tensor.h"

namespace unsloth::cuda {

/**
 * target[i] = source[i] in another type, both on the device; adds the number of NaN and infinite elements to *bad. Types f32,
 * bf16, f16, f64 → f32, bf16, f16.
 */
void convert(void* target, DType targetType, const void* source, DType sourceType, uint64_t elements, unsigned long long* bad,
             cudaStream_t stream);

/** Adds the number of NaN and infinite elements to *bad. */
void countNonFinite(const void* data, DType dtype, uint64_t elements, unsigned long long* bad, cudaStream_t stream);

/** The same numbers as CpuDevice::fillUniform: x[i] = a + (b − a)·u_i, u from Philox keyed by (seed, stream) at counter i; of I32 its words. */
void fillUniform(void* target, DType dtype, uint64_t elements, float a, float b, uint32_t seed, uint32_t number,
                 cudaStream_t stream);

}  // namespace unsloth::cuda
