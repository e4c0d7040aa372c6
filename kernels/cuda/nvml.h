#pragma once
#include <cstdint>
#include <optional>
#include <vector>

namespace unsloth::cuda {

/** A process that computes on a GPU. */
struct GpuProcess {
  unsigned pid;
  uint64_t bytes;
};

/** What the driver's management library tells about a GPU at this moment; absent where it does not know. */
struct GpuStatus {
  uint64_t usedBytes = 0;
  uint64_t totalBytes = 0;
  /** Of this process alone. */
  std::optional<uint64_t> processBytes;
  /** Of others that the library names: not those outside of a container. */
  std::vector<GpuProcess> others;
  std::optional<double> utilisation;  // 0 … 1
  std::optional<double> temperature;  // °C
  std::optional<double> power;        // W
};

/** Asks NVML, which is opened at run time; nothing when there is no such library or GPU. Takes no memory on the GPU. */
std::optional<GpuStatus> gpuStatus(int index);

}  // namespace unsloth::cuda
