#pragma once
#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <mutex>
#include <vector>

namespace unsloth::cuda {

/** A ring of pinned host buffers for copies to a buffer of either place that the caller need not wait for. */
class Staging {
 public:
  static constexpr size_t slotBytes = size_t{8} << 20;

  explicit Staging(cudaStream_t stream);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /** The next buffer, free to be filled. */
  std::byte* acquire();
  /** Copies the first `count` bytes of the buffer acquired last to a buffer, in stream order. */
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

/**
 * Small copies from a buffer that are begun in stream order and waited for later, on any thread. Pinned memory is slow to
 * reserve: it is kept and used again.
 */
class LateReads {
 public:
  explicit LateReads(cudaStream_t stream) : stream_(stream) {}
  ~LateReads();
  LateReads(const LateReads&) = delete;
  LateReads& operator=(const LateReads&) = delete;

  struct Read {
    std::byte* data = nullptr;
    size_t capacity = 0, count = 0;
    cudaEvent_t done = nullptr;
  };
  Read begin(const void* source, size_t count);
  void finish(const Read& read, void* target);

 private:
  cudaStream_t stream_;
  std::mutex mutex_;
  std::vector<Read> idle_;
};

}  // namespace unsloth::cuda
