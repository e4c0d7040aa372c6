#include "gemmWgmmaLaunch.cuh"

namespace unsloth::cuda::sm90 {

void launchWgmmaTn(const WgmmaParams& params, DType type, int tileN, int blocks, const Context& context) {
  launchMode<true, true>(params, type, tileN, blocks, context);
}

}  // namespace unsloth::cuda::sm90
