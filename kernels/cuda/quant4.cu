// Matrices in blocks of 4 bits (core/quant4.h): into plain numbers, and times a few rows as they are.
#include "../core/quant4.h"
#include "gemm.h"
#include "operands.h"
#include "ops.h"
#include "vector.cuh"

namespace unsloth::cuda {
namespace {

constexpr int threads = 256, unroll = 4, perThread = 8;  // a thread's 8 codes are one 32-bit word

/** absmax of blocks, the header read once for each thread block. */
struct Maxima {
  const float* absmax;
  const uint8_t* codes;
  const float2* nested;
  int shift;

  __device__ __forceinline__ float operator()(int64_t block, const float* map) const {
    if (codes == nullptr) return __ldg(absmax + block);
    const float2 group = __ldg(nested + (block >> shift));
    return __fadd_rn(__fmul_rn(map[__ldg(codes + block)], group.x), group.y);
  }
};

struct Tables {
  float code[16], map[256];
};

__device__ __forceinline__ Maxima prepare(const Quant4View& q, Tables& tables, uint32_t& rounding) {
  const auto* header = reinterpret_cast<const uint32_t*>(q.base + 64);
  if (threadIdx.x < 16) tables.code[threadIdx.x] = q.code[threadIdx.x];
  if (q.absmaxCode != nullptr) tables.map[threadIdx.x % 256] = q.nestedCode[threadIdx.x % 256];
  rounding = header[1];
  __syncthreads();
  return {q.absmax, q.absmaxCode, reinterpret_cast<const float2*>(q.nested), static_cast<int>(header[0])};
}

/** What the matrix's own type makes of a value. */
__device__ __forceinline__ float rounded(float value, uint32_t type) {
  if (type == static_cast<uint32_t>(DType::BF16)) return __bfloat162float(__float2bfloat16_rn(value));
  if (type == static_cast<uint32_t>(DType::F16)) return __half2float(__float2half_rn(value));
  return value;
}

/** Code k of a word: bytes in order, the first of a pair in the high half. */
__device__ __forceinline__ uint32_t codeOf(uint32_t word, int k) { return word >> (8 * (k / 2) + (k % 2 == 0 ? 4 : 0)) & 15u; }

/**
 * y[i] = round(code·absmax) for elements [first, first + count) of the flattened matrix, first and count multiples of 8.
 * Reads 0.5 (+ 1/64 or 1/16) and writes sizeof(T) bytes for each.
 */
template <class T>
__global__ void __launch_bounds__(threads) dequantiseKernel(T* y, const Quant4View q, int64_t first, int64_t count) {
  __shared__ Tables tables;
  uint32_t type;
  const Maxima maxima = prepare(q, tables, type);
  const auto* words = reinterpret_cast<const uint32_t*>(q.codes);
  const int64_t start = int64_t{blockIdx.x} * (threads * unroll) + threadIdx.x, all = count / perThread;
  uint32_t word[unroll];
  float absmax[unroll];
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
    const int64_t i = start + u * threads;
    if (i >= all) break;
    word[u] = __ldcs(words + first / perThread + i);
    absmax[u] = maxima((first + i * perThread) / Quant4Layout::block, tables.map);
  }
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
    const int64_t i = start + u * threads;
    if (i >= all) break;
    Pack<T, perThread> out;
#pragma unroll
    for (int k = 0; k < perThread; ++k) {
      const float value = __fmul_rn(tables.code[codeOf(word[u], k)], absmax[u]);
      out.at[k] = narrow<T>(std::is_same_v<T, bf16> && type == static_cast<uint32_t>(DType::BF16) ? value : rounded(value, type));
    }
    reinterpret_cast<Pack<T, perThread>*>(y)[i] = out;
  }
}

/** The same element by element: any width, stride and place. */
template <class T>
__global__ void __launch_bounds__(threads) dequantiseEach(T* y, int64_t ld, const Quant4View q, int64_t row, int64_t rows, int64_t cols) {
  __shared__ Tables tables;
  uint32_t type;
  const Maxima maxima = prepare(q, tables, type);
  for (int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x; i < rows * cols; i += int64_t{gridDim.x} * threads) {
    const int64_t at = row * cols + i;
    const uint32_t code = at % 2 == 0 ? q.codes[at / 2] >> 4 : q.codes[at / 2] & 15u;
    y[i / cols * ld + i % cols] = narrow<T>(rounded(__fmul_rn(tables.code[code], maxima(at / Quant4Layout::block, tables.map)), type));
  }
}

/**
 * c[m,n] = alpha·a·Wᵀ [+ c | bias | add] for m ≤ rows, W [n,k] in 4 bits with k a multiple of 64: `group` rows of W for each thread
 * block, its warps share k. Sums code·x of 8 codes before the maximum comes in. Reads 0.53 bytes and does 2m FLOPs for each weight.
 */
constexpr int group = 4;

struct FewRows {
  const void *a, *bias, *add;
  void* c;
  int64_t ldA, ldAdd, ldC, n, k;
  int m;
  float alpha;
  bool accumulate;
};

template <class T, int rows>
__global__ void __launch_bounds__(threads) fewRowsKernel(const FewRows g, const Quant4View q) {
  __shared__ Tables tables;
  __shared__ float partial[threads / 32][group][rows];
  uint32_t type;
  const Maxima maxima = prepare(q, tables, type);
  const auto* words = reinterpret_cast<const uint32_t*>(q.codes);
  const auto* a = static_cast<const T*>(g.a);
  const int64_t firstRow = int64_t{blockIdx.x} * group;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sums[group][rows] = {};
  constexpr int step = 32 * perThread;  // of k for a warp
  for (int64_t k = int64_t{warp} * step + lane * perThread; k < g.k; k += (threads / 32) * step) {
    uint32_t word[group];
    float absmax[group];
#pragma unroll
    for (int r = 0; r < group; ++r) {
      const int64_t at = min(firstRow + r, g.n - 1) * g.k + k;
      word[r] = __ldcs(words + at / perThread);
      absmax[r] = maxima(at / Quant4Layout::block, tables.map);
    }
    float x[rows][perThread];
#pragma unroll
    for (int m = 0; m < rows; ++m) {
      const auto pack = *reinterpret_cast<const Pack<T, perThread>*>(a + min(m, g.m - 1) * g.ldA + k);
#pragma unroll
      for (int i = 0; i < perThread; ++i) x[m][i] = widen(pack.at[i]);
    }
#pragma unroll
    for (int r = 0; r < group; ++r) {
      float part[rows] = {};
#pragma unroll
      for (int i = 0; i < perThread; ++i) {
        const float code = tables.code[codeOf(word[r], i)];
#pragma unroll
        for (int m = 0; m < rows; ++m) part[m] = fmaf(code, x[m][i], part[m]);
      }
#pragma unroll
      for (int m = 0; m < rows; ++m) sums[r][m] = fmaf(part[m], absmax[r], sums[r][m]);
    }
  }
#pragma unroll
  for (int r = 0; r < group; ++r)
#pragma unroll
    for (int m = 0; m < rows; ++m) {
      float sum = sums[r][m];
      for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      if (lane == 0) partial[warp][r][m] = sum;
    }
  __syncthreads();
  for (int i = threadIdx.x; i < group * rows; i += threads) {
    const int r = i / rows, m = i % rows;
    const int64_t row = firstRow + r;
    if (m >= g.m || row >= g.n) continue;
    float sum = 0;
    for (int w = 0; w < threads / 32; ++w) sum += partial[w][r][m];
    T& c = static_cast<T*>(g.c)[m * g.ldC + row];
    float value = g.alpha * sum;
    if (g.accumulate) value += widen(c);
    if (g.bias != nullptr) value += widen(static_cast<const T*>(g.bias)[row]);
    if (g.add != nullptr) value += widen(static_cast<const T*>(g.add)[m * g.ldAdd + row]);
    c = narrow<T>(value);
  }
}

template <class T>
void launchFewRows(const FewRows& g, const Quant4View& q, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((g.n + group - 1) / group);
  if (g.m == 1) fewRowsKernel<T, 1><<<blocks, threads, 0, stream>>>(g, q);
  else if (g.m == 2) fewRowsKernel<T, 2><<<blocks, threads, 0, stream>>>(g, q);
  else if (g.m <= 4) fewRowsKernel<T, 4><<<blocks, threads, 0, stream>>>(g, q);
  else fewRowsKernel<T, 8><<<blocks, threads, 0, stream>>>(g, q);
  checkLaunch("gemm");
}

void dequantiseInto(const View& y, const View& x, int64_t row, const Context& context) {
  const Quant4View q(x);
  const int64_t first = row * x.cols, count = y.rows * y.cols;
  if (count == 0) return;
  withType(y.dtype, "dequantise", [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto* to = static_cast<T*>(y.data);
    const bool dense = y.ld == y.cols || y.rows == 1;
    if (dense && first % perThread == 0 && count % perThread == 0 && reinterpret_cast<uintptr_t>(to) % (sizeof(T) * perThread) == 0) {
      const int64_t each = threads * unroll * perThread;
      dequantiseKernel<T><<<static_cast<unsigned>((count + each - 1) / each), threads, 0, context.stream>>>(to, q, first, count);
    } else {
      const auto blocks = static_cast<unsigned>(std::min<int64_t>((count + threads - 1) / threads, 32 * context.gpu->multiprocessors));
      dequantiseEach<T><<<blocks, threads, 0, context.stream>>>(to, y.ld, q, row, y.rows, y.cols);
    }
  });
  checkLaunch("dequantise");
}

}  // namespace

void gemmQuantised(const GemmArgs& args, const Context& context) {
  if (args.m == 0 || args.n == 0) return;
  const View* all[] = {&args.c, &args.a, &args.bias, &args.add};
  const auto vector = static_cast<int64_t>(bytesPerElement(args.a.dtype)) * perThread;
  bool few = args.mode == 0 && args.m <= 8 && args.k % Quant4Layout::block == 0 && reinterpret_cast<uintptr_t>(args.a.data) % vector == 0 &&
             args.a.ld % perThread == 0;
  for (const View* v : all) few = few && (!v->present() || v->dtype == args.c.dtype);
  if (few) {
    const FewRows g{args.a.data, args.bias.data, args.add.data, args.c.data, args.a.ld, args.add.ld, args.c.ld, args.n, args.k,
                    static_cast<int>(args.m), args.alpha, args.accumulate};
    withType(args.c.dtype, "gemm", [&](auto tag) { launchFewRows<typename decltype(tag)::type>(g, Quant4View(args.b), context.stream); });
    return;
  }
  // Anything else goes through plain numbers in the scratch.
  GemmArgs plain = args;
  plain.terms.clear();
  plain.b = args.b;
  plain.b.dtype = args.a.dtype;
  plain.b.data = scratch<std::byte>(context, 0, static_cast<size_t>(args.b.rows * args.b.cols) * bytesPerElement(plain.b.dtype), "gemm");
  dequantiseInto(plain.b, args.b, 0, context);
  gemmSimple(plain, context);
}

namespace ops {

void dequantise(const Call& call, const Context& context) {
  const Operands args(call, "dequantise", 2, 1, 0);
  const View& y = args.matrix(0, "y");
  const View& x = args.shaped(1, "x", Operands::any, y.cols);
  args.require(isQuantised(x.dtype), "x is not quantised");
  const int64_t row = call.i(0);
  args.require(row >= 0 && row + y.rows <= x.rows, "the rows are not in x");
  dequantiseInto(y, x, row, context);
}

}  // namespace ops
}  // namespace unsloth::cuda
