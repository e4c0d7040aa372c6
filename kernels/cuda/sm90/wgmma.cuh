#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

/**
 * wgmma of sm_90a: d[64,N] (+)= a[64,16]·b[16,N] by four warps, both operands in shared memory in the 128-byte swizzle that the
 * tensor memory accelerator writes, sums in fp32 registers. Thread t of the warpgroup holds d[4j + e] = element
 * (16·(t/32) + (t%32)/4 + 8·(e/2), 8j + 2·(t%4) + e%2). PTX ISA 9.7.15.
 */
namespace unsloth::cuda::sm90 {

/**
 * Descriptor of an operand in 128-byte swizzle whose tile starts at a multiple of 1024 bytes. K-major: rows of 64 elements of k;
 * 16 more of k are 32 bytes on. MN-major: boxes of rows of 64 elements of m or n, a row for each k, `boxBytes` from one box to
 * the next; 16 more of k are 2048 bytes on.
 */
__device__ __forceinline__ uint64_t operandDescriptor(uint32_t address, uint32_t boxBytes) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(boxBytes >> 4) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | static_cast<uint64_t>(1) << 62;
}

/** Orders the warpgroup's own accesses to the registers and shared memory that the next wgmma uses. */
__device__ __forceinline__ void wgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/** Waits until at most `pending` committed groups are unfinished. */
template <int pending>
__device__ __forceinline__ void wgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

#define UNSLOTH_D64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define UNSLOTH_D96 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define UNSLOTH_D128 \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define UNSLOTH_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define UNSLOTH_F16(i) UNSLOTH_F4(i), UNSLOTH_F4(i + 4), UNSLOTH_F4(i + 8), UNSLOTH_F4(i + 12)
#define UNSLOTH_F32(i) UNSLOTH_F16(i), UNSLOTH_F16(i + 16)
#define UNSLOTH_F64(i) UNSLOTH_F32(i), UNSLOTH_F32(i + 32)
#define UNSLOTH_WGMMA(shape, type, registers, a_, b_, keep_, transposeA_, transposeB_, ...)                               \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " keep_ ", 0; wgmma.mma_async.sync.aligned." shape ".f32." type "." type \
               " {" registers "}, " a_ ", " b_ ", p, 1, 1, " transposeA_ ", " transposeB_ ";}"                           \
               : __VA_ARGS__                                                                                             \
               : "l"(a), "l"(b), "r"(keep), "n"(transposeA), "n"(transposeB))
#define UNSLOTH_WGMMA_128(type) \
  UNSLOTH_WGMMA("m64n128k16", type, UNSLOTH_D64, "%64", "%65", "%66", "%67", "%68", UNSLOTH_F64(0))
#define UNSLOTH_WGMMA_192(type)                                                                                             \
  UNSLOTH_WGMMA("m64n192k16", type, UNSLOTH_D64 ", " UNSLOTH_D96, "%96", "%97", "%98", "%99", "%100", UNSLOTH_F64(0), \
                UNSLOTH_F32(64))
#define UNSLOTH_WGMMA_256(type)                                                                                                 \
  UNSLOTH_WGMMA("m64n256k16", type, UNSLOTH_D64 ", " UNSLOTH_D96 ", " UNSLOTH_D128, "%128", "%129", "%130", "%131", "%132", \
                UNSLOTH_F64(0), UNSLOTH_F64(64))

/** d = a·b, or d += a·b where `keep` is not 0. transposeA and transposeB: 1 for an operand that is MN-major. Asynchronous. */
template <class T, int n, int transposeA, int transposeB>
__device__ __forceinline__ void wgmma(float (&d)[n / 2], uint64_t a, uint64_t b, int keep) {
  constexpr bool half = std::is_same_v<T, __half>;
  static_assert(half || std::is_same_v<T, __nv_bfloat16>);
  static_assert(n == 128 || n == 192 || n == 256);
  if constexpr (n == 128 && half) UNSLOTH_WGMMA_128("f16");
  else if constexpr (n == 128) UNSLOTH_WGMMA_128("bf16");
  else if constexpr (n == 192 && half) UNSLOTH_WGMMA_192("f16");
  else if constexpr (n == 192) UNSLOTH_WGMMA_192("bf16");
  else if constexpr (half) UNSLOTH_WGMMA_256("f16");
  else UNSLOTH_WGMMA_256("bf16");
}

#undef UNSLOTH_WGMMA_256
#undef UNSLOTH_WGMMA_192
#undef UNSLOTH_WGMMA_128
#undef UNSLOTH_WGMMA
#undef UNSLOTH_F64
#undef UNSLOTH_F32
#undef UNSLOTH_F16
#undef UNSLOTH_F4
#undef UNSLOTH_D128
#undef UNSLOTH_D96
#undef UNSLOTH_D64

}  // namespace unsloth::cuda::sm90
