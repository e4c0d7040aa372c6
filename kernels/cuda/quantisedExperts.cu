// A few slots through quantised experts, read as they are.
#include "gemmEpilogue.cuh"
#include "launch.cuh"
#include "quant4.cuh"
#include "quant8.cuh"
#include "quantised.h"

namespace unsloth::cuda {
namespace {

constexpr int threads = 256, perThread = 8;

/** How a product reads W: dot(row, k, x) = Σ W[row, k + i]·x[i] over `width` neighbours. */
template <int width>
struct Reader4 {
  using Source = Quant4View;
  const Quant4View& q;
  Tables& tables;
  Maxima maxima;
  int64_t cols;

  __device__ __forceinline__ Reader4(const Source& source, int64_t all, Tables& shared) : q(source), tables(shared), cols(all) {
    uint32_t rounding;
    maxima = prepare(q, tables, rounding);
  }
  __device__ __forceinline__ float dot(int64_t row, int64_t k, const float (&x)[width]) const {
    const int64_t at = row * cols + k;
    const float absmax = maxima(at / Quant4Layout::block, tables.map);
    if constexpr (width == 1) return tables.code[at % 2 == 0 ? q.codes[at / 2] >> 4 : q.codes[at / 2] & 15u] * absmax * x[0];
    const uint32_t word = __ldcs(reinterpret_cast<const uint32_t*>(q.codes) + at / 8);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < width; ++i) sum = fmaf(tables.code[codeOf(word, i)], x[i], sum);
    return sum * absmax;
  }
};

template <int width>
struct Reader8 {
  using Source = Quant8View;
  Matrix8 matrix;
  int64_t cols;

  __device__ __forceinline__ Reader8(const Source& source, int64_t all, Tables&) : matrix(source, all), cols(all) {}
  __device__ __forceinline__ float dot(int64_t row, int64_t k, const float (&x)[width]) const {
    const uint8_t* from = matrix.numbers + row * cols + k;
    const float scale = matrix.scale(row, k);
    if constexpr (width == 1) return matrix.divided(matrix.number(*from, 0) * scale) * x[0];
    const uint2 words = __ldcs(reinterpret_cast<const uint2*>(from));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < width; ++i) sum = fmaf(matrix.number(i < 4 ? words.x : words.y, i % 4), x[i], sum);
    return matrix.divided(sum * scale);
  }
};

/** A warp for each element of c: its lanes share k. Reads W once for each slot. */
template <template <int> class Reader, int width>
__global__ void __launch_bounds__(threads) expertSlots(const FewSlots g, const typename Reader<width>::Source source) {
  awaitPrior();
  __shared__ Tables tables;
  const Reader<width> reader(source, g.k, tables);
  const int64_t slot = blockIdx.y, row = int64_t{blockIdx.x} * (threads / 32) + threadIdx.x / 32;
  if (row >= g.n || slot < g.first[0] || slot >= g.first[g.experts]) return;
  int64_t e = 0;
  while (slot >= g.first[e + 1]) ++e;
  const int lane = threadIdx.x % 32;
  float sum = 0;
  for (int64_t k = int64_t{lane} * width; k < g.k; k += 32 * width) {
    float x[width];
#pragma unroll
    for (int i = 0; i < width; ++i) x[i] = loadAny(g.a.data, g.a.dtype, slot * g.a.ld + k + i);
    sum += reader.dot(e * g.n + row, k, x);
  }
  sum *= g.alpha;
  if (g.lowA.data != nullptr) {
    const int64_t rank = g.lowA.cols;
    float low = 0;
    for (int64_t r = lane; r < rank; r += 32) {
      const int64_t at = g.lowByColumns ? row * g.lowB.ld + r * g.experts + e : (e * g.n + row) * g.lowB.ld + r;
      low = fmaf(loadAny(g.lowA.data, g.lowA.dtype, slot * g.lowA.ld + r), loadAny(g.lowB.data, g.lowB.dtype, at), low);
    }
    sum = fmaf(g.lowAlpha, low, sum);
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (lane == 0) storeAny(g.c.data, g.c.dtype, slot * g.c.ld + row, sum);
}

}  // namespace

void expertFewSlots(const FewSlots& g, const Context& context) {
  const dim3 grid(static_cast<unsigned>((g.n + threads / 32 - 1) / (threads / 32)), static_cast<unsigned>(g.a.rows));
  const bool eights = g.k % perThread == 0;
  if (g.w.dtype == DType::Q8) {
    if (eights) launchDependent(context, "expertGemm", expertSlots<Reader8, perThread>, {grid, threads}, g, Quant8View(g.w));
    else launchDependent(context, "expertGemm", expertSlots<Reader8, 1>, {grid, threads}, g, Quant8View(g.w));
  } else if (eights) {
    launchDependent(context, "expertGemm", expertSlots<Reader4, perThread>, {grid, threads}, g, Quant4View(g.w));
  } else {
    launchDependent(context, "expertGemm", expertSlots<Reader4, 1>, {grid, threads}, g, Quant4View(g.w));
  }
}

}  // namespace unsloth::cuda
