#pragma once
#include "context.h"
#include "launch.cuh"
#include "vector.cuh"

namespace unsloth::cuda {

/** Blocks of a kernel without dynamic shared memory that the GPU runs at once. */
template <class Kernel>
uint32_t residentBlocks(const Context& context, Kernel kernel, uint32_t threads, const char* op) {
  int each = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, static_cast<int>(threads), 0), op);
  return static_cast<uint32_t>(std::max(each, 1) * context.gpu->multiprocessors);
}

constexpr int columnLanes = 32, rowLanes = 8;

/**
 * Rows whose columns are summed: [rows·groups, cols], row s being columns (s mod groups)·cols … of row s / groups of a matrix, so
 * that column groups which share a parameter fold into one.
 */
struct ColumnSums {
  int64_t rows, cols;
  Division groups;
  float* partial;  // [chunks, cols]
  int64_t chunkRows;
};

/** partial[chunk][c] = Σ term(row, group, column) of the chunk's rows, in an order that the shape alone decides. */
template <int width, class Term>
__global__ void __launch_bounds__(columnLanes* rowLanes) columnPartKernel(const ColumnSums p, const Term term) {
  awaitPrior();
  const int lane = threadIdx.x % columnLanes, rowLane = threadIdx.x / columnLanes;
  const int64_t column = (int64_t{blockIdx.x} * columnLanes + lane) * width;
  const int64_t first = blockIdx.y * p.chunkRows, last = min(p.rows, first + p.chunkRows);
  float sums[width] = {};
  if (column < p.cols) {
#pragma unroll 4
    for (int64_t s = first + rowLane; s < last; s += rowLanes) {
      const uint32_t row = p.groups(static_cast<uint32_t>(s));
      term(row, static_cast<uint32_t>(s) - row * p.groups.divisor, column, sums);
    }
  }
  __shared__ float shared[rowLanes][columnLanes * width];
#pragma unroll
  for (int i = 0; i < width; ++i) shared[rowLane][i * columnLanes + lane] = sums[i];
  __syncthreads();
  for (int i = threadIdx.x; i < columnLanes * width; i += columnLanes * rowLanes) {
    float total = 0;
#pragma unroll
    for (int k = 0; k < rowLanes; ++k) total += shared[k][i];
    const int64_t c = (int64_t{blockIdx.x} * columnLanes + i % columnLanes) * width + i / columnLanes;
    if (c < p.cols) p.partial[blockIdx.y * p.cols + c] = total;
  }
}

/** Lanes among which chunks are shared: few chunks, as `sumColumns` makes, or hundreds. */
constexpr int fewTotalLanes = 8, manyTotalLanes = 32;

/** out[c] += alpha · Σ_chunks partial[chunk][c]. */
template <int lanes>
__global__ void __launch_bounds__(columnLanes* lanes)
    columnTotalKernel(float* out, const float* partial, int64_t cols, int64_t chunks, float alpha) {
  awaitPrior();
  const int lane = threadIdx.x % columnLanes, rowLane = threadIdx.x / columnLanes;
  const int64_t column = int64_t{blockIdx.x} * columnLanes + lane;
  float sum = 0;
  if (column < cols)
#pragma unroll(lanes == fewTotalLanes ? 4 : 8)
    for (int64_t k = rowLane; k < chunks; k += lanes) sum += partial[k * cols + column];
  __shared__ float shared[lanes][columnLanes];
  shared[rowLane][lane] = sum;
  __syncthreads();
  if (rowLane > 0 || column >= cols) return;
  float total = 0;
#pragma unroll
  for (int k = 0; k < lanes; ++k) total += shared[k][lane];
  out[column] += alpha * total;
}

template <int lanes>
void totalColumns(const Context& context, const char* op, float* out, const float* partial, int64_t cols, int64_t chunks,
                  float alpha) {
  const auto blocks = static_cast<uint32_t>(divideUp(cols, columnLanes));
  launchDependent(context, op, columnTotalKernel<lanes>, {blocks, columnLanes * lanes}, out, partial, cols, chunks, alpha);
}

/**
 * out[c] += alpha · Σ term over `rows` rows of `groups` column groups each; term(row, group, column, sums[width]) adds `width`
 * neighbours. Two launches; deterministic on one kind of GPU.
 */
template <int width, class Term>
void sumColumns(const Context& context, const char* op, float* out, int64_t rows, int64_t groups, int64_t cols, float alpha,
                const Term& term) {
  if (rows <= 0) return;
  const int64_t tiles = divideUp(cols, columnLanes * width), all = rows * groups;
  if (all >= int64_t{1} << 31) fail(std::string(op) + ": more than 2^31 rows and column groups");
  const int64_t fitting = std::max<int64_t>(1, static_cast<int64_t>(context.workspaceBytes / sizeof(float)) / cols);
  const int64_t wanted = std::max<int64_t>(1, 8 * context.gpu->multiprocessors / tiles);
  const int64_t most = std::min({wanted, fitting, divideUp(all, 4 * rowLanes), int64_t{65535}});
  ColumnSums p{all, cols, Division(static_cast<uint32_t>(groups)), nullptr, divideUp(all, most)};
  const int64_t chunks = divideUp(all, p.chunkRows);
  p.partial = scratch<float>(context, 0, static_cast<size_t>(chunks * cols), op);
  const dim3 grid(static_cast<uint32_t>(tiles), static_cast<uint32_t>(chunks));
  launchDependent(context, op, columnPartKernel<width, Term>, {grid, columnLanes * rowLanes}, p, term);
  totalColumns<fewTotalLanes>(context, op, out, p.partial, cols, chunks, alpha);
}

}  // namespace unsloth::cuda
