#pragma once
// One command on the CPU and on the GPU with the same operands: every type, odd shapes, slices of wider buffers, in place where
// commands.ts allows it, nothing written beside an output, the same bits twice. The programs that include this take the name of a
// command as argument, to test only that one, and `small`, to leave out wide rows.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/cpu/ops.h"
#include "../../kernels/cpu/threadPool.h"
#include "../../kernels/cuda/context.h"
#include "../../kernels/cuda/ops.h"
#include "cudaTest.h"

namespace unsloth::test {

using CpuOp = void (*)(const Call&, cpu::ThreadPool&);
using CudaOp = void (*)(const Call&, const cuda::Context&);

inline double rounded(DType type, double value) {
  switch (type) {
    case DType::F32: return static_cast<float>(value);
    case DType::BF16: return bf16ToFloat(floatToBf16(static_cast<float>(value)));
    case DType::F16: return f16ToFloat(floatToF16(static_cast<float>(value)));
    default: return value;
  }
}

inline double read(DType type, const std::byte* at) {
  switch (type) {
    case DType::I32: return static_cast<double>(*reinterpret_cast<const int32_t*>(at));
    case DType::F64: return *reinterpret_cast<const double*>(at);
    case DType::U8: return static_cast<double>(*reinterpret_cast<const uint8_t*>(at));
    default: {
      const View one{const_cast<std::byte*>(at), type, 1, 1, 1};
      return loadElement(one, 0, 0);
    }
  }
}

inline void write(DType type, std::byte* at, double value) {
  switch (type) {
    case DType::I32: *reinterpret_cast<int32_t*>(at) = static_cast<int32_t>(value); return;
    case DType::F64: *reinterpret_cast<double*>(at) = value; return;
    case DType::U8: *reinterpret_cast<uint8_t*>(at) = static_cast<uint8_t>(value); return;
    case DType::BF16: *reinterpret_cast<uint16_t*>(at) = floatToBf16(static_cast<float>(value)); return;
    case DType::F16: *reinterpret_cast<uint16_t*>(at) = floatToF16(static_cast<float>(value)); return;
    default: *reinterpret_cast<float*>(at) = static_cast<float>(value);
  }
}

inline const char* nameOf(DType type) {
  static const char* const names[] = {"f32", "bf16", "f16", "i32", "f64", "u8"};
  return names[static_cast<int>(type)];
}

/** Where the operands of a case lie on the GPU. */
enum class Layout { dense, alignedSlice, oddSlice };

/** GPU memory, stream and CPU threads that all cases share. */
struct Bench {
  cuda::GpuInfo gpu = [] {
    cuda::GpuInfo info = cuda::test::readGpu();
    info.l2Bytes = 0;  // every case is as one that the L2 cannot hold
    return info;
  }();
  cuda::Context context = cuda::test::openContext(gpu, size_t{256} << 20);
  cpu::ThreadPool pool{8};
  std::byte* arena = nullptr;
  size_t arenaBytes = size_t{1} << 30;
  int checks = 0, failures = 0;
  std::map<std::string, int> complaintsOf;  // the first few of each command are printed

  Bench() {
    cuda::check(cudaMalloc(reinterpret_cast<void**>(&arena), arenaBytes), "taking the arena");
    cuda::check(cudaMemset(context.workspace, 0xc7, context.workspaceBytes), "filling the workspace");
  }
};

class Case {
 public:
  Case(Bench& bench, std::string name, CpuOp cpuOp, CudaOp cudaOp, Layout layout, uint32_t seed)
      : bench_(bench), name_(std::move(name)), cpuOp_(cpuOp), cudaOp_(cudaOp), layout_(layout), generator_(seed) {}

  std::vector<double> normal(int64_t count, double scale = 1) {
    static const std::vector<double> drawn = [] {  // drawing is slower than all the rest
      std::mt19937 generator(7);
      std::normal_distribution<double> distribution;
      std::vector<double> numbers(99991);
      for (double& v : numbers) v = distribution(generator);
      return numbers;
    }();
    std::vector<double> values(static_cast<size_t>(count));
    size_t at = generator_() % drawn.size();
    for (double& v : values) v = scale * drawn[at], at = at + 1 == drawn.size() ? 0 : at + 1;
    return values;
  }

  /** An operand that is read: fp32 on the CPU when it is an activation, of its own type otherwise. */
  int input(DType type, int64_t rows, int64_t cols, std::vector<double> values, bool activation = true) {
    return put({type, activation ? DType::F32 : type, rows, cols, std::move(values), false, false, -1, 0, 0, 0, {}});
  }
  int input(DType type, int64_t rows, int64_t cols) { return input(type, rows, cols, normal(rows * cols)); }
  /** A parameter or list of its own type on both sides. */
  int fixed(DType type, int64_t rows, int64_t cols, std::vector<double> values) {
    return input(type, rows, cols, std::move(values), false);
  }
  /** The same without gaps. */
  int list(DType type, int64_t count, std::vector<double> values) {
    const int at = input(type, count, 1, std::move(values), false);
    operands_.back().dense = true;
    return at;
  }

  /**
   * An operand that is written; `start`: what stands there before. Allowed is half a unit in the last place of its type, and
   * `relative` of the result and `absolute` of the root mean square of all results for the fp32 arithmetic before the rounding.
   */
  int output(DType type, int64_t rows, int64_t cols, double relative, double absolute, std::vector<double> start = {},
             bool activation = true) {
    return put({type, activation ? DType::F32 : type, rows, cols, std::move(start), true, false, -1, relative, absolute, 0, {}});
  }
  /** As `output`, in the memory of operand `of`, which stands later in the list. */
  int outputOver(int of, DType type, int64_t rows, int64_t cols, double relative, double absolute) {
    const int at = output(type, rows, cols, relative, absolute);
    operands_[static_cast<size_t>(at)].alias = of;
    return at;
  }
  /** The least size of the last output's numbers for its absolute bound: theirs may cancel each other out. */
  void ofSize(double size) { operands_.back().size = size; }
  /** What each of the last output's numbers may be off besides. */
  void within(std::vector<double> bounds) { operands_.back().bounds = std::move(bounds); }
  void absent() { put({}); }

  std::vector<int32_t> ints;
  std::vector<double> floats;

  void run();

 private:
  struct Operand {
    DType type = DType::F32, cpuType = DType::F32;
    int64_t rows = 0, cols = 0;
    std::vector<double> values;  // empty: an output that starts as NaN
    bool output = false, dense = false;
    int alias = -1;
    double relative = 0, absolute = 0, size = 0;
    std::vector<double> bounds;  // empty: none
    bool present = false;
    int64_t ld = 0;
    size_t at = 0;  // in the arena, of element (0, 0)
    std::vector<std::byte> memory;
  };

  int put(Operand operand) {
    operand.present = operand.rows > 0 || operand.cols > 0;
    operands_.push_back(std::move(operand));
    return static_cast<int>(operands_.size()) - 1;
  }
  void complain(const std::string& what) {
    if (!complained_) complained_ = true, ++bench_.failures;
    if (++bench_.complaintsOf[name_] > 4) return;
    std::string shape;
    for (const Operand& o : operands_)
      shape += o.present ? std::string(" ") + nameOf(o.type) + "[" + std::to_string(o.rows) + "," + std::to_string(o.cols) + "]"
                         : " -";
    for (const int32_t i : ints) shape += " " + std::to_string(i);
    std::printf("FAIL %s%s layout %d: %s\n", name_.c_str(), shape.c_str(), static_cast<int>(layout_), what.c_str());
  }
  void layOut(std::vector<std::byte>& image);
  void compare(size_t index, const std::vector<std::byte>& after);

  Bench& bench_;
  std::string name_;
  CpuOp cpuOp_;
  CudaOp cudaOp_;
  Layout layout_;
  std::mt19937 generator_;
  std::vector<Operand> operands_;
  bool complained_ = false;
};

inline void Case::layOut(std::vector<std::byte>& image) {
  size_t end = 256;
  for (Operand& o : operands_) {
    if (!o.present || o.alias >= 0) continue;
    const auto width = static_cast<int64_t>(bytesPerElement(o.type));
    const bool slice = layout_ != Layout::dense && !o.dense && o.type != DType::F64;
    const int64_t vector = 16 / width, gap = !slice ? 0 : layout_ == Layout::oddSlice ? 3 : 2 * vector;
    o.ld = o.cols + gap;
    o.at = end + static_cast<size_t>((!slice ? 0 : layout_ == Layout::oddSlice ? 1 : vector) * width);
    end = (o.at + static_cast<size_t>(o.rows * o.ld * width) + 511) / 256 * 256;
  }
  if (end > bench_.arenaBytes) fail(name_ + ": the case is larger than the arena");
  for (Operand& o : operands_)
    if (o.alias >= 0) o.ld = operands_[static_cast<size_t>(o.alias)].ld, o.at = operands_[static_cast<size_t>(o.alias)].at;
  image.resize(end);
  for (size_t i = 0; i < end; ++i) image[i] = static_cast<std::byte>(i % 251);
  for (Operand& o : operands_) {
    if (!o.present || o.alias >= 0) continue;
    const size_t width = bytesPerElement(o.type);
    for (int64_t r = 0; r < o.rows; ++r)
      for (int64_t c = 0; c < o.cols; ++c) {
        std::byte* at = image.data() + o.at + static_cast<size_t>(r * o.ld + c) * width;
        if (o.values.empty()) std::memset(at, 0xff, width);
        else
          write(o.type, at,
                o.values[static_cast<size_t>(r * o.cols + c)] = rounded(o.type, o.values[static_cast<size_t>(r * o.cols + c)]));
      }
  }
}

inline void Case::run() {
  std::vector<std::byte> image, first, second;
  layOut(image);
  first.resize(image.size()), second.resize(image.size());
  std::vector<View> gpu, host;
  for (Operand& o : operands_) {
    if (!o.present) {
      gpu.emplace_back(), host.emplace_back();
      continue;
    }
    gpu.push_back({bench_.arena + o.at, o.type, o.rows, o.cols, o.ld});
    const size_t width = bytesPerElement(o.cpuType);
    o.memory.assign(std::max<size_t>(1, static_cast<size_t>(o.rows * o.cols)) * width, std::byte{0xff});
    for (size_t i = 0; i < o.values.size(); ++i) write(o.cpuType, o.memory.data() + i * width, o.values[i]);
    host.push_back({o.memory.data(), o.cpuType, o.rows, o.cols, o.cols});
  }
  const auto call = [&](const std::vector<View>& views) {
    return Call{views.data(),  static_cast<int64_t>(views.size()),  ints.data(), static_cast<int64_t>(ints.size()),
                floats.data(), static_cast<int64_t>(floats.size()), {}};
  };
  ++bench_.checks;
  try {
    cpuOp_(call(host), bench_.pool);
    for (std::vector<std::byte>* result : {&first, &second}) {
      cuda::check(cudaMemcpy(bench_.arena, image.data(), image.size(), cudaMemcpyHostToDevice), "writing operands");
      cudaOp_(call(gpu), bench_.context);
      cuda::check(cudaStreamSynchronize(bench_.context.stream), "running");
      cuda::check(cudaMemcpy(result->data(), bench_.arena, image.size(), cudaMemcpyDeviceToHost), "reading results");
    }
  } catch (const std::exception& error) {
    complain(error.what());
    if (cudaGetLastError() != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess) std::exit(1);
    return;
  }
  if (first != second) complain("two runs differ");
  std::vector<std::byte> rest = first;  // what no output may have touched
  for (size_t i = 0; i < operands_.size(); ++i)
    if (operands_[i].present && operands_[i].output) compare(i, first);
  for (const Operand& o : operands_) {
    if (!o.present || !o.output) continue;
    const size_t width = bytesPerElement(o.type);
    for (int64_t r = 0; r < o.rows; ++r) {
      const size_t at = o.at + static_cast<size_t>(r * o.ld) * width;
      std::memcpy(rest.data() + at, image.data() + at, static_cast<size_t>(o.cols) * width);
    }
  }
  if (rest != image) complain("wrote beside its outputs");
}

inline void Case::compare(size_t index, const std::vector<std::byte>& after) {
  const Operand& o = operands_[index];
  const size_t width = bytesPerElement(o.type), cpuWidth = bytesPerElement(o.cpuType);
  double squares = 0;
  const auto reference = [&](int64_t r, int64_t c) {
    return read(o.cpuType, o.memory.data() + static_cast<size_t>(r * o.cols + c) * cpuWidth);
  };
  for (int64_t r = 0; r < o.rows; ++r)
    for (int64_t c = 0; c < o.cols; ++c) squares += reference(r, c) * reference(r, c);
  const double size = std::max(o.size, std::sqrt(squares / static_cast<double>(std::max<int64_t>(1, o.rows * o.cols))));
  const bool rounds = o.cpuType == DType::F32 && o.type != DType::F32;
  const double half = !rounds ? 0 : o.type == DType::BF16 ? 1.0 / 256 : 1.0 / 2048;
  const double least = !rounds ? 0 : o.type == DType::BF16 ? 0 : 0x1p-25;
  for (int64_t r = 0; r < o.rows; ++r)
    for (int64_t c = 0; c < o.cols; ++c) {
      const double wanted = reference(r, c), got = read(o.type, after.data() + o.at + static_cast<size_t>(r * o.ld + c) * width);
      if (std::isnan(wanted) && std::isnan(got)) continue;
      if (std::isinf(wanted) && wanted == got) continue;
      // Half a unit in the last place of a number is between half/2 and half of it: the bound of its binade.
      const double unit = wanted == 0 ? 0 : std::exp2(std::floor(std::log2(std::abs(wanted)))) * half;
      const double bound = o.bounds.empty() ? 0 : o.bounds[static_cast<size_t>(r * o.cols + c)];
      const double allowed =
          std::max({unit, least, o.relative > 0 ? 0x1p-126 : 0.0}) + o.relative * std::abs(wanted) + o.absolute * size + bound;
      if (std::abs(got - wanted) <= allowed) continue;
      char text[160];
      std::snprintf(text, sizeof text, "operand %zu (%lld,%lld) is %.9g, expected %.9g (allowed %.3g)", index,
                    static_cast<long long>(r), static_cast<long long>(c), got, wanted, allowed);
      return complain(text);
    }
}

inline constexpr DType floatTypes[] = {DType::BF16, DType::F16, DType::F32};
inline constexpr Layout layouts[] = {Layout::dense, Layout::alignedSlice, Layout::oddSlice};
inline constexpr double fp32 = 1e-6;

inline Bench* bench;
inline std::string only;    // a command's name; empty: all
inline bool small = false;  // leave out wide rows
inline uint32_t seed = 1;

inline Case make(const char* name, CpuOp cpuOp, CudaOp cudaOp, Layout layout) {
  return {*bench, name, cpuOp, cudaOp, layout, seed++};
}
#define CASE(op) make(#op, cpu::ops::op, cuda::ops::op, layout)

inline bool wanted(const char* name) { return only.empty() || only == name; }

struct Shape {
  int64_t rows, cols;
};

/** Calls test(type, layout, rows, cols) for all of them. */
template <class Test>
void over(const char* name, std::initializer_list<Shape> shapes, Test&& test) {
  if (!wanted(name)) return;
  for (const DType type : floatTypes)
    for (const Layout layout : layouts)
      for (const Shape& s : shapes)
        if (!small || s.rows * s.cols <= 20000) test(type, layout, s.rows, s.cols);
}

inline constexpr std::initializer_list<Shape> mapShapes = {{1, 1}, {3, 7}, {5, 16}, {130, 33}, {9, 896}, {9, 4096}, {2, 14336}};

inline std::vector<double> whole(int64_t count, const std::function<int64_t(int64_t)>& value) {
  std::vector<double> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = static_cast<double>(value(i));
  return values;
}

/** The program: runs all cases. */
inline int runCases(const char* program, int count, char** arguments, std::initializer_list<void (*)()> groups) {
  for (int i = 1; i < count; ++i) {
    if (std::string(arguments[i]) == "small") small = true;
    else only = arguments[i];
  }
  return cuda::test::runProgram(program, [&] {
    Bench all;
    bench = &all;
    for (const auto& group : groups) group();
    for (const auto& [op, complaints] : all.complaintsOf) std::printf("%s: %d complaints\n", op.c_str(), complaints);
    return cuda::test::finish(program, all.checks, all.failures);
  });
}

}  // namespace unsloth::test
