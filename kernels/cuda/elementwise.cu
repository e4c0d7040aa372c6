// add, columnSum, fill, cast and logitCap: each operand is moved once.
#include "columnReduce.cuh"
#include "launch.cuh"
#include "map.cuh"
#include "operands.h"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

struct Scale : MapFunction {
  float alpha;
  template <int width>
  __device__ __forceinline__ void operator()(int64_t, int64_t, const float (&in)[1][width], float (&out)[1][width]) const {
#pragma unroll
    for (int i = 0; i < width; ++i) out[0][i] = alpha * in[0][i];
  }
};

struct ScaleAdd : MapFunction {
  float alpha, beta;
  template <int width>
  __device__ __forceinline__ void operator()(int64_t, int64_t, const float (&in)[2][width], float (&out)[1][width]) const {
#pragma unroll
    for (int i = 0; i < width; ++i) out[0][i] = fmaf(alpha, in[0][i], beta * in[1][i]);
  }
};

/** tanh to a few ulp: an odd polynomial (Cephes tanhf) near zero, 1 − 2/(e²ˣ + 1) elsewhere. */
__device__ __forceinline__ float hyperbolicTangent(float x) {
  const float size = fabsf(x), z = x * x;
  float p = fmaf(-5.70498872745e-3f, z, 2.06390887954e-2f);
  p = fmaf(p, z, -5.37397155531e-2f);
  p = fmaf(p, z, 1.33314422036e-1f);
  p = fmaf(p, z, -3.33332819422e-1f);
  const float large = 1.0f - __fdividef(2.0f, __expf(size + size) + 1.0f);
  return size < 0.625f ? fmaf(p * z, x, x) : copysignf(large, x);
}

struct LogitCap : MapFunction {
  float inner, softcap;  // scale / softcap
  template <int width>
  __device__ __forceinline__ void operator()(int64_t, int64_t, const float (&in)[1][width], float (&out)[1][width]) const {
#pragma unroll
    for (int i = 0; i < width; ++i) out[0][i] = softcap * hyperbolicTangent(in[0][i] * inner);
  }
};

/** Term of sumColumns: x itself. */
template <class T>
struct Plain {
  const T* x;
  int64_t ld;
  template <int width>
  __device__ __forceinline__ void operator()(uint32_t row, uint32_t, int64_t column, float (&sums)[width]) const {
    float value[width];
    loadVector(x + row * ld + column, value);
#pragma unroll
    for (int i = 0; i < width; ++i) sums[i] += value[i];
  }
};

constexpr int pieceThreads = 256, piecesPerThread = 4;

/** 16-byte or single-element stores of one repeated value. */
template <class Unit>
__global__ void __launch_bounds__(pieceThreads) fillKernel(Unit* x, int64_t ld, int64_t perRow, int64_t units, const Unit value) {
  awaitPrior();
  const int64_t first = int64_t{blockIdx.x} * (pieceThreads * piecesPerThread) + threadIdx.x;
#pragma unroll
  for (int u = 0; u < piecesPerThread; ++u) {
    const int64_t i = first + u * pieceThreads;
    if (i < units) x[perRow == ld ? i : i / perRow * ld + i % perRow] = value;
  }
}

template <class Unit>
void fillUnits(const Context& context, const View& x, int64_t rows, int64_t cols, int64_t ld, Unit value) {
  const int64_t units = rows * cols;
  if (units <= 0) return;
  launchDependent(context, "fill", fillKernel<Unit>,
                  {static_cast<uint32_t>(divideUp(units, pieceThreads * piecesPerThread)), pieceThreads},
                  static_cast<Unit*>(x.data), ld, cols, units, value);
}

/** fill for one element type: in 16-byte pieces where rows allow it. */
template <class T>
void fillWith(const Context& context, const View& x, T value) {
  constexpr int64_t count = 16 / sizeof(T);
  const bool flat = gapless(x);
  const int64_t rows = flat ? 1 : x.rows, cols = flat ? x.rows * x.cols : x.cols, ld = flat ? cols : x.ld;
  const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (flat || (x.ld % count == 0 && x.cols % count == 0));
  const int64_t body = aligned ? cols / count : 0;
  uint4 pattern;
  for (int64_t i = 0; i < count; ++i) std::memcpy(reinterpret_cast<std::byte*>(&pattern) + i * sizeof(T), &value, sizeof(T));
  fillUnits(context, x, rows, body, flat ? body : ld / count, pattern);
  View tail = x;
  tail.data = static_cast<T*>(x.data) + body * count;
  fillUnits(context, tail, rows, cols - body * count, flat ? cols - body * count : ld, value);
}

struct CastOperands {
  AnyFloats x;
  void* y;
  int64_t ldX, ldY, perRow, vectors;
};

template <class Y, int width>
__global__ void __launch_bounds__(pieceThreads) castKernel(const CastOperands p) {
  awaitPrior();
  constexpr int unroll = 2;
  const int64_t first = int64_t{blockIdx.x} * (pieceThreads * unroll) + threadIdx.x;
  float value[unroll][width];
  int64_t to[unroll];
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
    const int64_t i = first + u * pieceThreads;
    if (i >= p.vectors) continue;
    const int64_t row = p.vectors == p.perRow ? 0 : i / p.perRow, column = (i - row * p.perRow) * width;
    to[u] = row * p.ldY + column;
    const int64_t from = row * p.ldX + column;
    if constexpr (width == 1) {
      if (p.x.dtype == DType::I32) value[u][0] = static_cast<float>(static_cast<const int32_t*>(p.x.data)[from]);
      else if (p.x.dtype == DType::F64) value[u][0] = static_cast<float>(static_cast<const double*>(p.x.data)[from]);
      else p.x.load(from, value[u]);
    } else {
      p.x.load(from, value[u]);
    }
  }
#pragma unroll
  for (int u = 0; u < unroll; ++u)
    if (first + u * pieceThreads < p.vectors) storeVector(static_cast<Y*>(p.y) + to[u], value[u]);
}

template <class Y, int width>
void castPart(const Context& context, const View& x, const View& y, int64_t rows, int64_t cols) {
  const int64_t perRow = cols / width, vectors = rows * perRow;
  if (vectors <= 0) return;
  const CastOperands p{AnyFloats(x), y.data, x.ld, y.ld, perRow, vectors};
  launchDependent(context, "cast", castKernel<Y, width>,
                  {static_cast<uint32_t>(divideUp(vectors, pieceThreads * 2)), pieceThreads}, p);
}

}  // namespace

void add(const Call& call, const Context& context) {
  const Operands args(call, "add", 2, 0, 2);
  const View& y = args.matrix(0, "y");
  const View& a = args.typed(1, "a", y.dtype, y.rows, y.cols);
  const float alpha = static_cast<float>(call.f(0)), beta = static_cast<float>(call.f(1));
  const View* b = args.has(2) ? &args.typed(2, "b", y.dtype, y.rows, y.cols) : nullptr;
  withType(y.dtype, "add", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (b == nullptr) mapElements<T, 1, 1>(context, "add", {y}, {a}, Scale{{}, alpha});
    else mapElements<T, 2, 1>(context, "add", {y}, {a, *b}, ScaleAdd{{}, alpha, beta});
  });
}

void columnSum(const Call& call, const Context& context) {
  const Operands args(call, "columnSum", 2, 0, 1);
  const View& x = args.matrix(1, "x");
  const View& out = args.typed(0, "out", DType::F32, 1, x.cols);
  const float alpha = static_cast<float>(call.f(0));
  withType(x.dtype, "columnSum", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Plain<T> term{static_cast<const T*>(x.data), x.ld};
    if (vectorised(x, perVector<T>)) sumColumns<perVector<T>>(context, "columnSum", out.f32(), x.rows, 1, x.cols, alpha, term);
    else sumColumns<1>(context, "columnSum", out.f32(), x.rows, 1, x.cols, alpha, term);
  });
}

void logitCap(const Call& call, const Context& context) {
  const Operands args(call, "logitCap", 1, 0, 2);
  const View& x = args.matrix(0, "x");
  const float scale = static_cast<float>(call.f(0)), softcap = static_cast<float>(call.f(1));
  if (softcap == 0 && scale == 1) return;
  withType(x.dtype, "logitCap", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (softcap == 0) mapElements<T, 1, 1>(context, "logitCap", {x}, {x}, Scale{{}, scale});
    else mapElements<T, 1, 1>(context, "logitCap", {x}, {x}, LogitCap{{}, scale / softcap, softcap});
  });
}

void fill(const Call& call, const Context& context) {
  const Operands args(call, "fill", 1, 0, 1);
  const View& x = args.shaped(0, "x", Operands::any, Operands::any);
  const double value = call.f(0);
  const float single = static_cast<float>(value);
  switch (x.dtype) {
    case DType::F32: return fillWith<float>(context, x, single);
    case DType::F64: return fillWith<double>(context, x, value);
    case DType::I32: return fillWith<int32_t>(context, x, static_cast<int32_t>(value));
    case DType::BF16: return fillWith<uint16_t>(context, x, floatToBf16(single));
    case DType::F16: return fillWith<uint16_t>(context, x, floatToF16(single));
    case DType::U8: return fillWith<uint8_t>(context, x, static_cast<uint8_t>(value));
    default: args.refuse("x is quantised");
  }
}

void cast(const Call& call, const Context& context) {
  const Operands args(call, "cast", 2, 0, 0);
  View x = args.shaped(1, "x", Operands::any, Operands::any);
  View y = args.matrix(0, "y", x.rows, x.cols);
  args.require(x.dtype != DType::U8, "x is u8");
  int64_t rows = x.rows, cols = x.cols;
  const bool flat = gapless(x) && gapless(y), floats = x.dtype != DType::I32 && x.dtype != DType::F64;
  if (flat) cols *= rows, rows = std::min<int64_t>(rows, 1);
  constexpr int width = 8;
  View head = x, into = y;  // what is moved in vectors
  head.cols = into.cols = flat ? cols / width * width : cols;
  head.ld = flat ? head.cols : x.ld, into.ld = flat ? into.cols : y.ld;
  const bool fast = floats && vectorised(head, width) && vectorised(into, width);
  withType(y.dtype, "cast", [&](auto tag) {
    using Y = typename decltype(tag)::type;
    const int64_t body = fast ? head.cols : 0;
    castPart<Y, width>(context, x, y, rows, body);
    x.data = static_cast<std::byte*>(x.data) + static_cast<size_t>(body) * bytesPerElement(x.dtype);
    y.data = static_cast<std::byte*>(y.data) + static_cast<size_t>(body) * bytesPerElement(y.dtype);
    castPart<Y, 1>(context, x, y, rows, cols - body);
  });
}

}  // namespace unsloth::cuda::ops
