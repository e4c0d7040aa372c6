#pragma once
#include "../launch.cuh"
#include "gemmWgmma.cuh"

namespace unsloth::cuda::sm90 {

template <class T, int tileN, bool majorM, bool majorN, bool withGlu = false>
void launchTile(const WgmmaParams& params, int cluster, int blocks, const Context& context) {
  using Shape = TileShape<tileN>;
  const auto kernel = gemmWgmmaKernel<T, tileN, majorM, majorN, withGlu>;
  static const bool ready = [&] {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::sharedBytes), "gemm: shared memory");
    return true;
  }();
  static_cast<void>(ready);
  launchDependent(context, "gemmWgmma", kernel, {dim3(blocks), dim3(blockThreads), Shape::sharedBytes, dim3(cluster)}, params);
}

template <bool majorM, bool majorN>
void launchMode(const WgmmaParams& params, DType type, int tileN, int cluster, int blocks, const Context& context) {
  const auto launch = [&]<class T>(Tag<T>) {
    if (tileN == 256) launchTile<T, 256, majorM, majorN>(params, cluster, blocks, context);
    else if (tileN == 192) launchTile<T, 192, majorM, majorN>(params, cluster, blocks, context);
    else launchTile<T, 128, majorM, majorN>(params, cluster, blocks, context);
  };
  if (type == DType::F16) launch(Tag<__half>{});
  else launch(Tag<bf16>{});
}

}  // namespace unsloth::cuda::sm90
