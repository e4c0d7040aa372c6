#pragma once
#include "../launch.cuh"
#include "gemmWgmma.cuh"

/**
 * Clusters of 1 or 2 blocks of blockThreads; two work at tiles one above the other, which share the columns of the right operand:
 * each loads a half of them and sends it to the other.
 */
namespace unsloth::cuda::sm90 {

struct ClusterPlace {
  int rank, size;

  __device__ __forceinline__ int tileRow(int row) const { return row * size + rank; }

  /** Issued by one thread: a slice of k of a K-major right operand from n0 on, `columns` of it, in boxes of columns / size. */
  template <int columns>
  __device__ __forceinline__ void loadColumns(uint32_t target, const CUtensorMap* map, int k, int n0, uint32_t barrier) const {
    if (size == 1) return loadBox(target, map, k, n0, barrier);
    const int half = rank * (columns / 2);
    loadBoxToAll(target + half * swizzleBytes, map, k, n0 + half, barrier, 3);
  }

  /** By a warpgroup: a stage is free again, at this barrier of every block. */
  __device__ __forceinline__ void release(uint32_t barrier) const {
    const int lane = threadIdx.x % warpgroup;
    if (lane < size) barrierArriveAt(barrier, lane);
  }
};

__device__ __forceinline__ ClusterPlace clusterPlace() {
  return {static_cast<int>(clusterRank()), static_cast<int>(clusterSize())};
}

/** Clusters of 2 unless a block of the last one had no rows and that were much. */
inline int clusterSizeFor(int64_t tileRows) { return tileRows % 2 == 1 && tileRows < 8 ? 1 : 2; }

/** Starts a kernel of the blocks above in `count` clusters of that size. */
template <class Params>
void launchClusters(void (*kernel)(Params), const Params& params, int size, int64_t count, size_t sharedBytes,
                    const Context& context, const char* op) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sharedBytes)), op);
  const auto across = static_cast<unsigned>(size), blocks = static_cast<unsigned>(count) * across;
  launchDependent(context, op, kernel, {dim3(blocks), dim3(blockThreads), sharedBytes, dim3(across)}, params);
}

}  // namespace unsloth::cuda::sm90
