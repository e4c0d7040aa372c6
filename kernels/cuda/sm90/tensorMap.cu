#include "tensorMap.h"

#include <cuda_runtime.h>

#include <string>

#include "../context.h"

namespace unsloth::cuda::sm90 {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode encoder() {
  static const Encode found = [] {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult result{};
    constexpr unsigned int since = 12000;
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, since, cudaEnableDefault, &result);
    if (status != cudaSuccess || result != cudaDriverEntryPointSuccess) return static_cast<Encode>(nullptr);
    return reinterpret_cast<Encode>(symbol);
  }();
  if (found == nullptr) fail("the NVIDIA driver has no cuTensorMapEncodeTiled");
  return found;
}

CUtensorMapDataType elementType(DType type) {
  switch (type) {
    case DType::F32: return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::BF16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::F16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    default: fail("a tensor map needs f32, bf16 or f16");
  }
}

}  // namespace

bool tensorMapFits(const View& v) {
  const auto stride = static_cast<size_t>(v.ld) * bytesPerElement(v.dtype);
  return reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && stride % 16 == 0 && v.rows > 0 && v.cols > 0 &&
         v.rows < (int64_t{1} << 31) && v.cols < (int64_t{1} << 31);
}

CUtensorMap tensorMap(const View& v, int boxRows, int boxCols) {
  CUtensorMap map;
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(v.cols), static_cast<cuuint64_t>(v.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(v.ld) * bytesPerElement(v.dtype)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(boxCols), static_cast<cuuint32_t>(boxRows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status =
      encoder()(&map, elementType(v.dtype), 2, v.data, extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    fail("the driver refused a tensor map of a " + std::to_string(v.rows) + "x" + std::to_string(v.cols) +
         " matrix (CUDA error " + std::to_string(static_cast<int>(status)) + ")");
  return map;
}

}  // namespace unsloth::cuda::sm90
