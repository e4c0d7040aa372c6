#pragma once
#include <array>

#include "context.h"
#include "launch.cuh"
#include "vector.cuh"

namespace unsloth::cuda {

/** Vectors that one launch visits at most, so that their numbers fit `Division`. */
constexpr int64_t vectorsPerLaunch = int64_t{1} << 30;
constexpr int mapThreads = 128;

template <int ins, int outs>
struct MapOperands {
  void* out[outs];
  const void* in[ins];
  int64_t ldOut[outs], ldIn[ins];
  int64_t firstRow, firstColumn;
  uint32_t vectors;
  Division perRow;  // vectors of a row
};

/**
 * out = fn(row, column, in) for every element, `width` neighbours of `unroll` places in each thread: all loads of a thread are in
 * flight before the first use. An output may be an input's memory. `fn.ready()` is called by all threads after the loads.
 */
template <class T, int ins, int outs, int width, int unroll, class Fn>
__global__ void __launch_bounds__(mapThreads) mapKernel(const MapOperands<ins, outs> p, Fn fn) {
  awaitPrior();
  const uint32_t first = blockIdx.x * (mapThreads * unroll) + threadIdx.x;
  Raw<T, width> raw[unroll][ins];
  int64_t row[unroll], column[unroll];
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
    const uint32_t i = first + u * mapThreads;
    const uint32_t r = p.perRow(i);
    row[u] = p.firstRow + r;
    column[u] = p.firstColumn + int64_t{i - r * p.perRow.divisor} * width;
    if (i < p.vectors)
#pragma unroll
      for (int k = 0; k < ins; ++k)
        raw[u][k] = loadRaw<T, width>(static_cast<const T*>(p.in[k]) + row[u] * p.ldIn[k] + column[u]);
  }
  fn.ready();
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
    if (first + u * mapThreads >= p.vectors) return;
    float in[ins][width], out[outs][width];
#pragma unroll
    for (int k = 0; k < ins; ++k) widenRaw<T, width>(raw[u][k], in[k]);
    fn(row[u], column[u], in, out);
#pragma unroll
    for (int k = 0; k < outs; ++k)
      storeRaw<T, width>(static_cast<T*>(p.out[k]) + row[u] * p.ldOut[k] + column[u], narrowRaw<T, width>(out[k]));
  }
}

template <class T, int ins, int outs, int width, class Fn>
void mapPart(const Context& context, const char* op, MapOperands<ins, outs> p, int64_t rows, int64_t cols, const Fn& fn) {
  constexpr int unroll = 2;
  const int64_t perRow = cols / width;
  if (rows <= 0 || perRow <= 0) return;
  const int64_t firstColumn = p.firstColumn;
  const int64_t rowsAtOnce = std::max<int64_t>(1, vectorsPerLaunch / perRow), colsAtOnce = std::min(perRow, vectorsPerLaunch);
  for (int64_t r = 0; r < rows; r += rowsAtOnce)
    for (int64_t c = 0; c < perRow; c += colsAtOnce) {
      const int64_t count = std::min(colsAtOnce, perRow - c);
      p.firstRow = r;
      p.firstColumn = firstColumn + c * width;
      p.perRow = Division(static_cast<uint32_t>(count));
      p.vectors = static_cast<uint32_t>(count * std::min(rowsAtOnce, rows - r));
      const auto blocks = static_cast<uint32_t>(divideUp(p.vectors, mapThreads * unroll));
      launchDependent(context, op, mapKernel<T, ins, outs, width, unroll, Fn>, {blocks, mapThreads}, p, fn);
    }
}

/** Base of the functions of mapElements. */
struct MapFunction {
  /** Whether the function needs row and column as they are: the matrix must not be taken as one long row. */
  static constexpr bool placed = false;
  __device__ __forceinline__ void ready() {}
};

/**
 * Applies fn to every element of matrices of one shape and of type T: fn(row, column, in[ins][width], out[outs][width]) computes
 * `width` neighbours from `column` on. Bytes: each operand once. In 16-byte pieces where the operands are aligned.
 */
template <class T, int ins, int outs, class Fn>
void mapElements(const Context& context, const char* op, const std::array<View, outs>& out, const std::array<View, ins>& in,
                 const Fn& fn) {
  constexpr int width = perVector<T>;
  int64_t rows = out[0].rows, cols = out[0].cols;
  bool flat = !Fn::placed, fast = true;
  MapOperands<ins, outs> p{};
  for (int k = 0; k < outs; ++k) {
    flat = flat && gapless(out[k]);
    fast = fast && vectorised(out[k], width);
    p.out[k] = out[k].data, p.ldOut[k] = out[k].ld;
  }
  for (int k = 0; k < ins; ++k) {
    flat = flat && gapless(in[k]);
    fast = fast && vectorised(in[k], width);
    p.in[k] = in[k].data, p.ldIn[k] = in[k].ld;
  }
  if (!flat) {
    if (fast) mapPart<T, ins, outs, width>(context, op, p, rows, cols, fn);
    else mapPart<T, ins, outs, 1>(context, op, p, rows, cols, fn);
    return;
  }
  cols *= rows;
  rows = std::min<int64_t>(rows, 1);
  bool aligned = true;
  for (int k = 0; k < outs; ++k) aligned = aligned && reinterpret_cast<uintptr_t>(out[k].data) % 16 == 0;
  for (int k = 0; k < ins; ++k) aligned = aligned && reinterpret_cast<uintptr_t>(in[k].data) % 16 == 0;
  const int64_t body = aligned ? cols / width * width : 0;
  mapPart<T, ins, outs, width>(context, op, p, rows, body, fn);
  p.firstColumn = body;
  mapPart<T, ins, outs, 1>(context, op, p, rows, cols - body, fn);
}

}  // namespace unsloth::cuda
