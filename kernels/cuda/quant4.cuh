#pragma once
#include "../core/quant4.h"
#include "vector.cuh"

/** How kernels read matrices in blocks of 4 bits. */
namespace unsloth::cuda {

/** absmax of blocks, the header read once for each thread block. */
struct Maxima {
  const float* absmax;
  const uint8_t* codes;
  const float2* nested;
  int shift;

  /** What is read of a block, before the tables are needed. */
  struct Raw {
    float2 group;
    uint32_t code;
  };
  __device__ __forceinline__ Raw load(int64_t block) const {
    if (codes == nullptr) return {{__ldg(absmax + block), 0.0f}, 0};
    return {__ldg(nested + (block >> shift)), __ldg(codes + block)};
  }
  __device__ __forceinline__ float finish(const Raw& raw, const float* map) const {
    return codes == nullptr ? raw.group.x : __fadd_rn(__fmul_rn(map[raw.code], raw.group.x), raw.group.y);
  }
  __device__ __forceinline__ float operator()(int64_t block, const float* map) const { return finish(load(block), map); }
};

struct Tables {
  float code[16], map[256];
};

/** Where the maxima stand, and the type that values are rounded to. */
__device__ __forceinline__ Maxima maximaOf(const Quant4View& q, uint32_t& rounding) {
  const auto* header = reinterpret_cast<const uint32_t*>(q.base + 64);
  rounding = header[1];
  return {q.absmax, q.absmaxCode, reinterpret_cast<const float2*>(q.nested), static_cast<int>(header[0])};
}

__device__ __forceinline__ void fillTables(const Quant4View& q, Tables& tables) {
  if (threadIdx.x < 16) tables.code[threadIdx.x] = q.code[threadIdx.x];
  if (q.absmaxCode != nullptr) tables.map[threadIdx.x % 256] = q.nestedCode[threadIdx.x % 256];
  __syncthreads();
}

__device__ __forceinline__ Maxima prepare(const Quant4View& q, Tables& tables, uint32_t& rounding) {
  const Maxima maxima = maximaOf(q, rounding);
  fillTables(q, tables);
  return maxima;
}

/** What the matrix's own type makes of a value. */
__device__ __forceinline__ float rounded(float value, uint32_t type) {
  if (type == static_cast<uint32_t>(DType::BF16)) return __bfloat162float(__float2bfloat16_rn(value));
  if (type == static_cast<uint32_t>(DType::F16)) return __half2float(__float2half_rn(value));
  return value;
}

/** Code k of a word: bytes in order, the first of a pair in the high half. */
__device__ __forceinline__ uint32_t codeOf(uint32_t word, int k) { return word >> (8 * (k / 2) + (k % 2 == 0 ? 4 : 0)) & 15u; }

}  // namespace unsloth::cuda
