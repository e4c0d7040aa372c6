// The checks of gemmTest.cc on gemm.amx.cc, built with amxEmulator.h: needs AVX-512-BF16, for packing, but no AMX.
#include "gemmTest.cc"

#include "../../kernels/cpu/cpuFeatures.h"
#include "../../kernels/cpu/gemmSelect.h"

const GemmSelection& unsloth::cpu::gemmSelection() {
  static const GemmSelection selection = [] {
    const bool tiles = cpuFeatures().avx512bf16 && gemmAmx != nullptr;
    const GemmKernels* base = gemmPortable;
    return GemmSelection{base->float32, tiles ? gemmAmx->bfloat16 : base->bfloat16, !tiles, base->dot, base->widen};
  }();
  return selection;
}

const char* unsloth::cpu::gemmKernelName(Precision precision) {
  return (precision == Precision::bfloat16 ? gemmSelection().bfloat16 : gemmSelection().float32)->name;
}
