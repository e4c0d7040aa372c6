#include "gemmWgmmaLaunch.cuh"

namespace unsloth::cuda::sm90 {

void launchWgmmaNn(const WgmmaParams& params, DType type, int tileN, int cluster, int blocks, cudaStream_t stream) {
  launchMode<false, true>(params, type, tileN, cluster, blocks, stream);
}

}  // namespace unsloth::cuda::sm90
