// Matrices of 8 bits (core/quant8.h): into plain numbers, and times a few rows as they are.
#include "launch.cuh"
#include "quant8.cuh"

#include "quant4.cuh"
#include "quantised.h"

namespace unsloth::cuda {
namespace {

constexpr int threads = 256, perThread = 8, columnThreads = 128;

/**
 * y = rows [row, row + rows) of q, `width` neighbours in a thread: 8, with cols and blocks multiples of it, or 1. Reads 1 and writes
 * sizeof(T) bytes for each.
 */
template <class T, int width>
__global__ void __launch_bounds__(columnThreads)
    dequantiseBytes(T* y, int64_t ld, const Quant8View q, int64_t row, int64_t rows, int64_t cols) {
  awaitPrior();
  const Matrix8 m(q, cols);
  const int64_t c = (int64_t{blockIdx.x} * columnThreads + threadIdx.x) * width;
  if (c >= cols) return;
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    const int64_t at = (row + r) * cols + c;
    const float scale = m.scale(row + r, c);
    uint32_t words[2] = {};
    if constexpr (width == perThread) {
      const uint2 both = __ldcs(reinterpret_cast<const uint2*>(m.numbers + at));
      words[0] = both.x, words[1] = both.y;
    } else {
      words[0] = m.numbers[at];
    }
    Pack<T, width> out;
#pragma unroll
    for (int k = 0; k < width; ++k) {
      const float value = m.divided(__fmul_rn(m.number(words[k / 4], k % 4), scale));
      out.at[k] = narrow<T>(rounded(value, m.rounding));
    }
    if constexpr (width == perThread) *reinterpret_cast<Pack<T, width>*>(y + r * ld + c) = out;
    else y[r * ld + c] = out.at[0];
  }
}

/**
 * c[m,n] = alpha·a·Wᵀ [+ c | bias | add] for m ≤ rows: a warp for each row of W, its lanes share k. Numbers are summed before their
 * scale comes in. Reads 1 byte and does 2m FLOPs for each weight.
 */
template <class T, int rows, int width>
__global__ void __launch_bounds__(threads) fewRowsBytes(const FewRows g, const Quant8View q) {
  awaitPrior();
  const Matrix8 matrix(q, g.k);
  const int64_t row = int64_t{blockIdx.x} * (threads / 32) + threadIdx.x / 32;
  if (row >= g.n) return;
  const int lane = threadIdx.x % 32;
  const auto* a = static_cast<const T*>(g.a);
  float sums[rows] = {};
  for (int64_t k = int64_t{lane} * width; k < g.k; k += 32 * width) {
    uint32_t words[2] = {};
    if constexpr (width == perThread) {
      const uint2 both = __ldcs(reinterpret_cast<const uint2*>(matrix.numbers + row * g.k + k));
      words[0] = both.x, words[1] = both.y;
    } else {
      words[0] = matrix.numbers[row * g.k + k];
    }
    const float scale = matrix.scale(row, k);
    float w[width];
#pragma unroll
    for (int i = 0; i < width; ++i) w[i] = matrix.number(words[i / 4], i % 4);
#pragma unroll
    for (int m = 0; m < rows; ++m) {
      if (m >= g.m) break;
      float part = 0;
      if constexpr (width == perThread) {
        const auto pack = *reinterpret_cast<const Pack<T, width>*>(a + m * g.ldA + k);
#pragma unroll
        for (int i = 0; i < width; ++i) part = fmaf(w[i], widen(pack.at[i]), part);
      } else {
        part = w[0] * widen(a[m * g.ldA + k]);
      }
      sums[m] = fmaf(part, scale, sums[m]);
    }
  }
#pragma unroll
  for (int m = 0; m < rows; ++m) {
    float sum = sums[m];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane != 0 || m >= g.m) continue;
    T& c = static_cast<T*>(g.c)[m * g.ldC + row];
    float value = g.alpha * (sum / matrix.divisor);
    if (g.accumulate) value += widen(c);
    if (g.bias != nullptr) value += widen(static_cast<const T*>(g.bias)[row]);
    if (g.add != nullptr) value += widen(static_cast<const T*>(g.add)[m * g.ldAdd + row]);
    c = narrow<T>(value);
  }
}

template <class T, int width>
void launchFewRows(const FewRows& g, const Quant8View& q, const Context& context) {
  const auto blocks = static_cast<unsigned>((g.n + threads / 32 - 1) / (threads / 32));
  if (g.m == 1) launchDependent(context, "gemm", fewRowsBytes<T, 1, width>, {blocks, threads}, g, q);
  else if (g.m == 2) launchDependent(context, "gemm", fewRowsBytes<T, 2, width>, {blocks, threads}, g, q);
  else if (g.m <= 4) launchDependent(context, "gemm", fewRowsBytes<T, 4, width>, {blocks, threads}, g, q);
  else launchDependent(context, "gemm", fewRowsBytes<T, 8, width>, {blocks, threads}, g, q);
}

}  // namespace

void fewRows8(DType type, const FewRows& g, const View& w, const Context& context) {
  withType(type, "gemm", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (g.inEights(sizeof(T))) launchFewRows<T, perThread>(g, Quant8View(w), context);
    else launchFewRows<T, 1>(g, Quant8View(w), context);
  });
}

void dequantise8(const View& y, const View& x, int64_t row, const Context& context) {
  const Quant8View q(x);
  if (y.rows == 0 || y.cols == 0) return;
  withType(y.dtype, "dequantise", [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto* to = static_cast<T*>(y.data);
    const auto grid = [&](int64_t perRow) {
      const int64_t across = (perRow + columnThreads - 1) / columnThreads;
      const int64_t down = std::max<int64_t>(1, 64 * context.gpu->multiprocessors / across);
      return dim3(static_cast<unsigned>(across), static_cast<unsigned>(std::min<int64_t>({y.rows, down, 65535})));
    };
    if (y.cols % perThread == 0 && y.ld % perThread == 0 && reinterpret_cast<uintptr_t>(to) % (sizeof(T) * perThread) == 0)
      launchDependent(context, "dequantise", dequantiseBytes<T, perThread>, {grid(y.cols / perThread), columnThreads}, to, y.ld,
                      q, row, y.rows, y.cols);
    else
      launchDependent(context, "dequantise", dequantiseBytes<T, 1>, {grid(y.cols), columnThreads}, to, y.ld, q, row, y.rows,
                      y.cols);
  });
}

}  // namespace unsloth::cuda
