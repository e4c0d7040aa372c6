#pragma once
#include "element.cuh"

/**
 * Tensor-core instructions that every GPU from sm_75 on has, with the asynchronous copies of sm_80; on sm_75 copies are ordinary
 * ones and products run in f16 alone.
 */
namespace unsloth::cuda {

/** Address of a pointer into shared memory as ld, st, cp.async and ldmatrix take it. */
__device__ __forceinline__ uint32_t sharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

/** In the place of a kernel that the GPU has no instructions for: should a launcher choose it, that is an error, never a missing result. */
__device__ __forceinline__ void neverLaunched() { __trap(); }

/** Copies `bytes` (0 … 16) from global to 16 bytes of shared memory and fills up with zeros. Both addresses are multiples of 16.
 */
__device__ __forceinline__ void copyAsync16(uint32_t shared, const void* global, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
#else
  uint4 value = make_uint4(0, 0, 0, 0);
  if (bytes == 16) {
    value = *static_cast<const uint4*>(global);
  } else {
    auto* halves = reinterpret_cast<uint16_t*>(&value);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (2 * i < bytes) halves[i] = static_cast<const uint16_t*>(global)[i];
  }
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
#endif
}

/** Closes the group of copies issued since the last call. */
__device__ __forceinline__ void commitCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/** Waits until at most `pending` of this thread's groups are under way. */
template <int pending>
__device__ __forceinline__ void waitCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

/** Four 8×8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. */
__device__ __forceinline__ void loadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/** The same, each matrix transposed. */
__device__ __forceinline__ void loadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/**
 * d[16,8] += a[16,16]·b[16,8]. Lane l holds, with g = l / 4 and t = l % 4: d (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1);
 * a rows g, g+8, g, g+8 at columns 2t (+1) and for the last two 2t+8 (+1); b column g at rows 2t (+1) and 2t+8 (+1).
 */
template <class T>
__device__ __forceinline__ void multiplyAdd(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  if constexpr (std::is_same_v<T, bf16>) {
    neverLaunched();
  } else {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b1));
  }
#endif
}

/**
 * Whether the GPU multiplies matrices of this type with the instructions above. Every launcher of a kernel that uses them asks this, so
 * that before sm_80 bf16 goes the simple ways. Of all kernels those alone are `neverLaunched` there, and the larger shapes of gemmMma.
 */
inline bool hasTensorCores(DType dtype, int capability) {
  return (dtype == DType::BF16 && capability >= 80) || (dtype == DType::F16 && capability >= 75);
}

}  // namespace unsloth::cuda
