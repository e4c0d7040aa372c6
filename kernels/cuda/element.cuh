#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/error.h"
#include "../core/tensor.h"

namespace unsloth::cuda {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

/** Round to nearest even. */
template <class T>
__device__ __forceinline__ T narrow(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  else if constexpr (std::is_same_v<T, bf16>) return __float2bfloat16_rn(x);
  else return __float2half_rn(x);
}

/** `count` neighbouring elements that one instruction moves: 16 bytes when count·sizeof(T) is 16. */
template <class T, int count>
struct alignas(count * sizeof(T)) Pack {
  T at[count];
};

/** Elements of T in 16 bytes. */
template <class T>
constexpr int perVector = 16 / static_cast<int>(sizeof(T));

template <class T>
struct Tag {
  using type = T;
};

/** Calls fn(Tag<float | bf16 | __half>{}) for a floating-point element type. */
template <class Fn>
void withType(DType dtype, const char* op, Fn&& fn) {
  switch (dtype) {
    case DType::F32: return fn(Tag<float>{});
    case DType::BF16: return fn(Tag<bf16>{});
    case DType::F16: return fn(Tag<__half>{});
    default: fail(std::string(op) + ": expected a matrix of f32, bf16 or f16");
  }
}

/** Whether rows of a view can be read in 16-byte pieces: base, row stride and width are multiples. */
inline bool vectorised(const View& v) {
  const size_t width = bytesPerElement(v.dtype);
  return reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && static_cast<size_t>(v.ld) * width % 16 == 0 &&
         static_cast<size_t>(v.cols) * width % 16 == 0;
}

}  // namespace unsloth::cuda
