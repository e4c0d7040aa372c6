#include <algorithm>
#include <array>

#include "gemmWgmmaLaunch.cuh"

namespace unsloth::cuda::sm90 {

void launchWgmmaNt(const WgmmaParams& params, DType type, int tileN, int blocks, const Context& context) {
  launchMode<false, false>(params, type, tileN, blocks, context);
}

int wgmmaClustersAtOnce(int blocks) {
  constexpr int most = 8;
  static const std::array<int, most + 1> found = [] {  // a block of any width takes a multiprocessor for itself
    std::array<int, most + 1> counts{};
    for (unsigned size = 1; size <= most; ++size) {
      cudaLaunchAttribute attribute{};
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {size, 1, 1};
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(size);
      config.blockDim = dim3(blockThreads);
      config.dynamicSmemBytes = TileShape<128>::sharedBytes;
      config.attrs = &attribute;
      config.numAttrs = 1;
      check(cudaOccupancyMaxActiveClusters(&counts[size], readyKernel<bf16, 128, false, false>(), &config), "gemm: clusters");
    }
    return counts;
  }();
  return std::max(found[blocks], 1);
}

}  // namespace unsloth::cuda::sm90
