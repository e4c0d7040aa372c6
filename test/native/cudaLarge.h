#pragma once
#include <cstring>
#include <functional>

#include "../../kernels/core/command.h"
#include "../../kernels/core/views.h"
#include "cudaTest.h"

/** Cases on matrices of more than 2³¹ elements: memory, parts of them, and how results are compared. */
namespace unsloth::cuda::test {

/** What all cases share. */
struct Cases {
  GpuInfo gpu;
  Context context;
  std::string only;  // a case's name; empty: all
  int checks = 0, failures = 0, notRun = 0;
};
inline Cases cases;

/** Memory of one case. */
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  ~Memory() {
    for (void* p : held_) cudaFree(p);
  }
  View zeros(DType type, int64_t r, int64_t c) {
    const size_t bytes = static_cast<size_t>(r * c) * bytesPerElement(type);
    const View v{allocate(bytes), type, r, c, c};
    held_.push_back(v.data);
    check(cudaMemset(v.data, 0, bytes), "clearing");
    return v;
  }
  View normal(DType type, int64_t r, int64_t c, float deviation = 1) {
    const View v = randomMatrix(type, r, c, 0, deviation);
    held_.push_back(v.data);
    return v;
  }
  View list(const std::vector<int32_t>& values) {
    const View v{allocate(values.size() * 4), DType::I32, static_cast<int64_t>(values.size()), 1, 1};
    held_.push_back(v.data);
    check(cudaMemcpy(v.data, values.data(), values.size() * 4, cudaMemcpyHostToDevice), "copying");
    return v;
  }

 private:
  std::vector<void*> held_;
};

/** The last rows. */
inline View end(const View& v, int64_t count) { return rowsOf(v, v.rows - count, count); }

/** first, first + step, … */
inline std::vector<int32_t> sequence(int64_t count, int64_t first, int64_t step) {
  std::vector<int32_t> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<int32_t>(first + i * step));
  return values;
}

using Op = void (*)(const Call&, const Context&);

/** Runs a command to its end. */
inline void run(Op op, const std::vector<View>& tensors, const std::vector<int32_t>& ints = {},
                const std::vector<double>& floats = {}, Dims dims = {}) {
  op({tensors.data(), static_cast<int64_t>(tensors.size()), ints.data(), static_cast<int64_t>(ints.size()), floats.data(),
      static_cast<int64_t>(floats.size()), dims},
     cases.context);
  check(cudaStreamSynchronize(cases.context.stream), "running");
}

/** ‖got − wanted‖ ≤ tolerance·‖wanted‖, where something is wanted; 0: the same bits. */
inline void expectSame(const std::string& what, const View& got, const View& wanted, double tolerance = 0) {
  const std::vector<float> a = toHost(got), b = toHost(wanted);
  const double error = relativeError(a, b);
  double size = 0;
  for (const float x : b) size += std::abs(static_cast<double>(x));
  const bool same = size > 0 && (tolerance == 0 ? std::memcmp(a.data(), b.data(), a.size() * 4) == 0 : error <= tolerance);
  ++cases.checks, cases.failures += !same;
  if (!same) std::printf("WRONG %s: error %.2g, at most %.2g\n", what.c_str(), error, tolerance);
}

/** Runs a case where its memory is free; a missing kernel is no error. */
inline void run(const char* name, double gigabytes, const std::function<void(Memory&)>& body) {
  if (!cases.only.empty() && cases.only != name) return;
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for memory");
  if (static_cast<double>(free) < gigabytes * 1e9) {
    ++cases.notRun;
    std::printf("not run: %s needs %.1f GB of memory, %.1f GB are free\n", name, gigabytes, static_cast<double>(free) * 1e-9);
    return;
  }
  try {
    Memory memory;
    body(memory);
  } catch (const std::exception& error) {
    ++cases.checks, ++cases.failures;
    std::printf("WRONG %s: %s\n", name, error.what());
  }
}

}  // namespace unsloth::cuda::test
