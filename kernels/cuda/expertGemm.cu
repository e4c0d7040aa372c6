#include <algorithm>
#include <string>

#include "expertGemm.h"
#include "gemmEpilogue.cuh"
#include "launch.cuh"
#include "operands.h"
#include "ops.h"
#include "quantised.h"

namespace unsloth::cuda {
namespace {

constexpr int threads = 256, tile = 64, depth = 16, perThread = 4;

/** One matrix out of a stack: element (r, c) of matrix e. Not a stack: one matrix for all, e is 0. */
struct Stack {
  const void* data;
  DType dtype;
  int64_t ld, rowStep, columnScale, columnStep;

  __device__ __forceinline__ int64_t at(int64_t e, int64_t r, int64_t c) const {
    return (r + e * rowStep) * ld + c * columnScale + e * columnStep;
  }
  __device__ __forceinline__ float load(int64_t e, int64_t r, int64_t c) const { return loadAny(data, dtype, at(e, r, c)); }
};

Stack stackOf(const View& v, int64_t experts, bool byColumns) {
  if (byColumns) return {v.data, v.dtype, v.ld, 0, experts, 1};
  return {v.data, v.dtype, v.ld, v.rows / experts, 1, 0};
}

Stack plain(const View& v) { return {v.data, v.dtype, v.ld, 0, 1, 0}; }

struct Product {
  Stack a, b;
  int64_t k;
  float alpha;
};

struct ExpertArgs {
  const int32_t* first;
  int experts, products;
  Product product[2];  // mode 0 and 1: the main one and the low-rank one; mode 2: one
  bool transposedB;    // mode 0: b_e is [n, k]
  Stack c;
  int64_t m, n;  // mode 2: of each matrix; else m is the number of slots
};

/** Expert and first row of tile `index`, when each expert's rows are cut into tiles of their own; false beyond the last tile. */
__device__ __forceinline__ bool findTile(const int32_t* first, int experts, int index, int& expert, int& row) {
  for (int e = 0; e < experts; ++e) {
    const int begin = first[e], tiles = (first[e + 1] - begin + tile - 1) / tile;
    if (index < tiles) {
      expert = e;
      row = begin + index * tile;
      return true;
    }
    index -= tiles;
  }
  return false;
}

struct Slices {
  float a[depth][tile + 4], b[depth][tile + 4];
};

/** sum += a slice of depth, from shared memory: rows 4·(thread / 16) …, columns 4·(thread % 16) … */
__device__ __forceinline__ void multiply(const Slices& s, float (&sum)[perThread][perThread]) {
  const int row = threadIdx.x / 16 * perThread, column = threadIdx.x % 16 * perThread;
#pragma unroll
  for (int k = 0; k < depth; ++k) {
    const float4 a = *reinterpret_cast<const float4*>(&s.a[k][row]), b = *reinterpret_cast<const float4*>(&s.b[k][column]);
    const float x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < perThread; ++i)
#pragma unroll
      for (int j = 0; j < perThread; ++j) sum[i][j] += x[i] * y[j];
  }
}

/** One side of a slice: `at(x, k)` for x < extent and k < left, zeros beyond. `alongK`: neighbours of k lie side by side. */
template <class At>
__device__ __forceinline__ void fill(float (&side)[depth][tile + 4], bool alongK, int64_t extent, int64_t left, const At& at) {
  for (int i = threadIdx.x; i < tile * depth; i += threads) {
    const int x = alongK ? i / depth : i % tile, k = alongK ? i % depth : i / tile;
    side[k][x] = x < extent && k < left ? at(x, k) : 0.0f;
  }
}

/**
 * c[S_e] = Σ alpha·a[S_e]·op(b_e), every expert's slots in tiles of 64 × 64: 2·slots·n·k FLOPs in fp32. The grid has as many
 * tiles as slots may need at worst.
 */
__global__ void __launch_bounds__(threads) expertRows(ExpertArgs args) {
  awaitPrior();
  __shared__ Slices slices;
  int e = 0, row0 = 0;
  if (!findTile(args.first, args.experts, blockIdx.x, e, row0)) return;
  const int64_t rows = min(tile, args.first[e + 1] - row0), column0 = int64_t{blockIdx.y} * tile,
                columns = min(int64_t{tile}, args.n - column0);
  float total[perThread][perThread] = {};
  for (int p = 0; p < args.products; ++p) {
    const Product& product = args.product[p];
    float sum[perThread][perThread] = {};
    for (int64_t k0 = 0; k0 < product.k; k0 += depth) {
      const int64_t left = product.k - k0;
      fill(slices.a, true, rows, left, [&](int x, int k) { return product.a.load(0, row0 + x, k0 + k); });
      fill(slices.b, args.transposedB, columns, left, [&](int x, int k) {
        return args.transposedB ? product.b.load(e, column0 + x, k0 + k) : product.b.load(e, k0 + k, column0 + x);
      });
      __syncthreads();
      multiply(slices, sum);
      __syncthreads();
    }
    for (int i = 0; i < perThread; ++i)
      for (int j = 0; j < perThread; ++j) total[i][j] += product.alpha * sum[i][j];
  }
  const int row = threadIdx.x / 16 * perThread, column = threadIdx.x % 16 * perThread;
  for (int i = 0; i < perThread; ++i)
    for (int j = 0; j < perThread; ++j)
      if (row + i < rows && column + j < columns)
        storeAny(const_cast<void*>(args.c.data), args.c.dtype, args.c.at(0, row0 + row + i, column0 + column + j), total[i][j]);
}

/** c_e += alpha·a[S_e]ᵀ·b[S_e] in tiles of 64 × 64: 2·slots·m·n FLOPs in fp32. Slots are summed in order. */
__global__ void __launch_bounds__(threads) expertColumns(ExpertArgs args) {
  awaitPrior();
  __shared__ Slices slices;
  const int e = blockIdx.z, begin = args.first[e], end = args.first[e + 1];
  if (begin == end) return;
  const int64_t row0 = int64_t{blockIdx.x} * tile, column0 = int64_t{blockIdx.y} * tile;
  const Product& product = args.product[0];
  float sum[perThread][perThread] = {};
  for (int64_t k0 = begin; k0 < end; k0 += depth) {
    fill(slices.a, false, args.m - row0, end - k0, [&](int x, int k) { return product.a.load(0, k0 + k, row0 + x); });
    fill(slices.b, false, args.n - column0, end - k0, [&](int x, int k) { return product.b.load(0, k0 + k, column0 + x); });
    __syncthreads();
    multiply(slices, sum);
    __syncthreads();
  }
  const int64_t row = row0 + threadIdx.x / 16 * perThread, column = column0 + threadIdx.x % 16 * perThread;
  for (int i = 0; i < perThread; ++i)
    for (int j = 0; j < perThread; ++j)
      if (row + i < args.m && column + j < args.n) {
        const int64_t at = args.c.at(e, row + i, column + j);
        storeAny(const_cast<void*>(args.c.data), args.c.dtype, at,
                 loadAny(args.c.data, args.c.dtype, at) + product.alpha * sum[i][j]);
      }
}

struct DeltaArgs {
  Stack a, b;
  View c;
  int64_t row, width, rank;
  float alpha;
};

/** c[i, j] += alpha·Σ_r b_e[o, r]·a_e[r, j], row + i = e·width + o. A thread for each element. */
__global__ void expertDeltaKernel(DeltaArgs args) {
  awaitPrior();
  const int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, i = blockIdx.y;
  if (j >= args.c.cols) return;
  const int64_t e = (args.row + i) / args.width, o = (args.row + i) % args.width;
  float sum = 0;
  for (int64_t r = 0; r < args.rank; ++r) sum += args.b.load(e, o, r) * args.a.load(e, r, j);
  const int64_t at = i * args.c.ld + j;
  storeAny(args.c.data, args.c.dtype, at, loadAny(args.c.data, args.c.dtype, at) + args.alpha * sum);
}

unsigned tilesOf(int64_t n) { return static_cast<unsigned>((n + tile - 1) / tile); }

}  // namespace

void expertGemmSimple(const ExpertGemmArgs& g, const Context& context) {
  ExpertArgs args{};
  args.first = g.first;
  args.experts = static_cast<int>(g.experts);
  args.transposedB = g.mode == 0;
  args.m = g.m;
  args.n = g.n;
  const bool gradient = g.mode == 2;
  args.c = gradient ? stackOf(g.c, g.experts, g.columns == ExpertColumns::main) : plain(g.c);
  args.product[args.products++] = {plain(g.a), gradient ? plain(g.b) : stackOf(g.b, g.experts, g.columns == ExpertColumns::main),
                                   g.k, g.alpha};
  if (g.lowA.present())
    args.product[args.products++] = {plain(g.lowA), stackOf(g.lowB, g.experts, g.columns == ExpertColumns::low), g.lowA.cols,
                                     g.lowAlpha};
  if (gradient) {
    launchDependent(context, "expertGemm", expertColumns,
                    {dim3(tilesOf(g.m), tilesOf(g.n), static_cast<unsigned>(g.experts)), threads}, args);
  } else {
    const auto mostTiles = static_cast<unsigned>(g.m / tile + std::min(g.experts, g.m));
    launchDependent(context, "expertGemm", expertRows, {dim3(mostTiles, tilesOf(g.n)), threads}, args);
  }
}

namespace ops {

void expertGemm(const Call& call, const Context& context) {
  const Operands operands(call, "expertGemm", 4, 3, 2);
  operands.require(call.i(0) >= 0 && call.i(0) <= 2, "the mode is unknown");
  operands.require(call.i(2) >= 0 && call.i(2) <= 2, "byColumns is unknown");
  ExpertGemmArgs g;
  g.mode = call.i(0);
  g.columns = static_cast<ExpertColumns>(call.i(2));
  g.alpha = static_cast<float>(call.f(0));
  g.lowAlpha = static_cast<float>(call.f(1));
  g.c = operands.matrix(0, "c");
  g.a = operands.matrix(1, "a");
  const bool quantised = operands.has(2) && g.mode == 0 && isQuantised(call.t(2).dtype);
  g.b = quantised ? call.t(2) : operands.matrix(2, "b");
  const View& first = operands.typed(3, "first", DType::I32, Operands::any, 1);
  operands.require(first.ld == 1 && first.rows >= 2, "first must be a list of one number more than there are experts");
  g.first = first.i32();
  g.experts = first.rows - 1;
  const bool gradient = g.mode == 2, byColumns = g.columns == ExpertColumns::main;
  const View& stack = gradient ? g.c : g.b;
  if ((byColumns ? stack.cols : stack.rows) % g.experts != 0)
    operands.refuse(Operands::describe(stack) + " is no stack of " + std::to_string(g.experts));
  const int64_t rows = byColumns ? stack.rows : stack.rows / g.experts, cols = byColumns ? stack.cols / g.experts : stack.cols;
  if (gradient) {
    g.m = rows, g.n = cols, g.k = g.a.rows;
    operands.require(g.a.cols == rows && g.b.cols == cols && g.b.rows == g.k, "c, a and b do not fit");
  } else {
    g.m = g.a.rows, g.n = g.mode == 0 ? rows : cols, g.k = g.mode == 0 ? cols : rows;
    operands.require(g.a.cols == g.k && g.c.cols == g.n && g.c.rows == g.m, "c, a and b do not fit");
  }
  if (operands.has(4)) {
    operands.require(!gradient, "low-rank terms need mode 0 or 1");
    g.lowA = operands.matrix(4, "lowA", g.m);
    g.lowB = operands.matrix(5, "lowB");
    const int64_t rank = g.lowA.cols, width = g.columns == ExpertColumns::low ? g.experts : 1,
                  height = g.columns == ExpertColumns::low ? 1 : g.experts;
    const int64_t lowRows = g.mode == 0 ? g.n : rank, lowCols = g.mode == 0 ? rank : g.n;
    operands.require(g.lowB.rows == lowRows * height && g.lowB.cols == lowCols * width, "lowA and lowB do not fit");
  }
  if (g.m == 0 || g.n == 0) return;
  if (quantised) {
    operands.require(!byColumns, "a quantised b goes by rows");
    const bool lowByColumns = g.columns == ExpertColumns::low;
    return expertFewSlots({g.c, g.a, g.b, g.lowA, g.lowB, g.first, g.experts, g.n, g.k, g.alpha, g.lowAlpha, lowByColumns}, context);
  }
  if (!expertGemmWgmma(g, context)) expertGemmSimple(g, context);
}

void expertDelta(const Call& call, const Context& context) {
  const Operands operands(call, "expertDelta", 3, 2, 1);
  const View& c = operands.matrix(0, "c");
  const View& a = operands.matrix(1, "a", Operands::any, c.cols);
  const View& b = operands.matrix(2, "b", Operands::any, a.rows);
  const int64_t row = call.i(0), experts = call.i(1), width = b.rows;
  operands.require(experts >= 1 && a.rows % experts == 0, "a is no stack of the experts");
  operands.require(row >= 0 && row + c.rows <= experts * width, "the rows of c are not in the stack");
  constexpr int block = 256;
  for (int64_t at = 0; at < c.rows;) {  // the grid's second dimension ends at 65535
    const int64_t count = std::min<int64_t>(c.rows - at, 65535);
    View part = c;
    part.data = static_cast<std::byte*>(c.data) + static_cast<size_t>(at * c.ld) * bytesPerElement(c.dtype);
    part.rows = count;
    const DeltaArgs args{stackOf(a, experts, false), stackOf(b, experts, true), part, row + at, width, a.rows / experts,
                         static_cast<float>(call.f(0))};
    const dim3 grid(static_cast<unsigned>((c.cols + block - 1) / block), static_cast<unsigned>(count));
    launchDependent(context, "expertDelta", expertDeltaKernel, {grid, block}, args);
    at += count;
  }
}

}  // namespace ops
}  // namespace unsloth::cuda
