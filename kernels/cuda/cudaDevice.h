#pragma once
#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

#include "../core/device.h"
#include "../cpu/threadPool.h"
#include "context.h"
#include "copies.h"
#include "staging.h"

namespace unsloth::cuda {

/**
 * One GPU. Commands are enqueued on one stream; the second run of the same commands with the same row counts captures them as a
 * CUDA graph, which later runs replay. Commands that no count of labelled rows changes have graphs of their own: samples of as many
 * tokens differ in it. `run` returns when the work is enqueued: errors of the work itself surface at the next
 * `read` or `run`.
 */
class CudaDevice : public Device {
 public:
  explicit CudaDevice(int index);
  ~CudaDevice() override;

  int32_t alloc(size_t bytes, Place place) override;
  void free(int32_t buffer) override;
  size_t bytes(int32_t buffer) const override { return block(buffer).bytes; }
  Reserved reserved() const override;
  void write(int32_t buffer, size_t offset, const void* data, size_t count) override;
  void read(int32_t buffer, size_t offset, void* data, size_t count) override;
  std::function<void(void*)> readLater(int32_t buffer, size_t offset, size_t count) override;
  uint64_t load(const LoadPart& part) override;
  uint64_t load(const Pack4Part& part) override;
  uint64_t load(const Pack8Part& part) override;
  void fillUniform(int32_t buffer, size_t offset, uint64_t elements, DType dtype, float a, float b, uint32_t seed, uint32_t stream) override;
  RunResult run(const Plan& plan, const Dims& dims, const Dims& live, int64_t first, int64_t last, bool profile) override;
  void reserveScratch(size_t bytes) override;
  void forget(const Plan& plan) override;
  void synchronise() override;

 private:
  struct Block {
    std::byte* data;
    size_t bytes;
    Place place;
  };
  struct GraphKey {
    uint64_t plan;
    Dims dims;
    int64_t first, last;
    bool operator==(const GraphKey&) const = default;
  };
  struct CachedGraph {
    GraphKey key;
    cudaGraphExec_t graph = nullptr;  // absent after the first run, which is not captured
  };

  static void release(const Block& gone) noexcept;
  const Block& block(int32_t buffer) const;
  std::byte* range(int32_t buffer, size_t offset, size_t count) const;
  std::vector<View> views(const Plan& plan, const Dims& dims) const;
  int64_t runStretch(const Plan& plan, const Dims& dims, const Stretch& stretch, bool recorded);
  int64_t enqueue(const Plan& plan, const Dims& dims, const std::vector<View>& views, int64_t first, int64_t last, std::vector<cudaEvent_t>* events);
  cudaGraphExec_t capture(const Plan& plan, const Dims& dims, int64_t first, int64_t last);
  void dropOldest();
  void dropGraphs();
  int64_t recordedCommands() const;
  size_t freeBytes() const;
  template <class Landed>
  uint64_t stream(const LoadPart& part, uint64_t unit, std::byte* target, const Landed& landed);

  GpuInfo gpu_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<cpu::ThreadPool> readers_;  // made when something is loaded
  std::shared_ptr<LateReads> lateReads_;  // also held by reads under way
  std::unique_ptr<Copies> copies_;
  Context context_;
  int32_t* live_ = nullptr;
  unsigned long long* counter_ = nullptr;
  std::list<CachedGraph> graphs_;  // most recently used first
  std::unordered_map<int32_t, Block> blocks_;
  int32_t nextBuffer_ = 1;
  bool capturing_;  // UNSLOTH_CUDA_GRAPHS=0 turns graphs off
  bool eager_;      // UNSLOTH_CUDA_SYNC=1 waits after each command, so that an error names its command
};

}  // namespace unsloth::cuda
