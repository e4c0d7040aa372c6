// Matrices in blocks of 4 bits (core/quant4.h): into plain numbers, and times a few rows as they are.
#include "launch.cuh"
#include "mma.cuh"
#include "quant4.cuh"
#include "quantised.h"

namespace unsloth::cuda {
namespace {

constexpr int threads = 256, unroll = 4, perThread = 8;  // a thread's 8 codes are one 32-bit word

/**
 * y[i] = round(code·absmax) for elements [first, first + count) of the flattened matrix, first and count multiples of 8.
 * Reads 0.5 (+ 1/64 or 1/16) and writes sizeof(T) bytes for each.
 */
template <class T>
__global__ void __launch_bounds__(threads) dequantiseKernel(T* y, const Quant4View q, int64_t first, int64_t count) {
  awaitPrior();
  __shared__ Tables tables;
  uint32_t type;
  const Maxima maxima = maximaOf(q, type);
  const auto* words = reinterpret_cast<const uint32_t*>(q.codes);
  const int64_t start = int64_t{blockIdx.x} * (threads * unroll) + threadIdx.x, all = count / perThread;
  uint32_t word[unroll];
  Maxima::Raw raw[unroll];
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
    const int64_t i = min(start + u * threads, all - 1);
    word[u] = __ldcs(words + first / perThread + i);
    raw[u] = maxima.load((first + i * perThread) / Quant4Layout::block);
  }
  fillTables(q, tables);
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
    const int64_t i = start + u * threads;
    if (i >= all) break;
    const float absmax = maxima.finish(raw[u], tables.map);
    Pack<T, perThread> out;
#pragma unroll
    for (int k = 0; k < perThread; ++k) {
      const float value = __fmul_rn(tables.code[codeOf(word[u], k)], absmax);
      out.at[k] = narrow<T>(std::is_same_v<T, bf16> && type == static_cast<uint32_t>(DType::BF16) ? value : rounded(value, type));
    }
    reinterpret_cast<Pack<T, perThread>*>(y)[i] = out;
  }
}

/** The same element by element: any width, stride and place. */
template <class T>
__global__ void __launch_bounds__(threads)
    dequantiseEach(T* y, int64_t ld, const Quant4View q, int64_t row, int64_t rows, int64_t cols) {
  awaitPrior();
  __shared__ Tables tables;
  uint32_t type;
  const Maxima maxima = prepare(q, tables, type);
  for (int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x; i < rows * cols; i += int64_t{gridDim.x} * threads) {
    const int64_t at = row * cols + i;
    const uint32_t code = at % 2 == 0 ? q.codes[at / 2] >> 4 : q.codes[at / 2] & 15u;
    const float value = __fmul_rn(tables.code[code], maxima(at / Quant4Layout::block, tables.map));
    y[i / cols * ld + i % cols] = narrow<T>(rounded(value, type));
  }
}

/**
 * c[m,n] = alpha·a·Wᵀ [+ c | bias | add] for m ≤ rows, W [n,k] in 4 bits with k a multiple of 64: `group` rows of W for each
 * thread block, its warps share k. Sums code·x of 8 codes before the maximum comes in. Reads 0.53 bytes and does 2m FLOPs for each
 * weight.
 */
constexpr int group = 4;

template <class T, int rows>
__global__ void __launch_bounds__(threads) fewRowsKernel(const FewRows g, const Quant4View q) {
  awaitPrior();
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

/**
 * The same on tensor cores, for rows of 16 bits: 16 rows of W are the tile's rows, the rows of a its columns. A byte of W becomes
 * a pair of 16-bit numbers by a table of 256 that each lane has in its own bank; a block of 64 is four products, then its maximum
 * comes in. Which k a lane holds differs from the instruction's order, alike on both sides. Codes are rounded to T, as in
 * bitsandbytes' own kernel. `split` warps share the k of a tile.
 */
constexpr int tileRows = 16, ahead = 4;

/** Codes and maxima of `ahead` neighbouring blocks of two rows. */
struct Ahead {
  uint2 code[2][ahead];
  float4 maximum[2];
  uint32_t maximumCode[2];
  float2 group[2];

  /** From block `block` of the rows on; past the end, the last ones. Rows have a multiple of `ahead` blocks, which share a group. */
  __device__ __forceinline__ void load(const uint2* words, const Maxima& maxima, const int64_t (&rows)[2], int64_t blocksOfK,
                                       int64_t block, int quarter) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t at = rows[r] * blocksOfK + min(block, blocksOfK - ahead);
#pragma unroll
      for (int u = 0; u < ahead; ++u) code[r][u] = __ldcs(words + (at + u) * 4 + quarter);
      if (maxima.codes == nullptr) {
        maximum[r] = __ldg(reinterpret_cast<const float4*>(maxima.absmax + at));
      } else {
        maximumCode[r] = __ldg(reinterpret_cast<const uint32_t*>(maxima.codes + at));
        group[r] = __ldg(maxima.nested + (at >> maxima.shift));
      }
    }
  }
  __device__ __forceinline__ float of(int r, int u, const Maxima& maxima, const float* map) const {
    if (maxima.codes == nullptr) return u == 0 ? maximum[r].x : u == 1 ? maximum[r].y : u == 2 ? maximum[r].z : maximum[r].w;
    return __fadd_rn(__fmul_rn(map[maximumCode[r] >> (8 * u) & 255u], group[r].x), group[r].y);
  }
};

template <class T>
__global__ void __launch_bounds__(threads, 2) fewRowsTiles(const FewRows g, const Quant4View q, int split) {
  awaitPrior();
  __shared__ uint32_t pairs[256 * 32];
  __shared__ float map[256];
  __shared__ float partial[threads / 32][tileRows * 8];
  uint32_t type;
  const Maxima maxima = maximaOf(q, type);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane / 4, quarter = lane % 4;
  {
    const T both[2] = {narrow<T>(q.code[threadIdx.x >> 4]), narrow<T>(q.code[threadIdx.x & 15])};
    uint32_t word;
    memcpy(&word, both, 4);
    for (int copy = 0; copy < 32; ++copy) pairs[threadIdx.x * 32 + (copy + threadIdx.x) % 32] = word;
    if (q.absmaxCode != nullptr) map[threadIdx.x] = q.nestedCode[threadIdx.x];
  }
  __syncthreads();
  const auto* words = reinterpret_cast<const uint2*>(q.codes);
  const auto* a = static_cast<const T*>(g.a) + min(row, g.m - 1) * g.ldA + quarter * 16;
  const bool present = row < g.m;
  const int64_t tiles = (g.n + tileRows - 1) / tileRows, perBlock = threads / 32 / split, blocksOfK = g.k / Quant4Layout::block;
  const int64_t step = int64_t{split} * ahead;
  for (int64_t first = int64_t{blockIdx.x} * perBlock; first < tiles; first += int64_t{gridDim.x} * perBlock) {
    const int64_t tile = min(first + warp / split, tiles - 1);
    const int64_t rows[2] = {min(tile * tileRows + row, g.n - 1), min(tile * tileRows + row + 8, g.n - 1)};
    float sums[4] = {};
    const auto multiply = [&](const Ahead& w, int64_t block) {
#pragma unroll
      for (int u = 0; u < ahead; ++u) {
        float c[4] = {};
        const auto* from = reinterpret_cast<const uint4*>(a + (block + u) * Quant4Layout::block);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4 x = present ? from[half] : uint4{};
          const uint32_t pair[4] = {x.x, x.y, x.z, x.w};
          const uint32_t w0 = half == 0 ? w.code[0][u].x : w.code[0][u].y, w1 = half == 0 ? w.code[1][u].x : w.code[1][u].y;
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            uint32_t tileA[4];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              tileA[2 * j] = pairs[(w0 >> (16 * part + 8 * j) & 255u) * 32 + lane];
              tileA[2 * j + 1] = pairs[(w1 >> (16 * part + 8 * j) & 255u) * 32 + lane];
            }
            multiplyAdd<T>(c, tileA, pair[2 * part], pair[2 * part + 1]);
          }
        }
        const float upper = w.of(0, u, maxima, map), lower = w.of(1, u, maxima, map);
        sums[0] = fmaf(c[0], upper, sums[0]);
        sums[1] = fmaf(c[1], upper, sums[1]);
        sums[2] = fmaf(c[2], lower, sums[2]);
        sums[3] = fmaf(c[3], lower, sums[3]);
      }
    };
    // Two groups of blocks take turns: one is on its way while the other is multiplied.
    Ahead even, odd;
    int64_t k = int64_t{warp % split} * ahead;
    even.load(words, maxima, rows, blocksOfK, k, quarter);
    for (; k < blocksOfK; k += 2 * step) {
      odd.load(words, maxima, rows, blocksOfK, k + step, quarter);
      multiply(even, k);
      if (k + step >= blocksOfK) break;
      even.load(words, maxima, rows, blocksOfK, k + 2 * step, quarter);
      multiply(odd, k + step);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[warp][(row + 8 * (i / 2)) * 8 + 2 * quarter + i % 2] = sums[i];
    __syncthreads();
    for (int i = threadIdx.x; i < perBlock * tileRows * 8; i += threads) {
      const int which = i / (tileRows * 8), place = i % (tileRows * 8), m = place % 8;
      const int64_t column = (first + which) * tileRows + place / 8;
      if (m < g.m && column < g.n) {
        float sum = 0;
        for (int part = 0; part < split; ++part) sum += partial[which * split + part][place];
        T& c = static_cast<T*>(g.c)[m * g.ldC + column];
        float value = g.alpha * sum;
        if (g.accumulate) value += widen(c);
        if (g.bias != nullptr) value += widen(static_cast<const T*>(g.bias)[column]);
        if (g.add != nullptr) value += widen(static_cast<const T*>(g.add)[m * g.ldAdd + column]);
        c = narrow<T>(value);
      }
    }
    __syncthreads();
  }
}

/** As many warps on a tile as keep all multiprocessors busy. */
template <class T>
void launchTiles(const FewRows& g, const Quant4View& q, const Context& context) {
  const int64_t tiles = (g.n + tileRows - 1) / tileRows, resident = 2 * context.gpu->multiprocessors;
  int split = 1;
  while (split < threads / 32 && tiles * split < resident * (threads / 32)) split *= 2;
  const int64_t wanted = (tiles * split * 32 + threads - 1) / threads;
  launchDependent(context, "gemm", fewRowsTiles<T>,
                  {static_cast<unsigned>(wanted < resident ? wanted : resident), threads}, g, q, split);
}

template <class T>
void launchFewRows(const FewRows& g, const Quant4View& q, const Context& context) {
  if constexpr (sizeof(T) == 2)
    if (context.gpu->capability >= 80 && g.k / Quant4Layout::block % ahead == 0) return launchTiles<T>(g, q, context);
  const cudaStream_t stream = context.stream;
  const auto blocks = static_cast<unsigned>((g.n + group - 1) / group);
  if (g.m == 1) launchDependent(context, "gemm", fewRowsKernel<T, 1>, {blocks, threads}, g, q);
  else if (g.m == 2) launchDependent(context, "gemm", fewRowsKernel<T, 2>, {blocks, threads}, g, q);
  else if (g.m <= 4) launchDependent(context, "gemm", fewRowsKernel<T, 4>, {blocks, threads}, g, q);
  else launchDependent(context, "gemm", fewRowsKernel<T, 8>, {blocks, threads}, g, q);
}

}  // namespace

void fewRows4(DType type, const FewRows& g, const View& b, const Context& context) {
  withType(type, "gemm", [&](auto tag) { launchFewRows<typename decltype(tag)::type>(g, Quant4View(b), context); });
}

void dequantise4(const View& y, const View& x, int64_t row, const Context& context) {
  const Quant4View q(x);
  const int64_t first = row * x.cols, count = y.rows * y.cols;
  if (count == 0) return;
  withType(y.dtype, "dequantise", [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto* to = static_cast<T*>(y.data);
    const bool dense = y.ld == y.cols || y.rows == 1;
    const bool aligned = reinterpret_cast<uintptr_t>(to) % (sizeof(T) * perThread) == 0;
    if (dense && aligned && first % perThread == 0 && count % perThread == 0) {
      const int64_t each = threads * unroll * perThread;
      launchDependent(context, "dequantise", dequantiseKernel<T>, {static_cast<unsigned>((count + each - 1) / each), threads},
                      to, q, first, count);
    } else {
      const auto blocks =
          static_cast<unsigned>(std::min<int64_t>((count + threads - 1) / threads, 32 * context.gpu->multiprocessors));
      launchDependent(context, "dequantise", dequantiseEach<T>, {blocks, threads}, to, y.ld, q, row, y.rows, y.cols);
    }
  });
}

}  // namespace unsloth::cuda
