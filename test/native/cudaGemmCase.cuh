#pragma once
#include <array>
#include <string>

#include "../../kernels/cuda/gemm.h"
#include "../../kernels/cuda/sm90/gemmWgmma.h"
#include "cudaTest.h"

using namespace unsloth;
using namespace unsloth::cuda;
using unsloth::cuda::test::fillNormal;

/** Products with operands of random numbers, for tests and measurements of ways to compute them. */
namespace {

/** Device memory handed out piece by piece and all given back at once. */
class Pool {
 public:
  explicit Pool(size_t bytes) : bytes_(bytes) { check(cudaMalloc(&base_, bytes), "cudaMalloc"); }
  void* take(size_t bytes) {
    void* const piece = static_cast<char*>(base_) + used_;
    used_ += (bytes + 1023) / 1024 * 1024;
    if (used_ > bytes_) {
      std::printf("the pool is too small\n");
      std::exit(1);
    }
    return piece;
  }
  void reset() { used_ = 0; }
  View matrix(DType type, int64_t rows, int64_t cols, int64_t ld, float scale) {
    const int64_t count = (rows + 1) * ld;
    View v{take(count * bytesPerElement(type)), type, rows, cols, ld};
    fillNormal<<<512, 256>>>(v.data, type, count, scale, ++seed_);
    return v;
  }

 private:
  void* base_ = nullptr;
  size_t bytes_, used_ = 0;
  uint64_t seed_ = 0;
};

struct Case {
  int mode;
  int64_t m, n, k;
  DType in = DType::BF16, out = DType::BF16;
  bool bias = false, add = false, accumulate = false;
  int terms = 0;
  int64_t rank = 16;
  float alpha = 1, termAlpha = 1;
};

template <class T>
__global__ void poison(T* out, int64_t rows, int64_t cols, int64_t ld, int64_t keepRows) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < (rows + 1) * ld; i += int64_t{gridDim.x} * blockDim.x) {
    const bool inside = i / ld < rows && i % ld < cols;
    if (!inside) out[i] = narrow<T>(7.0f);
    else if (i / ld >= keepRows) out[i] = narrow<T>(__int_as_float(0x7fc00000));
  }
}

void poisonView(const View& v, bool keep) {
  const int64_t rows = keep ? v.rows : 0;
  if (v.dtype == DType::F32) poison<<<512, 256>>>(static_cast<float*>(v.data), v.rows, v.cols, v.ld, rows);
  else if (v.dtype == DType::F16) poison<<<512, 256>>>(static_cast<__half*>(v.data), v.rows, v.cols, v.ld, rows);
  else poison<<<512, 256>>>(static_cast<bf16*>(v.data), v.rows, v.cols, v.ld, rows);
}

GemmArgs build(Pool& pool, const Case& c, int64_t padding = 8) {
  GemmArgs g;
  g.mode = c.mode;
  g.m = c.m, g.n = c.n, g.k = c.k;
  g.alpha = c.alpha;
  g.accumulate = c.accumulate;
  const float scale = 1 / std::sqrt(static_cast<float>(c.k));
  g.a = c.mode == 2 ? pool.matrix(c.in, c.k, c.m, (c.m + 7) / 8 * 8 + padding, 1) : pool.matrix(c.in, c.m, c.k, c.k + padding, 1);
  g.b = c.mode == 0 ? pool.matrix(c.in, c.n, c.k, c.k + padding, scale) : pool.matrix(c.in, c.k, c.n, c.n + padding, scale);
  g.c = pool.matrix(c.out, c.m, c.n, c.n + padding, 1);
  if (c.add) g.add = pool.matrix(c.out, c.m, c.n, c.n + 2 * padding, 1);
  if (c.bias) g.bias = pool.matrix(c.in, 1, c.n, c.n, 1);
  for (int j = 0; j < c.terms; ++j) {
    GemmTerm t;
    t.column = c.n * j / c.terms / 8 * 8;
    t.width = c.n * (j + 1) / c.terms / 8 * 8 - t.column;
    t.rank = c.rank;
    t.alpha = c.termAlpha;
    t.a = pool.matrix(c.in, c.m, c.rank, c.rank + padding, 1);
    t.b = c.mode == 0 ? pool.matrix(c.in, t.width, c.rank, c.rank, 0.25f) : pool.matrix(c.in, c.rank, t.width, t.width, 0.25f);
    g.terms.push_back(t);
  }
  return g;
}

std::string nameOf(const Case& c) {
  static const char* const modes[] = {"NT", "NN", "TN"};
  static const char* const types[] = {"f32", "bf16", "f16"};
  char text[160];
  std::snprintf(text, sizeof text, "%s %ldx%ldx%ld %s->%s%s%s%s terms %d r%ld alpha %g", modes[c.mode], c.m, c.n, c.k,
                types[static_cast<int>(c.in)], types[static_cast<int>(c.out)], c.bias ? " bias" : "", c.add ? " add" : "",
                c.accumulate ? " acc" : "", c.terms, c.rank, c.alpha);
  return text;
}

}  // namespace
