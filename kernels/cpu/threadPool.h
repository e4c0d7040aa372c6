#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace unsloth::cpu {

/**
 * A fixed team of threads. `parallelFor` hands out task numbers dynamically; which thread runs a task is unspecified, so a
 * kernel is bit-reproducible for any thread count as long as its tasks depend on shapes alone and never share an accumulator.
 */
class ThreadPool {
 public:
  /** `threads` counts the caller, which works too. */
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  /** Runs fn(task, thread) for every task in [0, tasks) and returns when all are done. Not reentrant. */
  void parallelFor(int64_t tasks, const std::function<void(int64_t task, int thread)>& fn);

  /** Scratch memory of one thread, 64-byte aligned, `scratchBytes` long; contents do not survive a parallelFor. */
  std::byte* scratch(int thread) const;
  static constexpr size_t scratchBytes = size_t{4} << 20;

  /** Memory shared by all threads of a parallelFor (packed operands), 64-byte aligned. */
  std::byte* sharedScratch() const;
  static constexpr size_t sharedScratchBytes = size_t{16} << 20;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace unsloth::cpu
