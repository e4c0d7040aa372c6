// 4-bit matrices and 8-bit optimizers on the GPU against the processor's kernels; `bench`: their speed.
#include <cstring>
#include <memory>
#include <random>
#include <tuple>

#include "../../kernels/core/quant4.h"
#include "../../kernels/cpu/gemm.h"
#include "../../kernels/cpu/ops.h"
#include "../../kernels/cpu/quantise.h"
#include "../../kernels/cuda/gemm.h"
#include "../../kernels/cuda/ops.h"
#include "cudaTest.h"

namespace unsloth::cuda {

namespace {

using test::allocate;
using test::relativeError;
using test::secondsInGraph;
using test::toHost;

int failures = 0, checks = 0;
Context context;
cpu::ThreadPool* pool = nullptr;
std::mt19937 generator(7);

void expect(bool holds, const char* format, double value, const std::string& what) {
  ++checks;
  if (holds) return;
  if (++failures <= 30) std::printf((std::string("WRONG ") + what + ": " + format + "\n").c_str(), value);
}

/** A quantised normal matrix in host and device memory. */
struct Matrix {
  std::vector<std::byte> bytes;
  View host, device;

  Matrix(DType type, DType rounding, int64_t rows, int64_t cols, bool fp4 = false) {
    const int64_t n = rows * cols;
    const Quant4Layout layout{n, type == DType::Q4N};
    bytes.resize(static_cast<size_t>(layout.bytes(8)));
    static constexpr Map8 map = dynamicMap(true);
    std::memcpy(bytes.data(), fp4 ? fp4Code : nf4Code, 64);
    const uint32_t header[2] = {8, static_cast<uint32_t>(rounding)};
    std::memcpy(bytes.data() + 64, header, sizeof header);
    std::memcpy(bytes.data() + 256, map.at, sizeof map.at);
    std::vector<float> values(static_cast<size_t>(n)), absmax(static_cast<size_t>(layout.blocks()));
    std::normal_distribution<float> normal;
    std::vector<float> drawn(99991);
    for (float& v : drawn) v = normal(generator);
    for (size_t i = 0; i < values.size(); ++i) values[i] = 0.02f * drawn[i % drawn.size()];
    cpu::Quant4Target target{reinterpret_cast<uint8_t*>(bytes.data() + Quant4Layout::codesAt), absmax.data(),
                             layout.nested ? reinterpret_cast<uint8_t*>(bytes.data() + layout.absmaxAt()) : nullptr,
                             reinterpret_cast<float*>(bytes.data() + layout.nestedAt()), 8};
    cpu::quantise4(values.data(), DType::F32, n, fp4, target, *pool);
    if (!layout.nested) std::memcpy(bytes.data() + layout.absmaxAt(), absmax.data(), absmax.size() * 4);
    void* memory = allocate(bytes.size());
    check(cudaMemcpy(memory, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "copying");
    host = {bytes.data(), type, rows, cols, cols};
    device = host;
    device.data = memory;
  }
  ~Matrix() { cudaFree(device.data); }
  Matrix(const Matrix&) = delete;
};

void run(void (*op)(const Call&, const Context&), const std::vector<View>& operands, const std::vector<int32_t>& ints, const std::vector<double>& floats) {
  const Call call{operands.data(), static_cast<int64_t>(operands.size()), ints.data(), static_cast<int64_t>(ints.size()), floats.data(),
                  static_cast<int64_t>(floats.size()), {}};
  op(call, context);
}

const char* name(DType t) {
  static const char* const names[] = {"f32", "bf16", "f16", "i32", "f64", "u8", "q4", "q4n"};
  return names[static_cast<int>(t)];
}

void testDequantise() {
  for (const DType type : {DType::Q4, DType::Q4N})
    for (const DType rounding : {DType::BF16, DType::F16, DType::F32})
      for (const DType out : {DType::BF16, DType::F16, DType::F32})
        for (const auto& [rows, cols, pad] : {std::tuple<int64_t, int64_t, int64_t>{5, 64, 0}, {7, 96, 0}, {9, 37, 0}, {300, 896, 0}, {64, 128, 8}, {33, 200, 3}}) {
          Matrix m(type, rounding, rows, cols, rows == 9);
          const int64_t first = rows / 3, count = rows - first;
          View y{allocate(static_cast<size_t>(count * (cols + pad)) * 4), out, count, cols, cols + pad};
          run(ops::dequantise, {y, m.device}, {static_cast<int32_t>(first)}, {});
          check(cudaDeviceSynchronize(), "dequantise");
          const std::vector<float> ours = toHost(y);
          std::vector<std::byte> expected(static_cast<size_t>(count * cols) * bytesPerElement(out));
          cpu::dequantise(m.host, first, count, 0, cols, expected.data(), out);
          int64_t wrong = 0;
          for (int64_t i = 0; i < count * cols; ++i) wrong += ours[static_cast<size_t>(i)] != test::readAs(expected.data(), out, i);
          expect(wrong == 0, "%.0f values differ", static_cast<double>(wrong),
                 std::string("dequantise ") + name(type) + " of " + name(rounding) + " to " + name(out) + " " + std::to_string(rows) + "x" + std::to_string(cols));
          cudaFree(y.data);
        }
}

void testFewRows() {
  for (const DType type : {DType::Q4, DType::Q4N})
    for (const DType t : {DType::BF16, DType::F16, DType::F32})
      for (const auto& [m, n, k] : {std::tuple<int64_t, int64_t, int64_t>{1, 64, 64}, {1, 1030, 896}, {2, 100, 4096}, {3, 37, 128}, {5, 257, 1024}, {8, 512, 14336}, {20, 96, 192}, {2, 10, 96}}) {
        Matrix w(type, DType::BF16, n, k);
        const View a = test::randomMatrix(t, m, k, k + 8), add = test::randomMatrix(t, m, n), bias = test::randomMatrix(t, 1, n);
        const View c = test::randomMatrix(t, m, n, n + 3);
        GemmArgs g;
        g.m = m, g.n = n, g.k = k, g.c = c, g.a = a, g.b = w.device, g.bias = bias, g.add = add, g.alpha = 0.5f;
        gemmQuantised(g, context);
        check(cudaDeviceSynchronize(), "gemmQuantised");
        std::vector<float> values(static_cast<size_t>(n * k)), expected(static_cast<size_t>(m * n));
        cpu::dequantise(w.host, 0, n, 0, k, values.data(), DType::F32);
        const std::vector<float> x = toHost(a), added = toHost(add), biases = toHost(bias);
        pool->parallelFor(m * n, [&](int64_t i, int) {
          double sum = 0;
          for (int64_t j = 0; j < k; ++j) sum += static_cast<double>(x[static_cast<size_t>(i / n * k + j)]) * values[static_cast<size_t>(i % n * k + j)];
          expected[static_cast<size_t>(i)] = static_cast<float>(0.5 * sum + added[static_cast<size_t>(i)] + biases[static_cast<size_t>(i % n)]);
        });
        const double error = relativeError(toHost(c), expected), allowed = t == DType::BF16 ? 5e-3 : 2e-3;
        expect(error <= allowed, "relative error %.2e", error, std::string("few rows ") + name(type) + " " + name(t) + " " + std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k));
        for (const View* v : {&a, &add, &bias, &c}) test::release(*v);
      }
}

/** A list in host and device memory. */
template <class T>
struct Twin {
  std::vector<T> host;
  T* device;
  explicit Twin(std::vector<T> values) : host(std::move(values)), device(static_cast<T*>(allocate(host.size() * sizeof(T) + 64))) {
    check(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "copying");
  }
  ~Twin() { cudaFree(device); }
  View onHost(DType t, int64_t rows = 1) { return {host.data(), t, rows, static_cast<int64_t>(host.size()) / rows, static_cast<int64_t>(host.size()) / rows}; }
  View onDevice(DType t, int64_t rows = 1) const { return {device, t, rows, static_cast<int64_t>(host.size()) / rows, static_cast<int64_t>(host.size()) / rows}; }
  std::vector<T> back() const {
    std::vector<T> values(host.size());
    check(cudaMemcpy(values.data(), device, values.size() * sizeof(T), cudaMemcpyDeviceToHost), "copying");
    return values;
  }
};

std::vector<float> normal(size_t n, float scale = 1) {
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> values(n);
  for (float& v : values) v = distribution(generator);
  return values;
}

using CpuOp = void (*)(const Call&, cpu::ThreadPool&);

void onBoth(CpuOp cpuOp, void (*cudaOp)(const Call&, const Context&), std::vector<View> host, std::vector<View> device, const std::vector<int32_t>& ints, const std::vector<double>& floats) {
  run(cudaOp, device, ints, floats);
  const Call call{host.data(), static_cast<int64_t>(host.size()), ints.data(), static_cast<int64_t>(ints.size()), floats.data(), static_cast<int64_t>(floats.size()), {}};
  cpuOp(call, *pool);
  check(cudaDeviceSynchronize(), "an optimizer");
}

void testOptimizers() {
  for (const size_t n : {size_t{5}, size_t{256}, size_t{1000}, size_t{4096}, size_t{70001}}) {
    const size_t blocks = (n + 255) / 256;
    Twin<float> p(normal(n)), p2(p.host), absM(std::vector<float>(blocks, 0.0f)), absV(std::vector<float>(blocks, 0.0f)), absL(std::vector<float>(blocks, 0.0f));
    Twin<uint8_t> m(std::vector<uint8_t>(n, 0)), v(std::vector<uint8_t>(n, 0)), l(std::vector<uint8_t>(n, 0));
    for (int step = 1; step <= 4; ++step) {
      std::vector<float> gradient = normal(n, 0.1f);
      if (n > 100 && step == 2) gradient[77] = NAN;
      Twin<float> grad(gradient);
      const double scale = step == 3 ? NAN : 0.7;
      Twin<double> scalars({scale, 1 - std::pow(0.9, step), 1 - std::pow(0.999, step), 0.01, 0.003});
      onBoth(cpu::ops::adamw8, ops::adamw8,
             {p.onHost(DType::F32), m.onHost(DType::U8), v.onHost(DType::U8), absM.onHost(DType::F32), absV.onHost(DType::F32), grad.onHost(DType::F32), scalars.onHost(DType::F64)},
             {p.onDevice(DType::F32), m.onDevice(DType::U8), v.onDevice(DType::U8), absM.onDevice(DType::F32), absV.onDevice(DType::F32), grad.onDevice(DType::F32), scalars.onDevice(DType::F64)},
             {1}, {0.9, 0.999, 1e-8, 0.1});
      if (n > 100 && step == 2) gradient[77] = 1;
      Twin<float> clean(gradient);
      onBoth(cpu::ops::lion8, ops::lion8, {p2.onHost(DType::F32), l.onHost(DType::U8), absL.onHost(DType::F32), clean.onHost(DType::F32), scalars.onHost(DType::F64)},
             {p2.onDevice(DType::F32), l.onDevice(DType::U8), absL.onDevice(DType::F32), clean.onDevice(DType::F32), scalars.onDevice(DType::F64)}, {0}, {0.9, 0.99, 0.1});
    }
    const auto codesDiffer = [](const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
      size_t count = 0;
      for (size_t i = 0; i < a.size(); ++i) count += a[i] != b[i];
      return static_cast<double>(count);
    };
    const std::string size = " of " + std::to_string(n);
    expect(relativeError(p.back(), p.host) < 1e-6, "p differs by %.2e", relativeError(p.back(), p.host), "adamw8" + size);
    expect(relativeError(p2.back(), p2.host) < 1e-6, "p differs by %.2e", relativeError(p2.back(), p2.host), "lion8" + size);
    expect(codesDiffer(m.back(), m.host) <= 1e-3 * static_cast<double>(n), "%.0f codes of m differ", codesDiffer(m.back(), m.host), "adamw8" + size);
    expect(codesDiffer(v.back(), v.host) <= 1e-3 * static_cast<double>(n), "%.0f codes of v differ", codesDiffer(v.back(), v.host), "adamw8" + size);
    expect(codesDiffer(l.back(), l.host) <= 1e-3 * static_cast<double>(n), "%.0f codes of m differ", codesDiffer(l.back(), l.host), "lion8" + size);
  }
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{13, 70}, {1, 50}, {300, 1025}}) {
    const auto n = static_cast<size_t>(rows * cols);
    const bool factored = rows > 1;
    Twin<float> p(normal(n)), row(std::vector<float>(factored ? static_cast<size_t>(rows) : n, 0.0f)), column(std::vector<float>(static_cast<size_t>(cols), 0.0f));
    for (int step = 1; step <= 3; ++step) {
      Twin<float> grad(normal(n, 3));
      Twin<double> scalars({0.7, 1 - std::pow(step, -0.8), 0, 0.01});
      const View none;
      onBoth(cpu::ops::adafactor, ops::adafactor,
             {p.onHost(DType::F32, rows), row.onHost(DType::F32), factored ? column.onHost(DType::F32) : none, grad.onHost(DType::F32, rows), scalars.onHost(DType::F64)},
             {p.onDevice(DType::F32, rows), row.onDevice(DType::F32), factored ? column.onDevice(DType::F32) : none, grad.onDevice(DType::F32, rows), scalars.onDevice(DType::F64)},
             {0}, {1e-30, 1, 0.01});
    }
    expect(relativeError(p.back(), p.host) < 1e-6, "p differs by %.2e", relativeError(p.back(), p.host), "adafactor " + std::to_string(rows) + "x" + std::to_string(cols));
    expect(relativeError(row.back(), row.host) < 1e-6, "row differs by %.2e", relativeError(row.back(), row.host), "adafactor");
  }
}

void bench() {
  constexpr int copies = 6;
  const double ceiling = 4.24e12;
  for (const DType type : {DType::Q4N, DType::Q4})
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{4096, 4096}, {6144, 4096}, {28672, 4096}, {4096, 14336}}) {
      std::vector<std::unique_ptr<Matrix>> matrices;
      for (int i = 0; i < copies; ++i) matrices.push_back(std::make_unique<Matrix>(type, DType::BF16, rows, cols));
      const View y{allocate(static_cast<size_t>(rows * cols) * 2 * 2), DType::BF16, rows, cols, cols};
      const auto bytes = static_cast<double>(rows * cols) * (0.5 + (type == DType::Q4N ? 1 : 4) / 64.0);
      double seconds = secondsInGraph(context.stream, 2 * copies, [&](int i) {
        View to = y;
        to.data = static_cast<std::byte*>(y.data) + (i % 2) * rows * cols * 2;
        run(ops::dequantise, {to, matrices[static_cast<size_t>(i % copies)]->device}, {0}, {});
      });
      const double moved = bytes + 2.0 * static_cast<double>(rows * cols);
      std::printf("dequantise %-3s %5ldx%-5ld %7.1f us %5.2f TB/s %3.0f%%\n", name(type), rows, cols, seconds * 1e6, moved / seconds * 1e-12, 100 * moved / seconds / ceiling);
      for (const int64_t m : {1, 2, 4, 8}) {
        const View a = test::randomMatrix(DType::BF16, m, cols), c = test::randomMatrix(DType::BF16, m, rows);
        seconds = secondsInGraph(context.stream, 2 * copies, [&](int i) {
          GemmArgs g;
          g.m = m, g.n = rows, g.k = cols, g.c = c, g.a = a, g.b = matrices[static_cast<size_t>(i % copies)]->device;
          gemmQuantised(g, context);
        });
        std::printf("  %ld rows %7.1f us %5.2f TB/s %3.0f%%\n", m, seconds * 1e6, bytes / seconds * 1e-12, 100 * bytes / seconds / ceiling);
        test::release(a);
        test::release(c);
      }
      cudaFree(y.data);
    }
  const int64_t n = 41943040;
  const auto list = [&](DType t, int64_t count) { return View{allocate(static_cast<size_t>(count) * bytesPerElement(t)), t, 1, count, count}; };
  const View p = test::randomMatrix(DType::F32, 1, n), grad = test::randomMatrix(DType::F32, 1, n), m = list(DType::U8, n), v = list(DType::U8, n);
  const View absM = list(DType::F32, n / 256), absV = list(DType::F32, n / 256);
  cudaMemset(m.data, 0, n), cudaMemset(v.data, 0, n), cudaMemset(absM.data, 0, n / 64), cudaMemset(absV.data, 0, n / 64);
  Twin<double> scalars({1, 0.1, 0.001, 1e-4});
  double seconds = secondsInGraph(context.stream, 4, [&](int) { run(ops::adamw8, {p, m, v, absM, absV, grad, scalars.onDevice(DType::F64)}, {0}, {0.9, 0.999, 1e-8, 0.01}); });
  std::printf("adamw8 %ld: %.1f us, %.2f TB/s %.0f%%\n", n, seconds * 1e6, 16.0 * n / seconds * 1e-12, 1600.0 * n / seconds / ceiling);
  seconds = secondsInGraph(context.stream, 4, [&](int) { run(ops::lion8, {p, m, absM, grad, scalars.onDevice(DType::F64)}, {0}, {0.9, 0.99, 0.01}); });
  std::printf("lion8 %ld: %.1f us, %.2f TB/s %.0f%%\n", n, seconds * 1e6, 14.0 * n / seconds * 1e-12, 1400.0 * n / seconds / ceiling);
}

int run(bool measure) {
  static const GpuInfo gpu = test::readGpu();
  cpu::ThreadPool threads(8);
  pool = &threads;
  check(cudaStreamCreate(&context.stream), "making a stream");
  context.gpu = &gpu;
  context.workspaceBytes = size_t{64} << 20;
  check(cudaMalloc(&context.workspace, context.workspaceBytes), "taking the workspace");
  if (measure) return bench(), 0;
  testDequantise();
  testFewRows();
  testOptimizers();
  return test::finish("cudaQuantTest", checks, failures);
}

}  // namespace
}  // namespace unsloth::cuda

int main(int count, char** words) {
  using namespace unsloth::cuda;
  return test::runProgram("cudaQuantTest", [&] { return run(count > 1 && std::string(words[1]) == "bench"); });
}
