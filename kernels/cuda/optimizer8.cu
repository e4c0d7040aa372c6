// Optimizers whose moments are codes of 8 bits in blocks of 256 (arXiv 2110.02861), and Adafactor (arXiv 1804.04235).
// adamw8 moves 16 bytes for each parameter, lion8 14, adafactor 20 and 8 more for the size of its update.
#include "launch.cuh"
#include "nearest8.cuh"
#include "operands.h"
#include "ops.h"
#include "vector.cuh"
#include "warp.cuh"

namespace unsloth::cuda::ops {
namespace {

constexpr int stateBlock = 256, stateThreads = 512, stateBlocksEach = 2, threads = 256;
/** A warp has a state block, a lane four parameters of its first half and four of its second: pieces of 16 bytes side by side. */
constexpr int quads = 2, perLane = 4 * quads, quadStep = stateBlock / quads;

__device__ constexpr Map8 signedMap = dynamicMap(true), unsignedMap = dynamicMap(false);
__device__ constexpr NearestCells<true> signedCells = nearestCells<true>();
__device__ constexpr NearestCells<false> unsignedCells = nearestCells<false>();

/** How codes are read and found; every block of threads has its copy. */
struct Codes {
  Map8 mean, square;
  NearestCells<true> meanCells;
  NearestCells<false> squareCells;
};

template <bool adam>
__device__ void copyCodes(Codes& codes) {
  const auto copy = [](void* to, const void* from, size_t bytes) {
    for (unsigned i = threadIdx.x; i < bytes / sizeof(uint4); i += stateThreads)
      static_cast<uint4*>(to)[i] = static_cast<const uint4*>(from)[i];
  };
  copy(&codes.mean, &signedMap, sizeof signedMap);
  copy(&codes.meanCells, &signedCells, sizeof signedCells);
  if (!adam) return;
  copy(&codes.square, &unsignedMap, sizeof unsignedMap);
  copy(&codes.squareCells, &unsignedCells, sizeof unsignedCells);
}

struct State {
  float *p, *absmaxM, *absmaxV;
  uint8_t *m, *v;
  const float* grad;
  const double* scalars;
  int64_t n;
  int group;
  bool aligned;  // whether four neighbours can be moved at once
  double beta1, beta2, eps, weightDecay;
};

struct Constants {
  float scale, beta1, beta2, rate, eps, keep;
  bool spoilt;
};

/** As the processor folds them, in fp64. */
template <bool adam>
__device__ __forceinline__ Constants constantsOf(const State& s) {
  const double rate = s.scalars[3 + s.group], rootC2 = adam ? sqrt(s.scalars[2]) : 1, c1 = adam ? s.scalars[1] : 1;
  return {static_cast<float>(s.scalars[0]),
          static_cast<float>(s.beta1),
          static_cast<float>(s.beta2),
          static_cast<float>(rate * rootC2 / c1),
          static_cast<float>(rootC2 * s.eps),
          static_cast<float>(1 - rate * s.weightDecay),
          isnan(s.scalars[0])};
}

/** What a lane has of a state block. Behind the end: zeros, whose codes are `zeroCode`. */
template <bool adam>
struct Held {
  static constexpr uint32_t zeroCode = 127;
  float p[perLane], grad[perLane];
  uint32_t m[quads], v[quads];
  float absmaxM, absmaxV;

  __device__ __forceinline__ void load(const State& s, int64_t block, int lane) {
    const int64_t first = block * stateBlock + 4 * lane;
    absmaxM = s.absmaxM[block];
    if (adam) absmaxV = s.absmaxV[block];
    if (s.aligned && (block + 1) * stateBlock <= s.n) {
#pragma unroll
      for (int q = 0; q < quads; ++q) {
        const float4 ps = *reinterpret_cast<const float4*>(s.p + first + q * quadStep);
        const float4 grads = *reinterpret_cast<const float4*>(s.grad + first + q * quadStep);
        p[4 * q] = ps.x, p[4 * q + 1] = ps.y, p[4 * q + 2] = ps.z, p[4 * q + 3] = ps.w;
        grad[4 * q] = grads.x, grad[4 * q + 1] = grads.y, grad[4 * q + 2] = grads.z, grad[4 * q + 3] = grads.w;
        m[q] = *reinterpret_cast<const uint32_t*>(s.m + first + q * quadStep);
        if (adam) v[q] = *reinterpret_cast<const uint32_t*>(s.v + first + q * quadStep);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < perLane; ++i) {
      const int64_t at = first + i / 4 * quadStep + i % 4;
      const bool inside = at < s.n;
      if (i % 4 == 0) m[i / 4] = v[i / 4] = 0;
      p[i] = inside ? s.p[at] : 0.0f;
      grad[i] = inside ? s.grad[at] : 0.0f;
      m[i / 4] |= (inside ? s.m[at] : zeroCode) << 8 * (i % 4);
      if (adam && inside) v[i / 4] |= uint32_t{s.v[at]} << 8 * (i % 4);
    }
  }

  __device__ __forceinline__ void store(const State& s, int64_t block, int lane) const {
    const int64_t first = block * stateBlock + 4 * lane;
    if (lane == 0) {
      s.absmaxM[block] = absmaxM;
      if (adam) s.absmaxV[block] = absmaxV;
    }
    if (s.aligned && (block + 1) * stateBlock <= s.n) {
#pragma unroll
      for (int q = 0; q < quads; ++q) {
        *reinterpret_cast<float4*>(s.p + first + q * quadStep) = make_float4(p[4 * q], p[4 * q + 1], p[4 * q + 2], p[4 * q + 3]);
        *reinterpret_cast<uint32_t*>(s.m + first + q * quadStep) = m[q];
        if (adam) *reinterpret_cast<uint32_t*>(s.v + first + q * quadStep) = v[q];
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < perLane; ++i) {
      const int64_t at = first + i / 4 * quadStep + i % 4;
      if (at >= s.n) continue;
      s.p[at] = p[i];
      s.m[at] = static_cast<uint8_t>(m[i / 4] >> 8 * (i % 4));
      if (adam) s.v[at] = static_cast<uint8_t>(v[i / 4] >> 8 * (i % 4));
    }
  }
};

__device__ __forceinline__ float blend(float state, float fresh, float beta, float g) {
  return __fadd_rn(__fmul_rn(state, beta), fresh * g);
}

/**
 * Codes of a warp's numbers relative to their largest, which is returned. Quotients are rounded as a division rounds them, two
 * corrections from the reciprocal (Markstein, IBM J. Res. Dev. 34, 1990), where they are large enough to have a code.
 */
template <bool isSigned>
__device__ __forceinline__ float pack(uint32_t (&codes)[quads], const float (&x)[perLane], const NearestCells<isSigned>& cells) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < perLane; ++i) largest = fmaxf(largest, fabsf(x[i]));
  largest = warpMax(largest);
  const float scale = largest < 0x1p-64f ? 0x1p96f : largest > 0x1p64f ? 0x1p-64f : 1.0f;
  const float by = largest * scale, inverse = 1.0f / by;
#pragma unroll
  for (int q = 0; q < quads; ++q) {
    uint32_t code[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float number = x[4 * q + i], scaled = number * scale;
      float quotient = scaled * inverse;
      quotient = fmaf(fmaf(-quotient, by, scaled), inverse, quotient);
      quotient = fmaf(fmaf(-quotient, by, scaled), inverse, quotient);
      uint32_t place = __float_as_uint(fmaxf(fabsf(quotient), leastCoded));
      if (isSigned) place ^= static_cast<uint32_t>(__float_as_int(number) >> 31);
      code[i] = cells.codeOf(cells.at[cells.cellOf(place)], place);
    }
    codes[q] = __byte_perm(__byte_perm(code[0], code[1], 0x0073), __byte_perm(code[2], code[3], 0x0073), 0x5410);
  }
  return largest;
}

/** The step of one state block. */
template <bool adam>
__device__ __forceinline__ void step(Held<adam>& h, const Constants& c, const Codes& codes) {
  float mean[perLane], square[perLane];
#pragma unroll
  for (int i = 0; i < perLane; ++i) {
    const auto codeAt = [&](uint32_t word) { return word >> 8 * (i % 4) & 0xff; };
    const float g = c.scale * h.grad[i], old = codes.mean.at[codeAt(h.m[i / 4])] * h.absmaxM;
    if (adam) {
      const bool finite = isfinite(h.grad[i]);
      const float newSquare = __fadd_rn(__fmul_rn(codes.square.at[codeAt(h.v[i / 4])] * h.absmaxV, c.beta2),
                                        __fmul_rn(__fmul_rn(1.0f - c.beta2, g), g));
      const float newMean = blend(old, 1.0f - c.beta1, c.beta1, g);
      mean[i] = finite ? newMean : 0.0f;
      square[i] = finite ? newSquare : 0.0f;
      const float change = __fmul_rn(c.rate, newMean / __fadd_rn(sqrtf(newSquare), c.eps));
      if (finite) h.p[i] = __fmul_rn(__fadd_rn(h.p[i], -change), c.keep);
    } else {
      const float mixed = blend(old, 1.0f - c.beta1, c.beta1, g), direction = mixed > 0 ? 1.0f : mixed < 0 ? -1.0f : 0.0f;
      h.p[i] = __fadd_rn(__fmul_rn(h.p[i], c.keep), -__fmul_rn(c.rate, direction));
      mean[i] = blend(old, 1.0f - c.beta2, c.beta2, g);
    }
  }
  h.absmaxM = pack(h.m, mean, codes.meanCells);
  if (adam) h.absmaxV = pack(h.v, square, codes.squareCells);
}

template <bool adam>
__global__ void __launch_bounds__(stateThreads, stateBlocksEach) stateKernel(const State s) {
  __shared__ Codes codes;
  __shared__ Constants shared;
  const int lane = threadIdx.x % 32;
  constexpr int warps = stateThreads / 32;
  const int64_t blocks = (s.n + stateBlock - 1) / stateBlock;
  int64_t block = int64_t{blockIdx.x} * warps + threadIdx.x / 32;
  copyCodes<adam>(codes);
  awaitPrior();
  Held<adam> h;
  if (block < blocks) h.load(s, block, lane);
  if (threadIdx.x == 0) shared = constantsOf<adam>(s);
  __syncthreads();
  const Constants c = shared;
  if (c.spoilt) return;
  while (block < blocks) {
    step(h, c, codes);
    h.store(s, block, lane);
    block += int64_t{gridDim.x} * warps;
    if (block < blocks) h.load(s, block, lane);
  }
}

float* floats(const Operands& args, int64_t i, const char* name, int64_t count) {
  return static_cast<float*>(args.typed(i, name, DType::F32, 1, count).data);
}

uint8_t* codes(const Operands& args, int64_t i, const char* name, int64_t count) {
  return static_cast<uint8_t*>(args.typed(i, name, DType::U8, 1, count).data);
}

constexpr int64_t blocksOf(int64_t n) { return (n + stateBlock - 1) / stateBlock; }

/** p −= rate · direction of the moments, which are stored as codes again. */
template <bool adam>
void launchState(const Context& context, const char* op, State s) {
  const auto aligned = [](const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  s.aligned = aligned(s.p, 16) && aligned(s.grad, 16) && aligned(s.m, 4) && aligned(s.v, 4);
  const int64_t wanted = divideUp(blocksOf(s.n), stateThreads / 32), most = stateBlocksEach * context.gpu->multiprocessors;
  launchDependent(context, op, stateKernel<adam>, {static_cast<unsigned>(std::min(wanted, most)), stateThreads}, s);
}

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
  launchState<true>(context, "adamw8", s);
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
  launchState<false>(context, "lion8", s);
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
