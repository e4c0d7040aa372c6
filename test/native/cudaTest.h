#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "../../kernels/cuda/context.h"
#include "../../kernels/cuda/element.cuh"

/**
 * What the test programs share: memory, random numbers, the errors of a result, the time of a launch, and how a program ends.
 * Without arguments they check; with the argument `bench` they measure.
 */
namespace unsloth::cuda::test {

inline GpuInfo readGpu() {
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, 0), "reading the GPU");
  return {0,
          p.name,
          p.major * 10 + p.minor,
          p.multiProcessorCount,
          p.sharedMemPerBlockOptin,
          static_cast<size_t>(p.l2CacheSize),
          p.totalGlobalMem,
          kernelsAwaitPrior()};
}

/** What commands need: a stream and so much scratch. `gpu` has to outlive it. */
inline Context openContext(const GpuInfo& gpu, size_t workspaceBytes) {
  Context context;
  context.gpu = &gpu;
  context.workspaceBytes = workspaceBytes;
  check(cudaStreamCreate(&context.stream), "making a stream");
  check(cudaMalloc(&context.workspace, workspaceBytes), "taking the workspace");
  return context;
}

/** The last line of a program, which test/run.mjs adds up, and its exit status. `notRun`: what this GPU has no means for. */
inline int finish(const char* program, int64_t checks, int64_t failures, int64_t notRun = 0) {
  std::printf("%s: %lld passed, %lld failed", program, static_cast<long long>(checks - failures),
              static_cast<long long>(failures));
  if (notRun > 0) std::printf(", %lld not run", static_cast<long long>(notRun));
  std::printf("\n");
  return failures == 0 && checks + notRun > 0 ? 0 : 1;
}

/** The program's exit status from body(), an error being a failure of its own. */
template <class Body>
int runProgram(const char* program, const Body& body) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    return body();
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return finish(program, 1, 1);
  }
}

inline __host__ __device__ uint32_t hash(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>((x ^ (x >> 31)) >> 16);
}

__device__ inline void writeAs(void* data, DType dtype, int64_t i, float v) {
  if (dtype == DType::BF16) static_cast<bf16*>(data)[i] = narrow<bf16>(v);
  else if (dtype == DType::F16) static_cast<__half*>(data)[i] = narrow<__half>(v);
  else static_cast<float*>(data)[i] = v;
}

__host__ __device__ inline float readAs(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::BF16) return __bfloat162float(static_cast<const bf16*>(data)[i]);
  if (dtype == DType::F16) return __half2float(static_cast<const __half*>(data)[i]);
  return static_cast<const float*>(data)[i];
}

/** Normal numbers of the given deviation, from a hash of the position. */
static __global__ void fillNormal(void* data, DType dtype, int64_t count, float deviation, uint64_t seed) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const float u = (hash(2 * i + seed * 0x9e3779b97f4a7c15ull) + 1.f) / 4294967808.f,
                v = hash(2 * i + 1 + seed * 0x9e3779b97f4a7c15ull) / 4294967808.f;
    writeAs(data, dtype, i, deviation * sqrtf(-2 * logf(u)) * cosf(6.2831853f * v));
  }
}

/** Device memory that lives as long as the program: tests are short. */
inline void* allocate(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, std::max<size_t>(bytes, 256)), "allocating test memory");
  return p;
}

/** A matrix of normal numbers, its gap between columns and row stride included. `offset` elements misalign it. */
inline View randomMatrix(DType dtype, int64_t rows, int64_t cols, int64_t ld = 0, float deviation = 1, int64_t offset = 0) {
  static uint64_t seed = 1;
  View v{nullptr, dtype, rows, cols, std::max(ld, cols)};
  const int64_t count = rows * v.ld + offset;
  v.data = allocate(static_cast<size_t>(count) * bytesPerElement(dtype));
  fillNormal<<<1024, 256>>>(v.data, dtype, count, deviation, ++seed);
  checkLaunch("fillNormal");
  v.data = static_cast<std::byte*>(v.data) + static_cast<size_t>(offset) * bytesPerElement(dtype);
  return v;
}

inline void release(const View& v, int64_t offset = 0) {
  if (v.present())
    check(cudaFree(static_cast<std::byte*>(v.data) - static_cast<size_t>(offset) * bytesPerElement(v.dtype)),
          "freeing test memory");
}

/** A matrix on the host, widened. */
inline std::vector<float> toHost(const View& v) {
  const int64_t elements = v.rows > 0 ? (v.rows - 1) * v.ld + v.cols : 0;
  std::vector<std::byte> raw(static_cast<size_t>(elements) * bytesPerElement(v.dtype));
  if (!raw.empty()) check(cudaMemcpy(raw.data(), v.data, raw.size(), cudaMemcpyDeviceToHost), "reading a result");
  std::vector<float> values;
  values.reserve(static_cast<size_t>(v.rows * v.cols));
  for (int64_t r = 0; r < v.rows; ++r)
    for (int64_t c = 0; c < v.cols; ++c) values.push_back(readAs(raw.data(), v.dtype, r * v.ld + c));
  return values;
}

/** ‖a − b‖ / ‖b‖; infinite where a number is not finite. */
inline double relativeError(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return INFINITY;
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

/** Seconds of one call of `launch(i)`, from `repeats` calls after a few that warm up; the median of three such runs. */
inline double secondsEach(cudaStream_t stream, int repeats, const std::function<void(int)>& launch) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  for (int i = 0; i < 3; ++i) launch(i);
  std::vector<float> runs;
  for (int run = 0; run < 3; ++run) {
    check(cudaEventRecord(begin, stream), "event");
    for (int i = 0; i < repeats; ++i) launch(i);
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), "running");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    runs.push_back(ms);
  }
  std::sort(runs.begin(), runs.end());
  return runs[1] * 1e-3 / repeats;
}

/** As `secondsEach`, the calls recorded once and replayed as a graph: what a captured plan pays. */
inline double secondsInGraph(cudaStream_t stream, int repeats, const std::function<void(int)>& launch) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  launch(0);
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
  for (int i = 0; i < repeats; ++i) launch(i);
  check(cudaStreamEndCapture(stream, &graph), "capturing");
  check(cudaGraphInstantiate(&executable, graph, 0), "instantiating");
  const double seconds = secondsEach(stream, 1, [&](int) { check(cudaGraphLaunch(executable, stream), "replaying"); });
  check(cudaGraphExecDestroy(executable), "graph");
  check(cudaGraphDestroy(graph), "graph");
  return seconds / repeats;
}

}  // namespace unsloth::cuda::test
