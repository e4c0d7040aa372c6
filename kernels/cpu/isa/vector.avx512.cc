#if defined(__AVX512F__) && defined(__AVX512BW__)
#define UNSLOTH_ISA avx512
#define UNSLOTH_ISA_AVX512
#include "vectorKernels.inc"
#else
#include "../vectorKernels.h"
const unsloth::cpu::VectorKernels* const unsloth::cpu::avx512::kernels = nullptr;
#endif
