#include "launch.cuh"

namespace unsloth::cuda {
namespace {

__global__ void waitingKernel() { awaitPrior(); }

}  // namespace

bool kernelsAwaitPrior() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, waitingKernel);
  cudaGetLastError();
  return status == cudaSuccess && attributes.ptxVersion >= 90;
}

}  // namespace unsloth::cuda
