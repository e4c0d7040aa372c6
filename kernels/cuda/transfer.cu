#include <type_traits>

#include "context.h"
#include "element.cuh"
#include "philox.cuh"
#include "transfer.h"

namespace unsloth::cuda {
namespace {

constexpr int threadsPerBlock = 256;
constexpr uint64_t mostBlocks = 4096;

unsigned blocksFor(uint64_t items) {
  const uint64_t wanted = (items + threadsPerBlock - 1) / threadsPerBlock;
  return static_cast<unsigned>(wanted < 1 ? 1 : wanted > mostBlocks ? mostBlocks : wanted);
}

__device__ __forceinline__ float load(const double* p) { return static_cast<float>(*p); }
template <class T>
__device__ __forceinline__ float load(const T* p) { return widen(*p); }

template <class S, class T>
__global__ void convertKernel(T* target, const S* source, uint64_t elements, unsigned long long* bad) {
  unsigned long long mine = 0;
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < elements; i += uint64_t{gridDim.x} * blockDim.x) {
    const T value = narrow<T>(load(source + i));
    mine += !isfinite(widen(value));
    if (target != nullptr) target[i] = value;
  }
  if (mine != 0) atomicAdd(bad, mine);
}

template <class T>
void convertTo(T* target, const void* source, DType sourceType, uint64_t elements, unsigned long long* bad, cudaStream_t stream) {
  const unsigned blocks = blocksFor(elements);
  if (sourceType == DType::F64) {
    convertKernel<<<blocks, threadsPerBlock, 0, stream>>>(target, static_cast<const double*>(source), elements, bad);
    return;
  }
  withType(sourceType, "load", [&](auto tag) {
    using S = typename decltype(tag)::type;
    convertKernel<<<blocks, threadsPerBlock, 0, stream>>>(target, static_cast<const S*>(source), elements, bad);
  });
}

/** Counts NaN among e4m3 numbers, which have no infinities. */
__global__ void countKernel8(const uint8_t* numbers, uint64_t elements, unsigned long long* bad) {
  unsigned long long mine = 0;
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < elements; i += uint64_t{gridDim.x} * blockDim.x)
    mine += (numbers[i] & 0x7fu) == 0x7fu;
  if (mine != 0) atomicAdd(bad, mine);
}

template <class T>
__global__ void uniformKernel(T* target, uint64_t elements, float a, float b, uint32_t seed, uint32_t number) {
  for (uint64_t block = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; block < (elements + 3) / 4;
       block += uint64_t{gridDim.x} * blockDim.x) {
    uint32_t word[4];
    philox<1>(word, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), number, 0, seed, 0x756e6974u);
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (block * 4 + k < elements) {
        if constexpr (std::is_same_v<T, uint32_t>) target[block * 4 + k] = word[k];
        else target[block * 4 + k] = narrow<T>(__fadd_rn(a, __fmul_rn(b - a, static_cast<float>(word[k] >> 8) * 0x1p-24f)));
      }
  }
}

}  // namespace

void convert(void* target, DType targetType, const void* source, DType sourceType, uint64_t elements, unsigned long long* bad,
             cudaStream_t stream) {
  withType(targetType, "load", [&](auto tag) {
    convertTo(static_cast<typename decltype(tag)::type*>(target), source, sourceType, elements, bad, stream);
  });
  checkLaunch("converting weights");
}

void countNonFinite(const void* data, DType dtype, uint64_t elements, unsigned long long* bad, cudaStream_t stream) {
  if (dtype == DType::F8) countKernel8<<<blocksFor(elements), threadsPerBlock, 0, stream>>>(static_cast<const uint8_t*>(data), elements, bad);
  else convertTo(static_cast<float*>(nullptr), data, dtype, elements, bad, stream);
  checkLaunch("checking weights");
}

void fillUniform(void* target, DType dtype, uint64_t elements, float a, float b, uint32_t seed, uint32_t number,
                 cudaStream_t stream) {
  const auto fill = [&](auto* numbers) {
    uniformKernel<<<blocksFor(elements / 4), threadsPerBlock, 0, stream>>>(numbers, elements, a, b, seed, number);
  };
  if (dtype == DType::I32) fill(static_cast<uint32_t*>(target));
  else withType(dtype, "fillUniform", [&](auto tag) { fill(static_cast<typename decltype(tag)::type*>(target)); });
  checkLaunch("filling with random numbers");
}

}  // namespace unsloth::cuda
