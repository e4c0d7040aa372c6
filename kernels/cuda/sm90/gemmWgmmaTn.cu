#include "gemmWgmmaLaunch.cuh"

namespace unsloth::cuda::sm90 {

void launchWgmmaTn(const WgmmaParams& params, DType type, int tileN, int cluster, int blocks, cudaStream_t stream) {
  launchMode<true, true>(params, type, tileN, cluster, blocks, stream);
}

}  // namespace unsloth::cuda::sm90
