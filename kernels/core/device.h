#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "plan.h"

namespace unsloth {

/** One tensor's bytes in a checkpoint file and where they go; converted from `source` to `target` on the way. */
struct LoadPart {
  std::string path;
  uint64_t fileOffset = 0;
  uint64_t elements = 0;
  DType source = DType::F32;
  DType target = DType::F32;
  int32_t buffer = 0;
  uint64_t offset = 0;  // bytes
};

/** A 16- or 32-bit tensor of a file that becomes a piece of a matrix of 4-bit blocks (quant4.h); offsets in bytes of the buffer. */
struct Pack4Part {
  LoadPart from;  // `target` and `offset` are not used
  bool fp4 = false, nested = false;
  int64_t groupShift = 8;
  uint64_t codesAt = 0, absmaxAt = 0, nestedAt = 0;
};

/** A 16- or 32-bit tensor of a file that becomes rows of int8 with their maxima as scales (quant8.h); offsets in bytes of the buffer. */
struct Pack8Part {
  LoadPart from;  // `target` and `offset` are not used
  int64_t cols = 0;
  uint64_t numbersAt = 0, scalesAt = 0;
};

struct RunResult {
  int64_t executed = 0;  // commands completed
  bool stopped = false;
  std::vector<double> seconds;  // per command, when profiling
};

/** Where a buffer lies. Commands take both alike, by one address; on a processor both are the same. */
enum class Place {
  device,
  host,  // memory of the system, locked, which a GPU reads and writes over its bus
};

/** What a device has reserved, in bytes as they were asked for. */
struct Reserved {
  size_t device = 0;
  size_t host = 0;            // locked memory of the system
  int64_t graphCommands = 0;  // in all graphs that were recorded
};

/** Where buffers live and commands run. Every method but `requestStop` is called by one thread at a time. */
class Device {
 public:
  virtual ~Device() = default;
  /** Zero-filled. Fails with MEMORY. */
  virtual int32_t alloc(size_t bytes, Place place) = 0;
  virtual void free(int32_t buffer) = 0;
  virtual size_t bytes(int32_t buffer) const = 0;
  virtual Reserved reserved() const = 0;
  virtual void write(int32_t buffer, size_t offset, const void* data, size_t count) = 0;
  virtual void read(int32_t buffer, size_t offset, void* data, size_t count) = 0;
  /**
   * Takes a copy in the order of the commands, without waiting for it. The result, called once on any thread, waits for the copy and
   * writes it to its argument.
   */
  virtual std::function<void(void*)> readLater(int32_t buffer, size_t offset, size_t count) = 0;
  /** Returns how many elements are NaN or infinite, or become so in the type they are converted to. */
  virtual uint64_t load(const LoadPart& part) = 0;
  /** The same, quantised as bitsandbytes does it: every device makes the same bytes. */
  virtual uint64_t load(const Pack4Part& part) = 0;
  virtual uint64_t load(const Pack8Part& part) = 0;
  /** x[i] = a + (b − a)·u_i, u uniform in [0,1), from Philox keyed by (seed, stream) at counter i; of I32 its words, whatever the range. */
  virtual void fillUniform(int32_t buffer, size_t offset, uint64_t elements, DType dtype, float a, float b, uint32_t seed, uint32_t stream) = 0;
  /**
   * Runs commands [first, last) on `dims` rows, of which `live` are real and the rest padding (see StepRunner): a processor takes no
   * padding, both are equal there. Work may still be under way on return; `read` and `synchronise` wait for it.
   */
  virtual RunResult run(const Plan& plan, const Dims& dims, const Dims& live, int64_t first, int64_t last, bool profile) = 0;
  /** Makes the scratch that commands share at least this large. A processor sizes its own. */
  virtual void reserveScratch(size_t) {}
  /** Drops what was prepared for a plan that will not run again. */
  virtual void forget(const Plan&) {}
  virtual void synchronise() {}

  /** Makes the run in progress return between two commands. Any thread may call it. */
  void requestStop() { stop_.store(true); }
  void clearStop() { stop_.store(false); }

 protected:
  std::atomic<bool> stop_{false};
};

}  // namespace unsloth
