#include "gemmWgmmaLaunch.cuh"

namespace unsloth::cuda::sm90 {

void launchWgmmaGlu(const WgmmaParams& params, DType type, int tileN, int blocks, const Context& context) {
  if (tileN != 256) fail("gemm with glu: tiles have 256 columns");
  if (type == DType::F16) launchTile<__half, 256, false, false, true>(params, blocks, context);
  else launchTile<bf16, 256, false, false, true>(params, blocks, context);
}

}  // namespace unsloth::cuda::sm90
