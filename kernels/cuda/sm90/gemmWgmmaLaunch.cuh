#pragma once
#include "../launch.cuh"
#include "gemmWgmma.cuh"

namespace unsloth::cuda::sm90 {

/** The kernel, made ready for its shared memory. */
template <class T, int tileN, bool majorM, bool majorN, bool withGlu = false>
auto readyKernel() {
  const auto kernel = gemmWgmmaKernel<T, tileN, majorM, majorN, withGlu>;
  static const bool ready = [&] {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, TileShape<tileN>::sharedBytes),
          "gemm: shared memory");
    return true;
  }();
  static_cast<void>(ready);
  return kernel;
}

template <class T, int tileN, bool majorM, bool majorN, bool withGlu = false>
void launchTile(const WgmmaParams& params, int blocks, const Context& context) {
  const int cluster = params.partial == nullptr ? params.pair * params.shares : params.pair;
  launchDependent(context, "gemmWgmma", readyKernel<T, tileN, majorM, majorN, withGlu>(),
                  {dim3(blocks), dim3(blockThreads), TileShape<tileN>::sharedBytes, dim3(cluster)}, params);
}

template <bool majorM, bool majorN>
void launchMode(const WgmmaParams& params, DType type, int tileN, int blocks, const Context& context) {
  if constexpr (!majorM) {
    const auto some = [&]<int width>() { launchTile<bf16, width, majorM, majorN>(params, blocks, context); };
    if (tileN == 64) return some.template operator()<64>();
    if (tileN == 96) return some.template operator()<96>();
    if (tileN == 160) return some.template operator()<160>();
    if (tileN == 224) return some.template operator()<224>();
  }
  const auto launch = [&]<class T>(Tag<T>) {
    if (tileN == 256) launchTile<T, 256, majorM, majorN>(params, blocks, context);
    else if (tileN == 192) launchTile<T, 192, majorM, majorN>(params, blocks, context);
    else launchTile<T, 128, majorM, majorN>(params, blocks, context);
  };
  if (type == DType::F16) launch(Tag<__half>{});
  else launch(Tag<bf16>{});
}

}  // namespace unsloth::cuda::sm90
