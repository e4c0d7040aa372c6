#if defined(__AVX2__) && defined(__FMA__)
#define UNSLOTH_ISA avx2
#define UNSLOTH_ISA_AVX2
#include "vectorKernels.inc"
#else
#include "../vectorKernels.h"
const unsloth::cpu::VectorKernels* const unsloth::cpu::avx2::kernels = nullptr;
#endif
