#pragma once
#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <unordered_map>
#include <vector>

namespace unsloth::cuda {

/**
 * Copies between the GPU's memory and locked memory of the system that run beside the computation, on one stream for each direction.
 * While the computing stream is being captured they become part of its graph.
 */
class Copies {
 public:
  enum Direction { toHost = 0, toDevice = 1 };

  Copies();
  ~Copies();
  Copies(const Copies&) = delete;
  Copies& operator=(const Copies&) = delete;

  /** Starts a copy once all that `computing` was given before is done. `device`: the address on the GPU, which is one of the two. */
  void start(Direction direction, void* to, const void* from, size_t bytes, const void* device, cudaStream_t computing);
  /** Makes `computing` wait for the copy started last from or to this address of the GPU, if it did not yet. */
  void await(const void* device, cudaStream_t computing);
  /** The same for all copies: to be called before a run or a capture ends. */
  void awaitAll(cudaStream_t computing);

 private:
  cudaEvent_t take();

  std::array<cudaStream_t, 2> streams_{};
  std::unordered_map<const void*, cudaEvent_t> underWay_;  // the end of each copy
  std::vector<cudaEvent_t> idle_;
};

}  // namespace unsloth::cuda
