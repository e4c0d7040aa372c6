#pragma once
#include <vector>

#include "../core/device.h"

namespace unsloth::cpu {

/** A 4-bit tensor of a file that becomes numbers of `from.target`, rounded to `rounding` before. */
struct Unpack4Part {
  LoadPart from;  // `source` is not used; `elements` are those of the matrix
  DType rounding = DType::BF16;
  uint64_t blockSize = 64;
  std::vector<float> code, absmax;
};

/** An INT8 or FP8 (e4m3) matrix with a scale for each block of it: value = number · scale / divisor, rounded once to bf16. */
struct ScaledPart {
  LoadPart from;  // `source` is not used
  bool fp8 = false;
  uint64_t cols = 0, blockRows = 1, blockCols = 1;
  float divisor = 1;
  std::vector<float> scales;
};

/** Each reads one tensor with all threads, one tensor's result in memory at a time, and returns how many values are not finite. */
uint64_t load(const Unpack4Part& part, Device& device, int threads);
uint64_t load(const ScaledPart& part, Device& device, int threads);

}  // namespace unsloth::cpu
