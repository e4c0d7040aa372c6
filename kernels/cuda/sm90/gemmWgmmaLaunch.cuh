#pragma once
#include "gemmWgmma.cuh"

namespace unsloth::cuda::sm90 {

template <class T, int tileN, bool majorM, bool majorN>
void launchTile(const WgmmaParams& params, int cluster, int blocks, cudaStream_t stream) {
  using Shape = TileShape<tileN>;
  const auto kernel = gemmWgmmaKernel<T, tileN, majorM, majorN>;
  static const bool ready = [&] {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::sharedBytes), "gemm: shared memory");
    return true;
  }();
  static_cast<void>(ready);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned int>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned int>(blocks));
  config.blockDim = dim3(blockThreads);
  config.dynamicSmemBytes = Shape::sharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, params), "gemmWgmma");
}

template <bool majorM, bool majorN>
void launchMode(const WgmmaParams& params, DType type, int tileN, int cluster, int blocks, cudaStream_t stream) {
  const auto launch = [&]<class T>(Tag<T>) {
    if (tileN == 256) launchTile<T, 256, majorM, majorN>(params, cluster, blocks, stream);
    else if (tileN == 192) launchTile<T, 192, majorM, majorN>(params, cluster, blocks, stream);
    else launchTile<T, 128, majorM, majorN>(params, cluster, blocks, stream);
  };
  if (type == DType::F16) launch(Tag<__half>{});
  else launch(Tag<bf16>{});
}

}  // namespace unsloth::cuda::sm90
