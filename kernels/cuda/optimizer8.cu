// Optimizers whose moments are codes of 8 bits in blocks of 256 (arXiv 2110.02861), and Adafactor (arXiv 1804.04235).
// adamw8 moves 16 bytes for each parameter, lion8 14, adafactor 20 and 8 more for the size of its update.
#include "../core/quant4.h"
#include "launch.cuh"
#include "operands.h"
#include "ops.h"
#include "element.cuh"

namespace unsloth::cuda::ops {
namespace {

constexpr int stateBlock = 256, perThread = 4, threads = 256;
constexpr int groupThreads = stateBlock / perThread, groups = threads / groupThreads;

__device__ constexpr Map8 signedMap = dynamicMap(true), unsignedMap = dynamicMap(false);

/** A thread's four parameters: those behind the end are left out. */
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T at[perThread];
};

template <class T>
__device__ __forceinline__ Four<T> loadFour(const T* p, int64_t first, int64_t n) {
  if (first + perThread <= n && reinterpret_cast<uintptr_t>(p + first) % sizeof(Four<T>) == 0)
    return *reinterpret_cast<const Four<T>*>(p + first);
  Four<T> result{};
  for (int i = 0; i < perThread && first + i < n; ++i) result.at[i] = p[first + i];
  return result;
}

template <class T>
__device__ __forceinline__ void storeFour(T* p, int64_t first, int64_t n, const Four<T>& values) {
  if (first + perThread <= n && reinterpret_cast<uintptr_t>(p + first) % sizeof(Four<T>) == 0) {
    *reinterpret_cast<Four<T>*>(p + first) = values;
    return;
  }
  for (int i = 0; i < perThread && first + i < n; ++i) p[first + i] = values.at[i];
}

/** The largest of a state block's 64 threads; each group of them has its own. */
__device__ __forceinline__ float groupLargest(float value, float (&warps)[threads / 32]) {
  for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  const int group = threadIdx.x / groupThreads;
  return fmaxf(warps[2 * group], warps[2 * group + 1]);
}

/** Codes of a thread's numbers relative to their block's largest, which is returned. */
__device__ __forceinline__ float pack(Four<uint8_t>& codes, const float (&x)[perThread], const float* map, bool isSigned,
                                      float (&warps)[threads / 32]) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < perThread; ++i) largest = fmaxf(largest, fabsf(x[i]));
  largest = groupLargest(largest, warps);
#pragma unroll
  for (int i = 0; i < perThread; ++i) {
    int code = nearest8(map, largest > 0 ? x[i] / largest : 0.0f);
    if (isSigned && signbit(map[code]) != signbit(x[i])) code += x[i] > 0 ? 1 : -1;
    codes.at[i] = static_cast<uint8_t>(code);
  }
  return largest;
}

struct State {
  float *p, *absmaxM, *absmaxV;
  uint8_t *m, *v;
  const float* grad;
  const double* scalars;
  int64_t n;
  int group;
  double beta1, beta2, eps, weightDecay;
};

struct Constants {
  float scale, beta1, beta2, rate, eps, keep;
  bool spoilt;
};

/** As the processor folds them, in fp64 by one thread. */
template <bool adam>
__device__ __forceinline__ Constants constantsOf(const State& s) {
  __shared__ Constants shared;
  if (threadIdx.x == 0) {
    const double rate = s.scalars[3 + s.group], rootC2 = adam ? sqrt(s.scalars[2]) : 1, c1 = adam ? s.scalars[1] : 1;
    shared = {static_cast<float>(s.scalars[0]),
              static_cast<float>(s.beta1),
              static_cast<float>(s.beta2),
              static_cast<float>(rate * rootC2 / c1),
              static_cast<float>(rootC2 * s.eps),
              static_cast<float>(1 - rate * s.weightDecay),
              isnan(s.scalars[0])};
  }
  __syncthreads();
  return shared;
}

__device__ __forceinline__ float blend(float state, float fresh, float beta, float g) {
  return __fadd_rn(__fmul_rn(state, beta), fresh * g);
}

template <bool adam>
__global__ void __launch_bounds__(threads) stateKernel(const State s) {
  awaitPrior();
  __shared__ float maps[2][256], warps[threads / 32];
  const Constants c = constantsOf<adam>(s);
  if (c.spoilt) return;
  maps[0][threadIdx.x] = signedMap.at[threadIdx.x];
  if (adam) maps[1][threadIdx.x] = unsignedMap.at[threadIdx.x];
  const int64_t block = int64_t{blockIdx.x} * groups + threadIdx.x / groupThreads;
  const int64_t first = block * stateBlock + threadIdx.x % groupThreads * perThread;
  Four<float> p = loadFour(s.p, first, s.n);
  const Four<float> grad = loadFour(s.grad, first, s.n);
  Four<uint8_t> m = loadFour(s.m, first, s.n), v{};
  if (adam) v = loadFour(s.v, first, s.n);
  const bool live = first < s.n;
  const float absmaxM = live ? s.absmaxM[block] : 0, absmaxV = adam && live ? s.absmaxV[block] : 0;
  __syncthreads();
  float mean[perThread], square[perThread];
#pragma unroll
  for (int i = 0; i < perThread; ++i) {
    const bool inside = first + i < s.n;
    const float g = c.scale * grad.at[i], old = maps[0][m.at[i]] * absmaxM;
    if (adam) {
      const bool finite = inside && isfinite(grad.at[i]);
      const float newSquare =
          __fadd_rn(__fmul_rn(maps[1][v.at[i]] * absmaxV, c.beta2), __fmul_rn(__fmul_rn(1.0f - c.beta2, g), g));
      const float newMean = blend(old, 1.0f - c.beta1, c.beta1, g);
      mean[i] = finite ? newMean : 0.0f;
      square[i] = finite ? newSquare : 0.0f;
      const float step = __fmul_rn(c.rate, newMean / __fadd_rn(sqrtf(newSquare), c.eps));
      if (finite) p.at[i] = __fmul_rn(__fadd_rn(p.at[i], -step), c.keep);
    } else {
      const float mixed = blend(old, 1.0f - c.beta1, c.beta1, g), direction = mixed > 0 ? 1.0f : mixed < 0 ? -1.0f : 0.0f;
      p.at[i] = __fadd_rn(__fmul_rn(p.at[i], c.keep), -__fmul_rn(c.rate, direction));
      mean[i] = inside ? blend(old, 1.0f - c.beta2, c.beta2, g) : 0.0f;
    }
  }
  const float largestM = pack(m, mean, maps[0], true, warps);
  const float largestV = adam ? pack(v, square, maps[1], false, warps) : 0.0f;
  if (!live) return;
  storeFour(s.p, first, s.n, p);
  storeFour(s.m, first, s.n, m);
  if (adam) storeFour(s.v, first, s.n, v);
  if (threadIdx.x % groupThreads == 0) {
    s.absmaxM[block] = largestM;
    if (adam) s.absmaxV[block] = largestV;
  }
}

float* floats(const Operands& args, int64_t i, const char* name, int64_t count) {
  return static_cast<float*>(args.typed(i, name, DType::F32, 1, count).data);
}

uint8_t* codes(const Operands& args, int64_t i, const char* name, int64_t count) {
  return static_cast<uint8_t*>(args.typed(i, name, DType::U8, 1, count).data);
}

constexpr int64_t blocksOf(int64_t n) { return (n + stateBlock - 1) / stateBlock; }

unsigned gridOf(int64_t n) { return static_cast<unsigned>((blocksOf(n) + groups - 1) / groups); }

/** Σ over a block of threads, in a fixed order. */
__device__ double blockSum(double value) {
  __shared__ double warps[32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) total += warps[i];
  return total;
}

struct Factors {
  float *p, *row, *column;
  const float* grad;
  const double* scalars;
  double* scratch;  // mean of row, then the clipped rate, then a sum for each row
  int64_t rows, cols;
  int group;
  double floor, clip, weightDecay;

  __device__ double squared(int64_t i) const {
    const double g = scalars[0] * grad[i];
    return g * g + floor;
  }
  __device__ void mix(float& state, double value) const {
    state = static_cast<float>(scalars[1] * state + (1 - scalars[1]) * value);
  }
  __device__ double update(int64_t r, int64_t c) const {
    const double g = scalars[0] * grad[r * cols + c];
    if (column == nullptr) return g / sqrt(static_cast<double>(row[r * cols + c]));
    return g / (sqrt(row[r] / scratch[0]) * sqrt(static_cast<double>(column[c])));
  }
};

__global__ void __launch_bounds__(threads) factorRows(const Factors f) {
  awaitPrior();
  if (isnan(f.scalars[0])) return;
  const int64_t r = blockIdx.x;
  double sum = 0;
  for (int64_t c = threadIdx.x; c < f.cols; c += threads) {
    if (f.column == nullptr) f.mix(f.row[r * f.cols + c], f.squared(r * f.cols + c));
    else sum += f.squared(r * f.cols + c);
  }
  if (f.column == nullptr) return;
  const double total = blockSum(sum);
  if (threadIdx.x == 0) f.mix(f.row[r], total / f.cols);
}

__global__ void __launch_bounds__(threads) factorColumns(const Factors f) {
  awaitPrior();
  if (isnan(f.scalars[0])) return;
  __shared__ double sums[threads / 32][32];
  const int64_t c = int64_t{blockIdx.x} * 32 + threadIdx.x % 32;
  double sum = 0;
  if (c < f.cols)
    for (int64_t r = threadIdx.x / 32; r < f.rows; r += threads / 32) sum += f.squared(r * f.cols + c);
  sums[threadIdx.x / 32][threadIdx.x % 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32 || c >= f.cols) return;
  double total = 0;
  for (int i = 0; i < threads / 32; ++i) total += sums[i][threadIdx.x];
  f.mix(f.column[c], total / f.rows);
}

__global__ void __launch_bounds__(threads) factorMean(const Factors f) {
  awaitPrior();
  double sum = 0;
  for (int64_t r = threadIdx.x; r < f.rows; r += threads) sum += f.row[r];
  const double total = blockSum(sum);
  if (threadIdx.x == 0) f.scratch[0] = total / f.rows;
}

__global__ void __launch_bounds__(threads) factorSquares(const Factors f) {
  awaitPrior();
  const int64_t r = blockIdx.x;
  double sum = 0;
  for (int64_t c = threadIdx.x; c < f.cols; c += threads) sum += f.update(r, c) * f.update(r, c);
  const double total = blockSum(sum);
  if (threadIdx.x == 0) f.scratch[2 + r] = total;
}

__global__ void __launch_bounds__(threads) factorRate(const Factors f) {
  awaitPrior();
  double sum = 0;
  for (int64_t r = threadIdx.x; r < f.rows; r += threads) sum += f.scratch[2 + r];
  const double total = blockSum(sum);
  if (threadIdx.x == 0)
    f.scratch[1] = f.scalars[3 + f.group] / fmax(1.0, sqrt(total / (static_cast<double>(f.rows) * f.cols)) / f.clip);
}

__global__ void __launch_bounds__(threads) factorUpdate(const Factors f) {
  awaitPrior();
  if (isnan(f.scalars[0])) return;
  const double keep = 1 - f.scalars[3 + f.group] * f.weightDecay, rate = f.scratch[1];
  const int64_t r = blockIdx.x;
  for (int64_t c = threadIdx.x; c < f.cols; c += threads) {
    float& p = f.p[r * f.cols + c];
    p = static_cast<float>(keep * p - rate * f.update(r, c));
  }
}

}  // namespace

void adamw8(const Call& call, const Context& context) {
  const Operands args(call, "adamw8", 7, 1, 4);
  const int64_t n = args.typed(0, "p", DType::F32, 1).cols;
  args.require(call.i(0) >= 0, "group is negative");
  State s{};
  s.p = floats(args, 0, "p", n);
  s.m = codes(args, 1, "m", n);
  s.v = codes(args, 2, "v", n);
  s.absmaxM = floats(args, 3, "absmaxM", blocksOf(n));
  s.absmaxV = floats(args, 4, "absmaxV", blocksOf(n));
  s.grad = floats(args, 5, "grad", n);
  s.scalars = args.list<double>(6, "scalars", DType::F64, 4 + call.i(0));
  s.n = n;
  s.group = call.i(0);
  s.beta1 = call.f(0), s.beta2 = call.f(1), s.eps = call.f(2), s.weightDecay = call.f(3);
  if (n == 0) return;
  launchDependent(context, "adamw8", stateKernel<true>, {gridOf(n), threads}, s);
}

void lion8(const Call& call, const Context& context) {
  const Operands args(call, "lion8", 5, 1, 3);
  const int64_t n = args.typed(0, "p", DType::F32, 1).cols;
  args.require(call.i(0) >= 0, "group is negative");
  State s{};
  s.p = floats(args, 0, "p", n);
  s.m = codes(args, 1, "m", n);
  s.absmaxM = floats(args, 2, "absmax", blocksOf(n));
  s.grad = floats(args, 3, "grad", n);
  s.scalars = args.list<double>(4, "scalars", DType::F64, 4 + call.i(0));
  s.n = n;
  s.group = call.i(0);
  s.beta1 = call.f(0), s.beta2 = call.f(1), s.weightDecay = call.f(2);
  if (n == 0) return;
  launchDependent(context, "lion8", stateKernel<false>, {gridOf(n), threads}, s);
}

void adafactor(const Call& call, const Context& context) {
  const Operands args(call, "adafactor", 5, 1, 3);
  const View& p = args.typed(0, "p", DType::F32);
  const View& grad = args.typed(3, "grad", DType::F32, p.rows, p.cols);
  args.require(p.ld == p.cols && grad.ld == grad.cols, "p and grad must have no gaps");
  args.require(call.i(0) >= 0, "group is negative");
  const bool factored = args.has(2);
  Factors f{};
  f.p = static_cast<float*>(p.data);
  f.row = floats(args, 1, "row", factored ? p.rows : p.rows * p.cols);
  f.column = factored ? floats(args, 2, "column", p.cols) : nullptr;
  f.grad = static_cast<const float*>(grad.data);
  f.scalars = args.list<double>(4, "scalars", DType::F64, 4 + call.i(0));
  f.scratch = scratch<double>(context, 0, static_cast<size_t>(2 + p.rows), "adafactor");
  f.rows = p.rows, f.cols = p.cols, f.group = call.i(0);
  f.floor = call.f(0), f.clip = call.f(1), f.weightDecay = call.f(2);
  if (p.rows == 0 || p.cols == 0) return;
  const auto rows = static_cast<unsigned>(p.rows);
  launchDependent(context, "adafactor", factorRows, {rows, threads}, f);
  if (factored) {
    launchDependent(context, "adafactor", factorColumns, {static_cast<unsigned>((p.cols + 31) / 32), threads}, f);
    launchDependent(context, "adafactor", factorMean, {1, threads}, f);
  }
  launchDependent(context, "adafactor", factorSquares, {rows, threads}, f);
  launchDependent(context, "adafactor", factorRate, {1, threads}, f);
  launchDependent(context, "adafactor", factorUpdate, {rows, threads}, f);
}

}  // namespace unsloth::cuda::ops
