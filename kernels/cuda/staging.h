#pragma once
#include <cuda_runtime.h>

#include <array>
#include <cstddef>

namespace unsloth::cuda {

/** A ring of pinned host buffers for copies to the device that the caller need not wait for. */
class Staging {
 public:
  static constexpr size_t slotBytes = size_t{8} << 20;

  explicit Staging(cudaStream_t stream);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /** The next buffer, free to be filled. */
  std::byte* acquire();
  /** Copies the first `count` bytes of the buffer acquired last to device memory, in stream order. */
  void send(void* target, size_t count);
  /** Copies from host memory of any kind and size. The memory may be reused on return. */
  void write(void* target, const void* data, size_t count);

 private:
  struct Slot {
    std::byte* data = nullptr;
    cudaEvent_t sent = nullptr;
    bool used = false;
  };
  cudaStream_t stream_;
  std::array<Slot, 4> slots_;
  size_t next_ = 0;
};

}  // namespace unsloth::cuda
