// Attention of the Hopper kernels against a plain fp32 one on the GPU. `bench` measures it; `profile 128` launches each once,
// with that head dimension, for a profiler.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../../kernels/cuda/attention.h"
#include "../../kernels/cuda/element.cuh"
#include "cudaTest.h"

using namespace unsloth;
using namespace unsloth::cuda;

namespace {

/** Packed sequences, and what a plan says of them. */
struct Shape {
  std::vector<int> queries, extraKeys;  // extraKeys: keys before the first query, e.g. from a cache
  int heads, kvHeads, headDim, window = 0;
  float softcap = 0;
  DType dtype = DType::BF16;
};

/** Element of a matrix of bf16 or f16. */
__host__ __device__ float element(const bf16* at, bool f16) {
  return f16 ? __half2float(*reinterpret_cast<const __half*>(at)) : __bfloat162float(*at);
}

template <class T>
T* reserve(size_t count) {
  void* data = nullptr;
  check(cudaMalloc(&data, std::max<size_t>(count * sizeof(T), 256)), "reserving memory");
  return static_cast<T*>(data);
}

__global__ void fillNormal(bf16* to, size_t count, uint32_t seed, bool f16) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
    x ^= x >> 31, x *= 0xBF58476D1CE4E5B9ull, x ^= x >> 27, x *= 0x94D049BB133111EBull, x ^= x >> 31;
    const float u = (static_cast<float>(x >> 40) + 1) * 0x1p-24f,
                angle = static_cast<float>(x & 0xffffff) * (6.2831853f * 0x1p-24f);
    const float normal = sqrtf(-2 * logf(u)) * cosf(angle);
    if (f16) reinterpret_cast<__half*>(to)[i] = __float2half_rn(normal);
    else to[i] = __float2bfloat16_rn(normal);
  }
}

struct Plain {
  const bf16 *q, *k, *v, *dO;
  int64_t qStride, kvStride, oStride;
  float *o, *lse, *dq, *dk, *dv;
  const int32_t *qStart, *kvStart, *kvLength;
  int sequences, heads, kvHeads, headDim, window;
  float scale, softcap;
  bool f16;
};

__device__ float warpSum(float x) {
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

/** A warp per query row and head, headDim up to 256; the gradient when dO is there. */
__global__ void plainAttention(Plain a) {
  const int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x, each = (a.headDim + 31) / 32;
  int s = 0;
  while (s < a.sequences && a.qStart[s + 1] <= row) ++s;
  if (s == a.sequences) return;
  const int kvHead = head / (a.heads / a.kvHeads), keys = a.kvLength[s];
  const int position = keys - (a.qStart[s + 1] - a.qStart[s]) + row - a.qStart[s];
  const int first = a.window > 0 ? max(0, position - a.window + 1) : 0;
  const bf16* q = a.q + row * a.qStride + head * a.headDim;
  const int64_t kv = a.kvStart[s] * a.kvStride + kvHead * a.headDim;
  float query[8], out[8] = {}, grad[8] = {}, dq[8] = {};
  for (int c = 0; c < each; ++c) query[c] = lane + 32 * c < a.headDim ? element(q + lane + 32 * c, a.f16) : 0;
  const auto score = [&](int t, float& slope) {
    float x = 0;
    for (int c = 0; c < each; ++c)
      if (lane + 32 * c < a.headDim) x += query[c] * element(a.k + kv + t * a.kvStride + lane + 32 * c, a.f16);
    x = warpSum(x) * a.scale;
    slope = 1;
    if (a.softcap > 0) {
      const float y = tanhf(x / a.softcap);
      slope = 1 - y * y;
      x = a.softcap * y;
    }
    return x;
  };
  float top = -INFINITY, sum = 0, slope;
  for (int t = first; t <= position; ++t) {
    const float x = score(t, slope), higher = fmaxf(top, x), keep = expf(top - higher), p = expf(x - higher);
    top = higher, sum = sum * keep + p;
    for (int c = 0; c < each; ++c)
      if (lane + 32 * c < a.headDim) out[c] = out[c] * keep + p * element(a.v + kv + t * a.kvStride + lane + 32 * c, a.f16);
  }
  const float lse = top + logf(sum);
  float delta = 0;
  for (int c = 0; c < each; ++c) {
    if (lane + 32 * c >= a.headDim) continue;
    out[c] /= sum;
    const int64_t at = row * int64_t{a.heads} * a.headDim + head * a.headDim + lane + 32 * c;
    a.o[at] = out[c];
    if (a.dO) grad[c] = element(a.dO + row * a.oStride + head * a.headDim + lane + 32 * c, a.f16), delta += grad[c] * out[c];
  }
  if (lane == 0) a.lse[row * a.heads + head] = lse;
  if (!a.dO) return;
  delta = warpSum(delta);
  for (int t = first; t <= position; ++t) {
    const float p = expf(score(t, slope) - lse);
    float dp = 0;
    for (int c = 0; c < each; ++c)
      if (lane + 32 * c < a.headDim) dp += grad[c] * element(a.v + kv + t * a.kvStride + lane + 32 * c, a.f16);
    const float ds = p * (warpSum(dp) - delta) * slope * a.scale;
    for (int c = 0; c < each; ++c) {
      if (lane + 32 * c >= a.headDim) continue;
      const int64_t at = (a.kvStart[s] + t) * int64_t{a.kvHeads} * a.headDim + kvHead * a.headDim + lane + 32 * c;
      dq[c] += ds * element(a.k + kv + t * a.kvStride + lane + 32 * c, a.f16);
      atomicAdd(a.dk + at, ds * query[c]);
      atomicAdd(a.dv + at, p * grad[c]);
    }
  }
  for (int c = 0; c < each; ++c)
    if (lane + 32 * c < a.headDim) a.dq[row * int64_t{a.heads} * a.headDim + head * a.headDim + lane + 32 * c] = dq[c];
}

/** Device memory of one problem: q, k and v are slices of one buffer unless keys lie elsewhere. */
struct Problem {
  Shape shape;
  int64_t rows = 0, kvRows = 0, columns = 0, width = 0;
  bool apart = false;
  bf16 *qkv, *kv, *o, *dO, *dqkv, *dkv;
  float *lse, *delta;
  int32_t* starts;
  AttentionArgs args;

  explicit Problem(const Shape& s) : shape(s) {
    const int count = static_cast<int>(s.queries.size());
    std::vector<int32_t> where(3 * count + 1);
    for (int extra : s.extraKeys) apart |= extra > 0;
    for (int j = 0; j < count; ++j) {
      const int keys = s.queries[j] + (s.extraKeys.empty() ? 0 : s.extraKeys[j]);
      where[j] = static_cast<int32_t>(rows), where[count + 1 + j] = static_cast<int32_t>(kvRows), where[2 * count + 1 + j] = keys;
      rows += s.queries[j], kvRows += keys;
    }
    where[count] = static_cast<int32_t>(rows);
    width = s.heads * s.headDim;
    const int64_t kvWidth = s.kvHeads * s.headDim;
    columns = width + (apart ? 0 : 2 * kvWidth);
    qkv = reserve<bf16>(rows * columns), dqkv = reserve<bf16>(rows * columns);
    kv = apart ? reserve<bf16>(kvRows * 2 * kvWidth) : qkv + width;
    dkv = apart ? reserve<bf16>(kvRows * 2 * kvWidth) : dqkv + width;
    const int64_t kvStride = apart ? 2 * kvWidth : columns;
    o = reserve<bf16>(rows * width), dO = reserve<bf16>(rows * width);
    lse = reserve<float>(rows * s.heads), delta = reserve<float>(rows * s.heads);
    starts = reserve<int32_t>(where.size());
    check(cudaMemcpy(starts, where.data(), where.size() * 4, cudaMemcpyHostToDevice), "copying");
    fillNormal<<<1024, 256>>>(qkv, rows * columns, 1, s.dtype == DType::F16);
    if (apart) fillNormal<<<1024, 256>>>(kv, kvRows * 2 * kvWidth, 2, s.dtype == DType::F16);
    fillNormal<<<1024, 256>>>(dO, rows * width, 3, s.dtype == DType::F16);
    args.q = {qkv, s.dtype, rows, width, columns};
    args.k = {kv, s.dtype, kvRows, kvWidth, kvStride};
    args.v = {kv + kvWidth, s.dtype, kvRows, kvWidth, kvStride};
    args.dq = {dqkv, s.dtype, rows, width, columns};
    args.dk = {dkv, s.dtype, kvRows, kvWidth, kvStride};
    args.dv = {dkv + kvWidth, s.dtype, kvRows, kvWidth, kvStride};
    args.o = {o, s.dtype, rows, width, width};
    args.dO = {dO, s.dtype, rows, width, width};
    args.lse = {lse, DType::F32, rows, s.heads, s.heads};
    args.delta = {delta, DType::F32, rows, s.heads, s.heads};
    args.qStart = starts, args.kvStart = starts + count + 1, args.kvLength = starts + 2 * count + 1;
    args.sequences = count;
    args.heads = s.heads, args.kvHeads = s.kvHeads, args.group = s.heads / s.kvHeads, args.headDim = s.headDim;
    args.window = s.window, args.softcap = s.softcap;
    args.scale = 1 / std::sqrt(static_cast<float>(s.headDim));
  }
  ~Problem() {
    for (void* p : {static_cast<void*>(qkv), static_cast<void*>(dqkv), static_cast<void*>(o), static_cast<void*>(dO),
                    static_cast<void*>(lse), static_cast<void*>(delta), static_cast<void*>(starts)})
      cudaFree(p);
    if (apart) cudaFree(kv), cudaFree(dkv);
  }
  Problem(const Problem&) = delete;
};

/** ‖got − want‖ / ‖want‖ (at least a thousandth per element, for gradients that are zero); a NaN makes it NaN. */
template <class T>
double distance(const View& got, const float* want) {
  std::vector<T> a(got.rows * got.ld);
  std::vector<float> b(got.rows * got.cols);
  const size_t stride = got.ld * sizeof(T);
  check(cudaMemcpy2D(a.data(), stride, got.data, stride, got.cols * sizeof(T), got.rows, cudaMemcpyDeviceToHost), "copying");
  check(cudaMemcpy(b.data(), want, b.size() * 4, cudaMemcpyDeviceToHost), "copying");
  double off = 0, all = 0;
  for (int64_t r = 0; r < got.rows; ++r)
    for (int64_t c = 0; c < got.cols; ++c) {
      double x;
      if constexpr (sizeof(T) == 4) x = a[r * got.ld + c];
      else x = element(&a[r * got.ld + c], got.dtype == DType::F16);
      const double y = b[r * got.cols + c];
      off += (x - y) * (x - y), all += y * y;
    }
  return std::sqrt(off / std::max(all, 1e-6 * static_cast<double>(b.size())));
}

/** The bits of a matrix. */
std::vector<uint16_t> bitsOf(const View& v) {
  std::vector<uint16_t> bits(v.rows * v.cols);
  check(cudaMemcpy2D(bits.data(), v.cols * 2, v.data, v.ld * 2, v.cols * 2, v.rows, cudaMemcpyDeviceToHost), "copying");
  return bits;
}

bool verify(const Shape& shape, const char* name, Context context) {
  Problem p(shape);
  const int64_t qCount = p.rows * p.width, kvCount = p.kvRows * shape.kvHeads * shape.headDim;
  float *o = reserve<float>(qCount), *lse = reserve<float>(p.rows * shape.heads), *dq = reserve<float>(qCount),
        *dk = reserve<float>(kvCount), *dv = reserve<float>(kvCount);
  check(cudaMemset(dk, 0, kvCount * 4), "clearing"), check(cudaMemset(dv, 0, kvCount * 4), "clearing");
  const AttentionArgs& args = p.args;
  const Plain plain{p.qkv,           static_cast<bf16*>(args.k.data),
                    static_cast<bf16*>(args.v.data), p.dO,
                    p.columns,       args.k.ld,
                    p.width,         o,
                    lse,             dq,
                    dk,              dv,
                    args.qStart,     args.kvStart,
                    args.kvLength,   args.sequences,
                    shape.heads,     shape.kvHeads,
                    shape.headDim,   shape.window,
                    args.scale,      shape.softcap,
                    shape.dtype == DType::F16};
  plainAttention<<<dim3(static_cast<unsigned>(p.rows), shape.heads), 32, 0, context.stream>>>(plain);
  checkLaunch("plain attention");
  // Poison: what is not written must show.
  check(cudaMemsetAsync(p.o, 0xff, p.rows * p.width * 2, context.stream), "poisoning");
  check(cudaMemsetAsync(p.lse, 0xff, p.rows * shape.heads * 4, context.stream), "poisoning");
  check(cudaMemsetAsync(p.dqkv, 0xff, p.rows * p.columns * 2, context.stream), "poisoning");
  if (p.apart) check(cudaMemsetAsync(p.dkv, 0xff, kvCount * 4, context.stream), "poisoning");
  check(cudaMemsetAsync(context.workspace, 0xff, context.workspaceBytes, context.stream), "poisoning");
  double errors[5] = {-1, -1, -1, -1, -1}, ordered = -1;
  if (attentionWgmma(p.args, context)) {
    check(cudaDeviceSynchronize(), name);
    errors[0] = distance<bf16>(p.args.o, o), errors[1] = distance<float>(p.args.lse, lse);
    if (attentionGradWgmma(p.args, context)) {
      check(cudaDeviceSynchronize(), name);
      errors[2] = distance<bf16>(p.args.dq, dq);
      errors[3] = distance<bf16>(p.args.dk, dk), errors[4] = distance<bf16>(p.args.dv, dv);
      context.deterministic = true;
      attentionGradWgmma(p.args, context);
      check(cudaDeviceSynchronize(), name);
      ordered = distance<bf16>(p.args.dq, dq);
      const auto bits = bitsOf(p.args.dq), more = bitsOf(p.args.dk);
      attentionGradWgmma(p.args, context);
      check(cudaDeviceSynchronize(), name);
      if (bits != bitsOf(p.args.dq) || more != bitsOf(p.args.dk)) ordered = 1;
    }
  }
  const double limits[5] = {4e-3, 2e-4, 8e-3, 8e-3, 8e-3};
  bool good = errors[0] >= 0 && ordered < limits[2];
  for (int i = 0; i < 5; ++i) good &= errors[i] < limits[i];  // NaN fails
  std::printf("%s d=%d %d/%d w=%d cap=%g %-22s o %.1e lse %.1e", good ? "ok  " : "FAIL", shape.headDim, shape.heads,
              shape.kvHeads, shape.window, shape.softcap, name, errors[0], errors[1]);
  std::printf(" dq %.1e dk %.1e dv %.1e ordered dq %.1e\n", errors[2], errors[3], errors[4], ordered);
  for (float* x : {o, lse, dq, dk, dv}) cudaFree(x);
  return good;
}

template <class Fn>
float milliseconds(cudaStream_t stream, int repeats, Fn&& fn) {
  cudaEvent_t from, to;
  check(cudaEventCreate(&from), "timing"), check(cudaEventCreate(&to), "timing");
  for (int i = 0; i < 3; ++i) fn();
  check(cudaEventRecord(from, stream), "timing");
  for (int i = 0; i < repeats; ++i) fn();
  check(cudaEventRecord(to, stream), "timing");
  check(cudaEventSynchronize(to), "timing");
  float time = 0;
  check(cudaEventElapsedTime(&time, from, to), "timing");
  return time / static_cast<float>(repeats);
}

void bench(const Shape& shape, const char* name, Context context) {
  Problem p(shape);
  double flops = 0;
  for (int n : shape.queries) flops += 2.0 * n * n * shape.headDim * shape.heads;
  if (!attentionWgmma(p.args, context)) return;
  const float forward = milliseconds(context.stream, 10, [&] { attentionWgmma(p.args, context); });
  float backward = 0, ordered = 0;
  if (attentionGradWgmma(p.args, context)) {
    backward = milliseconds(context.stream, 10, [&] { attentionGradWgmma(p.args, context); });
    context.deterministic = true;
    ordered = milliseconds(context.stream, 10, [&] { attentionGradWgmma(p.args, context); });
  }
  std::printf("%-10s d=%d %d/%d  forward %7.3f ms %5.0f TFLOP/s", name, shape.headDim, shape.heads, shape.kvHeads, forward,
              flops / forward * 1e-9);
  if (backward > 0)
    std::printf("  backward %7.3f ms %5.0f  deterministic %7.3f ms %5.0f", backward, 2.5 * flops / backward * 1e-9, ordered,
                2.5 * flops / ordered * 1e-9);
  std::printf("\n");
}

int checks = 0, failures = 0;

void count(bool good) { ++checks, failures += !good; }

void verifyAll(const Context& context) {
  for (int d : {128, 64}) {
    count(verify({{128}, {}, 1, 1, d}, "one tile", context));
    count(verify({{1}, {}, 2, 2, d}, "one row", context));
    count(verify({{1000}, {}, 4, 1, d}, "1000", context));
    count(verify({{1, 5, 63, 64, 65, 0, 127, 129, 192, 193, 0, 0}, {}, 8, 2, d}, "odd lengths", context));
    count(verify({{300, 1, 700, 77}, {}, 14, 2, d}, "group of 7", context));
    count(verify({{700, 0, 333, 5, 128}, {}, 4, 4, d, 100}, "window", context));
    count(verify({{700, 0, 333, 5, 128}, {}, 4, 4, d, 300}, "window", context));
    count(verify({{100, 1, 64, 333}, {77, 500, 0, 130}, 4, 1, d}, "more keys", context));
    count(verify({{100, 1, 64, 333}, {77, 500, 0, 130}, 4, 2, d, 128}, "more keys, window", context));
    count(verify({{300, 129}, {}, 4, 2, d, 0, 5.0f}, "softcap", context));
    count(verify({{300, 129}, {}, 4, 2, d, 64, 5.0f}, "softcap, window", context));
    count(verify({std::vector<int>(70, 40), {}, 4, 2, d}, "70 sequences", context));
    count(verify({{2500}, {}, 16, 4, d}, "2500", context));
  }
  for (int d : {80, 96, 256}) {
    count(verify({{1, 5, 63, 64, 65, 0, 127, 129, 192, 193, 0, 0}, {}, 8, 2, d}, "odd lengths", context));
    count(verify({{700, 0, 333, 5, 128}, {}, 4, 4, d, 100}, "window", context));
    count(verify({{300, 129}, {100, 0}, 4, 2, d, 200, 5.0f}, "all of it", context));
  }
}

void benches(const Context& context) {
  for (int d : {128, 64}) {
    bench({std::vector<int>(2, 8192), {}, 32, 8, d}, "2x8192", context);
    bench({std::vector<int>(8, 2048), {}, 32, 8, d}, "8x2048", context);
    bench({std::vector<int>(1, 16384), {}, 32, 8, d}, "1x16384", context);
  }
  for (int d : {80, 96, 256}) bench({std::vector<int>(2, 8192), {}, d == 256 ? 16 : 32, 8, d}, "2x8192", context);
  bench({std::vector<int>(4, 2048), {}, 32, 8, 128}, "4x2048", context);
  bench({std::vector<int>(8, 2048), {}, 14, 2, 64}, "8x2048", context);
  bench({std::vector<int>(100, 160), {}, 32, 8, 128}, "100x160", context);
  // rows of the lengths of instruction data, a micro-step of each
  const std::vector<int> instruction{61, 84, 103, 118, 140, 171, 224, 395};
  bench({instruction, {}, 32, 8, 128}, "instruction", context);
  bench({instruction, {}, 32, 8, 64}, "instruction", context);
  bench({instruction, {}, 14, 2, 64}, "instruction", context);
  bench({{2048}, {}, 32, 8, 128}, "1x2048", context);
  bench({{512}, {}, 32, 8, 128}, "1x512", context);
}

}  // namespace

int main(int argc, char** argv) {
  return test::runProgram("cudaAttentionWgmmaTest", [&] {
    const GpuInfo gpu = test::readGpu();
    if (gpu.capability != 90) {
      std::printf("%s is no GPU of compute capability 9.0\n", gpu.name.c_str());
      return test::finish("cudaAttentionWgmmaTest", 0, 0, 1);
    }
    Context context;
    context.gpu = &gpu;
    check(cudaStreamCreate(&context.stream), "opening a stream");
    context.workspaceBytes = size_t{700} << 20;
    context.workspace = reserve<char>(context.workspaceBytes);
    if (argc > 1 && !std::strcmp(argv[1], "profile")) {
      Problem p({{8192}, {}, 32, 8, argc > 2 ? std::atoi(argv[2]) : 128});
      attentionWgmma(p.args, context);
      attentionGradWgmma(p.args, context);
      check(cudaDeviceSynchronize(), "profile");
      return 0;
    }
    if (argc > 1 && !std::strcmp(argv[1], "bench")) return benches(context), 0;
    verifyAll(context);
    return test::finish("cudaAttentionWgmmaTest", checks, failures);
  });
}
