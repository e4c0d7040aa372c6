#pragma once
#include <cuda.h>

#include <cstdint>

/** Shared-memory barriers, the tensor memory accelerator and clusters of sm_90. PTX ISA 9.7.9 and 9.7.13. */
namespace unsloth::cuda::sm90 {

__device__ __forceinline__ uint32_t sharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrierInit(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/** Makes initialised barriers visible to the copy engine and to the cluster; a block or cluster barrier must follow. */
__device__ __forceinline__ void barrierInitFence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/** Arrives and announces that copies will bring `bytes` in this phase. */
__device__ __forceinline__ void barrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/** Arrives at the barrier that has the same place in block `rank` of the cluster. */
__device__ __forceinline__ void barrierArriveAt(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{.reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [remote];}" ::"r"(
          barrier),
      "r"(rank)
      : "memory");
}

/** Waits until the phase of this parity is complete; a fresh barrier counts as having completed parity 1. */
__device__ __forceinline__ void barrierWait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile("{.reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done;}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (done == 0);
}

__device__ __forceinline__ void prefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/** Copies the box at (x, y) of a two-dimensional map to shared memory; its bytes count towards the barrier. */
__device__ __forceinline__ void loadBox(uint32_t target, const CUtensorMap* map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(target),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

/** The same to the same place, and for the same barrier, of every block of the cluster in `blocks`. */
__device__ __forceinline__ void loadBoxToAll(uint32_t target, const CUtensorMap* map, int x, int y, uint32_t barrier,
                                             uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], "
      "[%4], %5;" ::"r"(target),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
      : "memory");
}

/** Brings a box into L2. */
__device__ __forceinline__ void prefetchBox(const CUtensorMap* map, int x, int y) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map), "r"(x), "r"(y) : "memory");
}

/** Copies a box from shared memory to (x, y); what lies outside the matrix is not written. */
__device__ __forceinline__ void storeBox(const CUtensorMap* map, int x, int y, uint32_t source) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x), "r"(y),
               "r"(source)
               : "memory");
}

__device__ __forceinline__ void storeCommit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

/** Waits until at most `pending` groups of this thread's stores still read shared memory. */
template <int pending>
__device__ __forceinline__ void storeWaitRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

/** Ordinary writes to shared memory before it become visible to the copy engine and to wgmma. */
__device__ __forceinline__ void proxyFence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ uint32_t clusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ uint32_t clusterSize() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

__device__ __forceinline__ void clusterSync() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}

/** Barrier `id` (1 … 15) of `threads` threads of the block. Lanes may come apart from a branch: bar.sync needs them together. */
__device__ __forceinline__ void namedBarrier(int id, int threads) {
  __syncwarp();
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/** Counts these threads at that barrier without waiting; `threads`: all that arrive or wait there. */
__device__ __forceinline__ void namedArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/** Registers per thread from here on, for all four warps of a warpgroup. */
template <int count>
__device__ __forceinline__ void moreRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void fewerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

}  // namespace unsloth::cuda::sm90
