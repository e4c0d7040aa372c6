#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

/**
 * wgmma of sm_90a: d[64,n] (+)= a[64,16]·b[16,n] by four warps, b (and a, unless it is in registers) in shared memory in the
 * 128-byte swizzle that the tensor memory accelerator writes, sums in fp32 registers. Thread t of the warpgroup holds
 * d[4j + e] = element (16·(t/32) + (t%32)/4 + 8·(e/2), 8j + 2·(t%4) + e%2). PTX ISA 9.7.15.
 */
namespace unsloth::cuda::sm90 {

/**
 * Descriptor of an operand in 128-byte swizzle whose tile starts at a multiple of 1024 bytes. K-major: rows of 64 elements of k;
 * 16 more of k are 32 bytes on. MN-major: boxes of rows of 64 elements of m or n, a row for each k, `boxBytes` from one box to
 * the next; 16 more of k are 2048 bytes on.
 */
__device__ __forceinline__ uint64_t operandDescriptor(uint32_t address, uint32_t boxBytes = 16) {
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

/** Keeps the compiler from moving uses of registers across the asynchronous products that own them. */
template <int n>
__device__ __forceinline__ void pin(float (&registers)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// The instruction names its registers one by one. UNSLOTH_R<count>: the first of d, eight in each UNSLOTH_P; UNSLOTH_F<count>:
// the operands that these are. UNSLOTH_N<n>: what a form of the instruction needs for n columns: its registers, the numbers of
// the operands behind them, and the operands.
#define UNSLOTH_P0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define UNSLOTH_P1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define UNSLOTH_P2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define UNSLOTH_P3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define UNSLOTH_P4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define UNSLOTH_P5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define UNSLOTH_P6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define UNSLOTH_P7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define UNSLOTH_P8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define UNSLOTH_P9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define UNSLOTH_P10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define UNSLOTH_P11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define UNSLOTH_P12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define UNSLOTH_P13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define UNSLOTH_P14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define UNSLOTH_P15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define UNSLOTH_R32 UNSLOTH_P0 ", " UNSLOTH_P1 ", " UNSLOTH_P2 ", " UNSLOTH_P3
#define UNSLOTH_R40 UNSLOTH_R32 ", " UNSLOTH_P4
#define UNSLOTH_R48 UNSLOTH_R40 ", " UNSLOTH_P5
#define UNSLOTH_R64 UNSLOTH_R48 ", " UNSLOTH_P6 ", " UNSLOTH_P7
#define UNSLOTH_R80 UNSLOTH_R64 ", " UNSLOTH_P8 ", " UNSLOTH_P9
#define UNSLOTH_R96 UNSLOTH_R80 ", " UNSLOTH_P10 ", " UNSLOTH_P11
#define UNSLOTH_R112 UNSLOTH_R96 ", " UNSLOTH_P12 ", " UNSLOTH_P13
#define UNSLOTH_R128 UNSLOTH_R112 ", " UNSLOTH_P14 ", " UNSLOTH_P15
#define UNSLOTH_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define UNSLOTH_F8(i) UNSLOTH_F4(i), UNSLOTH_F4(i + 4)
#define UNSLOTH_F16(i) UNSLOTH_F8(i), UNSLOTH_F8(i + 8)
#define UNSLOTH_F32(i) UNSLOTH_F16(i), UNSLOTH_F16(i + 16)
#define UNSLOTH_F64(i) UNSLOTH_F32(i), UNSLOTH_F32(i + 32)
#define UNSLOTH_N64(form, type) \
  form(type, "m64n64k16", UNSLOTH_R32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", UNSLOTH_F32(0))
#define UNSLOTH_N80(form, type) \
  form(type, "m64n80k16", UNSLOTH_R40, "%40", "%41", "%42", "%43", "%44", "%45", "%46", UNSLOTH_F32(0), UNSLOTH_F8(32))
#define UNSLOTH_N96(form, type) \
  form(type, "m64n96k16", UNSLOTH_R48, "%48", "%49", "%50", "%51", "%52", "%53", "%54", UNSLOTH_F32(0), UNSLOTH_F16(32))
#define UNSLOTH_N128(form, type) \
  form(type, "m64n128k16", UNSLOTH_R64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", UNSLOTH_F64(0))
#define UNSLOTH_N160(form, type) \
  form(type, "m64n160k16", UNSLOTH_R80, "%80", "%81", "%82", "%83", "%84", "%85", "%86", UNSLOTH_F64(0), UNSLOTH_F16(64))
#define UNSLOTH_N192(form, type) \
  form(type, "m64n192k16", UNSLOTH_R96, "%96", "%97", "%98", "%99", "%100", "%101", "%102", UNSLOTH_F64(0), UNSLOTH_F32(64))
#define UNSLOTH_N224(form, type)                                                                                 \
  form(type, "m64n224k16", UNSLOTH_R112, "%112", "%113", "%114", "%115", "%116", "%117", "%118", UNSLOTH_F64(0), \
       UNSLOTH_F32(64), UNSLOTH_F16(96))
#define UNSLOTH_N256(form, type) \
  form(type, "m64n256k16", UNSLOTH_R128, "%128", "%129", "%130", "%131", "%132", "%133", "%134", UNSLOTH_F64(0), UNSLOTH_F64(64))
#define UNSLOTH_BEGIN(type, shape, keep) \
  "{.reg .pred p; setp.ne.b32 p, " keep ", 0; wgmma.mma_async.sync.aligned." shape ".f32." type "." type " "
#define UNSLOTH_SHARED(type, shape, r, a_, b_, keep_, transposeA_, transposeB_, unused5, unused6, ...)                  \
  asm volatile(UNSLOTH_BEGIN(type, shape, keep_) "{" r "}, " a_ ", " b_ ", p, 1, 1, " transposeA_ ", " transposeB_ ";}" \
               : __VA_ARGS__                                                                                            \
               : "l"(a), "l"(b), "r"(keep), "n"(transposeA), "n"(transposeB))
#define UNSLOTH_REGISTERS(type, shape, r, a0, a1, a2, a3, b_, keep_, transposeB_, ...)                                \
  asm volatile(UNSLOTH_BEGIN(type, shape, keep_) "{" r "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b_ ", p, 1, 1, "      \
                                                 transposeB_ ";}"                                                    \
               : __VA_ARGS__                                                                                         \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep), "n"(transposeB))
#define UNSLOTH_OF_TYPE(columns, form)                           \
  if constexpr (std::is_same_v<T, __half>) columns(form, "f16"); \
  else columns(form, "bf16");
#define UNSLOTH_OF_WIDTH(form)                                    \
  if constexpr (n == 64) { UNSLOTH_OF_TYPE(UNSLOTH_N64, form) }   \
  if constexpr (n == 80) { UNSLOTH_OF_TYPE(UNSLOTH_N80, form) }   \
  if constexpr (n == 96) { UNSLOTH_OF_TYPE(UNSLOTH_N96, form) }   \
  if constexpr (n == 128) { UNSLOTH_OF_TYPE(UNSLOTH_N128, form) } \
  if constexpr (n == 160) { UNSLOTH_OF_TYPE(UNSLOTH_N160, form) } \
  if constexpr (n == 192) { UNSLOTH_OF_TYPE(UNSLOTH_N192, form) } \
  if constexpr (n == 224) { UNSLOTH_OF_TYPE(UNSLOTH_N224, form) } \
  if constexpr (n == 256) { UNSLOTH_OF_TYPE(UNSLOTH_N256, form) }

template <class T, int n>
constexpr bool isProduct = (std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>) &&
                           (n == 64 || n == 80 || n == 96 || n == 128 || n == 160 || n == 192 || n == 224 || n == 256);

/** d = a·b, or d += a·b where `keep` is not 0. transposeA and transposeB: 1 for an operand that is MN-major. Asynchronous. */
template <class T, int n, int transposeA, int transposeB>
__device__ __forceinline__ void wgmma(float (&d)[n / 2], uint64_t a, uint64_t b, int keep) {
  static_assert(isProduct<T, n>);
  UNSLOTH_OF_WIDTH(UNSLOTH_SHARED)
}

/**
 * The same with a[64,16] in registers: of rows 16·(t/32) + (t%32)/4 (a[0], a[2]) and eight below (a[1], a[3]) the pairs of
 * columns 2·(t%4) + {0, 1} (a[0], a[1]) and eight on (a[2], a[3]).
 */
template <class T, int n, int transposeB>
__device__ __forceinline__ void wgmma(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b, int keep) {
  static_assert(isProduct<T, n>);
  UNSLOTH_OF_WIDTH(UNSLOTH_REGISTERS)
}

#undef UNSLOTH_OF_WIDTH
#undef UNSLOTH_OF_TYPE
#undef UNSLOTH_REGISTERS
#undef UNSLOTH_SHARED
#undef UNSLOTH_BEGIN
#undef UNSLOTH_N256
#undef UNSLOTH_N224
#undef UNSLOTH_N192
#undef UNSLOTH_N128
#undef UNSLOTH_N96
#undef UNSLOTH_N80
#undef UNSLOTH_N64
#undef UNSLOTH_F64
#undef UNSLOTH_F32
#undef UNSLOTH_F16
#undef UNSLOTH_F8
#undef UNSLOTH_F4
#undef UNSLOTH_R128
#undef UNSLOTH_R112
#undef UNSLOTH_R96
#undef UNSLOTH_R64
#undef UNSLOTH_R48
#undef UNSLOTH_R40
#undef UNSLOTH_R32
#undef UNSLOTH_P15
#undef UNSLOTH_P14
#undef UNSLOTH_P13
#undef UNSLOTH_P12
#undef UNSLOTH_P11
#undef UNSLOTH_P10
#undef UNSLOTH_P9
#undef UNSLOTH_P8
#undef UNSLOTH_P7
#undef UNSLOTH_P6
#undef UNSLOTH_P5
#undef UNSLOTH_P4
#undef UNSLOTH_P3
#undef UNSLOTH_P2
#undef UNSLOTH_P1
#undef UNSLOTH_P0

}  // namespace unsloth::cuda::sm90
