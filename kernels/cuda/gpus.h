#pragma once
#include <string>
#include <vector>

#include "context.h"

namespace unsloth::cuda {

/** The GPUs of this machine that this build has kernels for, or why there are none: one sentence with the way out. */
struct Gpus {
  std::vector<GpuInfo> usable;
  std::string problem;
  int driver = 0;   // CUDA version that the driver supports, 13000 for 13.0; 0: no driver
  int runtime = 0;  // CUDA version that this was built with
};

/** Looks once, and never throws: without a driver the problem says so. */
const Gpus& gpus();

}  // namespace unsloth::cuda
