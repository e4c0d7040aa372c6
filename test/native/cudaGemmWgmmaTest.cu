// Matrix products on a GPU: every way of kernels/cuda/gemm.h that tensor cores take, with every tiling, against a plain kernel.
// `bench`, `tilings`, `epilogue` and `glu` measure their speed beside cuBLASLt's; `check` may be followed by the end of the name
// of the only way to take, or by `glu`.
#include <cstring>

#include "../../kernels/cuda/cublasLt.h"
#include "cudaGemmGlu.cuh"

using unsloth::cuda::test::readAs;

namespace {

__device__ float loadAny(const View& v, int64_t r, int64_t c) { return readAs(v.data, v.dtype, r * v.ld + c); }

struct PlainTerm {
  View a, b;
  int64_t column, width, rank;
  float alpha;
};

struct Plain {
  int mode;
  int64_t m, n, k;
  View a, b, bias, add, old;
  float alpha;
  int terms;
  PlainTerm term[4];
};

/** One thread per element, sums in fp64: what every other kernel is measured against. */
__global__ void plainProduct(Plain p, float* out) {
  const int64_t column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 8 + threadIdx.y;
  if (row >= p.m || column >= p.n) return;
  double sum = 0;
  for (int64_t i = 0; i < p.k; ++i) {
    const float x = p.mode == 2 ? loadAny(p.a, i, row) : loadAny(p.a, row, i);
    const float y = p.mode == 0 ? loadAny(p.b, column, i) : loadAny(p.b, i, column);
    sum += double(x) * y;
  }
  sum *= p.alpha;
  for (int j = 0; j < p.terms; ++j) {
    const PlainTerm& t = p.term[j];
    const int64_t c = column - t.column;
    if (c < 0 || c >= t.width) continue;
    double part = 0;
    for (int64_t i = 0; i < t.rank; ++i)
      part += double(loadAny(t.a, row, i)) * (p.mode == 0 ? loadAny(t.b, c, i) : loadAny(t.b, i, c));
    sum += part * t.alpha;
  }
  if (p.bias.data) sum += p.bias.rows == 1 ? loadAny(p.bias, 0, column) : loadAny(p.bias, column, 0);
  if (p.add.data) sum += loadAny(p.add, row, column);
  if (p.old.data) sum += loadAny(p.old, row, column);
  out[row * p.n + column] = static_cast<float>(sum);
}

/** Sums of (got − wanted)² and wanted², and how many cells outside the matrix changed. */
__global__ void compare(View got, const float* wanted, int64_t m, int64_t n, double* sums) {
  double error = 0, size = 0, touched = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < (m + 1) * got.ld; i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / got.ld, column = i % got.ld;
    const float x = loadAny(got, row, column);
    if (row < m && column < n) {
      const double d = double(x) - wanted[row * n + column];
      error += d == d ? d * d : 1e30;
      size += double(wanted[row * n + column]) * wanted[row * n + column];
    } else {
      touched += x == 7.0f ? 0 : 1;
    }
  }
  atomicAdd(sums, error);
  atomicAdd(sums + 1, size);
  atomicAdd(sums + 2, touched);
}

using Way = std::function<bool(const GemmArgs&, const Context&)>;

/** ‖got − wanted‖ / ‖wanted‖, or −1 where the way does not take the product; far too large when it writes outside c. */
double relativeError(Pool& pool, const Case& c, const Context& context, const Way& way) {
  pool.reset();
  const GemmArgs g = build(pool, c);
  poisonView(g.c, c.accumulate);
  Plain p{c.mode, c.m, c.n, c.k, g.a, g.b, g.bias, g.add, c.accumulate ? g.c : View{}, c.alpha, c.terms, {}};
  for (int j = 0; j < c.terms; ++j)
    p.term[j] = {g.terms[j].a, g.terms[j].b, g.terms[j].column, g.terms[j].width, g.terms[j].rank, g.terms[j].alpha};
  float* const wanted = static_cast<float*>(pool.take(c.m * c.n * 4));
  double* const sums = static_cast<double*>(pool.take(24));
  plainProduct<<<dim3((c.n + 31) / 32, (c.m + 7) / 8), dim3(32, 8)>>>(p, wanted);
  check(cudaMemset(sums, 0, 24), "memset");
  check(cudaDeviceSynchronize(), "plain product");
  if (!way(g, context)) return -1;
  check(cudaDeviceSynchronize(), "product");
  compare<<<256, 256>>>(g.c, wanted, c.m, c.n, sums);
  double host[3];
  check(cudaMemcpy(host, sums, 24, cudaMemcpyDeviceToHost), "compare");
  return host[2] > 0 ? 1e9 + host[2] : std::sqrt(host[0] / host[1]);
}

struct NamedWay {
  std::string name;
  Way way;
};

/** The exit status of the checks. */
int checkAll(Pool& pool, const Context& context, const std::vector<NamedWay>& ways, bool glus) {
  std::vector<Case> cases;
  for (const int mode : {0, 1, 2})
    for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{128, 256, 64},
                                                                     {256, 512, 256},
                                                                     {8, 8, 8},
                                                                     {1, 128, 64},
                                                                     {304, 200, 72},
                                                                     {1000, 1152, 200},
                                                                     {520, 896, 1024},
                                                                     {2048, 2304, 512}})
      cases.push_back({mode, mode == 2 ? (m + 7) / 8 * 8 : m, n, k});
  const size_t plain = cases.size();
  for (size_t i = 0; i < plain; ++i) {
    Case c = cases[i];
    c.out = DType::F32;
    cases.push_back(c);
    c.accumulate = true;
    cases.push_back(c);
    c = cases[i];
    c.bias = c.add = true;
    cases.push_back(c);
    c = cases[i];
    c.accumulate = true;
    c.alpha = 0.5f;
    cases.push_back(c);
    c = cases[i];
    c.in = c.out = DType::F16;
    c.bias = true;
    cases.push_back(c);
    if (c.mode == 2) continue;
    for (const int terms : {1, 3})
      for (const int64_t rank : {8, 16, 72}) {
        if (c.n < 64 && terms > 1) continue;
        Case t = cases[i];
        t.terms = terms;
        t.rank = rank;
        t.add = terms == 3;
        cases.push_back(t);
        t.alpha = 0.5f;
        t.termAlpha = 2;
        if (rank == 16) cases.push_back(t);
      }
  }
  int checks = 0, failures = 0;
  for (const NamedWay& way : ways) {
    double worst16 = 0, worst32 = 0;
    int done = 0, refused = 0, wrong = 0;
    for (const Case& c : cases) {
      const double error = relativeError(pool, c, context, way.way);
      if (error < 0) {
        ++refused;
        continue;
      }
      ++done;
      const double bound = c.out == DType::F32 ? 1e-5 : c.out == DType::F16 ? 5e-4 : 4e-3;
      (c.out == DType::F32 ? worst32 : worst16) = std::max(c.out == DType::F32 ? worst32 : worst16, error);
      if (!(error <= bound) && ++wrong <= 6) std::printf("WRONG %s: %s error %.3g\n", way.name.c_str(), nameOf(c).c_str(), error);
    }
    failures += wrong, checks += done;
    std::printf("check %-22s %d products right, %d wrong, %d refused; worst error %.2e (16 bits) %.2e (fp32)\n", way.name.c_str(),
                done - wrong, wrong, refused, worst16, worst32);
  }
  if (glus) checkGlus(pool, context, checks, failures);
  return test::finish("cudaGemmWgmmaTest", checks, failures);
}

/** Median TFLOP/s over launches on operands that rotate through more memory than L2 holds. */
double speed(Pool& pool, const Case& c, const Context& context, const Way& way, int launches) {
  pool.reset();
  std::vector<GemmArgs> sets;
  const double bytes = 2.0 * (double(c.m) * c.k + double(c.n) * c.k + double(c.m) * c.n);
  const int rotate = bytes > 200e6 ? 1 : bytes > 60e6 ? 3 : 8;
  for (int i = 0; i < rotate; ++i) sets.push_back(build(pool, c, 0));
  for (const GemmArgs& g : sets)
    if (!way(g, context)) return 0;
  std::vector<cudaEvent_t> events(launches + 1);
  for (auto& event : events) check(cudaEventCreate(&event), "event");
  check(cudaDeviceSynchronize(), "warm up");
  // Several launches per interval, so that short products are timed without the events' own cost.
  const double seconds = 2.0 * c.m * c.n * c.k / 650e12;
  const int inner = seconds > 1e-3 ? 1 : seconds > 2e-4 ? 3 : 10;
  check(cudaEventRecord(events[0], context.stream), "record");
  for (int i = 0; i < launches; ++i) {
    for (int j = 0; j < inner; ++j) way(sets[(i * inner + j) % rotate], context);
    check(cudaEventRecord(events[i + 1], context.stream), "record");
  }
  check(cudaDeviceSynchronize(), "bench");
  std::vector<float> times(launches);
  for (int i = 0; i < launches; ++i) check(cudaEventElapsedTime(&times[i], events[i], events[i + 1]), "elapsed");
  for (auto& event : events) cudaEventDestroy(event);
  std::sort(times.begin(), times.end());
  return 2.0 * c.m * c.n * c.k * inner / times[launches / 2] / 1e9;
}

struct Shape {
  const char* name;
  int64_t m, n, k;
};

/** The chip slows while it works: every way is measured in turn, several times over, and the median of the turns is shown. */
void bench(Pool& pool, const Context& context, const std::vector<NamedWay>& ways, const std::vector<Case>& cases, int turns) {
  std::printf("%-44s", "TFLOP/s");
  for (const NamedWay& way : ways) std::printf("%9s", way.name.c_str());
  std::printf("\n");
  for (const Case& c : cases) {
    std::vector<std::vector<double>> found(ways.size());
    for (int turn = 0; turn < turns; ++turn)
      for (size_t i = 0; i < ways.size(); ++i) found[i].push_back(speed(pool, c, context, ways[i].way, 4));
    std::printf("%-44s", nameOf(c).c_str());
    for (auto& speeds : found) {
      std::sort(speeds.begin(), speeds.end());
      std::printf("%9.0f", speeds[turns / 2]);
    }
    std::printf("\n");
  }
}

int run(const std::string& what, const std::string& only) {
  const GpuInfo gpu = test::readGpu();
  const Context context = test::openContext(gpu, size_t{64} << 20);
  Pool pool(size_t{12} << 30);

  std::vector<NamedWay> tilings;
  for (const int tileN : {256, 192, 128})
    for (const int cluster : {2, 1})
      for (const int shares : {1, 2, 4})
        tilings.push_back({std::to_string(tileN) + "/" + std::to_string(cluster) + "/" + std::to_string(shares),
                           [=](const GemmArgs& g, const Context& c) {
                             return sm90::gemmWgmmaTiled(g, c, {tileN, cluster, cluster == 2 ? 8 : 16, shares});
                           }});
  const auto& lt = cublasLtStatus();
  std::printf("%s, %d multiprocessors, L2 %d MB; cuBLASLt: %s\n", gpu.name.c_str(), gpu.multiprocessors,
              static_cast<int>(gpu.l2Bytes >> 20),
              lt.found ? (lt.path + " version " + std::to_string(lt.version)).c_str() : lt.problem.c_str());
  if (what == "check") {
    std::vector<NamedWay> ways = tilings;
    ways.push_back({"chosen", gemmWgmma});
    ways.push_back({"runGemm", [](const GemmArgs& g, const Context& c) { return runGemm(g, c), true; }});
    if (lt.found) ways.push_back({"cublasLt", gemmCublasLt});
    if (!only.empty()) std::erase_if(ways, [&](const NamedWay& way) { return !way.name.ends_with(only); });
    return checkAll(pool, context, ways, gpu.capability == 90 && (only.empty() || only == "glu"));
  }
  const std::vector<Shape> shapes{
      {"8B qkv", 8192, 6144, 4096},           {"8B o", 8192, 4096, 4096},         {"8B gate+up", 8192, 28672, 4096},
      {"8B down", 8192, 4096, 14336},         {"8B head", 1024, 128256, 4096},    {"8B o, few", 1024, 4096, 4096},
      {"8B qkv, few", 1024, 6144, 4096},      {"8B qkv, 2048", 2048, 6144, 4096}, {"8B down, few", 1024, 4096, 14336},
      {"8B gate+up, few", 2048, 28672, 4096}, {"1B gate+up", 16384, 16384, 2048}, {"1B down", 16384, 2048, 8192},
      {"0.5B gate+up", 16384, 9728, 896},     {"0.5B down", 16384, 896, 4864},    {"0.5B qkv", 16384, 1152, 896}};
  if (what == "bench") {
    std::vector<Case> cases;
    for (const Shape& s : shapes)
      for (const int mode : {0, 1}) cases.push_back(mode == 0 ? Case{0, s.m, s.n, s.k} : Case{1, s.m, s.k, s.n});
    cases.push_back({2, 4096, 4096, 8192, DType::BF16, DType::F32});
    cases.push_back({0, 8192, 8192, 8192});
    bench(pool, context, {{"cublas", gemmCublasLt}, {"own", gemmWgmma}}, cases, 5);
  }
  if (what == "tilings") {
    std::vector<Case> cases;
    for (const int64_t m : {128, 384, 1280})
      for (const auto& [n, k] : std::vector<std::array<int64_t, 2>>{{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}})
        cases.push_back({0, m, n, k});
    cases.push_back({1, 384, 4096, 28672});
    for (const int i : {6, 8, 13, 14}) cases.push_back({0, shapes[i].m, shapes[i].n, shapes[i].k});
    std::vector<NamedWay> ways{{"cublas", gemmCublasLt}, {"own", gemmWgmma}};
    for (const NamedWay& way : tilings)
      if (!way.name.ends_with("2/4")) ways.push_back(way);
    bench(pool, context, ways, cases, 3);
  }
  if (what == "glu") benchGlu(pool, context);
  if (what == "epilogue") {
    std::vector<Case> cases;
    for (const int terms : {0, 1, 3})
      for (const bool add : {false, true})
        for (const bool bias : {false, true}) {
          Case c{0, 8192, 6144, 4096};
          c.terms = terms;
          c.add = add;
          c.bias = bias;
          cases.push_back(c);
        }
    bench(pool, context, {{"own", gemmWgmma}, {"256/2", tilings[0].way}, {"128/2", tilings[12].way}}, cases, 5);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return test::runProgram("cudaGemmWgmmaTest", [&] { return run(argc > 1 ? argv[1] : "check", argc > 2 ? argv[2] : ""); });
}
