#pragma once

namespace unsloth::cpu {

/** Instruction sets that the processor has, the system saves, and UNSLOTH_CPU_ISA allows. Each implies those above it. */
struct CpuFeatures {
  bool avx2 = false;        // AVX2, FMA, F16C
  bool avx512 = false;      // F, BW, DQ, VL
  bool avx512bf16 = false;  // VDPBF16PS
  bool amx = false;         // AMX-TILE, AMX-BF16
};

/**
 * Detected once. The environment variable UNSLOTH_CPU_ISA = portable, avx2, avx512, avx512bf16 or amx caps the choice, so that
 * one machine can run every path; another value fails.
 */
const CpuFeatures& cpuFeatures();

}  // namespace unsloth::cpu
