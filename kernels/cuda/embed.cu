// The embedding table: rows by token id, and their gradient in row order.
#include "context.h"
#include "launch.cuh"
#include "operands.h"
#include "ops.h"
#include "vector.cuh"

namespace unsloth::cuda::ops {
namespace {

constexpr int threads = 128, unroll = 2;

template <class T>
struct Lookup {
  T* out;
  AnyFloats table;
  const int32_t* ids;
  int64_t ldOut, ldTable, entries, firstRow;
  uint32_t vectors;
  Division perRow;
  float scale;
};

/** out = scale·table[ids]; bytes: the rows once each way. An id that the table does not have gives zeros. */
template <class T, int width>
__global__ void __launch_bounds__(threads) embedKernel(const Lookup<T> p) {
  awaitPrior();
  const uint32_t first = blockIdx.x * (threads * unroll) + threadIdx.x;
  float value[unroll][width] = {};
  int64_t to[unroll];
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
    const uint32_t i = first + u * threads, r = p.perRow(i);
    const int64_t row = p.firstRow + r, column = int64_t{i - r * p.perRow.divisor} * width;
    to[u] = row * p.ldOut + column;
    if (i >= p.vectors) continue;
    const int64_t id = p.ids[row];
    if (id >= 0 && id < p.entries) p.table.load(id * p.ldTable + column, value[u]);
  }
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
#pragma unroll
    for (int i = 0; i < width; ++i) value[u][i] *= p.scale;
    if (first + u * threads < p.vectors) storeVector(p.out + to[u], value[u]);
  }
}

constexpr int sortThreads = 256;

/**
 * rank[r] += rows of this block's stretch whose (id, row) is less: a stable sort by counting, n² comparisons and no order of
 * atomics that matters. At 8192 rows that is 67 M comparisons, a few µs.
 */
__global__ void __launch_bounds__(sortThreads) rankKernel(int32_t* rank, const int32_t* ids, int rows, int stretch) {
  awaitPrior();
  __shared__ int4 keys[sortThreads / 4];
  const int row = blockIdx.x * sortThreads + threadIdx.x, mine = row < rows ? ids[row] : 0;
  const int first = blockIdx.y * stretch, last = min(rows, first + stretch);
  int count = 0;
  for (int tile = first; tile < last; tile += sortThreads) {
    const int at = tile + threadIdx.x;
    __syncthreads();
    reinterpret_cast<int*>(keys)[threadIdx.x] = at < last ? ids[at] : INT32_MAX;
    __syncthreads();
    const int here = static_cast<int>(blockIdx.x) * sortThreads;
    if (tile != here) {  // equal ids count where all of the tile stands before this block's rows
      const int limit = tile < here ? mine + 1 : mine;
#pragma unroll 16
      for (int k = 0; k < sortThreads / 4; ++k) {
        const int4 key = keys[k];
        count += (key.x < limit) + (key.y < limit) + (key.z < limit) + (key.w < limit);
      }
    } else {
#pragma unroll 8
      for (int k = 0; k < sortThreads / 4; ++k) {
        const int4 key = keys[k];
        const int s = tile + 4 * k;
        count += (key.x < mine || (key.x == mine && s < row)) + (key.y < mine || (key.y == mine && s + 1 < row)) +
                 (key.z < mine || (key.z == mine && s + 2 < row)) + (key.w < mine || (key.w == mine && s + 3 < row));
      }
    }
  }
  if (row < rows) atomicAdd(rank + row, count);
}

__global__ void __launch_bounds__(sortThreads) orderKernel(int2* sorted, const int32_t* rank, const int32_t* ids, int rows) {
  awaitPrior();
  const int row = blockIdx.x * sortThreads + threadIdx.x;
  if (row < rows) sorted[rank[row]] = make_int2(ids[row], row);
}

template <class T>
struct Segments {
  float* dTable;
  const T* dOut;
  const int2* sorted;  // (id, row)
  int64_t ldTable, ldOut, cols, entries;
  int rows;
  float scale;
  bool aligned;  // whether dTable can be moved in 16-byte pieces
};

/** A block for each sorted place and stretch of columns; that of an id's first place adds all its rows. */
template <class T, int width>
__global__ void __launch_bounds__(threads) segmentKernel(const Segments<T> p) {
  awaitPrior();
  constexpr int atOnce = 4;
  const int place = blockIdx.x, id = p.sorted[place].x;
  if (id < 0 || id >= p.entries || (place > 0 && p.sorted[place - 1].x == id)) return;
  const int64_t column = (int64_t{blockIdx.y} * threads + threadIdx.x) * width;
  if (column >= p.cols) return;
  float* into = p.dTable + id * p.ldTable + column;
  float sum[width] = {}, old[width];
  if (p.aligned) loadVector(into, old);
  for (int at = place;; at += atOnce) {
    Raw<T, width> raw[atOnce] = {};
    bool more = true;
#pragma unroll
    for (int j = 0; j < atOnce; ++j) {
      const int2 entry = at + j < p.rows ? p.sorted[at + j] : make_int2(-1, 0);
      more = more && entry.x == id;
      if (more) raw[j] = loadRaw<T, width>(p.dOut + entry.y * p.ldOut + column);
    }
#pragma unroll
    for (int j = 0; j < atOnce; ++j) {
      float value[width];
      widenRaw<T, width>(raw[j], value);
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] += value[i];
    }
    if (!more) break;
  }
  if (p.aligned) {
#pragma unroll
    for (int i = 0; i < width; ++i) old[i] = fmaf(p.scale, sum[i], old[i]);
    storeVector(into, old);
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) into[i] = fmaf(p.scale, sum[i], into[i]);
  }
}

}  // namespace

void embed(const Call& call, const Context& context) {
  const Operands args(call, "embed", 3, 0, 1);
  const View& out = args.matrix(0, "out");
  const View& table = args.matrix(2, "table", Operands::any, out.cols);
  const auto* ids = args.list<int32_t>(1, "ids", DType::I32, out.rows);
  if (out.rows * out.cols == 0) return;
  withType(out.dtype, "embed", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool fast = vectorised(out, perVector<T>) && vectorised(table, perVector<T>);
    const int64_t perRow = fast ? out.cols / perVector<T> : out.cols, atOnce = std::max<int64_t>(1, (int64_t{1} << 30) / perRow);
    Lookup<T> p{static_cast<T*>(out.data),
                AnyFloats(table),
                ids,
                out.ld,
                table.ld,
                table.rows,
                0,
                0,
                Division(static_cast<uint32_t>(perRow)),
                static_cast<float>(call.f(0))};
    for (int64_t row = 0; row < out.rows; row += atOnce) {
      p.firstRow = row;
      p.vectors = static_cast<uint32_t>(std::min(atOnce, out.rows - row) * perRow);
      const auto blocks = static_cast<uint32_t>(divideUp(p.vectors, threads * unroll));
      if (fast) launchDependent(context, "embed", embedKernel<T, perVector<T>>, {blocks, threads}, p);
      else launchDependent(context, "embed", embedKernel<T, 1>, {blocks, threads}, p);
    }
  });
}

void embedGrad(const Call& call, const Context& context) {
  const Operands args(call, "embedGrad", 3, 0, 1);
  const View& dOut = args.matrix(2, "dOut");
  const View& dTable = args.typed(0, "dTable", DType::F32, Operands::any, dOut.cols);
  const auto* ids = args.list<int32_t>(1, "ids", DType::I32, dOut.rows);
  if (dOut.rows * dOut.cols == 0) return;
  if (dOut.rows >= int64_t{1} << 30) args.refuse("more than 2^30 rows");
  const int rows = static_cast<int>(dOut.rows);
  auto* sorted = scratch<int2>(context, 0, static_cast<size_t>(rows), "embedGrad");
  auto* rank = scratch<int32_t>(context, static_cast<size_t>(rows) * sizeof(int2), static_cast<size_t>(rows), "embedGrad");
  check(cudaMemsetAsync(rank, 0, static_cast<size_t>(rows) * sizeof(int32_t), context.stream), "embedGrad");
  const int rowBlocks = static_cast<int>(divideUp(rows, sortThreads));
  const int stretches = std::clamp(4 * context.gpu->multiprocessors / rowBlocks, 1, rowBlocks);
  const int stretch = static_cast<int>(divideUp(rowBlocks, stretches)) * sortThreads;
  const dim3 grid(static_cast<uint32_t>(rowBlocks), static_cast<uint32_t>(divideUp(rows, stretch)));
  launchDependent(context, "embedGrad", rankKernel, {grid, sortThreads}, rank, ids, rows, stretch);
  launchDependent(context, "embedGrad", orderKernel, {static_cast<uint32_t>(rowBlocks), sortThreads}, sorted, rank, ids, rows);
  withType(dOut.dtype, "embedGrad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool fast = vectorised(dOut, perVector<T>);
    const Segments<T> p{dTable.f32(),
                        static_cast<const T*>(dOut.data),
                        sorted,
                        dTable.ld,
                        dOut.ld,
                        dOut.cols,
                        dTable.rows,
                        rows,
                        static_cast<float>(call.f(0)),
                        fast && vectorised(dTable, perVector<T>)};
    const int64_t width = fast ? perVector<T> : 1;
    const dim3 blocks(static_cast<uint32_t>(rows), static_cast<uint32_t>(divideUp(dOut.cols, threads * width)));
    if (fast) launchDependent(context, "embedGrad", segmentKernel<T, perVector<T>>, {blocks, threads}, p);
    else launchDependent(context, "embedGrad", segmentKernel<T, 1>, {blocks, threads}, p);
  });
}

}  // namespace unsloth::cuda::ops
