#pragma once
#include <unordered_map>

#include "../core/device.h"
#include "threadPool.h"

namespace unsloth::cpu {

/** Buffers are anonymous pages of this process; commands run on an own thread pool. */
class CpuDevice : public Device {
 public:
  explicit CpuDevice(int threads) : pool_(threads) {}
  ~CpuDevice() override;

  int threads() const { return pool_.size(); }
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

 private:
  struct Block {
    std::byte* data;
    size_t bytes;
  };
  const Block& block(int32_t buffer) const;
  std::byte* range(int32_t buffer, size_t offset, size_t count) const;

  std::unordered_map<int32_t, Block> blocks_;
  int32_t nextBuffer_ = 1;
  ThreadPool pool_;
};

}  // namespace unsloth::cpu
