#include "staging.h"

#include <algorithm>
#include <cstring>

#include "context.h"

namespace unsloth::cuda {

Staging::Staging(cudaStream_t stream) : stream_(stream) {
  for (Slot& slot : slots_) {
    check(cudaMallocHost(reinterpret_cast<void**>(&slot.data), slotBytes), "pinning host memory");
    check(cudaEventCreateWithFlags(&slot.sent, cudaEventDisableTiming), "creating an event");
  }
}

Staging::~Staging() {
  for (Slot& slot : slots_) {
    if (slot.sent != nullptr) cudaEventDestroy(slot.sent);
    if (slot.data != nullptr) cudaFreeHost(slot.data);
  }
}

std::byte* Staging::acquire() {
  Slot& slot = slots_[next_];
  if (slot.used) check(cudaEventSynchronize(slot.sent), "waiting for a copy to the GPU");
  return slot.data;
}

void Staging::send(void* target, size_t count) {
  Slot& slot = slots_[next_];
  check(cudaMemcpyAsync(target, slot.data, count, cudaMemcpyDefault, stream_), "copying to the GPU");
  check(cudaEventRecord(slot.sent, stream_), "copying to the GPU");
  slot.used = true;
  next_ = (next_ + 1) % slots_.size();
}

void Staging::write(void* target, const void* data, size_t count) {
  for (size_t at = 0; at < count; at += slotBytes) {
    const size_t part = std::min(slotBytes, count - at);
    std::memcpy(acquire(), static_cast<const std::byte*>(data) + at, part);
    send(static_cast<std::byte*>(target) + at, part);
  }
}

LateReads::~LateReads() {
  for (const Read& read : idle_) {
    cudaEventDestroy(read.done);
    cudaFreeHost(read.data);
  }
}

LateReads::Read LateReads::begin(const void* source, size_t count) {
  Read read;
  {
    const std::lock_guard lock(mutex_);
    const auto fits = std::find_if(idle_.begin(), idle_.end(), [&](const Read& idle) { return idle.capacity >= count; });
    if (fits != idle_.end()) {
      read = *fits;
      idle_.erase(fits);
    }
  }
  if (read.data == nullptr) {
    read.capacity = count;
    check(cudaMallocHost(reinterpret_cast<void**>(&read.data), count), "pinning host memory");
    check(cudaEventCreateWithFlags(&read.done, cudaEventDisableTiming), "creating an event");
  }
  read.count = count;
  check(cudaMemcpyAsync(read.data, source, count, cudaMemcpyDefault, stream_), "computing");
  check(cudaEventRecord(read.done, stream_), "computing");
  return read;
}

void LateReads::finish(const Read& read, void* target) {
  check(cudaEventSynchronize(read.done), "computing");
  std::memcpy(target, read.data, read.count);
  const std::lock_guard lock(mutex_);
  idle_.push_back(read);
}

}  // namespace unsloth::cuda
