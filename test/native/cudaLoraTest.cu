// dU and dB of LoRA in one pass over dY against sums in double, over parts, ranks, rows and strides. `bench` measures it beside the
// products that it replaces; `small` leaves out large shapes.
#include <cstring>

#include "../../kernels/core/views.h"
#include "../../kernels/cuda/gemm.h"
#include "../../kernels/cuda/loraGrad.h"
#include "cudaTest.h"

namespace unsloth::cuda {

using namespace test;

namespace {

struct Case {
  int64_t rows, rank;
  std::vector<int64_t> widths;
  DType type = DType::BF16;
  int64_t gap = 0;    // columns of dY before and between the parts, which begin at multiples of 8
  int64_t slack = 0;  // added to row strides
};

LoraGradArgs build(const Case& s) {
  LoraGradArgs args;
  int64_t column = s.gap, width = 0;
  for (const int64_t w : s.widths) args.parts.push_back({column, w}), column = (column + w + s.gap + 7) / 8 * 8, width += w;
  const auto ranks = s.rank * static_cast<int64_t>(s.widths.size());
  args.dy = randomMatrix(s.type, s.rows, column, column + s.slack);
  args.u = randomMatrix(s.type, s.rows, ranks, ranks + s.slack);
  args.du = randomMatrix(s.type, s.rows, ranks, ranks + s.slack);
  args.b = randomMatrix(s.type, width, s.rank, s.rank + s.slack, 1 / std::sqrt(static_cast<float>(width)));
  args.db = randomMatrix(DType::F32, width, s.rank, s.rank + s.slack);
  args.alpha = 0.75f;
  return args;
}

void destroy(const LoraGradArgs& args) {
  for (const View& v : {args.dy, args.u, args.du, args.b, args.db}) release(v);
}

__device__ float element(const View& v, int64_t row, int64_t column) { return readAs(v.data, v.dtype, row * v.ld + column); }

/** wanted[i, j] = alpha·Σ_k a[row, k]·b[k, j] + start[row, j], row = rows[i]; a[k, row] when `turned`. One warp each. */
__global__ void expected(View a, View b, View start, int64_t k, bool turned, float alpha, const int64_t* rows, float* wanted) {
  const int64_t row = rows[blockIdx.x], column = blockIdx.y;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < k; i += 32)
    sum += static_cast<double>(turned ? element(a, i, row) : element(a, row, i)) * static_cast<double>(element(b, i, column));
  for (int shift = 16; shift > 0; shift /= 2) sum += __shfl_xor_sync(~0u, sum, shift);
  if (threadIdx.x == 0)
    wanted[blockIdx.x * gridDim.y + blockIdx.y] =
        static_cast<float>(alpha * sum + (start.data != nullptr ? static_cast<double>(element(start, row, column)) : 0));
}

/** The error of sampled rows of `got` against sums in double. */
double errorOf(const View& got, const View& a, const View& b, const View& start, int64_t k, bool turned, float alpha) {
  std::vector<int64_t> rows;
  constexpr int64_t most = 96;
  for (int64_t i = 0; i < std::min(got.rows, most); ++i)
    rows.push_back(got.rows <= most || i < 16 ? i
                   : i < 32                  ? got.rows - 1 - (i - 16)
                                             : hash(static_cast<uint64_t>(i + 77 * got.rows)) % got.rows);
  auto* const at = static_cast<int64_t*>(allocate(rows.size() * 8));
  check(cudaMemcpy(at, rows.data(), rows.size() * 8, cudaMemcpyHostToDevice), "copying");
  const auto count = static_cast<int64_t>(rows.size());
  const View wanted{allocate(static_cast<size_t>(count * got.cols) * 4), DType::F32, count, got.cols, got.cols};
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(got.cols));
  expected<<<grid, 32>>>(a, b, start, k, turned, alpha, at, wanted.f32());
  checkLaunch("expected");
  const std::vector<float> all = toHost(got);
  std::vector<float> sampled;
  for (const int64_t row : rows) sampled.insert(sampled.end(), all.begin() + row * got.cols, all.begin() + (row + 1) * got.cols);
  const double error = relativeError(sampled, toHost(wanted));
  release(wanted);
  check(cudaFree(at), "freeing");
  return error;
}

int checks = 0, failures = 0;

std::vector<std::byte> bytesOf(const View& v) {
  std::vector<std::byte> bytes(static_cast<size_t>(v.rows * v.ld) * bytesPerElement(v.dtype));
  check(cudaMemcpy(bytes.data(), v.data, bytes.size(), cudaMemcpyDeviceToHost), "reading");
  return bytes;
}

/** Whether the gap behind the columns of each row is as it was. */
bool gapsKept(const View& v, const std::vector<std::byte>& before, const std::vector<std::byte>& after) {
  const size_t width = bytesPerElement(v.dtype);
  const size_t used = static_cast<size_t>(v.cols) * width, stride = static_cast<size_t>(v.ld) * width;
  for (size_t row = 0; row < static_cast<size_t>(v.rows); ++row)
    if (std::memcmp(before.data() + row * stride + used, after.data() + row * stride + used, stride - used) != 0) return false;
  return true;
}

void test(const Case& s, const Context& context) {
  const LoraGradArgs args = build(s);
  char name[160];
  snprintf(name, sizeof name, "%s rows %lld rank %lld parts %zu of %lld gap %lld slack %lld",
           s.type == DType::BF16 ? "bf16" : "f16", (long long)s.rows, (long long)s.rank, s.widths.size(), (long long)s.widths[0], (long long)s.gap, (long long)s.slack);
  View dbBefore = args.db;
  const auto duStart = bytesOf(args.du), dbStart = bytesOf(args.db);
  dbBefore.data = allocate(dbStart.size());
  check(cudaMemcpy(dbBefore.data, args.db.data, dbStart.size(), cudaMemcpyDeviceToDevice), "copying");
  const auto bytes = [](int64_t elements) { return static_cast<size_t>(elements) * 2; };
  check(cudaMemset2D(args.du.data, bytes(args.du.ld), 0xff, bytes(args.du.cols), static_cast<size_t>(s.rows)), "poisoning");
  check(cudaMemset(context.workspace, 0xff, context.workspaceBytes), "poisoning");
  check(cudaDeviceSynchronize(), "preparing");
  ++checks;
  bool right = loraGradFused(args, context);
  check(cudaStreamSynchronize(context.stream), name);
  if (!right) printf("REFUSED %s\n", name);
  int64_t row = 0;
  for (size_t j = 0; right && j < args.parts.size(); ++j) {
    const auto [column, width] = args.parts[j];
    const auto at = static_cast<int64_t>(j) * s.rank;
    const View dy = columnsOf(args.dy, column, width), b = rowsOf(args.b, row, width), u = columnsOf(args.u, at, s.rank);
    const double du = errorOf(columnsOf(args.du, at, s.rank), dy, b, {}, width, false, args.alpha);
    const double db = errorOf(rowsOf(args.db, row, width), dy, u, rowsOf(dbBefore, row, width), s.rows, true, 1);
    if (!(du < (s.type == DType::BF16 ? 3e-3 : 5e-4)) || !(db < 1e-5))
      right = false, printf("WRONG %s: part %zu dU %.2e dB %.2e\n", name, j, du, db);
    row += width;
  }
  const auto du = bytesOf(args.du), db = bytesOf(args.db);
  if (!gapsKept(args.du, duStart, du) || !gapsKept(args.db, dbStart, db)) right = false, printf("OVERWRITTEN %s\n", name);
  check(cudaMemcpy(args.db.data, dbBefore.data, db.size(), cudaMemcpyDeviceToDevice), "copying");
  check(cudaDeviceSynchronize(), "preparing");
  loraGradFused(args, context);
  check(cudaStreamSynchronize(context.stream), name);
  if (du != bytesOf(args.du) || db != bytesOf(args.db)) right = false, printf("UNSTEADY %s\n", name);
  failures += !right;
  release(dbBefore);
  destroy(args);
}

void testAll(bool small, const Context& context) {
  for (const DType type : {DType::BF16, DType::F16})
    for (const int64_t rank : {8, 16, 24, 32})
      for (const int64_t rows : {1, 33, 128, 1280})
        for (const int64_t slack : {0, 8}) {
          test({rows, rank, {896, 128, 128}, type, 0, slack}, context);
          test({rows, rank, {2056}, type, 8, slack}, context);
          test({rows, rank, {100, 5, 33, 8}, type, 24, slack}, context);
        }
  if (small) return;
  for (const int64_t rank : {16, 32}) {
    test({8192, rank, {4096, 1024, 1024}}, context);
    test({8000, rank, {14336, 14336}}, context);
    test({16384, rank, {896}}, context);
    test({40000, rank, {4864, 4864}}, context);  // more rows than the scratch holds sums for at once
  }
}

void bench(const char* name, const Case& s, const Context& context) {
  const double bytes = 2.0 * static_cast<double>(s.rows) * [&] {
    double width = 0;
    for (const int64_t w : s.widths) width += static_cast<double>(w);
    return width;
  }();
  const int copies = std::clamp(static_cast<int>(300e6 / bytes), 1, 32);
  std::vector<LoraGradArgs> sets;
  for (int i = 0; i < copies; ++i) sets.push_back(build(s));
  const int repeats = std::clamp(static_cast<int>(3e9 / bytes), 8, 100);
  const auto of = [&](int i) -> const LoraGradArgs& { return sets[static_cast<size_t>(i % copies)]; };
  const double fused = secondsInGraph(context.stream, repeats, [&](int i) { loraGradFused(of(i), context); });
  const double apart = secondsInGraph(context.stream, repeats, [&](int i) {
    const LoraGradArgs& args = of(i);
    int64_t row = 0;
    for (size_t j = 0; j < args.parts.size(); ++j) {
      const auto [column, width] = args.parts[j];
      const auto at = static_cast<int64_t>(j) * s.rank;
      GemmArgs g;
      g.mode = 1, g.m = s.rows, g.n = s.rank, g.k = width, g.alpha = args.alpha;
      g.c = columnsOf(args.du, at, s.rank), g.a = columnsOf(args.dy, column, width), g.b = rowsOf(args.b, row, width);
      runGemm(g, context);
      g.mode = 2, g.m = width, g.k = s.rows, g.alpha = 1, g.accumulate = true;
      g.c = rowsOf(args.db, row, width), g.b = columnsOf(args.u, at, s.rank);
      runGemm(g, context);
      row += width;
    }
  });
  printf("%-34s r%-3lld %8.1f us %6.0f GB/s (%3.0f %% of 4240); apart %8.1f us\n", name, (long long)s.rank, fused * 1e6,
         bytes / fused * 1e-9, bytes / fused / 4.24e10, apart * 1e6);
  for (const LoraGradArgs& args : sets) destroy(args);
}

void benchAll(const Context& context) {
  for (const int64_t rank : {16, 32}) {
    bench("8b 8192 q, k, v", {8192, rank, {4096, 1024, 1024}}, context);
    bench("8b 8192 o, down", {8192, rank, {4096}}, context);
    bench("8b 8192 gate, up", {8192, rank, {14336, 14336}}, context);
    if (rank > 16) continue;
    bench("1b 16384 q, k, v", {16384, rank, {2048, 512, 512}}, context);
    bench("1b 16384 o, down", {16384, rank, {2048}}, context);
    bench("1b 16384 gate, up", {16384, rank, {8192, 8192}}, context);
    bench("0.5b 16384 q, k, v", {16384, rank, {896, 128, 128}}, context);
    bench("0.5b 16384 o, down", {16384, rank, {896}}, context);
    bench("0.5b 16384 gate, up", {16384, rank, {4864, 4864}}, context);
    bench("0.5b 1280 q, k, v", {1280, rank, {896, 128, 128}}, context);
    bench("0.5b 1280 o, down", {1280, rank, {896}}, context);
    bench("0.5b 1280 gate, up", {1280, rank, {4864, 4864}}, context);
    bench("8b 1280 q, k, v", {1280, rank, {4096, 1024, 1024}}, context);
    bench("8b 1280 o, down", {1280, rank, {4096}}, context);
    bench("8b 1280 gate, up", {1280, rank, {14336, 14336}}, context);
  }
}

}  // namespace
}  // namespace unsloth::cuda

int main(int argc, char** argv) {
  using namespace unsloth::cuda;
  return runProgram("cudaLoraTest", [&] {
    const GpuInfo gpu = readGpu();
    const Context context = openContext(gpu, size_t{64} << 20);
    const std::string only = argc > 1 ? argv[1] : "";
    if (only == "bench") {
      benchAll(context);
      return 0;
    }
    testAll(only == "small", context);
    return finish("cudaLoraTest", checks, failures);
  });
}
