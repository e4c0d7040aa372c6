#include "gemmChoices.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "../core/views.h"
#include "cublasLt.h"
#include "sm90/gemmWgmma.h"

namespace unsloth::cuda {
namespace {

using Way = GemmChoice::Way;
using Kind = std::array<int32_t, 9>;
constexpr size_t numbersOfChoice = std::tuple_size_v<decltype(GemmChoice::numbers)>;
static_assert(1 + std::tuple_size_v<Kind> + 1 + numbersOfChoice == gemmRecordNumbers);

constexpr int ownTilings = 5, libraryProposals = 5;
constexpr double gain = 0.97;        // of the usual way's time, that another must not exceed
constexpr float hopeless = 1.25f;    // of the best time in the first round
constexpr float longProduct = 0.5f;  // ms, beyond which few rounds tell enough
constexpr int fewRounds = 2, manyRounds = 5;

bool inPlace(const GemmArgs& args) { return args.accumulate || overlap(args.add, args.c); }

Kind kindOf(const GemmArgs& args) {
  int64_t ranks = 0, widths = 0;
  for (const GemmTerm& term : args.terms) ranks += term.rank, widths += term.width;
  const bool weightGradient = args.mode == 2;  // rows are what is summed over
  const int64_t flags = (args.bias.present() ? 1 + static_cast<int>(args.bias.dtype) : 0) | (args.add.present() ? 16 : 0) |
                        (inPlace(args) ? 32 : 0) | (args.alpha != 1 ? 64 : 0);
  const int64_t types = static_cast<int64_t>(args.a.dtype) | static_cast<int64_t>(args.c.dtype) << 8;
  const auto number = [](int64_t x) { return static_cast<int32_t>(x); };
  return {number(args.mode),
          number(classOfRows(weightGradient ? args.k : args.m)),
          number(weightGradient ? args.m : args.n),
          number(weightGradient ? args.n : args.k),
          number(types),
          number(flags),
          number(static_cast<int64_t>(args.terms.size())),
          number(ranks),
          number(widths)};
}

/** Products whose time is worth a choice: tensor cores' types, and more than a few microseconds. */
bool worthTiming(const GemmArgs& args) {
  constexpr double leastFlops = 1e8;
  constexpr int64_t leastDepth = 64, leastSide = 64;
  return (args.a.dtype == DType::BF16 || args.a.dtype == DType::F16) && args.b.dtype == args.a.dtype && args.k > leastDepth &&
         std::min(args.m, args.n) > leastSide && !(args.accumulate && args.add.present()) &&
         2.0 * static_cast<double>(args.m) * static_cast<double>(args.n) * static_cast<double>(args.k) >= leastFlops;
}

/** What one process knows of one GPU. */
struct Known {
  std::map<Kind, GemmChoice> choices;
  std::vector<int32_t> offered, fresh;  // records: not looked at yet; not taken yet
};

struct Registry {
  std::recursive_mutex mutex;  // timing a product may need the choice for its low-rank pairs
  std::map<int, Known> gpus;
};

Registry& registry() {
  static Registry all;
  return all;
}

int32_t libraryVersion() { return cublasLtStatus().found ? static_cast<int32_t>(cublasLtStatus().version) : 0; }

/** Whether a way that was read from outside is one that there is. */
bool isWay(const GemmChoice& choice) {
  const auto& n = choice.numbers;
  switch (choice.way) {
    case Way::usual:
    case Way::mma: return true;
    case Way::wgmma:
      return n[0] >= 64 && n[0] <= 256 && (n[1] == 1 || n[1] == 2) && n[2] >= 1 && n[2] <= 8;
    case Way::cublasLt: return n[0] >= 0 && n[0] < cublasLtProposals;
    default: return false;
  }
}

void adoptOffered(Known& known) {
  for (size_t at = 0; at + gemmRecordNumbers <= known.offered.size(); at += gemmRecordNumbers) {
    const int32_t* record = known.offered.data() + at;
    if (*record++ != libraryVersion()) continue;
    Kind kind;
    GemmChoice choice;
    std::copy_n(record, kind.size(), kind.begin());
    record += kind.size();
    choice.way = static_cast<Way>(*record++);
    std::copy_n(record, numbersOfChoice, choice.numbers.begin());
    if (isWay(choice)) known.choices.try_emplace(kind, choice);
  }
  known.offered.clear();
}

void remember(Known& known, const Kind& kind, const GemmChoice& choice) {
  known.choices[kind] = choice;
  known.fresh.push_back(libraryVersion());
  known.fresh.insert(known.fresh.end(), kind.begin(), kind.end());
  known.fresh.push_back(static_cast<int32_t>(choice.way));
  known.fresh.insert(known.fresh.end(), choice.numbers.begin(), choice.numbers.end());
}

/** Reads so much memory that the L2 cache holds nothing else: in a step, other commands stand between two uses of a weight. */
__global__ void sweep(const uint4* memory, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    asm volatile("{\n.reg .u32 x, y, z, w;\nld.global.v4.u32 {x, y, z, w}, [%0];\n}" ::"l"(memory + i) : "memory");
  }
}

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "timing a product"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "timing a product"); }
  float millisecondsSince(const Event& start) const {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "timing a product");
    return milliseconds;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

struct Trial {
  GemmChoice choice;
  Event begin, end;
  std::vector<float> times;
  explicit Trial(const GemmChoice& c) : choice(c) {}
  float median() {
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};

/** The fastest of these ways on these operands; all of them write c. `sweptBytes` of the scratch are read in between. */
GemmChoice timeWays(const std::vector<GemmChoice>& ways, const GemmArgs& args, const Context& context, size_t sweptBytes) {
  std::vector<std::unique_ptr<Trial>> trials;
  for (const GemmChoice& way : ways)  // loads its code, too
    if (multiplyBy(way, args, context)) trials.push_back(std::make_unique<Trial>(way));
  int rounds = manyRounds;
  for (int round = 0; round < rounds && trials.size() > 1; ++round) {
    for (auto& trial : trials) {
      sweep<<<context.gpu->multiprocessors * 4, 256, 0, context.stream>>>(static_cast<const uint4*>(context.workspace),
                                                                        sweptBytes / sizeof(uint4));
      trial->begin.record(context.stream);
      multiplyBy(trial->choice, args, context);
      trial->end.record(context.stream);
    }
    check(cudaStreamSynchronize(context.stream), "timing a product");
    float best = 1e30f;
    for (auto& trial : trials) {
      trial->times.push_back(trial->end.millisecondsSince(trial->begin));
      best = std::min(best, trial->times.back());
    }
    if (round > 0) continue;
    if (best > longProduct) rounds = fewRounds;
    const auto bad = [&](const std::unique_ptr<Trial>& trial) { return trial->times[0] > hopeless * best; };
    trials.erase(std::remove_if(trials.begin() + 1, trials.end(), bad), trials.end());
  }
  if (trials.size() < 2) return trials.empty() ? ways.front() : trials.front()->choice;
  const auto faster = [](const std::unique_ptr<Trial>& x, const std::unique_ptr<Trial>& y) { return x->median() < y->median(); };
  Trial& usual = *trials.front();
  Trial& best = **std::min_element(trials.begin() + 1, trials.end(), faster);
  return best.median() < gain * usual.median() ? best.choice : usual.choice;
}

/** The same product with its result in the second part of the scratch; false where there is no room. */
bool redirect(GemmArgs& args, Context& context) {
  constexpr size_t kept = size_t{32} << 20;  // for split products and for the library
  View& c = args.c;
  const View target{static_cast<std::byte*>(context.workspace) + kept, c.dtype, c.rows, c.cols, (c.cols + 7) / 8 * 8};
  if (context.workspaceBytes < kept + static_cast<size_t>(target.rows * target.ld) * bytesPerElement(c.dtype)) return false;
  if (args.accumulate) args.add = c;
  args.accumulate = false;
  c = target;
  context.workspaceBytes = kept;
  return true;
}

bool isRecording(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "asking whether a graph is recorded");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

int64_t classOfRows(int64_t rows) {
  int64_t step = 128;
  while (step * 8 < rows) step *= 2;
  return (rows + step - 1) / step * step;
}

std::vector<GemmChoice> waysOf(const GemmArgs& args, const Context& context) {
  std::vector<GemmChoice> ways{{}};
  const bool hopper = context.gpu->capability == 90, library = cublasLtStatus().found;
  if (hopper)
    for (const sm90::WgmmaTiling& t : sm90::rankTilings(args, context)) {
      if (ways.size() > ownTilings) break;
      ways.push_back({Way::wgmma, {t.tileN, t.cluster, t.shares, t.loose ? 1 : 0}});
    }
  if (hopper && ways.size() > 1) ways.erase(ways.begin() + 1);  // the first is the usual way
  if (!hopper && library) ways.push_back({Way::mma, {}});
  for (int i = hopper ? 0 : 1; library && i < libraryProposals; ++i) ways.push_back({Way::cublasLt, {i}});
  return ways;
}

GemmChoice fastestWay(const GemmArgs& args, const Context& context) {
  if (!worthTiming(args)) return {};
  const std::lock_guard lock(registry().mutex);
  Known& known = registry().gpus[context.gpu->index];
  if (!known.offered.empty()) adoptOffered(known);
  const Kind kind = kindOf(args);
  const auto found = known.choices.find(kind);
  if (found != known.choices.end()) return found->second;
  if (isRecording(context.stream)) return {};
  GemmArgs trial = args;
  Context there = context;
  if (inPlace(args) && !redirect(trial, there)) return {};
  const GemmChoice choice = timeWays(waysOf(args, context), trial, there, context.workspaceBytes);
  remember(known, kind, choice);
  return choice;
}

void adoptGemmChoices(int gpu, const int32_t* numbers, size_t count) {
  const std::lock_guard lock(registry().mutex);
  std::vector<int32_t>& offered = registry().gpus[gpu].offered;
  offered.insert(offered.end(), numbers, numbers + count / gemmRecordNumbers * gemmRecordNumbers);
}

std::vector<int32_t> takeGemmChoices(int gpu) {
  const std::lock_guard lock(registry().mutex);
  return std::exchange(registry().gpus[gpu].fresh, {});
}

}  // namespace unsloth::cuda
