#include "nvml.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <unistd.h>


namespace unsloth::cuda {
namespace {

/** The part of the NVML interface that is used, as its documentation declares it; 0 is success everywhere. */
using Handle = struct nvmlDevice_st*;
struct Memory {
  unsigned long long total, free, used;
};
struct Utilisation {
  unsigned gpu, memory;
};
struct Process {
  unsigned pid;
  unsigned long long usedBytes;
  unsigned gpuInstance, computeInstance;
};
constexpr unsigned temperatureOfGpu = 0;

struct Nvml {
  int (*init)() = nullptr;
  int (*byBusId)(const char*, Handle*) = nullptr;
  int (*memory)(Handle, Memory*) = nullptr;
  int (*utilisation)(Handle, Utilisation*) = nullptr;
  int (*temperature)(Handle, unsigned, unsigned*) = nullptr;
  int (*power)(Handle, unsigned*) = nullptr;
  int (*processes)(Handle, unsigned*, Process*) = nullptr;
  bool ready = false;

  Nvml() {
    void* library = dlopen("libnvidia-ml.so.1", RTLD_LAZY);
    if (library == nullptr) return;
    find(library, "nvmlInit_v2", init);
    find(library, "nvmlDeviceGetHandleByPciBusId_v2", byBusId);
    find(library, "nvmlDeviceGetMemoryInfo", memory);
    find(library, "nvmlDeviceGetUtilizationRates", utilisation);
    find(library, "nvmlDeviceGetTemperature", temperature);
    find(library, "nvmlDeviceGetPowerUsage", power);
    find(library, "nvmlDeviceGetComputeRunningProcesses_v3", processes);
    ready = init != nullptr && byBusId != nullptr && memory != nullptr && init() == 0;
  }

  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
  }
};

void readProcesses(const Nvml& nvml, Handle gpu, GpuStatus& status) {
  if (nvml.processes == nullptr) return;
  std::vector<Process> list(64);
  auto count = static_cast<unsigned>(list.size());
  if (nvml.processes(gpu, &count, list.data()) != 0) return;
  for (unsigned i = 0; i < count; ++i) {
    if (list[i].usedBytes == ~0ull) continue;
    if (list[i].pid == static_cast<unsigned>(getpid())) status.processBytes = list[i].usedBytes;
    else status.others.push_back({list[i].pid, list[i].usedBytes});
  }
}

}  // namespace

std::optional<GpuStatus> gpuStatus(int index) {
  static const Nvml nvml;
  char busId[32];
  Handle gpu = nullptr;
  Memory memory{};
  if (!nvml.ready || cudaDeviceGetPCIBusId(busId, sizeof busId, index) != cudaSuccess) return {};
  if (nvml.byBusId(busId, &gpu) != 0 || nvml.memory(gpu, &memory) != 0) return {};
  GpuStatus status;
  status.usedBytes = memory.used;
  status.totalBytes = memory.total;
  readProcesses(nvml, gpu, status);
  Utilisation busy{};
  unsigned number = 0;
  if (nvml.utilisation != nullptr && nvml.utilisation(gpu, &busy) == 0) status.utilisation = busy.gpu / 100.0;
  if (nvml.temperature != nullptr && nvml.temperature(gpu, temperatureOfGpu, &number) == 0) status.temperature = number;
  if (nvml.power != nullptr && nvml.power(gpu, &number) == 0) status.power = number / 1000.0;
  return status;
}

}  // namespace unsloth::cuda
