// The products of kernels/cuda against sums in double, over shapes, layouts, types and epilogues: `simple`, `skinny` or `mma`
// alone, or all. `bench`, `benchSimple`, `benchSkinny` and `benchMma` measure them.
#include <array>
#include <cstring>

#include "../../kernels/cuda/gemm.h"
#include "cudaTest.h"

namespace unsloth::cuda {

using namespace test;

namespace {

__device__ double product(int mode, const View& a, const View& b, int64_t row, int64_t column, int64_t k) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < k; i += 32) {
    const int64_t atA = mode == 2 ? i * a.ld + row : row * a.ld + i, atB = mode == 0 ? column * b.ld + i : i * b.ld + column;
    sum += static_cast<double>(readAs(a.data, a.dtype, atA)) * static_cast<double>(readAs(b.data, b.dtype, atB));
  }
  for (int shift = 16; shift > 0; shift /= 2) sum += __shfl_xor_sync(~0u, sum, shift);
  return sum;
}

struct Plain {  // GemmArgs without its vector
  int mode;
  int64_t m, n, k;
  View c, a, b, bias, add;
  bool accumulate;
  float alpha;
};

/** One warp for each element (rows[blockIdx.x], columns[blockIdx.y]). */
__global__ void expected(Plain g, const GemmTerm* terms, int termCount, View before, const int64_t* rows, const int64_t* columns,
                         float* out, float* got) {
  const int64_t row = rows[blockIdx.x], column = columns[blockIdx.y];
  double sum = g.alpha * product(g.mode, g.a, g.b, row, column, g.k);
  for (int j = 0; j < termCount; ++j) {
    const GemmTerm& t = terms[j];
    if (column >= t.column && column < t.column + t.width)
      sum += t.alpha * product(g.mode, t.a, t.b, row, column - t.column, t.rank);
  }
  if (g.bias.data != nullptr) sum += readAs(g.bias.data, g.bias.dtype, g.bias.rows == 1 ? column : column * g.bias.ld);
  if (g.add.data != nullptr) sum += readAs(g.add.data, g.add.dtype, row * g.add.ld + column);
  if (g.accumulate) sum += readAs(before.data, before.dtype, row * before.ld + column);
  if (threadIdx.x == 0) {
    out[blockIdx.x * gridDim.y + blockIdx.y] = static_cast<float>(sum);
    got[blockIdx.x * gridDim.y + blockIdx.y] = readAs(g.c.data, g.c.dtype, row * g.c.ld + column);
  }
}

/** Counts elements of c that are not finite, and those between its columns and its stride that changed. */
__global__ void inspect(View c, View before, int* bad) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < c.rows * c.ld;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const float x = readAs(c.data, c.dtype, i), y = readAs(before.data, before.dtype, i);
    if (i % c.ld < c.cols ? !isfinite(x) : __float_as_uint(x) != __float_as_uint(y)) atomicAdd(bad, 1);
  }
}

std::vector<int64_t> sampleOf(int64_t count, int64_t most) {
  std::vector<int64_t> at;
  if (count <= most) {
    for (int64_t i = 0; i < count; ++i) at.push_back(i);
  } else {
    for (int64_t i = 0; i < most / 4; ++i) at.push_back(i), at.push_back(count - 1 - i);
    for (int64_t i = 0; i < most / 2; ++i)
      at.push_back(static_cast<int64_t>(hash(i + 77 * count) % static_cast<uint64_t>(count)));
  }
  return at;
}

template <class T>
T* toDevice(const std::vector<T>& v) {
  T* p = static_cast<T*>(allocate(v.size() * sizeof(T)));
  if (!v.empty()) check(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), "copying");
  return p;
}

struct Case {
  int mode;
  int64_t m, n, k;
  DType in = DType::BF16, out = DType::BF16;
  bool accumulate = false, bias = false, add = false;
  float alpha = 1;
  int terms = 0;  // low-rank pairs over equal shares of the columns
  int64_t rank = 16;
  int64_t slack = 0;      // added to row strides, as in a slice of a wider matrix
  int64_t offset = 0;     // elements by which operands miss alignment
  DType inB = DType::U8;  // U8: as `in`
  bool tf32 = false;
};

using Gemm = bool (*)(const GemmArgs&, const Context&);

GemmArgs build(const Case& s) {
  GemmArgs g;
  const DType inB = s.inB == DType::U8 ? s.in : s.inB;
  g.mode = s.mode, g.m = s.m, g.n = s.n, g.k = s.k, g.accumulate = s.accumulate, g.alpha = s.alpha, g.tf32 = s.tf32;
  const int64_t aRows = s.mode == 2 ? s.k : s.m, aCols = s.mode == 2 ? s.m : s.k, bRows = s.mode == 0 ? s.n : s.k,
                bCols = s.mode == 0 ? s.k : s.n;
  g.a = randomMatrix(s.in, aRows, aCols, aCols + s.slack, 1, s.offset);
  g.b = randomMatrix(inB, bRows, bCols, bCols + s.slack, 1 / std::sqrt(static_cast<float>(s.k)), s.offset);
  g.c = randomMatrix(s.out, s.m, s.n, s.n + s.slack, 1, s.offset);
  if (s.bias) g.bias = randomMatrix(inB, 1, s.n);
  if (s.add) g.add = randomMatrix(s.out, s.m, s.n, s.n + s.slack, 1, s.offset);
  for (int j = 0; j < s.terms; ++j) {
    GemmTerm t;
    t.width = s.n / s.terms, t.column = j * t.width, t.rank = s.rank, t.alpha = 0.5f + static_cast<float>(j);
    t.a = randomMatrix(s.in, s.m, s.rank, s.rank * s.terms);
    t.b = s.mode == 0 ? randomMatrix(inB, t.width, s.rank, 0, 0.25f) : randomMatrix(inB, s.rank, t.width, 0, 0.25f);
    g.terms.push_back(t);
  }
  return g;
}

void destroy(const GemmArgs& g, const Case& s) {
  for (const View& v : {g.a, g.b, g.c}) release(v, s.offset);
  release(g.bias);
  release(g.add, s.offset);
  for (const GemmTerm& t : g.terms) release(t.a), release(t.b);
}

std::string nameOf(const Case& s) {
  static const char* const types[] = {"f32", "bf16", "f16"};
  char text[200];
  snprintf(text, sizeof text, "mode %d %lldx%lldx%lld %s->%s%s%s%s alpha %g terms %dx%lld slack %lld offset %lld", s.mode,
           (long long)s.m, (long long)s.n, (long long)s.k, types[(int)s.in], types[(int)s.out], s.accumulate ? " +=" : "",
           s.bias ? " bias" : "", s.add ? " add" : "", s.alpha, s.terms, (long long)s.rank, (long long)s.slack,
           (long long)s.offset);
  return text;
}

int failures = 0, checks = 0;

void test(const char* kernel, Gemm gemm, const Case& s, const Context& context, bool mayRefuse = false) {
  GemmArgs g = build(s);
  View before = g.c;
  const size_t bytes = static_cast<size_t>(g.c.rows * g.c.ld) * bytesPerElement(g.c.dtype);
  before.data = allocate(bytes);
  if (!s.accumulate) {  // every element must be written: poison them
    for (int64_t r = 0; r < g.c.rows; ++r) {
      const size_t width = bytesPerElement(g.c.dtype);
      check(cudaMemset(static_cast<std::byte*>(g.c.data) + static_cast<size_t>(r * g.c.ld) * width, 0xff,
                       static_cast<size_t>(g.c.cols) * width),
            "poisoning");
    }
  }
  check(cudaMemcpy(before.data, g.c.data, bytes, cudaMemcpyDeviceToDevice), "copying");
  check(cudaMemset(context.workspace, 0xff, 1 << 20), "poisoning");
  check(cudaDeviceSynchronize(), "preparing");
  const bool taken = gemm(g, context);
  check(cudaStreamSynchronize(context.stream), kernel);
  bool right = true;
  if (!taken) {
    right = mayRefuse;
    if (!mayRefuse) printf("REFUSED %s %s\n", kernel, nameOf(s).c_str());
  } else {
    const auto rows = sampleOf(s.m, 64), columns = sampleOf(s.n, 64);
    int64_t *dRows = toDevice(rows), *dColumns = toDevice(columns);
    GemmTerm* terms = toDevice(g.terms);
    const View out = {allocate(rows.size() * columns.size() * 4), DType::F32, (int64_t)rows.size(), (int64_t)columns.size(),
                      (int64_t)columns.size()};
    View got = out;
    got.data = allocate(rows.size() * columns.size() * 4);
    int* bad = static_cast<int*>(allocate(4));
    check(cudaMemset(bad, 0, 4), "clearing");
    expected<<<dim3(static_cast<unsigned>(rows.size()), static_cast<unsigned>(columns.size())), 32>>>(
        {g.mode, g.m, g.n, g.k, g.c, g.a, g.b, g.bias, g.add, g.accumulate, g.alpha}, terms, static_cast<int>(g.terms.size()),
        before, dRows, dColumns, out.f32(), got.f32());
    inspect<<<512, 256>>>(g.c, before, bad);
    checkLaunch("expected");
    int badCount = 0;
    check(cudaMemcpy(&badCount, bad, 4, cudaMemcpyDeviceToHost), "reading");
    const double error = relativeError(toHost(got), toHost(out)), allowed = s.tf32                   ? 1e-3
                                                                            : s.out == DType::F32  ? 1e-5
                                                                            : s.out == DType::BF16 ? 3e-3
                                                                                                   : 5e-4;
    right = error < allowed && badCount == 0;
    if (!right)
      printf("WRONG %s %s: error %.2e, %d elements unwritten or overwritten\n", kernel, nameOf(s).c_str(), error, badCount);
    // The same numbers in a second run, bit for bit.
    std::vector<float> once = toHost(g.c);
    check(cudaMemcpy(g.c.data, before.data, bytes, cudaMemcpyDeviceToDevice), "copying");
    check(cudaDeviceSynchronize(), "preparing");
    gemm(g, context);
    check(cudaStreamSynchronize(context.stream), kernel);
    const std::vector<float> twice = toHost(g.c);
    if (memcmp(once.data(), twice.data(), once.size() * 4) != 0)
      right = false, printf("UNSTEADY %s %s\n", kernel, nameOf(s).c_str());
    for (void* p : {(void*)dRows, (void*)dColumns, (void*)terms, out.data, got.data, (void*)bad}) check(cudaFree(p), "freeing");
  }
  if (taken || !mayRefuse) ++checks, failures += !right;
  check(cudaFree(before.data), "freeing");
  destroy(g, s);
}

const DType F32 = DType::F32, BF16 = DType::BF16, F16 = DType::F16;

void testSimple(const Context& context) {
  for (int mode = 0; mode < 3; ++mode) {
    const int terms = mode == 2 ? 0 : 2;
    for (const Case& s : std::vector<Case>{{mode, 128, 128, 128, F32, F32},
                                           {mode, 1, 1, 1, F32, F32},
                                           {mode, 65, 33, 77, F32, F32, true},
                                           {mode, 300, 500, 1000, F32, F32, false, true, true, 0.5f, terms},
                                           {mode, 16, 777, 3000, F32, F32, true, false, false, 2},
                                           {mode, 777, 16, 3000, F32, F32, true},
                                           {mode, 2000, 1500, 100, F32, F32, false, false, false, 1, terms, 5, 3},
                                           {mode, 200, 130, 50, BF16, F32, false, true, false, 1, terms, 16, 0, 0, F32},
                                           {mode, 200, 130, 50, F32, BF16, true, true, true, 1, terms, 7, 1, 1},
                                           {mode, 99, 260, 70, F16, F16, false, false, false, 1, terms, 8, 4},
                                           {mode, 5, 20, 4000, F16, F32, true}})
      test("gemmSimple", gemmSimple, s, context);
  }
  if (context.gpu->capability >= 80)
    for (int mode = 0; mode < 3; ++mode) {
      const int terms = mode == 2 ? 0 : 2;
      for (Case s : std::vector<Case>{{mode, 128, 128, 128, F32, F32},
                                      {mode, 33, 65, 77, F32, F32, true},
                                      {mode, 64, 64, 9, F32, F32, false, true},
                                      {mode, 300, 500, 1000, F32, F32, false, true, true, 0.5f, terms},
                                      {mode, 130, 70, 5000, F32, F32, true, false, false, 2},
                                      {mode, 2000, 1500, 100, F32, F32, false, false, false, 1, terms, 5, 3},
                                      {mode, 1664, 1540, 72, F32, F32, true, false, true, 1, terms, 16, 1, 1},
                                      {mode, 200, 130, 50, F32, F32, true, true, true, 1, terms, 16, 0, 0, BF16}}) {
        s.tf32 = true;
        test("gemmTf32", gemmTf32, s, context);
      }
    }
  test("gemmSimple", gemmSimple, {0, 70, 110, 40, F32, F32, true, true, false, 1, 10, 3}, context);
  test("gemmSimple", gemmSimple, {1, 70, 40, 0, F32, F32, false, true}, context);
}

void testSkinny(const Context& context) {
  for (const DType in : {BF16, F16})
    for (const DType out : {in, F32})
      for (const int64_t rank : {1, 4, 8, 16, 24, 32, 48, 64, 72, 128})
        for (const int64_t tokens : {128, 1000, 2048}) {
          const bool plain = rank % 16 == 0;
          for (const int64_t slack : {0, 8}) {
            const int64_t wide = plain ? 896 : 328;
            test("gemmSkinny", gemmSkinny, {0, tokens, rank, wide, in, out, false, false, false, 1, 0, 0, slack}, context);
            test("gemmSkinny", gemmSkinny, {1, tokens, rank, wide, in, out, false, false, false, 2, 0, 0, slack}, context);
            test("gemmSkinny", gemmSkinny, {2, rank, wide, tokens, in, out, true, false, false, 0.5f, 0, 0, slack}, context);
            test("gemmSkinny", gemmSkinny, {2, wide, rank, tokens, in, out, true, false, false, 1, 0, 0, slack}, context);
            test("gemmSkinny", gemmSkinny, {0, rank, tokens, wide, in, out, false, true, true, 1, 0, 0, slack}, context);
            test("gemmSkinny", gemmSkinny, {1, rank, wide, tokens, in, out, false, true, false, 1, 0, 0, slack}, context);
          }
        }
  test("gemmSkinny", gemmSkinny, {0, 777, 16, 104, BF16, BF16, true, false, false, 1, 0, 0, 3}, context, true);
  for (int64_t k : {1, 5, 8, 63, 65, 72, 136, 4104}) {
    test("gemmSkinny", gemmSkinny, {0, 200, 16, k, BF16, F32, false, false, false, 1, 0, 0, (8 - k % 8) % 8}, context);
    test("gemmSkinny", gemmSkinny, {2, 200, 16, k, BF16, F32}, context);
  }
}

void testMma(const Context& context) {
  for (int mode = 0; mode < 3; ++mode) {
    const int terms = mode == 2 ? 0 : 2;
    for (const DType in : {BF16, F16})
      for (const Case& s : std::vector<Case>{{mode, 256, 512, 256, in, in},
                                             {mode, 1024, 2048, 128, in, in},
                                             {mode, 8, 8, 8, in, in},
                                             {mode, 4096, 4096, 64, in, F32, true},
                                             {mode, 300, 520, 1000, in, in, false, true, true, 0.5f, terms},
                                             {mode, 128, 896, 4864, in, in},
                                             {mode, 2056, 2504, 328, in, in, false, true, false, 1, terms, 16},
                                             {mode, 2056, 3000, 136, in, F32, true, true, true, 2, terms, 48, 8},
                                             {mode, 1000, 1000, 1000, in, in, true, false, false, 1, terms, 4},
                                             {mode, 200, 136, 50, in, F32, false, true, false, 1, terms, 7, 1, 1},
                                             {mode, 3000, 1537, 333, in, in, false, false, false, 1, terms, 72, 3, 1},
                                             {mode, 5000, 1100, 448, in, in, false, false, false, 1, terms, 128},
                                             {mode, 16, 4096, 4096, in, in, false, false, false, 1, terms, 16},
                                             {mode, 129, 257, 4096, in, F32, true, false, false, 1, terms, 24},
                                             {mode, 1, 1, 1, in, in},
                                             {mode, 640, 640, 200, in, in, false, false, false, 0, terms, 16}})
        test("gemmMma", gemmMma, s, context);
  }
  test("gemmMma", gemmMma, {0, 500, 6144, 512, BF16, BF16, false, false, false, 1, 8, 16}, context);
}

struct Timed {
  const char* name;
  Case s;
  int operand;  // whose bytes a second are counted: 0 none (FLOPs), 1 a, 2 b
};

void bench(const char* kernel, Gemm gemm, const std::vector<Timed>& list, const Context& context) {
  for (const Timed& t : list) {
    const double big =
        static_cast<double>(t.operand == 2 ? t.s.n * t.s.k : t.s.m * t.s.k) * static_cast<double>(bytesPerElement(t.s.in));
    const int copies = t.operand == 0 ? 1 : std::clamp(static_cast<int>(300e6 / big), 1, 64);
    std::vector<GemmArgs> rotation;
    for (int i = 0; i < copies; ++i) rotation.push_back(build(t.s));
    const double flops = 2.0 * static_cast<double>(t.s.m) * static_cast<double>(t.s.n) * static_cast<double>(t.s.k);
    const int repeats = std::clamp(static_cast<int>(t.operand == 0 ? 4e12 / flops : 3e9 / big), 5, 200);
    const double seconds =
        secondsInGraph(context.stream, repeats, [&](int i) { gemm(rotation[static_cast<size_t>(i % copies)], context); });
    if (t.operand == 0) printf("%-10s %-28s %8.1f us %7.1f TFLOP/s\n", kernel, t.name, seconds * 1e6, flops / seconds * 1e-12);
    else
      printf("%-10s %-28s %8.1f us %7.0f GB/s (%.0f %% of 4240)\n", kernel, t.name, seconds * 1e6, big / seconds * 1e-9,
             big / seconds / 4.24e10);
    for (const GemmArgs& g : rotation) destroy(g, t.s);
  }
}

void benchSimple(const Context& context) {
  bench("gemmSimple", gemmSimple,
        {{"fp32 Y=XW 4096^3", {0, 4096, 4096, 4096, F32, F32}, 0},
         {"fp32 dX 4096^3", {1, 4096, 4096, 4096, F32, F32}, 0},
         {"fp32 dW 4096^3", {2, 4096, 4096, 4096, F32, F32}, 0},
         {"fp32 2048x4864x896", {0, 2048, 4864, 896, F32, F32}, 0},
         {"fp32 288x288x288", {0, 288, 288, 288, F32, F32}, 0},
         {"fp32 U 8192x16x4096", {0, 8192, 16, 4096, F32, F32}, 1},
         {"fp32 dA 16x4096x8192", {2, 16, 4096, 8192, F32, F32, true}, 2},
         {"bf16 4096^3", {0, 4096, 4096, 4096, BF16, BF16}, 0}},
        context);
}

void benchSkinny(const Context& context) {
  std::vector<Timed> list;
  static char names[200][40];
  int used = 0;
  const auto name = [&](const char* what, int64_t n, int64_t k, int64_t r) {
    snprintf(names[used], sizeof names[0], "%s %lldx%lld r%lld", what, (long long)n, (long long)k, (long long)r);
    return names[used++];
  };
  struct Shape {
    int64_t n, k;
  };
  for (const Shape s : {Shape{1024, 896},
                        {2048, 2048},
                        {2048, 4096},
                        {8192, 896},
                        {5120, 4096},
                        {8192, 4096},
                        {8192, 14336},
                        {8192, 28672},
                        {16384, 4864}})
    for (const int64_t r : {16, 32, 48, 64}) {
      if (r > 16 && s.k != 4096 && s.n != 1024) continue;
      list.push_back({name("U", s.n, s.k, r), {0, s.n, r, s.k, BF16, BF16}, 1});
      list.push_back({name("dU", s.n, s.k, r), {1, s.n, r, s.k, BF16, BF16}, 1});
      list.push_back({name("dA", s.n, s.k, r), {2, r, s.k, s.n, BF16, F32, true}, 2});
      list.push_back({name("dB", s.n, s.k, r), {2, s.k, r, s.n, BF16, F32, true}, 1});
    }
  list.push_back({"decode 1x14336x4096", {0, 1, 14336, 4096, BF16, BF16}, 2});
  list.push_back({"decode 16x14336x4096", {0, 16, 14336, 4096, BF16, BF16}, 2});
  list.push_back({"U 8192x4096 r128", {0, 8192, 128, 4096, BF16, BF16}, 1});
  bench("gemmSkinny", gemmSkinny, list, context);
}

void benchMma(const Context& context) {
  const auto products = [](int64_t m, int64_t n, int64_t k, int terms) {
    static char names[200][40];
    static int used = 0;
    std::vector<Timed> list;
    for (int mode = 0; mode < 3; ++mode) {
      if (mode == 2 && terms > 0) continue;
      static const char* const what[] = {"Y", "dX", "dW"};
      snprintf(names[used], sizeof names[0], "%s %lldx%lldx%lld%s", what[mode], (long long)m, (long long)n, (long long)k,
               terms > 0 ? " + LoRA" : "");
      const int64_t dims[3][3] = {{m, n, k}, {m, k, n}, {n, k, m}};
      list.push_back(
          {names[used++], {mode, dims[mode][0], dims[mode][1], dims[mode][2], BF16, BF16, false, false, false, 1, terms, 16}, 0});
    }
    return list;
  };
  for (const auto& [m, n, k, terms] : std::vector<std::array<int64_t, 4>>{{8192, 8192, 8192, 0},
                                                                          {8192, 4096, 4096, 0},
                                                                          {8192, 6144, 4096, 0},
                                                                          {8192, 6144, 4096, 3},
                                                                          {8192, 28672, 4096, 0},
                                                                          {8192, 28672, 4096, 2},
                                                                          {8192, 4096, 14336, 0},
                                                                          {2048, 4096, 4096, 0},
                                                                          {1024, 128256, 4096, 0},
                                                                          {16384, 9728, 896, 0},
                                                                          {16384, 896, 4864, 0},
                                                                          {512, 4096, 4096, 0},
                                                                          {128, 4096, 4096, 0}})
    bench("gemmMma", gemmMma, products(m, n, k, static_cast<int>(terms)), context);
  bench("gemmMma", gemmMma, {{"U 8192x128x4096", {0, 8192, 128, 4096, BF16, BF16}, 0}}, context);
}

}  // namespace
}  // namespace unsloth::cuda

int main(int argc, char** argv) {
  using namespace unsloth::cuda;
  return runProgram("cudaGemmTest", [&] {
    const GpuInfo gpu = readGpu();
    Context context;
    context.gpu = &gpu;
    context.workspaceBytes = 128 << 20;
    context.workspace = allocate(context.workspaceBytes);
    check(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking), "stream");
    const std::string only = argc > 1 ? argv[1] : "";
    const auto wants = [&](const char* part) { return only.empty() || only == part; };
    if (wants("simple")) testSimple(context);
    if (wants("skinny")) testSkinny(context);
    if (wants("mma")) testMma(context);
    if (only == "bench" || only == "benchSimple") benchSimple(context);
    if (only == "bench" || only == "benchMma") benchMma(context);
    if (only == "bench" || only == "benchSkinny") benchSkinny(context);
    return only.starts_with("bench") ? 0 : finish("cudaGemmTest", checks, failures);
  });
}
