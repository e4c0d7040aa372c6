// 4-bit matrices and 8-bit optimizers on the GPU against the processor's kernels; `bench`: their speed.
#include <cstring>
#include <memory>
#include <random>

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

Call callOf(const std::vector<View>& operands, const std::vector<int32_t>& ints, const std::vector<double>& floats) {
  return {operands.data(), static_cast<int64_t>(operands.size()), ints.data(), static_cast<int64_t>(ints.size()),
          floats.data(),   static_cast<int64_t>(floats.size()),   {}};
}

using CpuOp = void (*)(const Call&, cpu::ThreadPool&);
using CudaOp = void (*)(const Call&, const Context&);

void run(CudaOp op, const std::vector<View>& operands, const std::vector<int32_t>& ints, const std::vector<double>& floats) {
  op(callOf(operands, ints, floats), context);
}

const char* name(DType t) {
  static const char* const names[] = {"f32", "bf16", "f16", "i32", "f64", "u8", "q4", "q4n"};
  return names[static_cast<int>(t)];
}

struct Shape {
  int64_t rows, cols, pad = 0;
};

std::string nameOf(const Shape& s) { return std::to_string(s.rows) + "x" + std::to_string(s.cols); }

void testDequantise() {
  const Shape shapes[] = {{5, 64}, {7, 96}, {9, 37}, {300, 896}, {64, 128, 8}, {33, 200, 3}};
  for (const DType type : {DType::Q4, DType::Q4N})
    for (const DType rounding : {DType::BF16, DType::F16, DType::F32})
      for (const DType out : {DType::BF16, DType::F16, DType::F32})
        for (const Shape& shape : shapes) {
          const auto& [rows, cols, pad] = shape;
          Matrix m(type, rounding, rows, cols, rows == 9);
          const int64_t first = rows / 3, count = rows - first;
          View y{allocate(static_cast<size_t>(count * (cols + pad)) * 4), out, count, cols, cols + pad};
          run(ops::dequantise, {y, m.device}, {static_cast<int32_t>(first)}, {});
          check(cudaDeviceSynchronize(), "dequantise");
          const std::vector<float> ours = toHost(y);
          std::vector<std::byte> expected(static_cast<size_t>(count * cols) * bytesPerElement(out));
          cpu::dequantise(m.host, first, count, 0, cols, expected.data(), out);
          int64_t wrong = 0;
          for (int64_t i = 0; i < count * cols; ++i)
            wrong += ours[static_cast<size_t>(i)] != test::readAs(expected.data(), out, i);
          const std::string what = std::string("dequantise ") + name(type) + " of " + name(rounding) + " to " + name(out);
          expect(wrong == 0, "%.0f values differ", static_cast<double>(wrong), what + " " + nameOf(shape));
          cudaFree(y.data);
        }
}

void testFewRows() {
  struct Product {
    int64_t m, n, k;
  };
  const Product products[] = {{1, 64, 64},    {1, 1030, 896},   {2, 100, 4096}, {3, 37, 128},
                              {5, 257, 1024}, {8, 512, 14336}, {20, 96, 192},  {2, 10, 96}};
  for (const DType type : {DType::Q4, DType::Q4N})
    for (const DType t : {DType::BF16, DType::F16, DType::F32})
      for (const auto& [m, n, k] : products) {
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
        pool->parallelFor(m * n, [&, n = n, k = k](int64_t i, int) {
          const float *row = &x[static_cast<size_t>(i / n * k)], *column = &values[static_cast<size_t>(i % n * k)];
          double sum = 0;
          for (int64_t j = 0; j < k; ++j) sum += static_cast<double>(row[j]) * column[j];
          const auto at = static_cast<size_t>(i);
          expected[at] = static_cast<float>(0.5 * sum + added[at] + biases[static_cast<size_t>(i % n)]);
        });
        const double error = relativeError(toHost(c), expected), allowed = t == DType::BF16 ? 5e-3 : 2e-3;
        expect(error <= allowed, "relative error %.2e", error,
               std::string("few rows ") + name(type) + " " + name(t) + " " + nameOf({m, n}) + "x" + std::to_string(k));
        for (const View* v : {&a, &add, &bias, &c}) test::release(*v);
      }
}

/** One operand on the processor and on the GPU. */
struct Both {
  View host, device;
};

/** A list in host and device memory. */
template <class T>
struct Twin {
  static constexpr DType type = sizeof(T) == 8 ? DType::F64 : sizeof(T) == 1 ? DType::U8 : DType::F32;
  std::vector<T> host;
  T* device = static_cast<T*>(allocate(host.size() * sizeof(T) + 64));

  explicit Twin(std::vector<T> values) : host(std::move(values)) {
    check(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "copying");
  }
  ~Twin() { cudaFree(device); }
  Twin(const Twin&) = delete;

  Both both(int64_t rows = 1) {
    const int64_t cols = static_cast<int64_t>(host.size()) / rows;
    return {{host.data(), type, rows, cols, cols}, {device, type, rows, cols, cols}};
  }
  std::vector<T> back() const {
    std::vector<T> values(host.size());
    check(cudaMemcpy(values.data(), device, values.size() * sizeof(T), cudaMemcpyDeviceToHost), "copying");
    return values;
  }
  /** How far the GPU's numbers are from the processor's. */
  double error() const { return relativeError(back(), host); }
  /** How many differ. */
  double different() const {
    const std::vector<T> there = back();
    size_t count = 0;
    for (size_t i = 0; i < host.size(); ++i) count += there[i] != host[i];
    return static_cast<double>(count);
  }
};

std::vector<float> normal(size_t n, float scale = 1) {
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> values(n);
  for (float& v : values) v = distribution(generator);
  return values;
}

void onBoth(CpuOp cpuOp, CudaOp cudaOp, const std::vector<Both>& operands, const std::vector<int32_t>& ints,
            const std::vector<double>& floats) {
  std::vector<View> host, device;
  for (const Both& operand : operands) host.push_back(operand.host), device.push_back(operand.device);
  run(cudaOp, device, ints, floats);
  cpuOp(callOf(host, ints, floats), *pool);
  check(cudaDeviceSynchronize(), "an optimizer");
}

void testEightBits() {
  for (const size_t n : {size_t{5}, size_t{256}, size_t{1000}, size_t{4096}, size_t{70001}}) {
    const size_t blocks = (n + 255) / 256;
    const std::vector<float> largest(blocks, 0.0f);
    const std::vector<uint8_t> codes(n, 0);
    Twin<float> p(normal(n)), p2(p.host), absM(largest), absV(largest), absL(largest);
    Twin<uint8_t> m(codes), v(codes), l(codes);
    for (int step = 1; step <= 4; ++step) {
      std::vector<float> gradient = normal(n, 0.1f);
      if (n > 100 && step == 2) gradient[77] = NAN;
      Twin<float> grad(gradient);
      const double scale = step == 3 ? NAN : 0.7;
      Twin<double> scalars({scale, 1 - std::pow(0.9, step), 1 - std::pow(0.999, step), 0.01, 0.003});
      onBoth(cpu::ops::adamw8, ops::adamw8,
             {p.both(), m.both(), v.both(), absM.both(), absV.both(), grad.both(), scalars.both()}, {1}, {0.9, 0.999, 1e-8, 0.1});
      if (n > 100 && step == 2) gradient[77] = 1;
      Twin<float> clean(gradient);
      onBoth(cpu::ops::lion8, ops::lion8, {p2.both(), l.both(), absL.both(), clean.both(), scalars.both()}, {0},
             {0.9, 0.99, 0.1});
    }
    const std::string size = " of " + std::to_string(n);
    const double few = 1e-3 * static_cast<double>(n);
    expect(p.error() < 1e-6, "p differs by %.2e", p.error(), "adamw8" + size);
    expect(p2.error() < 1e-6, "p differs by %.2e", p2.error(), "lion8" + size);
    expect(m.different() <= few, "%.0f codes of m differ", m.different(), "adamw8" + size);
    expect(v.different() <= few, "%.0f codes of v differ", v.different(), "adamw8" + size);
    expect(l.different() <= few, "%.0f codes of m differ", l.different(), "lion8" + size);
  }
}

void testAdafactor() {
  for (const Shape& shape : {Shape{13, 70}, Shape{1, 50}, Shape{300, 1025}}) {
    const auto& [rows, cols, pad] = shape;
    const auto n = static_cast<size_t>(rows * cols);
    const bool factored = rows > 1;
    Twin<float> p(normal(n)), row(std::vector<float>(factored ? static_cast<size_t>(rows) : n, 0.0f));
    Twin<float> column(std::vector<float>(static_cast<size_t>(cols), 0.0f));
    for (int step = 1; step <= 3; ++step) {
      Twin<float> grad(normal(n, 3));
      Twin<double> scalars({0.7, 1 - std::pow(step, -0.8), 0, 0.01});
      onBoth(cpu::ops::adafactor, ops::adafactor,
             {p.both(rows), row.both(), factored ? column.both() : Both{}, grad.both(rows), scalars.both()}, {0},
             {1e-30, 1, 0.01});
    }
    expect(p.error() < 1e-6, "p differs by %.2e", p.error(), "adafactor " + nameOf(shape));
    expect(row.error() < 1e-6, "row differs by %.2e", row.error(), "adafactor " + nameOf(shape));
  }
}

/** The rest of a line: how long, and bytes moved over time beside the rate of a device copy. */
void tell(double seconds, double bytes) {
  std::printf(" %7.1f us %5.2f TB/s %3.0f%%\n", seconds * 1e6, bytes / seconds * 1e-12, 100 * bytes / seconds / 4.24e12);
}

void bench() {
  constexpr int copies = 6;
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
      std::printf("dequantise %-3s %5ldx%-5ld", name(type), rows, cols);
      tell(seconds, moved);
      for (const int64_t m : {1, 2, 4, 8}) {
        const View a = test::randomMatrix(DType::BF16, m, cols), c = test::randomMatrix(DType::BF16, m, rows);
        seconds = secondsInGraph(context.stream, 2 * copies, [&](int i) {
          GemmArgs g;
          g.m = m, g.n = rows, g.k = cols, g.c = c, g.a = a, g.b = matrices[static_cast<size_t>(i % copies)]->device;
          gemmQuantised(g, context);
        });
        std::printf("  %ld rows", m);
        tell(seconds, bytes);
        test::release(a);
        test::release(c);
      }
      cudaFree(y.data);
    }
  const int64_t n = 41943040;
  const auto list = [](DType t, int64_t count) {
    const View v{allocate(static_cast<size_t>(count) * bytesPerElement(t)), t, 1, count, count};
    check(cudaMemset(v.data, 0, static_cast<size_t>(count) * bytesPerElement(t)), "clearing");
    return v;
  };
  const View p = test::randomMatrix(DType::F32, 1, n), grad = test::randomMatrix(DType::F32, 1, n);
  const View m = list(DType::U8, n), v = list(DType::U8, n), absM = list(DType::F32, n / 256), absV = list(DType::F32, n / 256);
  Twin<double> twin({1, 0.1, 0.001, 1e-4});
  const View scalars = twin.both().device;
  const double adamw = secondsInGraph(context.stream, 4, [&](int) {
    run(ops::adamw8, {p, m, v, absM, absV, grad, scalars}, {0}, {0.9, 0.999, 1e-8, 0.01});
  });
  std::printf("adamw8 %ld", n);
  tell(adamw, 16.0 * n);
  const double lion = secondsInGraph(context.stream, 4, [&](int) {
    run(ops::lion8, {p, m, absM, grad, scalars}, {0}, {0.9, 0.99, 0.01});
  });
  std::printf("lion8 %ld", n);
  tell(lion, 14.0 * n);
}

int run(bool measure) {
  static const GpuInfo gpu = test::readGpu();
  cpu::ThreadPool threads(8);
  pool = &threads;
  context = test::openContext(gpu, size_t{64} << 20);
  if (measure) return bench(), 0;
  testDequantise();
  testFewRows();
  testEightBits();
  testAdafactor();
  return test::finish("cudaQuantTest", checks, failures);
}

}  // namespace
}  // namespace unsloth::cuda

int main(int count, char** words) {
  using namespace unsloth::cuda;
  return test::runProgram("cudaQuantTest", [&] { return run(count > 1 && std::string(words[1]) == "bench"); });
}
