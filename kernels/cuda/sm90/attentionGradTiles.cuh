#pragma once
#include "../attention.h"
#include "../launch.cuh"
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
  float* dq;  // fp32 sums: for each 64 rows, head and 64 columns, in the order of wgmma's accumulators
  int heads, kvHeads, group, window;
  float scale, scaleLog2, inner;  // see the forward kernel's
  int* counter;                   // tiles taken so far; entries of `tiles`
  int2* tiles;                    // (sequence, number of the block of keys) of every tile, once for all kv heads
  int parts, blocks;              // in how many parts the heads of a group go through a tile; thread blocks of the main kernel
  float* sums;                    // of more than one part: dk and dv of each, as the threads of the main kernel hold them
  int* turns;                     // for each block of rows and head: how many tiles have added to dq; null: in any order
};

template <int stages>
struct Ring {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
};

/** Adds four floats in global memory, in any order with others. */
__device__ __forceinline__ void reduceAdd(float* to, float a, float b, float c, float d) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

__device__ __forceinline__ void awaitTurn(const int* turn, int expected) {
  int now;
  do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
  while (now != expected);
}
__device__ __forceinline__ void passTurn(int* turn) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(turn) : "memory");
}

/** Four 8×8 matrices of two-byte elements; the address is of row lane%8 of matrix lane/8. */
__device__ __forceinline__ void storeMatrices(uint32_t address, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

/** Bytes of the fp32 sums of dQ. */
inline size_t gradSumBytes(const AttentionArgs& args) {
  return static_cast<size_t>((args.rows() + tileRows - 1) / tileRows * tileRows) * args.heads * args.headDim * sizeof(float);
}
/** Counters of `turns`. */
inline int64_t gradTurns(const AttentionArgs& args, const Context& context) {
  return context.deterministic ? ((args.rows() + tileRows - 1) / tileRows + args.sequences) * args.heads : 0;
}
/** Bytes of the list of tiles, with the counter before it. */
inline size_t gradListBytes(const AttentionArgs& args) {
  return 256 + static_cast<size_t>(args.keyTiles(tileKeys)) * sizeof(int2);
}

inline size_t gradScratchBytes(const AttentionArgs& args, const Context& context) {
  return (gradSumBytes(args) + gradListBytes(args) + static_cast<size_t>(gradTurns(args, context)) * sizeof(int) + 255) / 256 * 256;
}

/** dk and dv of a tile in fp32. */
constexpr int64_t tileSums(int headDim) { return int64_t{2} * tileKeys * headDim; }

/** So many parts that tiles keep all multiprocessors busy: those of few and short sequences, with few kv heads, are few. */
inline int gradParts(const AttentionArgs& args, const Context& context) {
  const int64_t tiles = args.keyTiles(tileKeys) * args.kvHeads, bytes = tiles * tileSums(args.headDim) * int64_t{sizeof(float)},
                wanted = (2 * context.gpu->multiprocessors + tiles - 1) / tiles,
                fitting = static_cast<int64_t>(context.workspaceBytes - gradScratchBytes(args, context)) / bytes;
  return static_cast<int>(std::max<int64_t>(1, std::min({wanted, fitting, int64_t{args.group}})));
}

inline GradParams gradParams(const AttentionArgs& args, const Context& context) {
  GradParams params;
  params.sequences = {args.qStart, args.kvStart, args.kvLength, args.sequences};
  params.lse = args.lse.f32(), params.delta = args.delta.f32();
  params.lseStride = args.lse.ld, params.deltaStride = args.delta.ld;
  params.dk = args.dk.data, params.dv = args.dv.data;
  params.dkStride = args.dk.ld, params.dvStride = args.dv.ld;
  params.heads = args.heads, params.kvHeads = args.kvHeads, params.group = args.group;
  params.window = args.window > 0 ? args.window : 1 << 30;
  params.scale = args.scale;
  params.parts = gradParts(args, context);
  const size_t sums = gradSumBytes(args);
  const int64_t turns = gradTurns(args, context);
  params.dq = scratch<float>(context, 0, sums / sizeof(float), "attentionGrad");
  params.counter = scratch<int>(context, sums, 64, "attentionGrad");
  params.tiles = scratch<int2>(context, sums + 256, static_cast<size_t>(args.keyTiles(tileKeys)), "attentionGrad");
  params.blocks = static_cast<int>(std::min<int64_t>(context.gpu->multiprocessors, args.keyTiles(tileKeys) * args.kvHeads * params.parts));
  params.sums = nullptr;
  if (params.parts > 1)
    params.sums = scratch<float>(context, gradScratchBytes(args, context),
                                 static_cast<size_t>(args.keyTiles(tileKeys) * args.kvHeads * params.parts * tileSums(args.headDim)), "attentionGrad");
  params.turns = nullptr;
  if (turns > 0) params.turns = scratch<int>(context, sums + gradListBytes(args), static_cast<size_t>(turns), "attentionGrad");
  return params;
}

/** One block of 128 keys of one kv head, and some of the heads that use it. */
struct Tile {
  int keyRow;              // first row in k and v
  int keys;                // live ones from there on; 0: no more tiles
  int kvHead;
  int firstStep, steps;    // numbers of the aligned blocks of 64 rows of q that see any of the keys
  int queryRow, queryEnd;  // the sequence's rows in q
  int shift;               // row of q + shift − (key − first key of the tile) ≥ 0: the key is visible
  int sequence;            // its number
  int firstHead, endHead;  // of q
  int number;              // of the tile, of all parts
};

__device__ __forceinline__ Tile describeTile(const GradParams& params, int2 entry, int kvHead, int part = 0) {
  const Sequences& where = params.sequences;
  const int sequence = entry.x, firstKey = entry.y * tileKeys, begin = where.qStart[sequence],
            queries = where.qStart[sequence + 1] - begin, keys = where.kvLength[sequence], offset = keys - queries,
            end = begin + min(queries, firstKey + tileKeys - 1 + params.window - offset);
  Tile tile;
  tile.keyRow = where.kvStart[sequence] + firstKey;
  tile.keys = min(tileKeys, keys - firstKey);
  tile.kvHead = kvHead;
  tile.firstStep = (begin + max(0, firstKey - offset)) / tileRows;
  tile.steps = queries == 0 ? 0 : max(0, (end + tileRows - 1) / tileRows - tile.firstStep);
  tile.queryRow = begin, tile.queryEnd = begin + queries;
  tile.shift = offset - begin - firstKey;
  tile.sequence = sequence;
  tile.firstHead = kvHead * params.group + part * params.group / params.parts;
  tile.endHead = kvHead * params.group + (part + 1) * params.group / params.parts;
  return tile;
}

/**
 * The tile of a number below total·kvHeads·parts. First the heads one after another, so that what their tiles share stays in L2; of
 * the last heads, which must keep all blocks busy to the end, each length of tile for all heads. Parts of a tile follow each other.
 */
__device__ __forceinline__ Tile chooseTile(const GradParams& params, int number, int total) {
  const int whole = number / params.parts, part = number % params.parts, each = total * params.parts;
  const int last = min(params.kvHeads, (3 * params.blocks + each - 1) / each), single = (params.kvHeads - last) * total;
  Tile tile = whole < single
                  ? describeTile(params, params.tiles[whole % total], whole / total, part)
                  : describeTile(params, params.tiles[(whole - single) / last], params.kvHeads - last + (whole - single) % last, part);
  tile.number = number;
  return tile;
}

constexpr int listThreads = 256, listKeys = 2048;

/** Sum of `own` of this and all threads before it, of a block of listThreads. */
__device__ __forceinline__ int scanBlock(int own) {
  __shared__ int sums[listThreads / 32];
  const int lane = threadIdx.x % 32;
  int upTo = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, upTo, step);
    if (lane >= step) upTo += before;
  }
  __syncthreads();
  if (lane == 31) sums[threadIdx.x / 32] = upTo;
  __syncthreads();
  for (int w = 0; w < threadIdx.x / 32; ++w) upTo += sums[w];
  return upTo;
}

/**
 * Lists the tiles of all sequences, the longest first, so that the blocks of the main kernel end together; where tiles take
 * turns, those of later keys first, so that none waits for one that has not begun. One block of listThreads.
 */
__device__ inline void listTiles(const GradParams& params) {
  __shared__ int bucket[listKeys], upTo[listThreads];
  const int thread = threadIdx.x;
  const auto visit = [&](auto&& each) {
    for (int chunk = 0; chunk < params.sequences.count; chunk += listThreads) {
      const int mine = chunk + thread;
      upTo[thread] = scanBlock(mine < params.sequences.count ? (params.sequences.kvLength[mine] + tileKeys - 1) / tileKeys : 0);
      __syncthreads();
      for (int slot = thread; slot < upTo[listThreads - 1]; slot += listThreads) {
        int low = 0, high = listThreads - 1;
        while (low < high) {
          const int middle = (low + high) / 2;
          if (upTo[middle] > slot) high = middle;
          else low = middle + 1;
        }
        const int2 entry = make_int2(chunk + low, slot - (low > 0 ? upTo[low - 1] : 0));
        each(min(params.turns ? entry.y : describeTile(params, entry, 0).steps, listKeys - 1), entry);
      }
      __syncthreads();
    }
  };
  for (int i = thread; i < listKeys; i += listThreads) bucket[i] = 0;
  __syncthreads();
  visit([&](int key, int2) { atomicAdd(&bucket[key], 1); });
  constexpr int each = listKeys / listThreads;
  const int top = listKeys - 1 - thread * each;  // this thread's buckets go down from here
  int own = 0;
  for (int i = 0; i < each; ++i) own += bucket[top - i];
  int at = scanBlock(own) - own;
  if (thread == listThreads - 1) params.counter[0] = 0, params.counter[1] = at + own;
  for (int i = 0; i < each; ++i) {
    const int count = bucket[top - i];
    bucket[top - i] = at;
    at += count;
  }
  __syncthreads();
  visit([&](int key, int2 entry) { params.tiles[atomicAdd(&bucket[key], 1)] = entry; });
}

/**
 * delta = Σ dO⊙o of each row and head; zeroes the sums of dQ, the turns, and dk and dv of rows after the last sequence;
 * the first block lists the tiles. One thread per 8 columns; 4 bytes read and 4 written per element of o.
 */
template <class T, int headDim>
__global__ void __launch_bounds__(listThreads)
    prepareKernel(View o, View dO, View delta, View dk, View dv, GradParams params, int64_t turns, bool sameRows) {
  awaitPrior();
  if (blockIdx.x == 0) return listTiles(params);
  constexpr int threads = headDim / 8;
  const int64_t i = (blockIdx.x - 1) * int64_t{listThreads} + threadIdx.x, row = i / threads / params.heads;
  const int head = static_cast<int>(i / threads % params.heads), column = static_cast<int>(i % threads) * 8;
  float4* sums = reinterpret_cast<float4*>(params.dq) + 2 * i;
  if (row < (o.rows + tileRows - 1) / tileRows * tileRows) sums[0] = sums[1] = make_float4(0, 0, 0, 0);
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
  const int64_t turns = gradTurns(args, context);
  const int64_t threads = std::max(rows * args.heads * headDim / 8, turns);
  const bool sameRows = args.k.rows == args.q.rows;
  if (!sameRows)
    for (const View* v : {&args.dk, &args.dv})
      check(cudaMemset2DAsync(v->data, v->ld * sizeof(T), 0, v->cols * sizeof(T), v->rows, context.stream), "attentionGrad");
  const auto blocks = static_cast<unsigned>((threads + listThreads - 1) / listThreads + 1);
  launchDependent(context, "attentionGrad", prepareKernel<T, headDim>, {blocks, listThreads}, args.o, args.dO, args.delta,
                  args.dk, args.dv, params, turns, sameRows);
}

constexpr int finishThreads = 256;

/**
 * dk or dv of a tile from the sums of its parts, in order; the threads hold what those of the main kernel do. 4·parts bytes read and
 * 2 written for each element.
 */
template <class T, int headDim>
__device__ __forceinline__ void joinParts(const GradParams& params, int number, bool value) {
  const int total = params.counter[1];
  if (number >= total * params.kvHeads) return;
  const Tile tile = chooseTile(params, number * params.parts, total);
  const int rowInTile = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  float sum[headDim / 2] = {};
  for (int part = 0; part < params.parts; ++part) {
    const float4* from = reinterpret_cast<const float4*>(params.sums + (tile.number + part) * tileSums(headDim)) +
                         (value ? headDim / 2 * 64 : 0) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < headDim / 2; i += 4) {
      const float4 x = from[i * 64];
      sum[i] += x.x, sum[i + 1] += x.y, sum[i + 2] += x.z, sum[i + 3] += x.w;
    }
  }
  T* to = static_cast<T*>(value ? params.dv : params.dk) + tile.kvHead * headDim;
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    const int row = rowInTile + below * 8;
    storeRow<T, headDim>(to + int64_t{tile.keyRow + row} * (value ? params.dvStride : params.dkStride), sum, below,
                         value ? 1.0f : params.scale, row < tile.keys);
  }
}

/**
 * The first `joins` blocks: dk and dv of tiles in parts. The others: dq = scale · the sums, 128 threads per 64 rows, head and 64
 * columns; 4 bytes read and 2 written per element.
 */
template <class T, int headDim>
__global__ void __launch_bounds__(finishThreads)
    finishKernel(const View dq, const __grid_constant__ GradParams params, unsigned joins) {
  awaitPrior();
  if (blockIdx.x < joins) return joinParts<T, headDim>(params, blockIdx.x / 2, blockIdx.x % 2 != 0);
  constexpr int panels = headDim / 64;
  const int64_t unit = int64_t{blockIdx.x - joins} * (finishThreads / 128) + threadIdx.x / 128, block = unit / panels / params.heads;
  const int thread = threadIdx.x % 128, column = static_cast<int>(unit % (panels * params.heads)) * 64;
  if (block * tileRows >= dq.rows) return;
  const float4* from = reinterpret_cast<const float4*>(params.dq) + unit * (tileRows * 16) + thread;
  float values[32];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float4 x = from[i * 128];
    values[4 * i] = x.x, values[4 * i + 1] = x.y, values[4 * i + 2] = x.z, values[4 * i + 3] = x.w;
  }
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    const int64_t row = block * tileRows + thread / 32 * 16 + thread % 32 / 4 + below * 8;
    storeRow<T, 64>(static_cast<T*>(dq.data) + row * dq.ld + column, values, below, params.scale, row < dq.rows);
  }
}

template <class T, int headDim>
void finishGrad(const AttentionArgs& args, const GradParams& params, const Context& context) {
  const int64_t joins = params.parts > 1 ? 2 * args.keyTiles(tileKeys) * args.kvHeads : 0,
                units = (args.rows() + tileRows - 1) / tileRows * args.heads * (headDim / 64), each = finishThreads / 128;
  const auto blocks = static_cast<unsigned>(joins + (units + each - 1) / each);
  launchDependent(context, "attentionGrad", finishKernel<T, headDim>, {blocks, finishThreads}, args.dq, params,
                  static_cast<unsigned>(joins));
}

}  // namespace unsloth::cuda::sm90::attention
