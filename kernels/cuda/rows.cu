// Whole rows by number: gathered, scattered, stored, combined and scaled. Bytes: each row that is touched once each way.
#include "launch.cuh"
#include "map.cuh"
#include "operands.h"
#include "ops.h"
#include "warp.cuh"

namespace unsloth::cuda::ops {
namespace {

constexpr int threads = 128, unroll = 2;

/** Row i of `rows` goes from x[from[i]] to y[to[i]]; without a list, i itself. A target that is no row is skipped. */
struct RowCopy {
  void* y;
  const void* x;
  const int32_t *to, *from;
  int64_t ldY, ldX, rowsY, rowsX;
  uint32_t units, firstRow;
  Division perRow;
};

/** Copies in units of 2, 4 or 16 bytes; a source that is no row gives zeros. */
template <class Unit>
__global__ void __launch_bounds__(threads) copyRowsKernel(const RowCopy p) {
  awaitPrior();
  const uint32_t first = blockIdx.x * (threads * unroll) + threadIdx.x;
  Unit value[unroll];
  int64_t target[unroll];
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
    const uint32_t i = first + u * threads, r = p.perRow(i), column = i - r * p.perRow.divisor;
    const int64_t row = int64_t{p.firstRow} + r;
    value[u] = {};
    target[u] = -1;
    if (i >= p.units) continue;
    const int64_t from = p.from == nullptr ? row : p.from[row], to = p.to == nullptr ? row : p.to[row];
    if (to < 0 || to >= p.rowsY) continue;
    target[u] = to * p.ldY + column;
    if (from >= 0 && from < p.rowsX) value[u] = static_cast<const Unit*>(p.x)[from * p.ldX + column];
  }
#pragma unroll
  for (int u = 0; u < unroll; ++u)
    if (target[u] >= 0) static_cast<Unit*>(p.y)[target[u]] = value[u];
}

template <class Unit>
void copyUnits(const Context& context, const char* op, RowCopy p, int64_t rows, int64_t perRow, int64_t unitElements) {
  p.ldX /= unitElements, p.ldY /= unitElements;
  const int64_t atOnce = std::max<int64_t>(1, vectorsPerLaunch / perRow);
  p.perRow = Division(static_cast<uint32_t>(perRow));
  for (int64_t row = 0; row < rows; row += atOnce) {
    p.firstRow = static_cast<uint32_t>(row);
    p.units = static_cast<uint32_t>(std::min(atOnce, rows - row) * perRow);
    launchDependent(context, op, copyRowsKernel<Unit>, {static_cast<uint32_t>(divideUp(p.units, threads * unroll)), threads}, p);
  }
}

void copyRows(const Context& context, const char* op, const View& y, const View& x, const int32_t* to, const int32_t* from,
              int64_t rows) {
  if (rows <= 0 || y.cols <= 0) return;
  const RowCopy p{y.data, x.data, to, from, y.ld, x.ld, y.rows, x.rows, 0, 0, {}};
  const auto width = static_cast<int64_t>(bytesPerElement(y.dtype));
  const int count = static_cast<int>(16 / width);
  if (vectorised(y, count) && vectorised(x, count)) copyUnits<uint4>(context, op, p, rows, y.cols / count, count);
  else if (width == 4) copyUnits<uint32_t>(context, op, p, rows, y.cols, 1);
  else copyUnits<uint16_t>(context, op, p, rows, y.cols, 1);
}

/** inverse[index[i]] = i. */
__global__ void __launch_bounds__(threads) invertKernel(int32_t* inverse, const int32_t* index, int64_t count, int64_t limit) {
  awaitPrior();
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i < count && index[i] >= 0 && index[i] < limit) inverse[index[i]] = static_cast<int32_t>(i);
}

struct RowSums {
  void* y;
  const void *x, *add;
  const int32_t* place;
  int64_t ldY, ldX, ldAdd, ldPlace, rowsX, rowsY;
  int choices;
  bool accumulate, scatter;
  uint32_t vectors, firstRow;
  Division perRow;
};

/** y[i] = [y[i]] + [add[i]] + Σ_j x[place[i,j]] in that order; with `scatter` y[place[i]] += x[i] instead. */
template <class T, int width>
__global__ void __launch_bounds__(threads) addRowsKernel(const RowSums p) {
  awaitPrior();
  constexpr int atOnce = 4;
  const uint32_t i = blockIdx.x * threads + threadIdx.x;
  if (i >= p.vectors) return;
  const uint32_t r = p.perRow(i);
  const int64_t from = int64_t{p.firstRow} + r, column = int64_t{i - r * p.perRow.divisor} * width;
  const int64_t row = p.scatter ? p.place[from] : from;
  if (row < 0 || row >= p.rowsY) return;
  T* y = static_cast<T*>(p.y) + row * p.ldY + column;
  float sum[width] = {};
  const auto addVector = [&](const T* at) {
    float value[width];
    loadVector(at, value);
#pragma unroll
    for (int k = 0; k < width; ++k) sum[k] += value[k];
  };
  if (p.accumulate) addVector(y);
  if (p.add != nullptr) addVector(static_cast<const T*>(p.add) + row * p.ldAdd + column);
  if (p.scatter) addVector(static_cast<const T*>(p.x) + from * p.ldX + column);
  for (int first = 0; first < p.choices; first += atOnce) {
    Raw<T, width> raw[atOnce] = {};
#pragma unroll
    for (int j = 0; j < atOnce; ++j)
      if (first + j < p.choices) {
        const int64_t source = p.place[row * p.ldPlace + first + j];
        if (source >= 0 && source < p.rowsX) raw[j] = loadRaw<T, width>(static_cast<const T*>(p.x) + source * p.ldX + column);
      }
#pragma unroll
    for (int j = 0; j < atOnce; ++j) {
      float value[width];
      widenRaw<T, width>(raw[j], value);
#pragma unroll
      for (int k = 0; k < width; ++k) sum[k] += value[k];
    }
  }
  storeVector(y, sum);
}

void addRows(const Context& context, const char* op, RowSums p, const View& y, const View& x, const View* add, int64_t rows) {
  if (rows <= 0 || y.cols <= 0) return;
  p.y = y.data, p.x = x.data, p.add = add == nullptr ? nullptr : add->data;
  p.ldY = y.ld, p.ldX = x.ld, p.ldAdd = add == nullptr ? 0 : add->ld, p.rowsX = x.rows, p.rowsY = y.rows;
  withType(y.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool fast =
        vectorised(y, perVector<T>) && vectorised(x, perVector<T>) && (add == nullptr || vectorised(*add, perVector<T>));
    const int64_t perRow = fast ? y.cols / perVector<T> : y.cols, atOnce = std::max<int64_t>(1, vectorsPerLaunch / perRow);
    p.perRow = Division(static_cast<uint32_t>(perRow));
    for (int64_t row = 0; row < rows; row += atOnce) {
      p.firstRow = static_cast<uint32_t>(row);
      p.vectors = static_cast<uint32_t>(std::min(atOnce, rows - row) * perRow);
      const auto blocks = static_cast<uint32_t>(divideUp(p.vectors, threads));
      if (fast) launchDependent(context, op, addRowsKernel<T, perVector<T>>, {blocks, threads}, p);
      else launchDependent(context, op, addRowsKernel<T, 1>, {blocks, threads}, p);
    }
  });
}

template <class W>
struct ScaleRow : MapFunction {
  static constexpr bool placed = true;
  const W* w;
  int64_t ld;
  template <int width>
  __device__ __forceinline__ void operator()(int64_t row, int64_t, const float (&in)[1][width], float (&out)[1][width]) const {
    const float factor = widen(w[row * ld]);
#pragma unroll
    for (int i = 0; i < width; ++i) out[0][i] = factor * in[0][i];
  }
};

template <class T, class W>
struct RowScales {
  T* dx;
  W* dw;
  const T *dy, *x;
  const W* w;
  int64_t rows, cols, ldDx, ldDw, ldDy, ldX, ldW;
};

/** dx = w·dy and dw = dy·x of one row in each block. */
template <class T, class W, int width>
__global__ void __launch_bounds__(threads) scaleRowsGradKernel(const RowScales<T, W> p) {
  awaitPrior();
  const int64_t row = blockIdx.x;
  const T *dy = p.dy + row * p.ldDy, *x = p.x + row * p.ldX;
  T* dx = p.dx + row * p.ldDx;
  const float factor = widen(p.w[row * p.ldW]);
  float sum = 0;
#pragma unroll 2
  for (int64_t c = threadIdx.x * width; c < p.cols; c += threads * width) {
    float d[width], v[width] = {};
    loadVector(dy + c, d);
    if (p.dw != nullptr) loadVector(x + c, v);
#pragma unroll
    for (int i = 0; i < width; ++i) sum = fmaf(d[i], v[i], sum), d[i] *= factor;
    storeVector(dx + c, d);
  }
  if (p.dw == nullptr) return;
  sum = warpSum(sum);
  __shared__ float warps[threads / 32];
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  float total = 0;
#pragma unroll
  for (int i = 0; i < threads / 32; ++i) total += warps[i];
  p.dw[row * p.ldDw] = narrow<W>(total);
}

/** A factor for each row of x: fp32, as routing weights are, or of x's own type. */
const View& rowScales(const Operands& args, int64_t index, const View& x) {
  const bool own = args.matrix(index, "w").dtype == x.dtype;
  return args.typed(index, "w", own ? x.dtype : DType::F32, x.rows, 1);
}

/** Calls fn(Tag of the elements, Tag of the factors). */
template <class Fn>
void withRowTypes(DType element, DType scale, const char* op, Fn&& fn) {
  withType(element, op, [&](auto tag) { scale == element ? fn(tag, tag) : fn(tag, Tag<float>{}); });
}

}  // namespace

void gatherRows(const Call& call, const Context& context) {
  const Operands args(call, "gatherRows", 3, 0, 0);
  const View& y = args.matrix(0, "y");
  const View& x = args.typed(1, "x", y.dtype, Operands::any, y.cols);
  copyRows(context, "gatherRows", y, x, nullptr, args.list<int32_t>(2, "index", DType::I32, y.rows), y.rows);
}

void scatterRows(const Call& call, const Context& context) {
  const Operands args(call, "scatterRows", 3, 1, 0);
  const View& y = args.matrix(0, "y");
  const View& x = args.typed(1, "x", y.dtype, Operands::any, y.cols);
  const auto* index = args.list<int32_t>(2, "index", DType::I32, x.rows);
  if (call.i(0) != 0) {
    RowSums p{};
    p.place = index, p.accumulate = p.scatter = true;
    return addRows(context, "scatterRows", p, y, x, nullptr, x.rows);
  }
  if (y.rows == 0) return;
  // The inverse list makes it one pass over y, zeros included.
  auto* inverse = scratch<int32_t>(context, 0, static_cast<size_t>(y.rows), "scatterRows");
  check(cudaMemsetAsync(inverse, 0xff, static_cast<size_t>(y.rows) * sizeof(int32_t), context.stream), "scatterRows");
  if (x.rows > 0) {
    launchDependent(context, "scatterRows", invertKernel, {static_cast<uint32_t>(divideUp(x.rows, threads)), threads}, inverse,
                    index, x.rows, y.rows);
  }
  copyRows(context, "scatterRows", y, x, nullptr, inverse, y.rows);
}

void storeRows(const Call& call, const Context& context) {
  const Operands args(call, "storeRows", 3, 0, 0);
  const View& x = args.matrix(1, "x");
  const View& cache = args.typed(0, "cache", x.dtype, Operands::any, x.cols);
  copyRows(context, "storeRows", cache, x, args.list<int32_t>(2, "slots", DType::I32, x.rows), nullptr, x.rows);
}

void combineRows(const Call& call, const Context& context) {
  const Operands args(call, "combineRows", 3, 1, 0);
  const View& y = args.matrix(0, "y");
  const View& x = args.typed(1, "x", y.dtype, Operands::any, y.cols);
  const View& place = args.typed(2, "place", DType::I32, y.rows);
  RowSums p{};
  p.place = place.i32(), p.ldPlace = place.ld, p.choices = static_cast<int>(place.cols), p.accumulate = call.i(0) != 0;
  addRows(context, "combineRows", p, y, x, args.has(3) ? &args.typed(3, "add", y.dtype, y.rows, y.cols) : nullptr, y.rows);
}

void scaleRows(const Call& call, const Context& context) {
  const Operands args(call, "scaleRows", 3, 0, 0);
  const View& x = args.matrix(1, "x");
  const View& y = args.typed(0, "y", x.dtype, x.rows, x.cols);
  const View& w = rowScales(args, 2, x);
  withRowTypes(x.dtype, w.dtype, "scaleRows", [&](auto element, auto scale) {
    using T = typename decltype(element)::type;
    using W = typename decltype(scale)::type;
    mapElements<T, 1, 1>(context, "scaleRows", {y}, {x}, ScaleRow<W>{{}, static_cast<const W*>(w.data), w.ld});
  });
}

void scaleRowsGrad(const Call& call, const Context& context) {
  const Operands args(call, "scaleRowsGrad", 5, 0, 0);
  const View& x = args.matrix(3, "x");
  const View& dx = args.typed(0, "dx", x.dtype, x.rows, x.cols);
  const View& dy = args.typed(2, "dy", x.dtype, x.rows, x.cols);
  const View& w = rowScales(args, 4, x);
  const View dw = args.has(1) ? args.typed(1, "dw", w.dtype, x.rows, 1) : View{};
  if (x.rows == 0) return;
  withRowTypes(x.dtype, w.dtype, "scaleRowsGrad", [&](auto element, auto scale) {
    using T = typename decltype(element)::type;
    using W = typename decltype(scale)::type;
    const RowScales<T, W> p{static_cast<T*>(dx.data),
                            static_cast<W*>(dw.data),
                            static_cast<const T*>(dy.data),
                            static_cast<const T*>(x.data),
                            static_cast<const W*>(w.data),
                            x.rows,
                            x.cols,
                            dx.ld,
                            dw.ld,
                            dy.ld,
                            x.ld,
                            w.ld};
    const bool fast = vectorised(x, perVector<T>) && vectorised(dx, perVector<T>) && vectorised(dy, perVector<T>);
    const auto blocks = static_cast<uint32_t>(x.rows);
    if (fast) launchDependent(context, "scaleRowsGrad", scaleRowsGradKernel<T, W, perVector<T>>, {blocks, threads}, p);
    else launchDependent(context, "scaleRowsGrad", scaleRowsGradKernel<T, W, 1>, {blocks, threads}, p);
  });
}

}  // namespace unsloth::cuda::ops
