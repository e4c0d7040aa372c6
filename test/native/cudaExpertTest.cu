// Products of mixtures of experts on a GPU: kernels/cuda/expertGemm.h against a plain kernel; `bench`: their speed.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../kernels/cuda/element.cuh"
#include "../../kernels/cuda/expertGemm.h"
#include "cudaTest.h"

using namespace unsloth;
using namespace unsloth::cuda;

namespace {

__device__ float load(const View& v, int64_t r, int64_t c) {
  const int64_t i = r * v.ld + c;
  return v.dtype == DType::F32 ? static_cast<const float*>(v.data)[i] : widen(static_cast<const bf16*>(v.data)[i]);
}

/** Element (r, c) of matrix e of a stack. */
__device__ float loadOf(const View& v, int experts, bool byColumns, int64_t e, int64_t r, int64_t c) {
  return byColumns ? load(v, r, c * experts + e) : load(v, e * (v.rows / experts) + r, c);
}

/** One thread per element of c, as engine/graph/commands.ts defines expertGemm. */
__global__ void plain(ExpertGemmArgs g, float* out) {
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (column >= g.c.cols) return;
  const int experts = static_cast<int>(g.experts);
  const bool main = g.columns == ExpertColumns::main, low = g.columns == ExpertColumns::low;
  double sum = 0;
  if (g.mode == 2) {
    const int64_t e = main ? column % experts : row / g.m, r = main ? row : row % g.m, c = main ? column / experts : column;
    for (int s = g.first[e]; s < g.first[e + 1]; ++s) sum += double(load(g.a, s, r)) * load(g.b, s, c);
    out[row * g.c.cols + column] = static_cast<float>(load(g.c, row, column) + g.alpha * sum);
    return;
  }
  int e = 0;
  while (row >= g.first[e + 1]) ++e;
  for (int64_t i = 0; i < g.k; ++i)
    sum += double(load(g.a, row, i)) *
           (g.mode == 0 ? loadOf(g.b, experts, main, e, column, i) : loadOf(g.b, experts, main, e, i, column));
  sum *= g.alpha;
  double part = 0;
  for (int64_t i = 0; i < g.lowA.cols; ++i)
    part += double(load(g.lowA, row, i)) *
            (g.mode == 0 ? loadOf(g.lowB, experts, low, e, column, i) : loadOf(g.lowB, experts, low, e, i, column));
  out[row * g.c.cols + column] = static_cast<float>(sum + g.lowAlpha * part);
}

__device__ uint32_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>(x >> 32);
}

template <class T>
__global__ void fill(T* out, int64_t count, uint64_t seed, float scale) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
    out[i] = narrow<T>(scale * (mix(i + seed * 0x9e3779b97f4a7c15ull) * 4.6566129e-10f - 1) * 1.7320508f);
}

__global__ void compare(View got, const float* wanted, double* sums) {
  double error = 0, size = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < got.rows * got.cols;
       i += int64_t{gridDim.x} * blockDim.x) {
    const double w = wanted[i], d = load(got, i / got.cols, i % got.cols) - w;
    error += d == d ? d * d : 1e30;
    size += w * w;
  }
  atomicAdd(sums, error);
  atomicAdd(sums + 1, size);
}

struct Case {
  int mode;
  int64_t slots, experts, n, k;  // mode 2: c_e is [n, k]
  int64_t rank = 0;
  ExpertColumns columns = ExpertColumns::none;
  bool bf = true;
  float alpha = 1, lowAlpha = 1;
};

class Memory {
 public:
  explicit Memory(size_t bytes) { check(cudaMalloc(&base_, bytes), "cudaMalloc"); }
  void reset() { used_ = 0; }
  void* take(size_t bytes) {
    void* const piece = base_ + used_;
    used_ += (bytes + 1023) / 1024 * 1024;
    return piece;
  }
  View matrix(DType type, int64_t rows, int64_t cols, float scale) {
    const int64_t ld = (cols + 7) / 8 * 8;
    View v{take(rows * ld * bytesPerElement(type)), type, rows, cols, ld};
    if (type == DType::F32) fill<<<512, 256>>>(static_cast<float*>(v.data), rows * ld, ++seed_, scale);
    else fill<<<512, 256>>>(static_cast<bf16*>(v.data), rows * ld, ++seed_, scale);
    return v;
  }

 private:
  char* base_ = nullptr;
  size_t used_ = 0;
  uint64_t seed_ = 0;
};

ExpertGemmArgs build(Memory& memory, const Case& c) {
  ExpertGemmArgs g;
  const DType type = c.bf ? DType::BF16 : DType::F32;
  const bool main = c.columns == ExpertColumns::main, low = c.columns == ExpertColumns::low;
  const auto stack = [&](DType t, int64_t rows, int64_t cols, bool byColumns, float scale) {
    return byColumns ? memory.matrix(t, rows, cols * c.experts, scale) : memory.matrix(t, rows * c.experts, cols, scale);
  };
  g.mode = c.mode;
  g.columns = c.columns;
  g.experts = c.experts;
  g.alpha = c.alpha;
  g.lowAlpha = c.lowAlpha;
  std::vector<int32_t> first(c.experts + 1, 0);  // uneven shares, some experts without a slot
  std::vector<double> share(c.experts);
  double total = 0;
  for (int64_t e = 0; e < c.experts; ++e) total += share[e] = e % 5 == 3 ? 0 : 1 + (e * 7 % 4);
  double sum = 0;
  for (int64_t e = 0; e < c.experts; ++e) first[e + 1] = static_cast<int32_t>(std::lround((sum += share[e]) / total * c.slots));
  auto* const device = static_cast<int32_t*>(memory.take(4 * first.size()));
  check(cudaMemcpy(device, first.data(), 4 * first.size(), cudaMemcpyHostToDevice), "first");
  g.first = device;
  if (c.mode == 2) {
    g.m = c.n, g.n = c.k, g.k = c.slots;
    g.a = memory.matrix(type, c.slots, g.m, 1);
    g.b = memory.matrix(type, c.slots, g.n, 1);
    g.c = stack(DType::F32, g.m, g.n, main, 1);
    return g;
  }
  g.m = c.slots, g.n = c.n, g.k = c.k;
  const float scale = 1 / std::sqrt(static_cast<float>(c.k));
  g.a = memory.matrix(type, c.slots, c.k, 1);
  g.b = c.mode == 0 ? stack(type, c.n, c.k, main, scale) : stack(type, c.k, c.n, main, scale);
  g.c = memory.matrix(type, c.slots, c.n, 1);
  if (c.rank > 0) {
    g.lowA = memory.matrix(type, c.slots, c.rank, 1);
    g.lowB = c.mode == 0 ? stack(type, c.n, c.rank, low, 0.25f) : stack(type, c.rank, c.n, low, 0.25f);
  }
  return g;
}

/** ‖got − wanted‖ / ‖wanted‖; −1 where it is not taken. */
double errorOf(Memory& memory, const Case& c, const Context& context, bool simple) {
  memory.reset();
  const ExpertGemmArgs g = build(memory, c);
  auto* const wanted = static_cast<float*>(memory.take(g.c.rows * g.c.cols * 4));
  auto* const sums = static_cast<double*>(memory.take(16));
  check(cudaMemset(sums, 0, 16), "memset");
  plain<<<dim3((g.c.cols + 127) / 128, g.c.rows), 128>>>(g, wanted);
  check(cudaDeviceSynchronize(), "plain");
  if (simple) expertGemmSimple(g, context);
  else if (!expertGemmWgmma(g, context)) return -1;
  check(cudaDeviceSynchronize(), "product");
  compare<<<256, 256>>>(g.c, wanted, sums);
  double host[2];
  check(cudaMemcpy(host, sums, 16, cudaMemcpyDeviceToHost), "sums");
  return std::sqrt(host[0] / host[1]);
}

double microseconds(Memory& memory, const Case& c, const Context& context, bool simple) {
  memory.reset();
  const ExpertGemmArgs g = build(memory, c);
  const auto run = [&] { simple ? expertGemmSimple(g, context) : void(expertGemmWgmma(g, context)); };
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  for (int i = 0; i < 2; ++i) run();
  cudaEventRecord(begin, context.stream);
  const int launches = simple ? 2 : 10;
  for (int i = 0; i < launches; ++i) run();
  cudaEventRecord(end, context.stream);
  check(cudaDeviceSynchronize(), "bench");
  float ms = 0;
  cudaEventElapsedTime(&ms, begin, end);
  return 1e3 * ms / launches;
}

std::string nameOf(const Case& c) {
  static const char* const columns[] = {"", " main by columns", " low by columns"};
  return std::string(c.bf ? "bf16" : "fp32") + " mode " + std::to_string(c.mode) + " slots " + std::to_string(c.slots) +
         " experts " + std::to_string(c.experts) + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) + " rank " +
         std::to_string(c.rank) + columns[static_cast<int>(c.columns)];
}

int checkAll(Memory& memory, const Context& context) {
  std::vector<Case> cases;
  for (const bool bf : {true, false})
    for (const auto& [slots, experts, n, k] : std::vector<std::array<int64_t, 4>>{{64, 4, 64, 64},
                                                                                  {1000, 8, 200, 72},
                                                                                  {300, 4, 512, 256},
                                                                                  {2048, 32, 384, 128},
                                                                                  {17, 2, 16, 2048},
                                                                                  {4096, 16, 768, 512}}) {
      for (const int mode : {0, 1})
        for (const auto columns : {ExpertColumns::none, ExpertColumns::main, ExpertColumns::low})
          for (const int64_t rank : {0, 16, 72}) {
            if (rank == 0 && columns == ExpertColumns::low) continue;
            cases.push_back({mode, slots, experts, n, k, rank, columns, bf, 1.5f, 0.75f});
          }
      for (const auto columns : {ExpertColumns::none, ExpertColumns::main})
        for (const int64_t m : {n, int64_t{16}}) cases.push_back({2, slots, experts, m, k, 0, columns, bf, 0.5f});
    }
  int checks = 0, failures = 0;
  for (const bool simple : {true, false}) {
    int done = 0, refused = 0;
    double worst16 = 0, worst32 = 0;
    for (const Case& c : cases) {
      const double error = errorOf(memory, c, context, simple);
      if (error < 0) {
        ++refused;
        continue;
      }
      ++done, ++checks;
      const bool rounded = c.bf && c.mode != 2;
      (rounded ? worst16 : worst32) = std::max(rounded ? worst16 : worst32, error);
      if (!(error < (rounded ? 4e-3 : 2e-5)) && ++failures <= 12)
        std::printf("WRONG %s %s: %.3g\n", simple ? "simple" : "wgmma", nameOf(c).c_str(), error);
    }
    std::printf("%-7s %d products, %d refused; worst error %.2e (16 bits) %.2e (fp32)\n", simple ? "simple" : "wgmma", done,
                refused, worst16, worst32);
  }
  return test::finish("cudaExpertTest", checks, failures);
}

void bench(Memory& memory, const Context& context) {
  // Qwen3-30B-A3B: 128 experts, 8 of them for a token, hidden 2048, intermediate 768; Mixtral-like: 8 experts, 2 for a token.
  const ExpertColumns low = ExpertColumns::low, main = ExpertColumns::main, none = ExpertColumns::none;
  for (const Case& c : std::vector<Case>{{0, 65536, 128, 1536, 2048, 16, low},
                                         {1, 65536, 128, 2048, 1536, 16, none},
                                         {0, 65536, 128, 2048, 768, 16, low},
                                         {0, 65536, 128, 16, 2048},
                                         {1, 65536, 128, 16, 1536, 0, main},
                                         {2, 65536, 128, 16, 2048},
                                         {2, 65536, 128, 1536, 16, 0, main},
                                         {2, 65536, 128, 1536, 2048},
                                         {0, 16384, 8, 28672, 4096, 16, low},
                                         {1, 16384, 8, 4096, 28672, 16, none}}) {
    const double fast = microseconds(memory, c, context, false), flops = 2.0 * c.slots * c.n * c.k;
    const double slow = flops > 5e11 ? 0 : microseconds(memory, c, context, true);
    std::printf("%-80s %9.1f us %6.0f TFLOP/s; simple %9.1f us %6.1f TFLOP/s\n", nameOf(c).c_str(), fast, flops / fast / 1e6,
                slow, slow > 0 ? flops / slow / 1e6 : 0.0);
  }
}

}  // namespace

int main(int count, char** words) {
  return test::runProgram("cudaExpertTest", [&] {
    const GpuInfo gpu = test::readGpu();
    const Context context = test::openContext(gpu, size_t{64} << 20);
    Memory memory(size_t{8} << 30);
    if (count > 1 && std::string(words[1]) == "bench") return bench(memory, context), 0;
    return checkAll(memory, context);
  });
}
