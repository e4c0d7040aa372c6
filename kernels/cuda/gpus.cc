#include "gpus.h"

namespace unsloth::cuda {
namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

GpuInfo read(int index, const cudaDeviceProp& properties) {
  GpuInfo gpu;
  gpu.index = index;
  gpu.name = properties.name;
  gpu.capability = properties.major * 10 + properties.minor;
  gpu.multiprocessors = properties.multiProcessorCount;
  gpu.sharedPerBlock = properties.sharedMemPerBlockOptin;
  gpu.l2Bytes = static_cast<size_t>(properties.l2CacheSize);
  gpu.totalBytes = properties.totalGlobalMem;
  return gpu;
}

Gpus look() {
  Gpus found;
  cudaRuntimeGetVersion(&found.runtime);
  if (cudaDriverGetVersion(&found.driver) != cudaSuccess) found.driver = 0;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (found.driver == 0) {
    found.problem =
        "There is no NVIDIA driver on this machine; training runs on the processor. Install the driver of your GPU to use it.";
  } else if (found.driver / 1000 < found.runtime / 1000) {
    found.problem = "The NVIDIA driver is too old: it supports CUDA " + version(found.driver) + ", and CUDA " +
                    version(found.runtime) + " is needed. Update it to version 580 or newer; until then training runs on the processor.";
  } else if (status != cudaSuccess || count == 0) {
    found.problem = status == cudaSuccess || status == cudaErrorNoDevice
                        ? std::string("The NVIDIA driver finds no GPU; training runs on the processor.")
                        : std::string("The NVIDIA driver does not answer: ") + cudaGetErrorString(status) +
                              ". Restart the machine or reinstall the driver.";
  }
  for (int index = 0; found.problem.empty() && index < count; ++index) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) continue;
    const GpuInfo gpu = read(index, properties);
    if (gpu.capability >= 75) found.usable.push_back(gpu);
    else
      found.problem = gpu.name + " is of compute capability " + std::to_string(properties.major) + "." +
                      std::to_string(properties.minor) + "; 7.5 (Turing) or newer is needed.";
  }
  if (!found.usable.empty()) found.problem.clear();
  return found;
}

}  // namespace

const Gpus& gpus() {
  static const Gpus found = look();
  return found;
}

}  // namespace unsloth::cuda
