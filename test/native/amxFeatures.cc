// Stands in for kernels/cpu/cpuFeatures.cc where gemm.amx.cc is built with the emulator.
#include "../../kernels/cpu/cpuFeatures.h"

const unsloth::cpu::CpuFeatures& unsloth::cpu::cpuFeatures() {
  static const CpuFeatures features{true, true, true, true};
  return features;
}
