#include "quantise.h"

#include "../core/quant4.h"
#include "../core/quant8.h"
#include "context.h"
#include "vector.cuh"

namespace unsloth::cuda {
namespace {

constexpr int threads = 256, perThread = 8, block = static_cast<int>(Quant4Layout::block), lanesPerBlock = block / perThread;
constexpr int nestedBlock = static_cast<int>(Quant4Layout::nestedBlock), meanThreads = 512;
__device__ constexpr Map8 signedMap = dynamicMap(true);

__device__ __forceinline__ bool isFinite(float x) { return fabsf(x) <= 3.4028235e38f; }

/** The code whose value is nearest: as many thresholds as lie below. */
__device__ __forceinline__ uint32_t nf4Nearest(float x) {
  constexpr float code[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
                              -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
                              0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
                              0.7229568362236023f, 1.0f};
  uint32_t count = 0;
#pragma unroll
  for (int i = 0; i < 15; ++i) count += (code[i] + code[i + 1]) * 0.5f < x;
  return count;
}

/** bitsandbytes' thresholds on |x|. */
__device__ __forceinline__ uint32_t fp4Nearest(float x) {
  const float size = fabsf(x);
  const uint32_t sign = x < 0 ? 8 : 0;
  if (size > 0.29166667f) {
    if (size > 0.583333f) return sign | (size > 0.8333333f ? 3 : 2);
    return sign | (size > 0.4166667f ? 5 : 4);
  }
  if (size > 0.0859375f) return sign | (size > 0.20833333f ? 7 : 6);
  return sign | (size > 0.00260417f ? 1 : 0);
}

/**
 * Eight threads for a block of 64, eight elements each: absmax by shuffles, then code = nearest(x·(1/absmax)). A maximum of 0 makes
 * x·(1/0) NaN, which is above no threshold. Reads sizeof(T) and writes 0.56 bytes for each element.
 */
template <class T>
__global__ void __launch_bounds__(threads)
    packBlocksKernel(const T* x, int64_t elements, bool fp4, uint8_t* codes, float* absmax, unsigned long long* bad) {
  const int64_t first = (int64_t{blockIdx.x} * threads + threadIdx.x) * perThread, left = elements - first;
  float values[perThread] = {};
  if (left >= perThread) {
    const auto pack = *reinterpret_cast<const Pack<T, perThread>*>(x + first);
#pragma unroll
    for (int k = 0; k < perThread; ++k) values[k] = widen(pack.at[k]);
  } else {
#pragma unroll
    for (int k = 0; k < perThread; ++k)
      if (k < left) values[k] = widen(x[first + k]);
  }
  float largest = 0;
  unsigned wrong = 0;
#pragma unroll
  for (int k = 0; k < perThread; ++k) {
    largest = fmaxf(largest, fabsf(values[k]));
    wrong += !isFinite(values[k]);
  }
  for (int offset = lanesPerBlock / 2; offset > 0; offset /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  if (wrong > 0) atomicAdd(bad, static_cast<unsigned long long>(wrong));
  if (left <= 0) return;
  const float inverse = __fdiv_rn(1.0f, largest);
  uint32_t word = 0;
#pragma unroll
  for (int k = 0; k < perThread; ++k) {
    const float scaled = __fmul_rn(values[k], inverse);
    const uint32_t code = k >= left ? 0u : fp4 ? fp4Nearest(scaled) : nf4Nearest(scaled);
    word |= code << (8 * (k / 2) + (k % 2 == 0 ? 4 : 0));
  }
  if (left >= perThread) {
    *reinterpret_cast<uint32_t*>(codes + first / 2) = word;
  } else {
    for (int i = 0; i < (left + 1) / 2; ++i) codes[first / 2 + i] = static_cast<uint8_t>(word >> (8 * i));
  }
  if (first % block == 0) absmax[first / block] = largest;
}

/**
 * The mean as torch sums on a GPU with one block of threads, and as the processor's blockSum does: 4 sums for each of `width` threads,
 * then halves.
 */
__global__ void __launch_bounds__(meanThreads) meanKernel(const float* x, int64_t n, int width, float* mean) {
  __shared__ float lanes[meanThreads];
  const int t = threadIdx.x;
  if (t < width) {
    float sums[4] = {};
    if (n > 128) {
      const int64_t whole = n / 4 * 4;
      for (int64_t i = 4 * int64_t{t}; i < whole; i += 4 * int64_t{width})
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[k] = __fadd_rn(sums[k], x[i + k]);
      if (whole + t < n) sums[0] = __fadd_rn(sums[0], x[whole + t]);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (t + k * width < n) sums[k] = __fadd_rn(sums[k], x[t + k * width]);
    }
    lanes[t] = __fadd_rn(__fadd_rn(__fadd_rn(sums[0], sums[1]), sums[2]), sums[3]);
  }
  for (int half = width / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) lanes[t] = __fadd_rn(lanes[t], lanes[t + half]);
  }
  if (t == 0) *mean = __fmul_rn(lanes[0], __fdiv_rn(1.0f, static_cast<float>(n)));
}

/** A thread block for 256 maxima: code of (absmax − mean)·(1/largest). */
__global__ void __launch_bounds__(nestedBlock)
    nestKernel(const float* absmax, int64_t blocks, int shift, uint8_t* codes, float2* nested, const float* mean) {
  __shared__ float map[256], warps[nestedBlock / 32];
  const int t = threadIdx.x;
  map[t] = signedMap.at[t];
  const float offset = *mean;
  const int64_t first = int64_t{blockIdx.x} * nestedBlock, last = min(blocks, first + nestedBlock);
  const float value = first + t < last ? __fsub_rn(absmax[first + t], offset) : 0.0f;
  float largest = fabsf(value);
  for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  if (t % 32 == 0) warps[t / 32] = largest;
  __syncthreads();
  for (int i = 0; i < nestedBlock / 32; ++i) largest = fmaxf(largest, warps[i]);
  if (first + t < last) codes[first + t] = nearest8(map, largest == 0 ? 0.0f : __fmul_rn(value, __fdiv_rn(1.0f, largest)));
  const int64_t group = (first >> shift) + t;
  if (group << shift < last) nested[group] = {largest, offset};
}

/** A thread block for a row: its maximum, then numbers nearest to x·(127 / absmax), both in fp16 where that holds them. */
template <class T>
__global__ void __launch_bounds__(threads)
    packRowsKernel(const T* x, int64_t cols, uint8_t* numbers, float* scales, unsigned long long* bad) {
  __shared__ float warps[threads / 32];
  const int64_t row = blockIdx.x;
  const T* from = x + row * cols;
  float largest = 0;
  unsigned wrong = 0;
  for (int64_t c = threadIdx.x; c < cols; c += threads) {
    const float value = widen(from[c]);
    if (isFinite(value)) largest = fmaxf(largest, fabsf(value));
    else ++wrong;
  }
  if (wrong > 0) atomicAdd(bad, static_cast<unsigned long long>(wrong));
  for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int i = 0; i < threads / 32; ++i) largest = fmaxf(largest, warps[i]);
  const bool halves = largest <= mostOfHalf;
  const float absmax = halves ? __half2float(__float2half_rn(largest)) : largest;
  const float factor = absmax == 0 ? 0.0f : __fdiv_rn(127.0f, absmax);
  if (threadIdx.x == 0) scales[row] = absmax;
  for (int64_t c = threadIdx.x; c < cols; c += threads) {
    const float value = widen(from[c]);
    const float number = halves ? __half2float(__float2half_rn(value)) : value;
    numbers[row * cols + c] = static_cast<uint8_t>(__float2int_rn(__fmul_rn(number, factor)));
  }
}

}  // namespace

void packBlocks(const void* values, DType type, int64_t elements, bool fp4, uint8_t* codes, float* absmax,
                unsigned long long* bad, cudaStream_t stream) {
  if (elements == 0) return;
  const auto blocks = static_cast<unsigned>((elements + threads * perThread - 1) / (threads * perThread));
  withType(type, "quantising", [&](auto tag) {
    using T = typename decltype(tag)::type;
    packBlocksKernel<T><<<blocks, threads, 0, stream>>>(static_cast<const T*>(values), elements, fp4, codes, absmax, bad);
  });
  checkLaunch("quantising");
}

void nestMaxima(const float* absmax, int64_t blocks, int64_t groupShift, uint8_t* codes, float* nested, float* mean,
                cudaStream_t stream) {
  if (blocks == 0) return;
  const int64_t share = blocks > 128 ? blocks / 4 : blocks;
  int width = 1;
  while (width * 2 <= share && width < meanThreads) width *= 2;
  meanKernel<<<1, meanThreads, 0, stream>>>(absmax, blocks, width, mean);
  checkLaunch("quantising");
  const auto nestedBlocks = static_cast<unsigned>((blocks + nestedBlock - 1) / nestedBlock);
  auto* const pairs = reinterpret_cast<float2*>(nested);
  nestKernel<<<nestedBlocks, nestedBlock, 0, stream>>>(absmax, blocks, static_cast<int>(groupShift), codes, pairs, mean);
  checkLaunch("quantising");
}

void packRows(const void* values, DType type, int64_t rows, int64_t cols, uint8_t* numbers, float* scales,
              unsigned long long* bad, cudaStream_t stream) {
  if (rows == 0) return;
  withType(type, "quantising", [&](auto tag) {
    using T = typename decltype(tag)::type;
    packRowsKernel<T><<<static_cast<unsigned>(rows), threads, 0, stream>>>(static_cast<const T*>(values), cols, numbers, scales, bad);
  });
  checkLaunch("quantising");
}

}  // namespace unsloth::cuda
