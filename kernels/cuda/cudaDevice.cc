#include "cudaDevice.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "fused.h"
#include "gpus.h"
#include "operands.h"
#include "ops.h"
#include "transfer.h"

namespace unsloth::cuda {
namespace {

using OpFunction = void (*)(const Call&, const Context&);
const OpFunction opTable[] = {
#define UNSLOTH_OP(name) ops::name,
#include "../core/ops.def"
#undef UNSLOTH_OP
};

constexpr size_t mostGraphs = 512;
/** Commands of all graphs, which the plan of a run counts on (engine/train/memoryParts.ts). */
constexpr int64_t mostRecordedInAll = 65536;
/** Commands of one graph: each takes memory, and where there are more, rows are so long that starting them costs nothing. */
constexpr int64_t mostRecorded = 16384;
constexpr size_t leastScratch = size_t{64} << 20;

bool environment(const char* name, bool otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : *value != '0';
}

std::string refusedLock(size_t bytes, cudaError_t why) {
  return "The system did not lock " + std::to_string(bytes) + " bytes of its memory for the GPU (" + cudaGetErrorName(why) +
         "). End other programs, or allow more: the memory of the container (`docker run --memory … --ulimit memlock=-1`), "
         "the limit of the user (`ulimit -l unlimited`), or `memory` in .wslconfig on WSL.";
}

/** The command as it is named in errors: its operands with their types and sizes. */
std::string describe(Op op, const std::vector<View>& operands) {
  std::string text = opName(op);
  for (const View& view : operands) text += view.present() ? " " + Operands::describe(view) : " -";
  return text;
}

}  // namespace

void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  const char* code = status == cudaErrorMemoryAllocation ? "MEMORY" : "GPU";
  throw Error(code, std::string("The GPU failed while ") + doing + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ").");
}

CudaDevice::CudaDevice(int index) : capturing_(environment("UNSLOTH_CUDA_GRAPHS", true)), eager_(environment("UNSLOTH_CUDA_SYNC", false)) {
  const Gpus& all = gpus();
  const auto found = std::find_if(all.usable.begin(), all.usable.end(), [&](const GpuInfo& gpu) { return gpu.index == index; });
  if (found == all.usable.end())
    throw Error("GPU", all.problem.empty() ? "There is no GPU number " + std::to_string(index) + "." : all.problem);
  gpu_ = *found;
  check(cudaSetDevice(index), "opening it");
  gpu_.dependentLaunches = environment("UNSLOTH_CUDA_DEPENDENT", true) && kernelsAwaitPrior();
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "opening it");
  staging_ = std::make_unique<Staging>(stream_);
  lateReads_ = std::make_shared<LateReads>(stream_);
  copies_ = std::make_unique<Copies>();
  check(cudaMalloc(reinterpret_cast<void**>(&live_), 256), "reserving memory");
  check(cudaMalloc(reinterpret_cast<void**>(&counter_), 256), "reserving memory");
  context_.stream = stream_;
  context_.gpu = &gpu_;
  context_.live = live_;
  context_.copies = copies_.get();
  context_.deterministic = environment("UNSLOTH_DETERMINISTIC", false);
  reserveScratch(leastScratch);
}

CudaDevice::~CudaDevice() {
  cudaSetDevice(gpu_.index);
  cudaStreamSynchronize(stream_);
  dropGraphs();
  staging_.reset();
  for (auto& [id, held] : blocks_) release(held);
  cudaFree(context_.workspace);
  cudaFree(live_);
  cudaFree(counter_);
  cudaStreamDestroy(stream_);
}

int32_t CudaDevice::alloc(size_t bytes, Place place) {
  Block made{nullptr, bytes == 0 ? 256 : bytes, place};
  check(cudaSetDevice(gpu_.index), "selecting it");
  void** data = reinterpret_cast<void**>(&made.data);
  // Unified addressing, which every GPU served here has, gives mapped memory the same address on both sides.
  const cudaError_t status = place == Place::host ? cudaHostAlloc(data, made.bytes, cudaHostAllocPortable | cudaHostAllocMapped) : cudaMalloc(data, made.bytes);
  if (status != cudaSuccess) cudaGetLastError();
  if (status != cudaSuccess && place == Place::host) throw Error("MEMORY", refusedLock(made.bytes, status));
  if (status == cudaErrorMemoryAllocation)
    throw Error("MEMORY", gpu_.name + " has no " + std::to_string(made.bytes) + " bytes of memory left; " + std::to_string(freeBytes()) + " are free.");
  check(status, "reserving memory");
  const cudaError_t cleared = cudaMemsetAsync(made.data, 0, made.bytes, stream_);
  if (cleared != cudaSuccess) release(made);
  check(cleared, "clearing memory");
  blocks_[nextBuffer_] = made;
  return nextBuffer_++;
}

Reserved CudaDevice::reserved() const {
  Reserved all;
  all.device = context_.workspaceBytes;
  for (const auto& [id, held] : blocks_) (held.place == Place::host ? all.host : all.device) += held.bytes;
  all.graphCommands = recordedCommands();
  return all;
}

int64_t CudaDevice::recordedCommands() const {
  int64_t commands = 0;
  for (const CachedGraph& cached : graphs_) commands += cached.graph == nullptr ? 0 : cached.key.last - cached.key.first;
  return commands;
}

void CudaDevice::release(const Block& gone) noexcept {
  if (gone.place == Place::host) cudaFreeHost(gone.data);
  else cudaFree(gone.data);
}

void CudaDevice::free(int32_t buffer) {
  const Block gone = block(buffer);
  check(cudaStreamSynchronize(stream_), "finishing its work");
  release(gone);
  blocks_.erase(buffer);
}

const CudaDevice::Block& CudaDevice::block(int32_t buffer) const {
  const auto found = blocks_.find(buffer);
  if (found == blocks_.end()) fail("there is no buffer " + std::to_string(buffer));
  return found->second;
}

std::byte* CudaDevice::range(int32_t buffer, size_t offset, size_t count) const {
  const Block& b = block(buffer);
  if (offset > b.bytes || count > b.bytes - offset) fail("a range of " + std::to_string(count) + " bytes is outside of its buffer");
  return b.data + offset;
}

void CudaDevice::write(int32_t buffer, size_t offset, const void* data, size_t count) {
  staging_->write(range(buffer, offset, count), data, count);
}

void CudaDevice::read(int32_t buffer, size_t offset, void* data, size_t count) {
  check(cudaMemcpyAsync(data, range(buffer, offset, count), count, cudaMemcpyDefault, stream_), "computing");
  check(cudaStreamSynchronize(stream_), "computing");
}

std::function<void(void*)> CudaDevice::readLater(int32_t buffer, size_t offset, size_t count) {
  return [reads = lateReads_, read = lateReads_->begin(range(buffer, offset, count), count)](void* target) { reads->finish(read, target); };
}

void CudaDevice::synchronise() { check(cudaStreamSynchronize(stream_), "computing"); }

size_t CudaDevice::freeBytes() const {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for its memory");
  return free;
}

void CudaDevice::reserveScratch(size_t bytes) {
  if (bytes <= context_.workspaceBytes) return;
  check(cudaSetDevice(gpu_.index), "selecting it");
  check(cudaStreamSynchronize(stream_), "finishing its work");
  dropGraphs();
  cudaFree(context_.workspace);
  context_.workspace = nullptr;
  context_.workspaceBytes = 0;
  check(cudaMalloc(&context_.workspace, bytes), "reserving scratch memory");
  context_.workspaceBytes = bytes;
}

void CudaDevice::fillUniform(int32_t buffer, size_t offset, uint64_t elements, DType dtype, float a, float b, uint32_t seed, uint32_t stream) {
  cuda::fillUniform(range(buffer, offset, elements * bytesPerElement(dtype)), dtype, elements, a, b, seed, stream, stream_);
}

std::vector<View> CudaDevice::views(const Plan& plan, const Dims& dims) const {
  std::vector<std::byte*> bases;
  for (const int32_t buffer : plan.buffers) bases.push_back(block(buffer).data);
  return viewsOf(plan, dims, bases);
}

int64_t CudaDevice::enqueue(const Plan& plan, const Dims& dims, const std::vector<View>& views, int64_t first, int64_t last,
                            std::vector<cudaEvent_t>* events) {
  std::vector<View> operands, nextOperands;
  const auto callOf = [&](const PlanCommand& command, std::vector<View>& found) -> Call {
    found.clear();
    for (int32_t i = 0; i < command.tensorCount; ++i) {
      const int32_t tensor = plan.operands[static_cast<size_t>(command.firstTensor + i)];
      found.push_back(tensor < 0 ? View{} : views[static_cast<size_t>(tensor)]);
    }
    return {found.data(), command.tensorCount, plan.ints.data() + command.firstInt, command.intCount,
            plan.floats.data() + command.firstFloat, command.floatCount, dims};
  };
  /** Runs command `at`, with the next one where both are one kernel's work; how many were run. */
  const auto runAt = [&](int64_t at) -> int64_t {
    const PlanCommand& command = plan.commands[static_cast<size_t>(at)];
    const Call call = callOf(command, operands);
    if (isEmpty(command, views)) return 1;
    if (at + 1 < last) {
      const PlanCommand& next = plan.commands[static_cast<size_t>(at + 1)];
      if (!isEmpty(next, views) && runTogether(command.op, call, next.op, callOf(next, nextOperands), context_)) return 2;
    }
    opTable[static_cast<int32_t>(command.op)](call, context_);
    return 1;
  };
  int64_t at = first;
  while (at < last) {
    if (stop_.load(std::memory_order_relaxed)) break;
    int64_t count = 1;
    try {
      count = runAt(at);
      if (eager_) check(cudaStreamSynchronize(stream_), "computing");
    } catch (const Error& e) {
      const Op op = plan.commands[static_cast<size_t>(at)].op;
      throw Error(e.code(), std::string(e.what()) + " Command " + std::to_string(at) + ": " + describe(op, operands) + ".");
    }
    for (const int64_t end = at + count; at < end; ++at)
      if (events != nullptr) check(cudaEventRecord((*events)[static_cast<size_t>(at - first) + 1], stream_), "measuring");
  }
  copies_->awaitAll(stream_);
  return at - first;
}

cudaGraphExec_t CudaDevice::capture(const Plan& plan, const Dims& dims, int64_t first, int64_t last) {
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording a graph");
  cudaGraph_t graph = nullptr;
  int64_t executed = 0;
  try {
    executed = enqueue(plan, dims, views(plan, dims), first, last, nullptr);
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream_, &graph), "recording a graph");
  cudaGraphExec_t result = nullptr;
  if (executed < last - first) {  // stopped on the way: half a graph is none
    cudaGraphDestroy(graph);
    return nullptr;
  }
  const cudaError_t status = cudaGraphInstantiate(&result, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "recording a graph");
  return result;
}

RunResult CudaDevice::run(const Plan& plan, const Dims& dims, const Dims& live, int64_t first, int64_t last, bool profile) {
  check(cudaSetDevice(gpu_.index), "selecting it");
  const int64_t end = std::min<int64_t>(last, static_cast<int64_t>(plan.commands.size()));
  RunResult result;
  if (stop_.load()) {
    result.stopped = true;
    return result;
  }
  const int32_t counts[3] = {static_cast<int32_t>(live.tokens), static_cast<int32_t>(live.labelled), static_cast<int32_t>(live.sequences)};
  if (dims != Dims{}) staging_->write(live_, counts, sizeof counts);  // commands without rows do not look

  if (profile) {
    std::vector<cudaEvent_t> events(static_cast<size_t>(end - first) + 1);
    for (cudaEvent_t& event : events) check(cudaEventCreate(&event), "measuring");
    check(cudaEventRecord(events[0], stream_), "measuring");
    result.executed = enqueue(plan, dims, views(plan, dims), first, end, &events);
    check(cudaStreamSynchronize(stream_), "computing");
    for (int64_t i = 0; i < result.executed; ++i) {
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, events[static_cast<size_t>(i)], events[static_cast<size_t>(i) + 1]), "measuring");
      result.seconds.push_back(milliseconds / 1e3);
    }
    for (cudaEvent_t event : events) cudaEventDestroy(event);
    result.stopped = result.executed < end - first;
    return result;
  }

  const bool recorded = capturing_ && !eager_ && end - first <= mostRecorded;
  for (const Stretch& stretch : stretchesOf(plan, first, end)) {
    const int64_t executed = runStretch(plan, dims, stretch, recorded);
    result.executed += executed;
    result.stopped = executed < stretch.last - stretch.first;
    if (result.stopped) break;
  }
  return result;
}

int64_t CudaDevice::runStretch(const Plan& plan, const Dims& dims, const Stretch& stretch, bool recorded) {
  const auto [first, last, labelled] = stretch;
  GraphKey key{plan.id, dims, first, last};
  if (!labelled) key.dims.labelled = 0;
  const auto known = std::find_if(graphs_.begin(), graphs_.end(), [&](const CachedGraph& cached) { return cached.key == key; });
  if (known == graphs_.end() || !recorded) {
    const int64_t executed = enqueue(plan, dims, views(plan, dims), first, last, nullptr);
    if (known == graphs_.end()) graphs_.push_front({key});
    if (graphs_.size() > mostGraphs) dropOldest();
    return executed;
  }
  graphs_.splice(graphs_.begin(), graphs_, known);
  if (known->graph == nullptr) {
    while (graphs_.size() > 1 && recordedCommands() + (last - first) > mostRecordedInAll) dropOldest();
    known->graph = capture(plan, dims, first, last);
    if (known->graph == nullptr) return 0;  // stopped
  }
  check(cudaGraphLaunch(known->graph, stream_), "starting a graph");
  return last - first;
}

void CudaDevice::forget(const Plan& plan) {
  for (auto it = graphs_.begin(); it != graphs_.end();) {
    if (it->key.plan != plan.id) {
      ++it;
      continue;
    }
    if (it->graph != nullptr) cudaGraphExecDestroy(it->graph);
    it = graphs_.erase(it);
  }
}

void CudaDevice::dropOldest() {
  // Launched graphs are let finish: the driver keeps what runs.
  if (graphs_.back().graph != nullptr) cudaGraphExecDestroy(graphs_.back().graph);
  graphs_.pop_back();
}

void CudaDevice::dropGraphs() {
  for (CachedGraph& cached : graphs_)
    if (cached.graph != nullptr) cudaGraphExecDestroy(cached.graph);
  graphs_.clear();
}

}  // namespace unsloth::cuda
