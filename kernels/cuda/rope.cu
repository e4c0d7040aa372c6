// Rotary position embedding. Bytes: rope moves x once each way and cosSin (fp32) once for every headGroup of heads.
#include "context.h"
#include "launch.cuh"
#include "operands.h"
#include "ops.h"
#include "vector.cuh"

namespace unsloth::cuda::ops {
namespace {

constexpr int threads = 128, headGroup = 4;

struct Angles {
  float* cosSin;
  const int32_t *positions, *table;
  const float *inverseFrequency, *factor;
  int64_t rows, half, ldCosSin, ldFrequency, tables;
};

__global__ void __launch_bounds__(threads) ropeTableKernel(const Angles p) {
  awaitPrior();
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i >= p.rows * p.half) return;
  const int64_t row = i / p.half, column = i % p.half, table = p.table[row];
  if (table < 0 || table >= p.tables) return;
  float sine, cosine;
  sincosf(static_cast<float>(p.positions[row]) * p.inverseFrequency[table * p.ldFrequency + column], &sine, &cosine);
  const float factor = p.factor[table];
  float* out = p.cosSin + row * p.ldCosSin;
  out[column] = cosine * factor;
  out[p.half + column] = sine * factor;
}

template <class T>
struct Rotation {
  T* y;
  const T* x;
  const float* cosSin;
  int64_t ldY, ldX, ldCosSin;
  int heads, headDim, half;
  uint32_t items, firstRow;
  float direction;
  Division perRow, perGroup;  // items of a row; items of a group of heads
};

/**
 * Each thread turns `width` pairs of up to headGroup heads: columns (i, i + half) as two vectors, or 2·width interleaved columns
 * as two neighbouring ones, with the same angles.
 */
template <class T, bool interleaved>
__global__ void __launch_bounds__(threads) ropeKernel(const Rotation<T> p) {
  awaitPrior();
  constexpr int width = perVector<T>;
  const uint32_t item = blockIdx.x * threads + threadIdx.x;
  if (item >= p.items) return;
  const uint32_t r = p.perRow(item), inRow = item - r * p.perRow.divisor, group = p.perGroup(inRow);
  const int pair = static_cast<int>(inRow - group * p.perGroup.divisor) * width;
  const int64_t row = int64_t{p.firstRow} + r;
  const int low = interleaved ? 2 * pair : pair, high = interleaved ? low + width : pair + p.half;
  const int64_t column = int64_t{group} * headGroup * p.headDim;
  const int heads = min(headGroup, p.heads - static_cast<int>(group) * headGroup);
  Raw<T, width> raw[headGroup][2];
#pragma unroll
  for (int h = 0; h < headGroup; ++h)
    if (h < heads) {
      const T* x = p.x + row * p.ldX + column + h * p.headDim;
      raw[h][0] = loadRaw<T, width>(x + low);
      raw[h][1] = loadRaw<T, width>(x + high);
    }
  float cosine[width], sine[width];
  loadVector(p.cosSin + row * p.ldCosSin + pair, cosine);
  loadVector(p.cosSin + row * p.ldCosSin + p.half + pair, sine);
#pragma unroll
  for (int i = 0; i < width; ++i) sine[i] *= p.direction;
#pragma unroll
  for (int h = 0; h < headGroup; ++h)
    if (h < heads) {
      float a[width], b[width], outA[width], outB[width];
      widenRaw<T, width>(raw[h][0], a);
      widenRaw<T, width>(raw[h][1], b);
      if constexpr (interleaved) {
#pragma unroll
        for (int i = 0; i < width; ++i) {
          const float from = i < width / 2 ? a[2 * (i % (width / 2))] : b[2 * (i % (width / 2))];
          const float with = i < width / 2 ? a[2 * (i % (width / 2)) + 1] : b[2 * (i % (width / 2)) + 1];
          const float first = fmaf(-with, sine[i], from * cosine[i]), second = fmaf(from, sine[i], with * cosine[i]);
          (i < width / 2 ? outA : outB)[2 * (i % (width / 2))] = first;
          (i < width / 2 ? outA : outB)[2 * (i % (width / 2)) + 1] = second;
        }
      } else {
#pragma unroll
        for (int i = 0; i < width; ++i) {
          outA[i] = fmaf(-b[i], sine[i], a[i] * cosine[i]);
          outB[i] = fmaf(a[i], sine[i], b[i] * cosine[i]);
        }
      }
      T* y = p.y + row * p.ldY + column + h * p.headDim;
      storeRaw<T, width>(y + low, narrowRaw<T, width>(outA));
      storeRaw<T, width>(y + high, narrowRaw<T, width>(outB));
    }
}

/** One pair, or one column that is only copied, in each thread: any alignment. */
template <class T>
__global__ void __launch_bounds__(threads) ropePairKernel(const Rotation<T> p, int64_t rows, bool interleaved) {
  awaitPrior();
  const int perHead = p.headDim - p.half;
  const int64_t item = int64_t{blockIdx.x} * threads + threadIdx.x, perRow = int64_t{perHead} * p.heads;
  if (item >= rows * perRow) return;
  const int64_t row = item / perRow, head = item % perRow / perHead;
  const int i = static_cast<int>(item % perHead);
  const T* x = p.x + row * p.ldX + head * p.headDim;
  T* y = p.y + row * p.ldY + head * p.headDim;
  if (i >= p.half) {
    if (y != x) y[p.half + i] = x[p.half + i];
    return;
  }
  const int low = interleaved ? 2 * i : i, high = interleaved ? low + 1 : i + p.half;
  const float cosine = p.cosSin[row * p.ldCosSin + i], sine = p.cosSin[row * p.ldCosSin + p.half + i] * p.direction;
  const float a = widen(x[low]), b = widen(x[high]);
  y[low] = narrow<T>(fmaf(-b, sine, a * cosine));
  y[high] = narrow<T>(fmaf(a, sine, b * cosine));
}

}  // namespace

void ropeTable(const Call& call, const Context& context) {
  const Operands args(call, "ropeTable", 5, 0, 0);
  const View& cosSin = args.typed(0, "cosSin", DType::F32);
  const int64_t rows = cosSin.rows, half = cosSin.cols / 2;
  args.require(cosSin.cols % 2 == 0, "cosSin has an odd number of columns");
  const View& inverseFrequency = args.typed(3, "inverseFrequency", DType::F32, Operands::any, half);
  const Angles p{cosSin.f32(),
                 args.list<int32_t>(1, "positions", DType::I32, rows),
                 args.list<int32_t>(2, "table", DType::I32, rows),
                 inverseFrequency.f32(),
                 args.list<float>(4, "factor", DType::F32, inverseFrequency.rows),
                 rows,
                 half,
                 cosSin.ld,
                 inverseFrequency.ld,
                 inverseFrequency.rows};
  if (rows * half == 0) return;
  launchDependent(context, "ropeTable", ropeTableKernel, {static_cast<uint32_t>(divideUp(rows * half, threads)), threads}, p);
}

void rope(const Call& call, const Context& context) {
  const Operands args(call, "rope", 3, 4, 0);
  const int64_t heads = call.i(0), headDim = call.i(1);
  const bool interleaved = call.i(2) != 0;
  const View& x = args.matrix(1, "x", Operands::any, heads * headDim);
  const View& y = args.typed(0, "y", x.dtype, x.rows, x.cols);
  const View& cosSin = args.typed(2, "cosSin", DType::F32, x.rows);
  const int64_t half = cosSin.cols / 2;
  if (cosSin.cols % 2 != 0 || 2 * half > headDim)
    args.refuse("cosSin is " + Operands::describe(cosSin) + ", expected an even number of columns, at most " +
                std::to_string(headDim));
  if (x.rows * x.cols == 0) return;
  withType(x.dtype, "rope", [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int width = perVector<T>;
    Rotation<T> p{static_cast<T*>(y.data),
                  static_cast<const T*>(x.data),
                  cosSin.f32(),
                  y.ld,
                  x.ld,
                  cosSin.ld,
                  static_cast<int>(heads),
                  static_cast<int>(headDim),
                  static_cast<int>(half),
                  0,
                  0,
                  call.i(3) != 0 ? -1.0f : 1.0f,
                  {},
                  {}};
    const bool whole = 2 * half == headDim || x.data == y.data;
    const bool aligned =
        vectorised(x, width) && vectorised(y, width) && vectorised(cosSin, 4) && half % width == 0 && headDim % width == 0;
    if (!whole || !aligned || half == 0) {
      const int64_t items = x.rows * heads * (headDim - half);
      launchDependent(context, "rope", ropePairKernel<T>, {static_cast<uint32_t>(divideUp(items, threads)), threads}, p, x.rows,
                      interleaved);
      return;
    }
    const int64_t perGroup = half / width, perRow = perGroup * divideUp(heads, headGroup), atOnce = (int64_t{1} << 30) / perRow;
    p.perGroup = Division(static_cast<uint32_t>(perGroup));
    p.perRow = Division(static_cast<uint32_t>(perRow));
    for (int64_t row = 0; row < x.rows; row += atOnce) {
      p.firstRow = static_cast<uint32_t>(row);
      p.items = static_cast<uint32_t>(std::min(atOnce, x.rows - row) * perRow);
      const auto blocks = static_cast<uint32_t>(divideUp(p.items, threads));
      if (interleaved) launchDependent(context, "rope", ropeKernel<T, true>, {blocks, threads}, p);
      else launchDependent(context, "rope", ropeKernel<T, false>, {blocks, threads}, p);
    }
  });
}

}  // namespace unsloth::cuda::ops
