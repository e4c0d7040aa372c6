// Checks attention and its gradient on the GPU against plain kernels that keep the whole score matrix in double precision: packed
// sequences of odd and zero lengths, grouped heads, windows, softcaps, caches longer than the queries, head dimensions 8 … 256.
// With the argument `bench` it then prints the speed of each candidate. Exit status 1 on a failure.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../../kernels/cuda/attention.h"
#include "../../kernels/cuda/element.cuh"
#include "../../kernels/cuda/ops.h"

using namespace unsloth;
using namespace unsloth::cuda;

namespace {

std::mt19937_64 generator(11);
int failures = 0, checks = 0;

/** Device memory that lives as long as the program's part that needs it. */
struct Memory {
  void* data = nullptr;
  size_t bytes;
  explicit Memory(size_t size) : bytes(size) { check(cudaMalloc(&data, size + 256), "reserving memory"); }
  ~Memory() { cudaFree(data); }
  Memory(const Memory&) = delete;
};

__device__ float normalNumber(uint64_t seed, uint64_t i) {
  uint64_t x = seed * 0x9e3779b97f4a7c15ull + i * 0xbf58476d1ce4e5b9ull;
  x ^= x >> 31, x *= 0x94d049bb133111ebull, x ^= x >> 29, x *= 0xbf58476d1ce4e5b9ull, x ^= x >> 32;
  const float a = (static_cast<float>(x & 0xffffff) + 1) * 0x1p-24f, b = static_cast<float>(x >> 40) * 0x1p-24f;
  return sqrtf(-2 * logf(a)) * cospif(2 * b);
}

template <class T>
__global__ void fillNormal(T* x, int64_t count, uint64_t seed, float size) {
  for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) x[i] = narrow<T>(size * normalNumber(seed, i));
}

/** A matrix with `gap` more columns than it needs; the gap and whatever else is not written is NaN. */
struct Matrix {
  Memory memory;
  View view;
  Matrix(int64_t rows, int64_t cols, DType dtype, int64_t gap)
      : memory(static_cast<size_t>(rows * (cols + gap)) * bytesPerElement(dtype)), view{memory.data, dtype, rows, cols, cols + gap} {
    poison();
  }
  void poison() { check(cudaMemset(memory.data, 0xff, memory.bytes), "clearing"); }
  void normal(float size) {
    withType(view.dtype, "test", [&](auto tag) {
      using T = typename decltype(tag)::type;
      fillNormal<<<1024, 256>>>(static_cast<T*>(memory.data), view.rows * view.ld, generator(), size);
    });
  }
  View columns(int64_t first, int64_t count) const {
    View v = view;
    v.data = static_cast<std::byte*>(view.data) + static_cast<size_t>(first) * bytesPerElement(view.dtype);
    v.cols = count;
    return v;
  }
};

std::vector<float> read(const View& v) {
  const size_t width = bytesPerElement(v.dtype);
  std::vector<std::byte> bytes(static_cast<size_t>(v.rows * v.ld) * width);
  std::vector<float> out;
  if (v.rows == 0) return out;
  check(cudaMemcpy(bytes.data(), v.data, (static_cast<size_t>((v.rows - 1) * v.ld + v.cols)) * width, cudaMemcpyDeviceToHost), "reading");
  View host = v;
  host.data = bytes.data();
  for (int64_t r = 0; r < v.rows; ++r)
    for (int64_t c = 0; c < v.cols; ++c) out.push_back(loadElement(host, r, c));
  return out;
}

struct Problem {
  std::string name;
  DType dtype = DType::BF16;
  int heads = 4, kvHeads = 4, headDim = 64;
  std::vector<int> queries, keys;  // of each sequence; keys empty: the same as queries
  int window = 0;
  float softcap = 0;
  bool cache = false;   // keys of all sequences stand in a cache with gaps, in another order
  int64_t oddGap = 8;  // columns between rows
};

/** All operands of a problem on the device. */
struct Operation {
  Problem p;
  int64_t n = 0, kvRows = 0;
  std::vector<int32_t> qStart{0}, kvStart, kvLength;
  std::unique_ptr<Matrix> qkv, kv, grads, kvGrads, o, dO, lse, delta, lists;
  AttentionArgs args;
  int64_t pairs = 0;

  explicit Operation(const Problem& problem) : p(problem) {
    const size_t count = p.queries.size();
    if (p.keys.empty()) p.keys = p.queries;
    kvStart.resize(count), kvLength = {p.keys.begin(), p.keys.end()};
    for (int length : p.queries) n += length, qStart.push_back(static_cast<int32_t>(n));
    for (size_t i = 0; i < count; ++i) {
      const size_t j = p.cache ? count - 1 - i : i;
      kvStart[j] = static_cast<int32_t>(kvRows + (p.cache ? 3 : 0));
      kvRows = kvStart[j] + kvLength[j] + (p.cache ? 5 : 0);
      for (int64_t i2 = 0; i2 < p.queries[j]; ++i2) {
        const int64_t seen = p.keys[j] - p.queries[j] + i2 + 1;
        pairs += p.window > 0 ? std::min<int64_t>(seen, p.window) : seen;
      }
    }
    const int64_t wide = static_cast<int64_t>(p.heads) * p.headDim, narrowCols = static_cast<int64_t>(p.kvHeads) * p.headDim;
    qkv = std::make_unique<Matrix>(n, wide + 2 * narrowCols, p.dtype, p.oddGap);
    grads = std::make_unique<Matrix>(n, wide + 2 * narrowCols, p.dtype, p.oddGap);
    const bool own = kvRows != n || p.cache;
    if (own) kv = std::make_unique<Matrix>(kvRows, 2 * narrowCols, p.dtype, p.oddGap), kvGrads = std::make_unique<Matrix>(kvRows, 2 * narrowCols, p.dtype, p.oddGap);
    o = std::make_unique<Matrix>(n, wide, p.dtype, p.oddGap), dO = std::make_unique<Matrix>(n, wide, p.dtype, 0);
    lse = std::make_unique<Matrix>(n, p.heads, DType::F32, p.oddGap % 8), delta = std::make_unique<Matrix>(n, p.heads, DType::F32, 1);
    const float size = p.softcap > 0 ? 2.0f : 1.0f;
    qkv->normal(size), dO->normal(1);
    if (kv) kv->normal(size);
    std::vector<int32_t> numbers = qStart;
    numbers.insert(numbers.end(), kvStart.begin(), kvStart.end());
    numbers.insert(numbers.end(), kvLength.begin(), kvLength.end());
    lists = std::make_unique<Matrix>(static_cast<int64_t>(numbers.size()), 1, DType::I32, 0);
    check(cudaMemcpy(lists->memory.data, numbers.data(), numbers.size() * 4, cudaMemcpyHostToDevice), "writing");

    AttentionArgs& a = args;
    a.q = qkv->columns(0, wide), a.dq = grads->columns(0, wide);
    a.k = own ? kv->columns(0, narrowCols) : qkv->columns(wide, narrowCols);
    a.v = own ? kv->columns(narrowCols, narrowCols) : qkv->columns(wide + narrowCols, narrowCols);
    a.dk = own ? kvGrads->columns(0, narrowCols) : grads->columns(wide, narrowCols);
    a.dv = own ? kvGrads->columns(narrowCols, narrowCols) : grads->columns(wide + narrowCols, narrowCols);
    a.o = o->view, a.lse = lse->view, a.delta = delta->view, a.dO = dO->view;
    a.qStart = static_cast<int32_t*>(lists->memory.data), a.kvStart = a.qStart + qStart.size(), a.kvLength = a.kvStart + count;
    a.sequences = static_cast<int>(count);
    a.heads = p.heads, a.kvHeads = p.kvHeads, a.group = p.heads / p.kvHeads, a.headDim = p.headDim;
    a.window = p.window, a.softcap = p.softcap, a.scale = 1 / std::sqrt(static_cast<float>(p.headDim));
  }
  double forwardFlops() const { return 4.0 * p.headDim * p.heads * static_cast<double>(pairs); }
};

/** The reference: everything in double precision, the score matrix [heads, n, keys] kept whole. */
struct Reference {
  double *score, *dScore, *lse, *o, *dq, *dk, *dv, *delta;
  int64_t n, kvRows, keys;
};

__device__ double element(const View& v, int64_t r, int64_t c) {
  const int64_t i = r * v.ld + c;
  if (v.dtype == DType::F32) return static_cast<const float*>(v.data)[i];
  return v.dtype == DType::BF16 ? widen(static_cast<const bf16*>(v.data)[i]) : widen(static_cast<const __half*>(v.data)[i]);
}
__device__ int sequenceOf(const AttentionArgs& a, int64_t row) {
  int j = 0;
  while (a.qStart[j + 1] <= row) ++j;
  return j;
}
#define EACH(index, count) for (int64_t index = blockIdx.x * 256ll + threadIdx.x; index < (count); index += gridDim.x * 256ll)

__global__ void referenceScores(AttentionArgs a, Reference r, bool gradient) {
  EACH(i, a.heads * r.n * r.keys) {
    const int64_t h = i / (r.n * r.keys), row = i / r.keys % r.n, t = i % r.keys;
    const int j = sequenceOf(a, row);
    const int64_t position = a.kvLength[j] - (a.qStart[j + 1] - a.qStart[j]) + row - a.qStart[j];
    const bool seen = t <= position && (a.window == 0 || position - t < a.window);
    double s = 0, dp = 0, slope = 1;
    if (seen)
      for (int c = 0; c < a.headDim; ++c) {
        s += element(a.q, row, h * a.headDim + c) * element(a.k, a.kvStart[j] + t, h / a.group * a.headDim + c);
        if (gradient) dp += element(a.dO, row, h * a.headDim + c) * element(a.v, a.kvStart[j] + t, h / a.group * a.headDim + c);
      }
    s *= a.scale;
    if (a.softcap > 0) {
      const double bent = tanh(s / a.softcap);
      slope = 1 - bent * bent, s = a.softcap * bent;
    }
    if (!gradient) {
      r.score[i] = seen ? s : -INFINITY;
      continue;
    }
    const double probability = seen ? exp(s - r.lse[row * a.heads + h]) : 0;
    r.score[i] = probability;
    r.dScore[i] = probability * (dp - r.delta[row * a.heads + h]) * slope * a.scale;
  }
}
__global__ void referenceLse(AttentionArgs a, Reference r) {
  EACH(i, a.heads * r.n) {
    const int64_t row = i / a.heads, h = i % a.heads;
    const double* s = r.score + (h * r.n + row) * r.keys;
    double most = -INFINITY, total = 0;
    for (int64_t t = 0; t < r.keys; ++t) most = fmax(most, s[t]);
    for (int64_t t = 0; t < r.keys; ++t) total += exp(s[t] - most);
    r.lse[i] = most + log(total);
  }
}
__global__ void referenceOut(AttentionArgs a, Reference r) {
  EACH(i, r.n * a.q.cols) {
    const int64_t row = i / a.q.cols, column = i % a.q.cols, h = column / a.headDim, from = a.kvStart[sequenceOf(a, row)];
    double sum = 0;
    for (int64_t t = 0; t < r.keys; ++t) {
      const double s = r.score[(h * r.n + row) * r.keys + t];
      if (s > -1e300) sum += exp(s - r.lse[row * a.heads + h]) * element(a.v, from + t, h / a.group * a.headDim + column % a.headDim);
    }
    r.o[i] = sum;
  }
}
__global__ void referenceDelta(AttentionArgs a, Reference r) {
  EACH(i, a.heads * r.n) {
    double sum = 0;
    for (int c = 0; c < a.headDim; ++c) sum += element(a.dO, i / a.heads, i % a.heads * a.headDim + c) * r.o[i * a.headDim + c];
    r.delta[i] = sum;
  }
}
__global__ void referenceGradients(AttentionArgs a, Reference r) {
  EACH(i, r.n * a.q.cols) {
    const int64_t row = i / a.q.cols, column = i % a.q.cols, h = column / a.headDim, from = a.kvStart[sequenceOf(a, row)];
    double sum = 0;
    for (int64_t t = 0; t < r.keys; ++t) {
      const double ds = r.dScore[(h * r.n + row) * r.keys + t];
      if (ds != 0) sum += ds * element(a.k, from + t, h / a.group * a.headDim + column % a.headDim);
    }
    r.dq[i] = sum;
  }
  EACH(i, r.kvRows * a.k.cols) {
    const int64_t at = i / a.k.cols, column = i % a.k.cols, c = column % a.headDim;
    double dk = 0, dv = 0;
    for (int j = 0; j < a.sequences; ++j) {
      const int64_t t = at - a.kvStart[j];
      if (t < 0 || t >= a.kvLength[j]) continue;
      for (int64_t row = a.qStart[j]; row < a.qStart[j + 1]; ++row)
        for (int64_t h = column / a.headDim * a.group; h < (column / a.headDim + 1) * a.group; ++h) {
          const int64_t s = (h * r.n + row) * r.keys + t;
          dk += r.dScore[s] * element(a.q, row, h * a.headDim + c), dv += r.score[s] * element(a.dO, row, h * a.headDim + c);
        }
    }
    r.dk[i] = dk, r.dv[i] = dv;
  }
}

void expectClose(const std::vector<float>& got, const double* device, double tolerance, const std::string& what) {
  std::vector<double> wanted(got.size());
  check(cudaMemcpy(wanted.data(), device, got.size() * 8, cudaMemcpyDeviceToHost), "reading");
  double error = 0, size = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) error += (got[i] - wanted[i]) * (got[i] - wanted[i]), size += wanted[i] * wanted[i];
  const double relative = std::sqrt(error / size);
  ++checks;
  if (relative <= tolerance) return;
  if (++failures <= 60) std::printf("FAIL %s: relative error %.3g, at most %.3g\n", what.c_str(), relative, tolerance);
}

using Forward = bool (*)(const AttentionArgs&, const Context&);
struct Candidate {
  const char* name;
  Forward forward, gradient;
  bool reduced;  // rounds probabilities to the type of q
};
bool simpleForward(const AttentionArgs& a, const Context& c) { return attentionSimple(a, c), true; }
bool simpleGradient(const AttentionArgs& a, const Context& c) { return attentionGradSimple(a, c), true; }
const Candidate candidates[] = {{"simple", simpleForward, simpleGradient, false},
                                {"mma", attentionMma, attentionGradMma, true},
                                {"wgmma", attentionWgmma, attentionGradWgmma, true},
                                {"decode", attentionDecode, nullptr, true}};

void runCase(const Problem& problem, const Context& context, bool twice) {
  Operation op(problem);
  const AttentionArgs& a = op.args;
  Reference r{};
  r.n = op.n, r.kvRows = op.kvRows, r.keys = 1;
  for (int32_t length : op.kvLength) r.keys = std::max<int64_t>(r.keys, length);
  const int64_t scores = a.heads * r.n * r.keys, wide = r.n * a.q.cols, slim = r.kvRows * a.k.cols, heads = r.n * a.heads;
  Memory memory(static_cast<size_t>(2 * scores + 2 * wide + 2 * slim + 2 * heads) * 8);
  double* next = static_cast<double*>(memory.data);
  const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
  r.score = take(scores), r.dScore = take(scores), r.o = take(wide), r.dq = take(wide), r.dk = take(slim), r.dv = take(slim), r.lse = take(heads), r.delta = take(heads);
  referenceScores<<<2048, 256>>>(a, r, false);
  referenceLse<<<256, 256>>>(a, r);
  referenceOut<<<1024, 256>>>(a, r);
  referenceDelta<<<256, 256>>>(a, r);
  referenceScores<<<2048, 256>>>(a, r, true);
  referenceGradients<<<2048, 256>>>(a, r);
  check(cudaDeviceSynchronize(), "computing the reference");

  for (const Candidate& candidate : candidates) {
    const double unit = a.q.dtype == DType::BF16 ? 1 : a.q.dtype == DType::F16 ? 0.125 : 1e-3;
    const std::string name = problem.name + " " + candidate.name;
    op.o->poison(), op.lse->poison();
    if (!candidate.forward(a, context)) continue;
    check(cudaDeviceSynchronize(), name.c_str());
    expectClose(read(a.o), r.o, 4e-3 * unit, name + " o");
    expectClose(read(a.lse), r.lse, a.q.dtype == DType::F32 ? 2e-6 : 1e-5, name + " lse");
    if (candidate.gradient == nullptr) continue;
    op.grads->poison(), op.delta->poison();
    if (op.kvGrads) op.kvGrads->poison();
    if (!candidate.gradient(a, context)) continue;
    check(cudaDeviceSynchronize(), name.c_str());
    expectClose(read(a.dq), r.dq, 7e-3 * unit, name + " dq");
    expectClose(read(a.dk), r.dk, 7e-3 * unit, name + " dk");
    expectClose(read(a.dv), r.dv, 7e-3 * unit, name + " dv");
    if (!twice) continue;
    const std::vector<float> first = read(op.grads->view);
    Context ordered = context;
    ordered.deterministic = true;
    candidate.gradient(a, ordered);
    const std::vector<float> once = read(a.dq);
    candidate.gradient(a, ordered);
    const std::vector<float> again = read(a.dq);
    ++checks;
    if (std::memcmp(once.data(), again.data(), once.size() * 4) != 0) ++failures, std::printf("FAIL %s: two runs differ\n", name.c_str());
  }
}

double milliseconds(const std::function<void()>& run) {
  cudaEvent_t from, to;
  check(cudaEventCreate(&from), "timing"), check(cudaEventCreate(&to), "timing");
  for (int i = 0; i < 3; ++i) run();
  std::vector<float> times;
  for (int i = 0; i < 10; ++i) {
    float ms;
    check(cudaEventRecord(from), "timing");
    run();
    check(cudaEventRecord(to), "timing"), check(cudaEventSynchronize(to), "timing"), check(cudaEventElapsedTime(&ms, from, to), "timing");
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void bench(const Problem& problem, const Context& context) {
  Operation op(problem);
  for (const Candidate& candidate : candidates) {
    const bool slow = std::strcmp(candidate.name, "simple") == 0;
    if (slow && op.forwardFlops() > 5e11) continue;
    op.o->poison();
    if (!candidate.forward(op.args, context)) continue;
    const double forward = milliseconds([&] { candidate.forward(op.args, context); });
    double gradient = 0;
    if (candidate.gradient != nullptr && !problem.cache && candidate.gradient(op.args, context)) gradient = milliseconds([&] { candidate.gradient(op.args, context); });
    const double kvBytes = 2.0 * static_cast<double>(op.kvRows * op.args.k.cols) * static_cast<double>(bytesPerElement(problem.dtype));
    std::printf("%-34s %-7s forward %9.1f us %6.1f TFLOP/s %5.0f GB/s kv   backward %9.1f us %6.1f TFLOP/s\n", problem.name.c_str(), candidate.name, forward * 1e3,
                op.forwardFlops() / forward * 1e-9, kvBytes / forward * 1e-6, gradient * 1e3, gradient > 0 ? 2.5 * op.forwardFlops() / gradient * 1e-9 : 0);
  }
}

std::vector<int> randomLengths(int total, double mean) {
  std::lognormal_distribution<double> lengths(std::log(mean) - 0.32, 0.8);
  std::vector<int> out;
  for (int left = total; left > 0; left -= out.back()) out.push_back(std::max(1, std::min(left, static_cast<int>(lengths(generator)))));
  return out;
}

}  // namespace

int main(int count, char** words) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "reading properties");
  GpuInfo gpu;
  gpu.capability = properties.major * 10 + properties.minor, gpu.multiprocessors = properties.multiProcessorCount;
  gpu.sharedPerBlock = properties.sharedMemPerBlockOptin, gpu.l2Bytes = static_cast<size_t>(properties.l2CacheSize);
  Memory workspace(size_t{1} << 30);
  Context context;
  context.gpu = &gpu, context.workspace = workspace.data, context.workspaceBytes = workspace.bytes;
  const bool onlyBench = count > 2;

  if (!onlyBench) {
    const std::vector<int> packed{1, 0, 77, 200, 0, 64, 129, 33, 0}, whole{333};
    for (DType dtype : {DType::BF16, DType::F16, DType::F32})
      for (int headDim : {64, 8, 40, 80, 96, 120, 128, 192, 256}) {
        const std::string name = std::string(dtype == DType::BF16 ? "bf16" : dtype == DType::F16 ? "f16" : "f32") + " d" + std::to_string(headDim);
        runCase({.name = name + " packed", .dtype = dtype, .heads = 4, .kvHeads = 4, .headDim = headDim, .queries = packed}, context, false);
        runCase({.name = name + " group 4", .dtype = dtype, .heads = 8, .kvHeads = 2, .headDim = headDim, .queries = whole}, context, true);
        runCase({.name = name + " group 7 window", .dtype = dtype, .heads = 7, .kvHeads = 1, .headDim = headDim, .queries = {300, 65, 0, 131}, .window = 50}, context, false);
        runCase({.name = name + " softcap window", .dtype = dtype, .heads = 4, .kvHeads = 2, .headDim = headDim, .queries = packed, .window = 130, .softcap = 5}, context, false);
        runCase({.name = name + " softcap", .dtype = dtype, .heads = 2, .kvHeads = 1, .headDim = headDim, .queries = {257}, .softcap = 20}, context, true);
        runCase({.name = name + " cache", .dtype = dtype, .heads = 8, .kvHeads = 2, .headDim = headDim, .queries = {1, 3, 0, 1, 70}, .keys = {500, 3, 0, 64, 193}, .cache = true}, context, false);
        runCase({.name = name + " cache window", .dtype = dtype, .heads = 4, .kvHeads = 4, .headDim = headDim, .queries = {1, 100, 1}, .keys = {300, 400, 7}, .window = 33, .softcap = 30, .cache = true}, context, false);
      }
    runCase({.name = "f32 d33", .dtype = DType::F32, .heads = 4, .kvHeads = 2, .headDim = 33, .queries = packed, .oddGap = 3}, context, false);
    runCase({.name = "bf16 d60 odd rows", .dtype = DType::BF16, .heads = 4, .kvHeads = 2, .headDim = 60, .queries = packed, .oddGap = 3}, context, false);
    runCase({.name = "bf16 many sequences", .dtype = DType::BF16, .heads = 2, .kvHeads = 1, .headDim = 64, .queries = randomLengths(3000, 11)}, context, false);
    std::printf("%d checks, %d failures\n", checks, failures);
    if (failures > 0) return 1;
  }
  if (count > 1) {
    bench({.name = "d128 2x8192 32/8", .heads = 32, .kvHeads = 8, .headDim = 128, .queries = {8192, 8192}, .oddGap = 0}, context);
    bench({.name = "d128 4x2048 32/8", .heads = 32, .kvHeads = 8, .headDim = 128, .queries = std::vector<int>(4, 2048), .oddGap = 0}, context);
    bench({.name = "d128 1x16384 32/8", .heads = 32, .kvHeads = 8, .headDim = 128, .queries = {16384}, .oddGap = 0}, context);
    bench({.name = "d64 2x8192 32/8", .heads = 32, .kvHeads = 8, .headDim = 64, .queries = {8192, 8192}, .oddGap = 0}, context);
    bench({.name = "d64 8x2048 32/8 (1B)", .heads = 32, .kvHeads = 8, .headDim = 64, .queries = std::vector<int>(8, 2048), .oddGap = 0}, context);
    bench({.name = "d64 8x2048 14/2 (0.5B)", .heads = 14, .kvHeads = 2, .headDim = 64, .queries = std::vector<int>(8, 2048), .oddGap = 0}, context);
    bench({.name = "d256 2x8192 8/4", .heads = 8, .kvHeads = 4, .headDim = 256, .queries = {8192, 8192}, .oddGap = 0}, context);
    bench({.name = "d256 2x8192 8/4 window 1024 cap", .heads = 8, .kvHeads = 4, .headDim = 256, .queries = {8192, 8192}, .window = 1024, .softcap = 50, .oddGap = 0}, context);
    bench({.name = "d96 2x8192 32/32", .heads = 32, .kvHeads = 32, .headDim = 96, .queries = {8192, 8192}, .oddGap = 0}, context);
    bench({.name = "d128 1x2048 32/8", .heads = 32, .kvHeads = 8, .headDim = 128, .queries = {2048}, .oddGap = 0}, context);
    bench({.name = "d128 mean 150, 8192 tokens", .heads = 32, .kvHeads = 8, .headDim = 128, .queries = randomLengths(8192, 150), .oddGap = 0}, context);
    bench({.name = "d128 mean 150, 1200 tokens", .heads = 32, .kvHeads = 8, .headDim = 128, .queries = randomLengths(1200, 150), .oddGap = 0}, context);
    bench({.name = "d128 decode 1 x 8192", .heads = 32, .kvHeads = 8, .headDim = 128, .queries = {1}, .keys = {8192}, .cache = true, .oddGap = 0}, context);
    bench({.name = "d128 decode 32 x 4096", .heads = 32, .kvHeads = 8, .headDim = 128, .queries = std::vector<int>(32, 1), .keys = std::vector<int>(32, 4096), .cache = true, .oddGap = 0}, context);
    bench({.name = "f32 d128 1x2048 32/8", .dtype = DType::F32, .heads = 32, .kvHeads = 8, .headDim = 128, .queries = {2048}, .oddGap = 0}, context);
  }
  return 0;
}
