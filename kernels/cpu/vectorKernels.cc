#include "vectorKernels.h"

#include "cpuFeatures.h"

namespace unsloth::cpu {

const VectorKernels& vectorKernels() {
  static const VectorKernels* const chosen = [] {
    const CpuFeatures& features = cpuFeatures();
    if (features.avx512 && avx512::kernels != nullptr) return avx512::kernels;
    if (features.avx2 && avx2::kernels != nullptr) return avx2::kernels;
    return portable::kernels;
  }();
  return *chosen;
}

}  // namespace unsloth::cpu
