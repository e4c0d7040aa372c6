#pragma once
#include "gemm.h"
#include "gemmKernel.h"

namespace unsloth::cpu {

/** The kernels that this machine runs; see cpuFeatures.h. */
struct GemmSelection {
  const GemmKernel* float32;
  const GemmKernel* bfloat16;
  bool bfloat16Rounds;  // bfloat16 runs on fp32 words, rounded while packed
  void (*dot)(const DotCall&);
  void (*widen)(float* target, const void* source, DType dtype, int64_t count, bool round);
};

const GemmSelection& gemmSelection();

}  // namespace unsloth::cpu
