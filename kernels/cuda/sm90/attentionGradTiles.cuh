#pragma once
#include "../attention.h"
#include "attentionTiles.cuh"

/** What stands around the gradient's main kernel: its parameters, delta before it, dQ after it. */
namespace unsloth::cuda::sm90::attention {

constexpr int tileRows = 64, tileKeys = 128;

struct GradParams {
  Sequences sequences;
  const float *lse, *delta;
  int64_t lseStride, deltaStride;
  void *dk, *dv;
  int64_t dkStride, dvStride;
  float* dq;  // fp32 sums: for each 64 rows and head two halves of the columns, each in the order of wgmma's accumulators
  int heads, kvHeads, group, window;
  float scale, scaleLog2, inner;  // see the forward kernel's
  int* counter;                   // tiles taken so far
  int* turns;                     // for each block of rows, head and half: how many tiles have added to dq; null: in any order
};

template <int stages>
struct Ring {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
};

/** to[i] += from[i] for bytes/4 floats, by the copy engine. */
__device__ __forceinline__ void bulkReduceAdd(float* to, uint32_t from, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/** Until all but `pending` of this thread's bulk groups have read their source. */
template <int pending>
__device__ __forceinline__ void bulkWaitRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}
/** Until all but `pending` of this thread's bulk groups are complete. */
template <int pending>
__device__ __forceinline__ void bulkWait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

__device__ __forceinline__ void awaitTurn(const int* turn, int expected) {
  int now;
  do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
  while (now != expected);
}
__device__ __forceinline__ void passTurn(int* turn) {
  asm volatile("fence.proxy.async;" ::: "memory");
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(turn) : "memory");
}

/** Four 8×8 matrices of two-byte elements; the address is of row lane%8 of matrix lane/8. */
__device__ __forceinline__ void storeMatrices(uint32_t address, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

inline GradParams gradParams(const AttentionArgs& args, const Context& context) {
  const int64_t blocks = (args.rows() + tileRows - 1) / tileRows;
  GradParams params;
  params.sequences = {args.qStart, args.kvStart, args.kvLength, args.sequences};
  params.lse = args.lse.f32(), params.delta = args.delta.f32();
  params.lseStride = args.lse.ld, params.deltaStride = args.delta.ld;
  params.dk = args.dk.data, params.dv = args.dv.data;
  params.dkStride = args.dk.ld, params.dvStride = args.dv.ld;
  params.heads = args.heads, params.kvHeads = args.kvHeads, params.group = args.group, params.window = args.window;
  params.scale = args.scale;
  params.dq = scratch<float>(context, 0, blocks * tileRows * args.heads * args.headDim, "attentionGrad");
  const size_t used = static_cast<size_t>(blocks) * tileRows * args.heads * args.headDim * sizeof(float);
  params.counter = scratch<int>(context, used, 1, "attentionGrad");
  params.turns = nullptr;
  if (context.deterministic)
    params.turns = scratch<int>(context, used + 256, (blocks + args.sequences) * args.heads * 2, "attentionGrad");
  return params;
}

/**
 * delta = Σ dO⊙o of each row and head; zeroes the sums of dQ, the counters, and dk and dv of rows after the last sequence.
 * One thread per 8 columns; 4 bytes read and 4 written per element of o.
 */
template <class T, int headDim>
__global__ void __launch_bounds__(256) prepareKernel(View o, View dO, View delta, View dk, View dv, GradParams params, int64_t turns,
                                                     bool sameRows) {
  constexpr int threads = headDim / 8;
  const int64_t i = blockIdx.x * int64_t{256} + threadIdx.x, row = i / threads / params.heads;
  const int head = static_cast<int>(i / threads % params.heads), column = static_cast<int>(i % threads) * 8;
  float4* sums = reinterpret_cast<float4*>(params.dq) + 2 * i;
  if (row < (o.rows + tileRows - 1) / tileRows * tileRows) sums[0] = sums[1] = make_float4(0, 0, 0, 0);
  if (i == 0) *params.counter = 0;
  if (i < turns) params.turns[i] = 0;
  float sum = 0;
  if (row < o.rows) {
    const int64_t at = head * headDim + column;
    const uint4 x = *reinterpret_cast<const uint4*>(static_cast<const T*>(o.data) + row * o.ld + at),
                y = *reinterpret_cast<const uint4*>(static_cast<const T*>(dO.data) + row * dO.ld + at);
    const T *a = reinterpret_cast<const T*>(&x), *b = reinterpret_cast<const T*>(&y);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += static_cast<float>(a[e]) * static_cast<float>(b[e]);
    if (sameRows && head < params.kvHeads && row >= params.sequences.qStart[params.sequences.count]) {
      *reinterpret_cast<uint4*>(static_cast<T*>(dk.data) + row * dk.ld + at) = make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4*>(static_cast<T*>(dv.data) + row * dv.ld + at) = make_uint4(0, 0, 0, 0);
    }
  }
#pragma unroll
  for (int step = threads / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (row < o.rows && column == 0) static_cast<float*>(delta.data)[row * delta.ld + head] = sum;
}

template <class T, int headDim>
void prepareGrad(const AttentionArgs& args, const GradParams& params, const Context& context) {
  const int64_t rows = (args.rows() + tileRows - 1) / tileRows * tileRows;
  const int64_t turns = params.turns ? (rows / tileRows + args.sequences) * args.heads * 2 : 0;
  const int64_t threads = std::max(rows * args.heads * headDim / 8, turns);
  const bool sameRows = args.k.rows == args.q.rows;
  if (!sameRows)
    for (const View* v : {&args.dk, &args.dv})
      check(cudaMemset2DAsync(v->data, v->ld * sizeof(T), 0, v->cols * sizeof(T), v->rows, context.stream), "attentionGrad");
  prepareKernel<T, headDim><<<static_cast<unsigned>((threads + 255) / 256), 256, 0, context.stream>>>(
      args.o, args.dO, args.delta, args.dk, args.dv, params, turns, sameRows);
  checkLaunch("attentionGrad");
}

/** dq = scale · the sums. A block per 64 rows and head; 4 bytes read and 2 written per element. */
template <class T, int headDim>
__global__ void __launch_bounds__(256) finishKernel(View dq, const float* sums, int heads, float scale) {
  constexpr int columns = headDim / 2;
  const int half = threadIdx.x / 128, thread = threadIdx.x % 128, head = blockIdx.y;
  const float4* from = reinterpret_cast<const float4*>(sums) +
                       ((static_cast<int64_t>(blockIdx.x) * heads + head) * 2 + half) * (tileRows * columns / 4);
  float values[columns / 2];
#pragma unroll
  for (int i = 0; i < columns / 8; ++i) {
    const float4 x = from[i * 128 + thread];
    values[4 * i] = x.x, values[4 * i + 1] = x.y, values[4 * i + 2] = x.z, values[4 * i + 3] = x.w;
  }
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * tileRows + thread / 32 * 16 + thread % 32 / 4 + below * 8;
    storeRow<T, columns>(static_cast<T*>(dq.data) + row * dq.ld + head * headDim + half * columns, values, below, scale, row < dq.rows);
  }
}

template <class T, int headDim>
void finishGrad(const AttentionArgs& args, const GradParams& params, const Context& context) {
  const dim3 grid(static_cast<unsigned>((args.rows() + tileRows - 1) / tileRows), args.heads);
  finishKernel<T, headDim><<<grid, 256, 0, context.stream>>>(args.dq, params.dq, args.heads, args.scale);
  checkLaunch("attentionGrad");
}

}  // namespace unsloth::cuda::sm90::attention
