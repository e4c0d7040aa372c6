#include "threadPool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "../core/error.h"
#include "pages.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace unsloth::cpu {
namespace {

using Clock = std::chrono::steady_clock;
/** How long a thread polls before it sleeps: longer than the gap between two commands of a plan, far below a time slice. */
constexpr auto spinTime = std::chrono::microseconds(100);
constexpr int pollsPerClockRead = 32;

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  __asm__ volatile("yield");
#endif
}

/** Polls `ready` for the spin time; says whether it came true. */
template <class Ready>
bool spin(const Ready& ready) {
  const auto end = Clock::now() + spinTime;
  do {
    for (int i = 0; i < pollsPerClockRead; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (Clock::now() < end);
  return ready();
}

/** One job at a time: generation in the high bits, then whether threads may still join it, then how many are in it. */
constexpr uint64_t open = uint64_t{1} << 32;
constexpr uint64_t generation = uint64_t{1} << 33;
constexpr uint64_t members = open - 1;

struct alignas(64) Slot {
  std::byte* scratch = nullptr;
};

}  // namespace

struct ThreadPool::State {
  alignas(64) std::atomic<uint64_t> gate{0};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> sleepers{0};
  std::atomic<bool> callerSleeps{false};
  std::atomic<bool> stop{false};
  std::atomic<bool> busy{false};
  int64_t tasks = 0;
  const std::function<void(int64_t, int)>* fn = nullptr;
  std::exception_ptr failure;
  std::mutex mutex;  // guards failure and the two conditions
  std::condition_variable work, done;
  std::vector<Slot> slots;
  std::mutex sharedMutex;
  std::byte* shared = nullptr;
  std::vector<std::thread> threads;

  void runTasks(int thread) {
    try {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) (*fn)(task, thread);
    } catch (...) {
      next.store(tasks, std::memory_order_relaxed);
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  }

  void serve(int thread) {
    uint64_t seen = 0;
    const auto ready = [&] {
      const uint64_t now = gate.load();
      return stop.load(std::memory_order_relaxed) || ((now & open) != 0 && now / generation != seen);
    };
    for (;;) {
      if (!spin(ready)) {
        std::unique_lock lock(mutex);
        sleepers.fetch_add(1);
        work.wait(lock, ready);
        sleepers.fetch_sub(1);
      }
      if (stop.load()) return;
      uint64_t now = gate.load();
      if ((now & open) == 0 || now / generation == seen || !gate.compare_exchange_strong(now, now + 1)) continue;
      seen = now / generation;
      runTasks(thread);
      if ((gate.fetch_sub(1) & members) == 1 && callerSleeps.load()) {
        const std::lock_guard lock(mutex);
        done.notify_one();
      }
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  const int count = threads < 1 ? 1 : threads;
  state_->slots.resize(static_cast<size_t>(count));
  try {
    for (int i = 1; i < count; ++i) state_->threads.emplace_back([s = state_.get(), i] { s->serve(i); });
  } catch (const std::system_error&) {  // the system has no more threads for us: the team stays smaller
    state_->slots.resize(state_->threads.size() + 1);
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop.store(true);
  }
  state_->work.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
  for (const Slot& slot : state_->slots)
    if (slot.scratch != nullptr) freePages(slot.scratch, scratchBytes);
  if (state_->shared != nullptr) freePages(state_->shared, sharedScratchBytes);
}

int ThreadPool::size() const { return static_cast<int>(state_->slots.size()); }

void ThreadPool::parallelFor(int64_t tasks, const std::function<void(int64_t task, int thread)>& fn) {
  if (tasks <= 0) return;
  State& s = *state_;
  if (s.busy.exchange(true)) fail("parallelFor is not reentrant");
  struct Release {
    std::atomic<bool>& busy;
    ~Release() { busy.store(false); }
  } release{s.busy};

  if (s.threads.empty() || tasks == 1) {
    for (int64_t task = 0; task < tasks; ++task) fn(task, 0);
    return;
  }
  s.tasks = tasks;
  s.fn = &fn;
  s.failure = nullptr;
  s.next.store(0, std::memory_order_relaxed);
  const uint64_t current = (s.gate.load() / generation + 1) * generation;
  s.gate.store(current | open);
  if (s.sleepers.load() > 0) {
    { const std::lock_guard lock(s.mutex); }
    s.work.notify_all();
  }
  s.runTasks(0);
  s.gate.fetch_and(~open);
  const auto alone = [&] { return (s.gate.load() & members) == 0; };
  if (!spin(alone)) {
    std::unique_lock lock(s.mutex);
    s.callerSleeps.store(true);
    s.done.wait(lock, alone);
    s.callerSleeps.store(false);
  }
  if (s.failure) std::rethrow_exception(std::exchange(s.failure, nullptr));
}

std::byte* ThreadPool::scratch(int thread) const {
  Slot& slot = state_->slots[static_cast<size_t>(thread)];
  if (slot.scratch == nullptr) slot.scratch = static_cast<std::byte*>(allocatePages(scratchBytes));
  if (slot.scratch == nullptr) throw Error("MEMORY", "The system has no memory left for a thread's scratch space.");
  return slot.scratch;
}

std::byte* ThreadPool::sharedScratch() const {
  const std::lock_guard lock(state_->sharedMutex);
  if (state_->shared == nullptr) state_->shared = static_cast<std::byte*>(allocatePages(sharedScratchBytes));
  if (state_->shared == nullptr) throw Error("MEMORY", "The system has no memory left for the threads' shared scratch space.");
  return state_->shared;
}

}  // namespace unsloth::cpu
