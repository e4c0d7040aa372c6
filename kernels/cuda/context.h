#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "../core/error.h"

namespace unsloth::cuda {

class Copies;

/** What the kernels need to know about a GPU; read once when the device is opened. */
struct GpuInfo {
  int index = 0;
  std::string name;
  int capability = 0;  // 90 for compute capability 9.0
  int multiprocessors = 0;
  size_t sharedPerBlock = 0;  // bytes a block may opt in to
  size_t l2Bytes = 0;
  size_t totalBytes = 0;
  /** Whether a kernel may be started while the one before ends; see `launchDependent`. */
  bool dependentLaunches = false;
};

/**
 * What a command gets besides its operands. Commands are enqueued on `stream` one after another, and later replayed as a CUDA
 * graph with the same operands: an op must not allocate, synchronise, or read device memory from the host. Values that vary
 * from run to run are device data.
 */
struct Context {
  cudaStream_t stream = nullptr;
  const GpuInfo* gpu = nullptr;
  /** Scratch that the next command overwrites; 256-byte aligned. */
  void* workspace = nullptr;
  size_t workspaceBytes = 0;
  /** On the device: live tokens, labelled rows and sequences of this run; see `Dims`. */
  const int32_t* live = nullptr;
  /** Copies that run beside the commands. */
  Copies* copies = nullptr;
  /** Whether the order of every sum is fixed, even where that is slower. */
  bool deterministic = false;
};

/** Throws the coded error of a failed CUDA call: what failed, and what CUDA says about it. */
void check(cudaError_t status, const char* doing);

/** Whether the code that the current GPU runs has the wait of `awaitPrior`: what the driver made from PTX for older GPUs has not. */
bool kernelsAwaitPrior();

/** The error of the kernel launch just made, if any. */
inline void checkLaunch(const char* kernel) { check(cudaGetLastError(), kernel); }

/** Part of the workspace; an op that needs more than there is says so in one sentence. */
template <class T>
T* scratch(const Context& context, size_t offsetBytes, size_t elements, const char* op) {
  if (offsetBytes + elements * sizeof(T) > context.workspaceBytes)
    fail(std::string(op) + ": needs " + std::to_string(offsetBytes + elements * sizeof(T)) +
         " bytes of scratch, the device has " + std::to_string(context.workspaceBytes));
  return reinterpret_cast<T*>(static_cast<std::byte*>(context.workspace) + offsetBytes);
}

}  // namespace unsloth::cuda
