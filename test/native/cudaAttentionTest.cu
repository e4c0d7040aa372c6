// Each way to compute attention and its gradient against the reference of cudaAttentionCase.cuh: packed sequences of odd and zero
// lengths, grouped heads, windows, softcaps, caches longer than the queries, head dimensions 8 … 256, all types. `bench` prints
// the speed of each instead.
#include <cstring>

#include "../../kernels/cuda/ops.h"
#include "cudaAttentionCase.cuh"

namespace unsloth::cuda {

using namespace test;

namespace {

const std::vector<int> packed{1, 0, 77, 200, 0, 64, 129, 33, 0};
std::mt19937_64 generator(11);
int failures = 0, checks = 0;

using Way = bool (*)(const AttentionArgs&, const Context&);
struct Candidate {
  const char* name;
  Way forward, gradient;
};
bool simpleForward(const AttentionArgs& a, const Context& c) { return attentionSimple(a, c), true; }
bool simpleGradient(const AttentionArgs& a, const Context& c) { return attentionGradSimple(a, c), true; }

/** The commands themselves, which choose one of the others. */
struct Command {
  std::vector<View> operands;
  int32_t ints[3];
  double floats[2];
  int64_t sequences;

  Command(const AttentionArgs& a, std::vector<View> first) : operands(std::move(first)) {
    const auto list = [](const int32_t* data, int64_t count) {
      return View{const_cast<int32_t*>(data), DType::I32, count, 1, 1};
    };
    const int64_t count = a.sequences;
    operands.insert(operands.end(), {a.q, a.k, a.v, list(a.qStart, count + 1), list(a.kvStart, count), list(a.kvLength, count)});
    ints[0] = a.heads, ints[1] = a.kvHeads, ints[2] = a.window;
    floats[0] = a.scale, floats[1] = a.softcap;
    sequences = count;
  }
  Call call() const { return {operands.data(), static_cast<int64_t>(operands.size()), ints, 3, floats, 2, {0, 0, sequences}}; }
};
bool commandForward(const AttentionArgs& a, const Context& c) { return ops::attention(Command(a, {a.o, a.lse}).call(), c), true; }
bool commandGradient(const AttentionArgs& a, const Context& c) {
  return ops::attentionGrad(Command(a, {a.dq, a.dk, a.dv, a.delta, a.dO, a.o, a.lse}).call(), c), true;
}

const Candidate candidates[] = {{"simple", simpleForward, simpleGradient},
                                {"mma", attentionMma, attentionGradMma},
                                {"wgmma", attentionWgmma, attentionGradWgmma},
                                {"decode", attentionDecode, nullptr},
                                {"command", commandForward, commandGradient}};

void expect(bool holds, const std::string& what) {
  ++checks;
  if (holds) return;
  if (++failures <= 60) std::printf("FAIL %s\n", what.c_str());
}

void expectClose(const View& got, const double* wanted, double tolerance, const std::string& what) {
  const std::vector<float> values = toHost(got);
  const double error = relativeError(values, toHost(wanted, values.size()));
  expect(error <= tolerance, what + ": relative error " + std::to_string(error) + ", at most " + std::to_string(tolerance));
}

void runCase(const AttentionProblem& problem, const Context& context, bool twice = false) {
  const AttentionCase c(problem);
  const AttentionArgs& a = c.args;
  const AttentionReference r = referenceOf(c);
  // In bf16 three roundings of 2⁻⁹ meet; f16 has three more bits.
  const double unit = a.q.dtype == DType::BF16 ? 1 : a.q.dtype == DType::F16 ? 0.125 : 1e-3;
  for (const Candidate& candidate : candidates) {
    const std::string name = problem.name + " " + candidate.name;
    poison(a.o), poison(a.lse);
    if (!candidate.forward(a, context)) continue;
    check(cudaDeviceSynchronize(), name.c_str());
    expectClose(a.o, r.o, 4e-3 * unit, name + " o");
    expectClose(a.lse, r.lse, a.q.dtype == DType::F32 ? 2e-6 : 1e-5, name + " lse");
    if (candidate.gradient == nullptr) continue;
    const auto gradient = [&](const Context& how) {
      poison(c.grads), poison(a.delta);
      if (problem.cache) poison(c.kvGrads);
      if (!candidate.gradient(a, how)) return false;
      check(cudaDeviceSynchronize(), name.c_str());
      expectClose(a.dq, r.dq, 7e-3 * unit, name + " dq");
      expectClose(a.dk, r.dk, 7e-3 * unit, name + " dk");
      expectClose(a.dv, r.dv, 7e-3 * unit, name + " dv");
      return true;
    };
    if (!gradient(context) || !twice) continue;
    Context ordered = context;
    ordered.deterministic = true;
    const auto all = [&] { return std::vector<std::vector<float>>{toHost(a.dq), toHost(a.dk), toHost(a.dv)}; };
    gradient(ordered);
    const auto once = all();
    gradient(ordered);
    expect(once == all(), name + ": two runs differ");
  }
  check(cudaFree(r.score), "freeing test memory");
}

std::vector<int> randomLengths(int total, double mean) {
  std::lognormal_distribution<double> lengths(std::log(mean) - 0.32, 0.8);
  std::vector<int> out;
  for (int left = total; left > 0; left -= out.back())
    out.push_back(std::max(1, std::min(left, static_cast<int>(lengths(generator)))));
  return out;
}

/** `prefix`: what is special about the GPU. */
void runCases(const Context& context, const std::string& prefix, std::initializer_list<int> headDims) {
  for (const auto& [type, dtype] : {std::pair{"bf16", DType::BF16}, {"f16", DType::F16}, {"f32", DType::F32}})
    for (int d : headDims) {
      const auto run = [&](const char* name, int heads, int kvHeads, std::vector<int> queries, int window, float softcap,
                           std::vector<int> keys = {}, bool twice = false) {
        runCase({prefix + type + " d" + std::to_string(d) + " " + name, dtype, heads, kvHeads, d, std::move(queries), keys,
                 window, softcap, !keys.empty()},
                context, twice);
      };
      run("packed", 4, 4, packed, 0, 0);
      run("group 4", 8, 2, {333}, 0, 0, {}, true);
      run("group 7, window", 7, 1, {300, 65, 0, 131}, 50, 0);
      run("softcap, window", 4, 2, packed, 130, 5);
      run("softcap", 2, 1, {257}, 0, 20, {}, true);
      run("cache", 8, 2, {1, 3, 0, 1, 70}, 0, 0, {500, 3, 0, 64, 193});
      run("cache, window, softcap", 4, 4, {1, 100, 1}, 33, 30, {300, 400, 7});
      run("long cache", 8, 2, {1, 1, 2, 0, 1}, 0, 0, {3000, 17, 900, 0, 1500});
    }
}

void runOddCases(const Context& context) {
  runCase({"f32 d33", DType::F32, 4, 2, 33, packed, {}, 0, 0, false, 3}, context);
  runCase({"bf16 d60, odd rows", DType::BF16, 4, 2, 60, packed, {}, 0, 0, false, 3}, context);
  runCase({"bf16 many sequences", DType::BF16, 2, 1, 64, randomLengths(3000, 11)}, context);
}

void bench(const AttentionProblem& problem, const Context& context) {
  const AttentionCase c(problem);
  const double flops = c.forwardFlops();
  const double bytes = 2.0 * static_cast<double>(c.kvRows * c.args.k.cols) * static_cast<double>(bytesPerElement(problem.dtype));
  for (const Candidate& candidate : candidates) {
    if (candidate.forward == simpleForward && problem.dtype != DType::F32) continue;
    if (candidate.forward == commandForward) continue;
    if (!candidate.forward(c.args, context)) continue;
    const auto time = [&](Way way) { return secondsInGraph(context.stream, 10, [&](int) { way(c.args, context); }); };
    const double forward = time(candidate.forward);
    std::printf("%-28s %-7s forward %9.1f us %6.1f TFLOP/s", problem.name.c_str(), candidate.name, forward * 1e6,
                flops / forward * 1e-12);
    if (problem.cache) {
      std::printf(" %6.0f GB/s of keys and values", bytes / forward * 1e-9);
    } else if (candidate.gradient != nullptr && candidate.gradient(c.args, context)) {
      const double gradient = time(candidate.gradient);
      std::printf("   backward %9.1f us %6.1f TFLOP/s", gradient * 1e6, 2.5 * flops / gradient * 1e-12);
    }
    std::printf("\n");
  }
}

/**
 * FlashAttention-2 on one H200, forward and backward TFLOP/s: d128 2×8192 337, 276; 8×2048 266, 204; d64 289, 237; d256 288, 223.
 */
void benches(const Context& context) {
  const auto run = [&](const char* name, int heads, int kvHeads, int d, std::vector<int> queries, int window = 0,
                       float softcap = 0, std::vector<int> keys = {}, DType dtype = DType::BF16) {
    bench({name, dtype, heads, kvHeads, d, std::move(queries), keys, window, softcap, !keys.empty(), 0}, context);
  };
  run("d128 2x8192 32/8", 32, 8, 128, {8192, 8192});
  run("d128 8x2048 32/8", 32, 8, 128, std::vector<int>(8, 2048));
  run("d128 1x16384 32/8", 32, 8, 128, {16384});
  run("d128 1x2048 32/8", 32, 8, 128, {2048});
  run("d64 2x8192 32/8", 32, 8, 64, {8192, 8192});
  run("d64 8x2048 32/8", 32, 8, 64, std::vector<int>(8, 2048));
  run("d64 8x2048 14/2", 14, 2, 64, std::vector<int>(8, 2048));
  run("d96 2x8192 32/32", 32, 32, 96, {8192, 8192});
  run("d256 2x8192 8/4", 8, 4, 256, {8192, 8192});
  run("d256 window 1024, softcap", 8, 4, 256, {8192, 8192}, 1024, 50);
  run("d128 8192 tokens, mean 150", 32, 8, 128, randomLengths(8192, 150));
  run("d128 1200 tokens, mean 150", 32, 8, 128, randomLengths(1200, 150));
  run("f32 d128 1x2048 32/8", 32, 8, 128, {2048}, 0, 0, {}, DType::F32);
  run("d128 decode 1x8192", 32, 8, 128, {1}, 0, 0, {8192});
  run("d128 decode 32x4096", 32, 8, 128, std::vector<int>(32, 1), 0, 0, std::vector<int>(32, 4096));
  run("d64 decode 1x8192 14/2", 14, 2, 64, {1}, 0, 0, {8192});
}

}  // namespace

}  // namespace unsloth::cuda

int main(int count, char** words) {
  using namespace unsloth::cuda;
  return test::runProgram("cudaAttentionTest", [&] {
    const GpuInfo gpu = test::readGpu();
    const Context context = test::openContext(gpu, size_t{1} << 30);
    if (count > 1 && std::strcmp(words[1], "bench") == 0) return benches(context), 0;
    runCases(context, "", {64, 8, 40, 80, 96, 120, 128, 192, 256});
    runOddCases(context);
    // What GPUs with less shared memory would run, and what runs with scratch for a counter alone.
    for (size_t kilobytes : {99, 64}) {
      GpuInfo small = gpu;
      small.sharedPerBlock = kilobytes * 1024;
      Context other = context;
      other.gpu = &small;
      if (kilobytes == 64) other.workspaceBytes = 256;
      runCases(other, std::to_string(kilobytes) + " KB ", {64, 96, 128, 256});
    }
    return test::finish("cudaAttentionTest", checks, failures);
  });
}
