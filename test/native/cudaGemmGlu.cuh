#pragma once
#include "../../kernels/cuda/ops.h"
#include "cudaGemmCase.cuh"

/** Products [gate | up] with glu of them in one kernel, beside the two that do the same. */
namespace {

/** How many bytes of two matrices with all between their rows differ. */
__global__ void countDifferent(const uint16_t* a, const uint16_t* b, int64_t count, unsigned long long* different) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
    if (a[i] != b[i]) atomicAdd(different, 1ull);
}

View columns(const View& v, int64_t from, int64_t count) {
  View part = v;
  part.data = static_cast<std::byte*>(v.data) + static_cast<size_t>(from) * bytesPerElement(v.dtype);
  part.cols = count;
  return part;
}

void separateGlu(const GemmArgs& g, const View& h, int kind, const Context& context) {
  const View operands[3] = {h, columns(g.c, 0, h.cols), columns(g.c, h.cols, h.cols)};
  const int32_t ints[1] = {kind};
  ops::glu({operands, 3, ints, 1, nullptr, 0, {}}, context);
}

unsigned long long differences(Pool& pool, const std::vector<std::pair<View, View>>& pairs) {
  auto* const different = static_cast<unsigned long long*>(pool.take(8));
  check(cudaMemset(different, 0, 8), "memset");
  check(cudaDeviceSynchronize(), "both ways");
  for (const auto& [a, b] : pairs)
    countDifferent<<<512, 256>>>(static_cast<const uint16_t*>(a.data), static_cast<const uint16_t*>(b.data), (a.rows + 1) * a.ld,
                                 different);
  unsigned long long found = 0;
  check(cudaMemcpy(&found, different, 8, cudaMemcpyDeviceToHost), "compare");
  return found;
}

struct Glus {
  int checks = 0, failures = 0;
  void expect(bool right, const Case& c, int kind, const sm90::WgmmaTiling& tiling, unsigned long long found) {
    ++checks;
    if (right) return;
    if (++failures <= 6)
      std::printf("WRONG glu kind %d, tiling %d/%d/%d: %s: %llu numbers differ\n", kind, tiling.tileN, tiling.cluster,
                  tiling.shares, nameOf(c).c_str(), found);
  }
};

/** Gate and up with what glu makes of them, by one kernel: the same numbers as by two, nothing written beside them. */
void checkGlu(Pool& pool, const Context& context, const Case& c, int kind, const sm90::WgmmaTiling& tiling, bool taken,
              Glus& result) {
  pool.reset();
  const GemmArgs g = build(pool, c);
  GemmArgs again = g;
  again.c = pool.matrix(c.out, c.m, c.n, g.c.ld, 1);
  const View h = pool.matrix(c.out, c.m, c.n / 2, c.n / 2 + 8, 1), h2 = pool.matrix(c.out, c.m, c.n / 2, h.ld, 1);
  for (const View& v : {g.c, again.c, h, h2}) poisonView(v, false);
  const bool done = sm90::gemmGluWgmmaTiled(g, h, kind, context, tiling);
  if (done) {
    sm90::gemmWgmmaTiled(again, context, tiling);
    separateGlu(again, h2, kind, context);
  }
  const unsigned long long found = done ? differences(pool, {{g.c, again.c}, {h, h2}}) : 0;
  result.expect(done == taken && found == 0, c, kind, tiling, found);
}

/** Products with their glu, to the bit. */
void checkGlus(Pool& pool, const Context& context, int& checks, int& failures) {
  Glus result;
  for (const DType type : {DType::BF16, DType::F16})
    for (const int kind : {0, 1, 2})
      for (const sm90::WgmmaTiling& tiling : {sm90::WgmmaTiling{256, 2}, {256, 1}, {256, 2, 2, true}, {256, 1, 2, true}})
        for (const int terms : {0, 1, 2, 3})
          for (const auto& [m, n, k] :
               std::vector<std::array<int64_t, 3>>{{128, 256, 128}, {1, 256, 128}, {300, 1024, 256}, {1000, 1280, 1536}}) {
            Case c{0, m, n, k, type, type};
            c.terms = terms;
            c.rank = terms == 1 ? 72 : 16;
            c.alpha = terms == 0 && kind == 1 ? 0.5f : 1.0f;
            checkGlu(pool, context, c, kind, tiling, true, result);
          }
  const sm90::WgmmaTiling tiling{256, 2};
  checkGlu(pool, context, {0, 4096, 5120, 192}, 0, tiling, true, result);  // several tiles for each block
  Case bias{0, 300, 512, 64}, add = bias, accumulate = bias;
  bias.bias = add.add = accumulate.accumulate = true;
  const Case uneven{0, 300, 384, 64}, gradient{1, 300, 512, 64}, wide{0, 300, 512, 64, DType::BF16, DType::F32};
  for (const Case& c : {bias, add, accumulate, uneven, gradient, wide})
    checkGlu(pool, context, c, 0, tiling, false, result);
  checkGlu(pool, context, {0, 300, 512, 64}, 0, {128, 2}, false, result);
  checkGlu(pool, context, {0, 300, 512, 128}, 0, {256, 2, 2}, false, result);
  checks += result.checks, failures += result.failures;
}

/** Microseconds of a product and its glu, by two kernels and by one. */
void benchGlu(Pool& pool, const Context& context) {
  std::printf("%-44s%10s%10s%10s%10s  (tiling)\n", "microseconds", "product", "glu", "both", "together");
  for (const auto& [m, f, k] : std::vector<std::array<int64_t, 3>>{{8192, 14336, 4096}, {1024, 14336, 4096}, {16384, 8192, 2048},
                                                                   {1024, 8192, 2048}, {16384, 4864, 896}, {4096, 18944, 3584}}) {
    const Case c{0, m, 2 * f, k};
    pool.reset();
    const int rotate = m * f > (int64_t{1} << 25) ? 1 : 4;
    std::vector<std::pair<GemmArgs, View>> sets;
    for (int i = 0; i < rotate; ++i) {
      const GemmArgs g = build(pool, c, 0);
      sets.emplace_back(g, pool.matrix(c.out, m, f, f, 1));
    }
    const auto product = [&](int i) { gemmWgmma(sets[i].first, context); };
    const auto glu = [&](int i) { separateGlu(sets[i].first, sets[i].second, 0, context); };
    const auto tiling = sm90::rankTilings(sets[0].first, context).front();
    const std::array<std::function<void(int)>, 4> ways{
        product, glu, [&](int i) { product(i), glu(i); },
        [&](int i) { gemmGluWgmma(sets[i].first, sets[i].second, 0, context); }};
    std::array<std::vector<float>, 4> times;
    cudaEvent_t from, to;
    check(cudaEventCreate(&from), "event"), check(cudaEventCreate(&to), "event");
    const int inner = 2.0 * m * c.n * k > 5e11 ? 8 : 32;
    for (int turn = 0; turn < 8; ++turn)
      for (size_t w = 0; w < ways.size(); ++w) {
        check(cudaEventRecord(from, context.stream), "record");
        for (int i = 0; i < inner; ++i) ways[w](i % rotate);
        check(cudaEventRecord(to, context.stream), "record");
        check(cudaEventSynchronize(to), "bench");
        float time;
        check(cudaEventElapsedTime(&time, from, to), "elapsed");
        if (turn > 0) times[w].push_back(time * 1000 / inner);
      }
    std::printf("%-44s", nameOf(c).c_str());
    for (auto& found : times) {
      std::sort(found.begin(), found.end());
      std::printf("%10.1f", found[found.size() / 2]);
    }
    std::printf("  %d/%d/%d\n", tiling.tileN, tiling.cluster, tiling.shares);
  }
}

}  // namespace
