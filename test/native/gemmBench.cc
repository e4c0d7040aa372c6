// Speed of gemm, in GFLOP/s, best of several runs; beside OpenBLAS when built with it, in turns within one process:
//   cmake --preset cpu -S kernels -DUNSLOTH_TESTS=ON && cmake --build build/cpu --target gemmBench && build/cpu/gemmBench 2
// OpenBLAS does not know every processor; OPENBLAS_CORETYPE=SkylakeX makes it use AVX-512.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../kernels/cpu/gemm.h"

#ifdef UNSLOTH_OPENBLAS
extern "C" {
void cblas_sgemm(int order, int transA, int transB, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
                 int ldb, float beta, float* c, int ldc);
void openblas_set_num_threads(int threads);
char* openblas_get_corename(void);
}
#endif

using namespace unsloth;
using namespace unsloth::cpu;

namespace {

struct Shape {
  const char* name;
  GemmMode mode;
  int64_t m, n, k;
  DType dtypeB;
};

template <class Run>
double seconds(const Run& run) {
  const auto before = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  ThreadPool pool(threads);
  std::printf("%d threads; float32 %s, bfloat16 %s", threads, gemmKernelName(Precision::float32),
              gemmKernelName(Precision::bfloat16));
#ifdef UNSLOTH_OPENBLAS
  openblas_set_num_threads(threads);
  std::printf(", OpenBLAS %s", openblas_get_corename());
#endif
  std::printf("\n%-28s %6s %6s %6s %9s %9s %9s\n", "", "m", "n", "k", "OpenBLAS", "float32", "bfloat16");

  const GemmMode NT = GemmMode::NT, NN = GemmMode::NN, TN = GemmMode::TN;
  const DType F32 = DType::F32, BF16 = DType::BF16;
  const Shape shapes[] = {
      {"square", NT, 2048, 2048, 2048, F32},
      {"square", NN, 2048, 2048, 2048, F32},
      {"square", TN, 2048, 2048, 2048, F32},
      {"qkv", NT, 512, 1152, 896, BF16},
      {"o", NT, 512, 896, 896, BF16},
      {"gate and up", NT, 512, 9728, 896, BF16},
      {"down", NT, 512, 896, 4864, BF16},
      {"qkv gradient", NN, 512, 896, 1152, BF16},
      {"gate and up gradient", NN, 512, 896, 9728, BF16},
      {"down gradient", NN, 512, 4864, 896, BF16},
      {"head slice", NT, 512, 4096, 896, BF16},
      {"head slice gradient", NN, 512, 896, 4096, BF16},
      {"LoRA u", NT, 512, 16, 896, F32},
      {"LoRA u, down", NT, 512, 16, 4864, F32},
      {"LoRA du", NN, 512, 16, 4864, F32},
      {"LoRA da", TN, 16, 896, 512, F32},
      {"LoRA da, down", TN, 16, 4864, 512, F32},
      {"LoRA db", TN, 4864, 16, 512, F32},
      {"weight gradient", TN, 896, 4864, 512, F32},
      {"decode", NT, 1, 9728, 896, BF16},
      {"decode", NT, 8, 9728, 896, BF16},
      {"decode head", NT, 1, 151936, 896, BF16},
  };
  for (const Shape& s : shapes) {
    const auto count = [](int64_t x, int64_t y) { return static_cast<size_t>(x * y); };
    std::vector<float> a(count(s.m, s.k)), b(count(s.n, s.k)), c(count(s.m, s.n));
    std::vector<uint16_t> half(s.dtypeB == BF16 ? b.size() : 0);
    uint32_t state = 1;
    const auto next = [&] { return static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1; };
    for (float& x : a) x = next();
    for (float& x : b) x = next();
    for (size_t i = 0; i < half.size(); ++i) half[i] = floatToBf16(b[i]);
    Gemm g;
    g.mode = s.mode;
    const int64_t rowsA = s.mode == TN ? s.k : s.m, rowsB = s.mode == NT ? s.n : s.k;
    g.a = {a.data(), F32, rowsA, s.m * s.k / rowsA, s.m * s.k / rowsA};
    g.b = {b.data(), F32, rowsB, s.n * s.k / rowsB, s.n * s.k / rowsB};
    if (s.dtypeB == BF16) {
      g.b.data = half.data();
      g.b.dtype = BF16;
    }
    g.c = {c.data(), F32, s.m, s.n, s.n};
    const double flops = 2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k);
    const int repeats = static_cast<int>(std::clamp(3e10 / flops, 4.0, 60.0));
    double best[3] = {1e9, 1e9, 1e9};
    for (int i = 0; i < repeats; ++i) {
#ifdef UNSLOTH_OPENBLAS
      constexpr int rowMajor = 101, plain = 111, transposed = 112;
      const auto whole = [](int64_t x) { return static_cast<int>(x); };
      best[0] = std::min(best[0], seconds([&] {
        cblas_sgemm(rowMajor, s.mode == TN ? transposed : plain, s.mode == NT ? transposed : plain, whole(s.m), whole(s.n),
                    whole(s.k), 1, a.data(), whole(g.a.ld), b.data(), whole(g.b.ld), 0, c.data(), whole(s.n));
      }));
#endif
      for (const int precision : {0, 1}) {
        g.precision = static_cast<Precision>(precision);
        best[1 + precision] = std::min(best[1 + precision], seconds([&] { gemm(g, pool); }));
      }
    }
    static const char* const modes[] = {"NT", "NN", "TN"};
    std::printf("%-2s %-25s %6ld %6ld %6ld", modes[static_cast<int>(s.mode)], s.name, static_cast<long>(s.m),
                static_cast<long>(s.n), static_cast<long>(s.k));
    for (const double time : best) std::printf(time == 1e9 ? "         -" : " %9.1f", flops / time * 1e-9);
    std::printf("\n");
  }
}
