#if defined(__AVX512F__) && defined(__AVX512BW__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // the intrinsics' own undefined vectors: GCC bug 105593
#endif
#define UNSLOTH_ISA avx512
#define UNSLOTH_ISA_AVX512
#include "vectorKernels.inc"
#else
#include "../vectorKernels.h"
const unsloth::cpu::VectorKernels* const unsloth::cpu::avx512::kernels = nullptr;
#endif
