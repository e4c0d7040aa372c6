#include "gemmSelect.h"

#include "cpuFeatures.h"

namespace unsloth::cpu {
namespace {

GemmSelection select() {
  const CpuFeatures& features = cpuFeatures();
  const GemmKernels* base = gemmPortable;
  if (features.avx2 && gemmAvx2 != nullptr) base = gemmAvx2;
  if (features.avx512 && gemmAvx512 != nullptr) base = gemmAvx512;
  GemmSelection chosen{base->float32, base->bfloat16, true, base->dot, base->widen};
  const GemmKernels* pairs = nullptr;
  if (features.avx512bf16 && gemmAvx512Bf16 != nullptr) pairs = gemmAvx512Bf16;
  if (features.amx && gemmAmx != nullptr) pairs = gemmAmx;
  if (pairs != nullptr) {
    chosen.bfloat16 = pairs->bfloat16;
    chosen.bfloat16Rounds = false;
  }
  return chosen;
}

}  // namespace

const GemmSelection& gemmSelection() {
  static const GemmSelection selection = select();
  return selection;
}

const char* gemmKernelName(Precision precision) {
  const GemmSelection& selection = gemmSelection();
  return (precision == Precision::bfloat16 ? selection.bfloat16 : selection.float32)->name;
}

}  // namespace unsloth::cpu
