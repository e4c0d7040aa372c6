#include "copies.h"

#include "context.h"

namespace unsloth::cuda {

Copies::Copies() {
  for (cudaStream_t& stream : streams_) check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "opening it");
}

Copies::~Copies() {
  for (cudaStream_t stream : streams_) cudaStreamDestroy(stream);
  for (const auto& [device, event] : underWay_) cudaEventDestroy(event);
  for (cudaEvent_t event : idle_) cudaEventDestroy(event);
}

cudaEvent_t Copies::take() {
  cudaEvent_t event = nullptr;
  if (idle_.empty()) {
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "copying");
    return event;
  }
  event = idle_.back();
  idle_.pop_back();
  return event;
}

void Copies::start(Direction direction, void* to, const void* from, size_t bytes, const void* device, cudaStream_t computing) {
  await(device, computing);
  const cudaStream_t stream = streams_[direction];
  const cudaEvent_t event = take();
  underWay_[device] = event;
  check(cudaEventRecord(event, computing), "copying");
  check(cudaStreamWaitEvent(stream, event, 0), "copying");
  check(cudaMemcpyAsync(to, from, bytes, direction == toHost ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice, stream), "copying");
  check(cudaEventRecord(event, stream), "copying");
}

void Copies::await(const void* device, cudaStream_t computing) {
  const auto found = underWay_.find(device);
  if (found == underWay_.end()) return;
  const cudaEvent_t event = found->second;
  underWay_.erase(found);
  idle_.push_back(event);
  check(cudaStreamWaitEvent(computing, event, 0), "copying");
}

void Copies::awaitAll(cudaStream_t computing) {
  while (!underWay_.empty()) await(underWay_.begin()->first, computing);
}

}  // namespace unsloth::cuda
