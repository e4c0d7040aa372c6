// Matrix products on a GPU: every way of kernels/cuda/gemm.h that tensor cores take, with every tiling, against a plain kernel.
// `bench`, `rows`, `tilings`, `epilogue` and `glu` measure their speed beside cuBLASLt's; `check` may be followed by the beginning
// or the end of the names of the only ways to take, or by `glu` or `kept`.
#include <cstring>

#include "../../kernels/cuda/cublasLt.h"
#include "../../kernels/cuda/gemmChoices.h"
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

/** How much is wrong with choices that are kept and adopted again. */
int checkKept(Pool& pool, const Context& context) {
  constexpr size_t rowsAt = 2, wayAt = 10;
  const int gpu = context.gpu->index;
  int wrong = 0;
  const auto expect = [&](bool right, const char* what) {
    if (!right) ++wrong, std::printf("WRONG choices: %s\n", what);
  };
  const auto product = [&](int64_t rows) {
    pool.reset();
    return build(pool, {0, rows, 2304, 512});
  };
  static_cast<void>(takeGemmChoices(gpu));
  const GemmChoice timed = fastestWay(product(2048), context);
  const std::vector<int32_t> record = takeGemmChoices(gpu);
  expect(record.size() == gemmRecordNumbers, "a product that was timed makes one record");
  expect(fastestWay(product(2000), context) == timed && takeGemmChoices(gpu).empty(), "rows of one class are timed once");
  const auto adopt = [&](int32_t rows, int32_t library, const GemmChoice& choice) {
    std::vector<int32_t> kept = record;
    kept[0] += library;
    kept[rowsAt] = rows;
    kept[wayAt] = static_cast<int32_t>(choice.way);
    std::copy(choice.numbers.begin(), choice.numbers.end(), kept.begin() + wayAt + 1);
    adoptGemmChoices(gpu, kept.data(), kept.size());
    const GemmChoice now = fastestWay(product(rows), context);
    return now == choice && takeGemmChoices(gpu).empty();
  };
  const GemmChoice tiling{GemmChoice::Way::wgmma, {64, 1, 2, 0}};
  expect(adopt(4096, 0, tiling), "a choice that was kept holds");
  expect(!adopt(3072, 1, tiling), "a choice made beside another library is passed over");
  expect(!adopt(3584, 0, {static_cast<GemmChoice::Way>(77), {}}), "a way that there is not is passed over");
  expect(!adopt(2560, 0, {GemmChoice::Way::wgmma, {0, 3, -1, 0}}), "a tiling that there is not is passed over");
  return wrong;
}

/** The exit status of the checks. */
int checkAll(Pool& pool, const Context& context, const std::vector<NamedWay>& ways, int wrongChoices, bool glus) {
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
  int checks = wrongChoices, failures = wrongChoices;
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

struct Shape {
  const char* name;
  int64_t m, n, k;
};

/**
 * Median TFLOP/s of each way, on operands that rotate through more memory than L2 holds. The chip slows while it works: all ways
 * are measured in turn, several times over.
 */
std::vector<double> speeds(Pool& pool, const Case& c, const Context& context, const std::vector<NamedWay>& ways, int turns) {
  pool.reset();
  const double bytes = 2.0 * (double(c.m) * c.k + double(c.n) * c.k + double(c.m) * c.n);
  const int rotate = static_cast<int>(std::clamp(240e6 / bytes, 1.0, 8.0)) + 1;
  std::vector<GemmArgs> sets;
  for (int i = 0; i < rotate; ++i) sets.push_back(build(pool, c, 0));
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  const int inner = std::clamp(static_cast<int>(400e-6 / (2.0 * c.m * c.n * c.k / 600e12)), 2, 12);
  std::vector<std::vector<double>> found(ways.size());
  for (int turn = 0; turn < turns; ++turn)
    for (size_t w = 0; w < ways.size(); ++w) {
      if (turn == 0 && !ways[w].way(sets[0], context)) found[w].push_back(0);
      if (!found[w].empty() && found[w][0] == 0) continue;
      check(cudaEventRecord(begin, context.stream), "record");
      for (int i = 0; i < inner; ++i) ways[w].way(sets[(i + 1) % rotate], context);
      check(cudaEventRecord(end, context.stream), "record");
      check(cudaEventSynchronize(end), "bench");
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end), "elapsed");
      found[w].push_back(2.0 * c.m * c.n * c.k * inner / ms / 1e9);
    }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::vector<double> result;
  for (auto& f : found) {
    std::sort(f.begin(), f.end());
    result.push_back(f[f.size() / 2]);
  }
  return result;
}

void bench(Pool& pool, const Context& context, const std::vector<NamedWay>& ways, const std::vector<Case>& cases, int turns) {
  std::printf("%-44s", "TFLOP/s");
  for (const NamedWay& way : ways) std::printf("%9s", way.name.c_str());
  std::printf("\n");
  for (const Case& c : cases) {
    std::printf("%-44s", nameOf(c).c_str());
    for (const double speed : speeds(pool, c, context, ways, turns)) std::printf("%9.0f", speed);
    std::printf("\n");
  }
}

/** By rows: our choice, cuBLASLt's first proposal and its best, and our best tiling. */
void benchRows(Pool& pool, const Context& context, const std::vector<NamedWay>& tilings) {
  std::vector<NamedWay> ways{{"own", gemmWgmma}};
  for (int i = 0; i < cublasLtProposals; ++i)
    ways.push_back({std::to_string(i), [i](const GemmArgs& g, const Context& c) { return gemmCublasLtProposal(g, c, i); }});
  const size_t firstTiling = ways.size();
  ways.insert(ways.end(), tilings.begin(), tilings.end());
  const std::vector<Shape> weights{{"8b qkv", 0, 6144, 4096},  {"8b o", 0, 4096, 4096},  {"8b gate+up", 0, 28672, 4096},
                                   {"8b down", 0, 4096, 14336}, {"1b qkv", 0, 3072, 2048}, {"1b o", 0, 2048, 2048},
                                   {"1b gate+up", 0, 16384, 2048}, {"1b down", 0, 2048, 8192}, {"0.5b qkv", 0, 1152, 896},
                                   {"0.5b gate+up", 0, 9728, 896}, {"0.5b down", 0, 896, 4864}};
  std::printf("%-14s mode %5s %7s %10s %10s %10s\n", "TFLOP/s", "rows", "own", "cuBLASLt", "its best", "best tiling");
  for (const Shape& weight : weights)
    for (const int mode : {0, 1})
      for (const int64_t m : {128, 256, 384, 512, 1152, 1280, 2048}) {
        const Case c = mode == 0 ? Case{0, m, weight.n, weight.k} : Case{1, m, weight.k, weight.n};
        const std::vector<double> found = speeds(pool, c, context, ways, 3);
        const auto tiling = found.begin() + static_cast<std::ptrdiff_t>(firstTiling);
        const auto library = std::max_element(found.begin() + 1, tiling), best = std::max_element(tiling, found.end());
        const auto nameAt = [&](auto at) { return ways[static_cast<size_t>(at - found.begin())].name.c_str(); };
        std::printf("%-14s %4d %5ld %7.0f %10.0f %7.0f/%s %9.0f %s\n", weight.name, mode, m, found[0], found[1], *library,
                    nameAt(library), best == found.end() ? 0.0 : *best, best == found.end() ? "" : nameAt(best));
      }
}

int run(const std::string& what, const std::string& only) {
  const GpuInfo gpu = test::readGpu();
  const Context context = test::openContext(gpu, size_t{64} << 20);
  Pool pool(size_t{12} << 30);

  std::vector<NamedWay> tilings;
  for (const int tileN : {256, 224, 192, 160, 128, 96, 64})
    for (const int cluster : {2, 1})
      for (const int shares : {1, 2, 3, 4, 8})
        for (const bool loose : {false, true})
          if (shares > 1 || !loose)
            tilings.push_back({std::to_string(tileN) + "/" + std::to_string(cluster) + "/" + std::to_string(shares) +
                                   (loose ? "s" : ""),
                               [=](const GemmArgs& g, const Context& c) {
                                 return sm90::gemmWgmmaTiled(g, c, {tileN, cluster, shares, loose});
                               }});
  const auto& lt = cublasLtStatus();
  std::printf("%s, %d multiprocessors, L2 %d MB; cuBLASLt: %s\n", gpu.name.c_str(), gpu.multiprocessors,
              static_cast<int>(gpu.l2Bytes >> 20),
              lt.found ? (lt.path + " version " + std::to_string(lt.version)).c_str() : lt.problem.c_str());
  if (what == "check") {
    std::vector<NamedWay> ways = tilings;
    ways.push_back({"chosen", gemmWgmma});
    ways.push_back({"runGemm", [](const GemmArgs& g, const Context& c) { return runGemm(g, c), true; }});
    ways.push_back({"timed", [](const GemmArgs& g, const Context& c) { return multiplyBy(fastestWay(g, c), g, c); }});
    if (lt.found) ways.push_back({"cublasLt", gemmCublasLt});
    for (int i = 0; lt.found && i < cublasLtProposals; ++i)
      ways.push_back({"proposal " + std::to_string(i),
                      [i](const GemmArgs& g, const Context& c) { return gemmCublasLtProposal(g, c, i); }});
    const auto isOther = [&](const NamedWay& way) { return !way.name.ends_with(only) && !way.name.starts_with(only); };
    if (!only.empty()) std::erase_if(ways, isOther);
    const int wrong = only.empty() || only == "kept" ? checkKept(pool, context) : 0;
    return checkAll(pool, context, ways, wrong, gpu.capability == 90 && (only.empty() || only == "glu"));
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
  if (what == "rows") benchRows(pool, context, {});
  if (what == "tilings") benchRows(pool, context, tilings);
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
    std::vector<NamedWay> ways{{"own", gemmWgmma}};
    for (const NamedWay& way : tilings)
      if (way.name == "256/2/1" || way.name == "128/2/1") ways.push_back(way);
    bench(pool, context, ways, cases, 5);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return test::runProgram("cudaGemmWgmmaTest", [&] { return run(argc > 1 ? argv[1] : "check", argc > 2 ? argv[2] : ""); });
}
