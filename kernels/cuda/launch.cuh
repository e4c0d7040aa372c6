#pragma once
#include <type_traits>

#include "context.h"

namespace unsloth::cuda {

/**
 * At the start of every kernel that `launchDependent` starts: waits until all that was enqueued before is done, and its writes are
 * visible to the grid (PTX: griddepcontrol.wait). Before it no memory may be read or written that any other command touches;
 * parameters, constants and shared memory may. All threads call it, also those that have nothing to do: the next grid waits for
 * this one only, which must not end before those that it follows.
 */
__device__ __forceinline__ void awaitPrior() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

struct LaunchShape {
  dim3 grid, block;
  size_t sharedBytes = 0;
  /** Blocks of a cluster along x and y. */
  dim3 cluster = {1, 1, 1};
};

/**
 * Starts a kernel whose blocks may take their places while the kernel before writes back its last results (a programmatic
 * dependent launch, also as an edge of a graph). `awaitPrior` in the kernel, and nothing else, then keeps reads behind writes, writes
 * behind reads and writes behind writes. No kernel allows the next one to start before its own blocks have ended: blocks that
 * wait would take room from those that work.
 */
template <class... Parameters>
void launchDependent(const Context& context, const char* op, void (*kernel)(Parameters...), const LaunchShape& shape,
                     const std::type_identity_t<Parameters>&... arguments) {
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (context.gpu->dependentLaunches) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster.x * shape.cluster.y > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = shape.cluster.x;
    attributes[count].val.clusterDim.y = shape.cluster.y;
    attributes[count++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.sharedBytes;
  config.stream = context.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), op);
}

}  // namespace unsloth::cuda
