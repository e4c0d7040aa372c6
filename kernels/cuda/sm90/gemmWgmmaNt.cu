#include "gemmWgmmaLaunch.cuh"

namespace unsloth::cuda::sm90 {

void launchWgmmaNt(const WgmmaParams& params, DType type, int tileN, int cluster, int blocks, const Context& context) {
  launchMode<false, false>(params, type, tileN, cluster, blocks, context);
}

}  // namespace unsloth::cuda::sm90
