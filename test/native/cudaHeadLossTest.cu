// The head and its loss on the GPU against the CPU; with the argument `bench` their speed at the shapes of real models.
#include "../../kernels/cuda/gemm.h"
#include "cudaCase.h"

using namespace unsloth;
using namespace unsloth::test;

namespace {

struct Head {
  int64_t rows, width, vocabulary, chunk;
  double scale = 1, softcap = 0;
  bool bias = false, dW = false, gradient = true;
};

/** The numbers of a case as the operands hold them. */
struct HeadNumbers {
  std::vector<double> h, w, bias, labels, weights;
};

/**
 * What each element of dW may be off by the roundings to 16 bits, with u = 2⁻⁸ or 2⁻¹¹. A logit is rounded once: |Δx| ≤ u·|x|,
 * and |Δz| is no more, since a softcap flattens. With L = log Σ p·exp|Δz| ≥ |Δ log Σ exp z|, |Δp| ≤ p·(exp(|Δz| + L) − 1), and
 * t = 1 − (z/softcap)² has |Δt| ≤ (2|z| + |Δz|)·|Δz|/softcap². g = weight·scale·(p − onehot)·t is rounded once more, so that
 * |Δg| ≤ (1 + u)·weight·scale·(|Δp|·(t + |Δt|) + |p − onehot|·|Δt|) + u·|g|. In dW = Σ g·h over n rows each adds |Δg|·|h|, and
 * fp32 sums of tensor cores, which cut off, at most n·2⁻²²·|g·h|. `least`: half of the smallest number of the type; 1e-5: the
 * fp32 arithmetic before the roundings.
 */
std::vector<double> weightGradientBounds(const Head& head, DType type, const HeadNumbers& numbers) {
  const double u = type == DType::BF16 ? 0x1p-8 : 0x1p-11, least = type == DType::BF16 ? 0 : 0x1p-25;
  const auto vocabulary = static_cast<size_t>(head.vocabulary), width = static_cast<size_t>(head.width);
  std::vector<double> bounds(vocabulary * width, 0.0), z(vocabulary), dz(vocabulary);
  for (size_t r = 0; r < static_cast<size_t>(head.rows); ++r) {
    const double* h = &numbers.h[r * width];
    double top = -INFINITY, sum = 0, spread = 0;
    for (size_t v = 0; v < vocabulary; ++v) {
      double x = 0;
      for (size_t c = 0; c < width; ++c) x += h[c] * numbers.w[v * width + c];
      x = head.scale * x + (head.bias ? numbers.bias[v] : 0);
      z[v] = head.softcap > 0 ? head.softcap * std::tanh(x / head.softcap) : x;
      dz[v] = (u + 1e-5) * std::abs(x) + head.scale * least + 1e-5;
      top = std::max(top, z[v]);
    }
    for (size_t v = 0; v < vocabulary; ++v) sum += std::exp(z[v] - top), spread += std::exp(z[v] - top + dz[v]);
    const double L = std::log(spread / sum), factor = numbers.weights[r] * head.scale;
    for (size_t v = 0; v < vocabulary; ++v) {
      const double p = std::exp(z[v] - top) / sum, dp = p * std::expm1(dz[v] + L);
      const double cap = head.softcap * head.softcap, off = std::abs(p - (static_cast<double>(v) == numbers.labels[r]));
      const double t = head.softcap > 0 ? 1 - z[v] * z[v] / cap : 1;
      const double dt = head.softcap > 0 ? (2 * std::abs(z[v]) + dz[v]) * dz[v] / cap : 0;
      const double g = factor * off * t;
      const double dg = (1 + u) * factor * (dp * (t + dt) + off * dt) + u * g + least;
      for (size_t c = 0; c < width; ++c)
        bounds[v * width + c] += std::abs(h[c]) * (dg + static_cast<double>(head.rows) * 0x1p-22 * (g + dg));
    }
  }
  return bounds;
}

void check(const Head& head, DType type, Layout layout) {
  Case c = make("headLoss", cpu::ops::headLoss, cuda::ops::headLoss, layout);
  // 16-bit logits and gradients of logits are rounded on their way; one of thousands of elements may be off by five deviations.
  const double loss = type == DType::F32    ? 1e-5
                      : type == DType::BF16 ? 4e-3
                                            : 5e-4,
               gradient = type == DType::F32    ? 1e-4
                          : type == DType::BF16 ? 4e-2
                                                : 6e-3;
  const double ignored = 1e30;
  const auto roundedTo = [&](std::vector<double> values) {
    for (double& v : values) v = rounded(type, v);
    return values;
  };
  HeadNumbers numbers{
      roundedTo(c.normal(head.rows * head.width)),
      roundedTo(c.normal(head.vocabulary * head.width, 2 / std::sqrt(static_cast<double>(head.width)))),
      roundedTo(c.normal(head.vocabulary)),
      whole(head.rows, [&](int64_t i) { return i % 5 == 4 ? head.vocabulary - 1 : i * 7919 % head.vocabulary; }),
      whole(head.rows, [](int64_t i) { return i % 4 == 3 ? 0 : 1 + i % 3; })};
  c.output(DType::F32, head.rows, 1, 0, loss);
  if (head.gradient) c.output(type, head.rows, head.width, 0, gradient);
  else c.absent();
  if (head.dW) {
    const bool exact = type == DType::F32;
    c.output(DType::F32, head.vocabulary, head.width, exact ? 0 : fp32, exact ? gradient : 0,
             c.normal(head.vocabulary * head.width, 0.1));
    if (!exact) c.within(weightGradientBounds(head, type, numbers));
  } else {
    c.absent();
  }
  c.output(type, head.chunk, head.vocabulary, 0, ignored,
           std::vector<double>(static_cast<size_t>(head.chunk * head.vocabulary), 7));
  if (head.bias && head.gradient) c.output(DType::F32, 1, head.vocabulary, 0, gradient, c.normal(head.vocabulary));
  else c.absent();
  c.input(type, head.rows, head.width, numbers.h);
  c.fixed(type, head.vocabulary, head.width, numbers.w);
  c.list(DType::I32, head.rows, numbers.labels);
  c.list(DType::F32, head.rows, numbers.weights);
  if (head.bias) c.fixed(type, 1, head.vocabulary, numbers.bias);
  else c.absent();
  c.ints = {0};
  c.floats = {head.scale, head.softcap};
  c.run();
}

/** Rows of weight 0 have a gradient of exactly zero, also where the others do not. */
void padding() {
  constexpr int64_t rows = 256, width = 64, vocabulary = 1000;
  const DType type = DType::BF16;
  using cuda::test::randomMatrix;
  const View h = randomMatrix(type, rows, width), w = randomMatrix(type, vocabulary, width),
             logits = randomMatrix(type, 128, vocabulary, 1008);
  const View nll = randomMatrix(DType::F32, rows, 1), dH = randomMatrix(type, rows, width);
  const std::vector<int32_t> labels(rows, 0);
  std::vector<float> weights(rows, 0);
  for (size_t i = 0; i < 100; ++i) weights[i] = 0.25f;
  View dLabels{cuda::test::allocate(rows * 4), DType::I32, rows, 1, 1},
      dWeights{cuda::test::allocate(rows * 4), DType::F32, rows, 1, 1};
  cuda::check(cudaMemcpy(dLabels.data, labels.data(), rows * 4, cudaMemcpyHostToDevice), "copying");
  cuda::check(cudaMemcpy(dWeights.data, weights.data(), rows * 4, cudaMemcpyHostToDevice), "copying");
  const View views[] = {nll, dH, {}, logits, {}, h, w, dLabels, dWeights, {}};
  const int32_t ints[] = {0};
  const double floats[] = {1, 0};
  cuda::ops::headLoss({views, 10, ints, 1, floats, 2, {}}, bench->context);
  cuda::check(cudaStreamSynchronize(bench->context.stream), "running");
  const auto losses = cuda::test::toHost(nll), gradients = cuda::test::toHost(dH);
  ++bench->checks;
  for (size_t i = 0; i < rows * width; ++i) {
    const bool zero = gradients[i] == 0;
    if (!std::isfinite(losses[i / width]) || zero != (i / width >= 100)) {
      ++bench->failures;
      std::printf("FAIL headLoss: row %zu has the gradient %g and the loss %g\n", i / width, gradients[i], losses[i / width]);
      return;
    }
  }
}

void heads() {
  for (const DType type : floatTypes)
    for (const Layout layout : layouts)
      for (const Head& head :
           {Head{5, 16, 7, 5}, Head{64, 32, 1000, 64}, Head{300, 64, 2048, 128, 1, 0, false, true},
            Head{130, 40, 4001, 130, 1, 0, true, true}, Head{200, 64, 1537, 64, 0.5, 0, true}, Head{70, 48, 3000, 32, 0.25, 30},
            Head{9, 64, 333, 4, 2, 5, false, true}, Head{33, 64, 9000, 33, 1, 0, false, false, false},
            Head{3, 16, 130001, 3, 1, 0, false, false}, Head{2, 16, 70000, 2, 1, 20}})
        check(head, type, layout);
}

void measure(const char* name, int64_t rows, int64_t width, int64_t vocabulary, int64_t chunk, bool gradient, bool dW,
             double softcap = 0) {
  using cuda::test::randomMatrix;
  const DType type = DType::BF16;
  const View h = randomMatrix(type, rows, width),
             w = randomMatrix(type, vocabulary, width, 0, 1 / std::sqrt(static_cast<float>(width)));
  const View logits = randomMatrix(type, chunk, vocabulary), nll = randomMatrix(DType::F32, rows, 1);
  const View dH = gradient ? randomMatrix(type, rows, width) : View{},
             dWeight = dW ? randomMatrix(DType::F32, vocabulary, width) : View{};
  std::vector<int32_t> labels(static_cast<size_t>(rows));
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(vocabulary));
  View dLabels{cuda::test::allocate(labels.size() * 4), DType::I32, rows, 1, 1};
  const View weights = randomMatrix(DType::F32, rows, 1);
  cuda::check(cudaMemcpy(dLabels.data, labels.data(), labels.size() * 4, cudaMemcpyHostToDevice), "copying");
  const View views[] = {nll, dH, dWeight, logits, {}, h, w, dLabels, weights, {}};
  const int32_t ints[] = {0};
  const double floats[] = {1, softcap};
  const Call call{views, 10, ints, 1, floats, 2, {}};
  const double seconds =
      cuda::test::secondsEach(bench->context.stream, 3, [&](int) { cuda::ops::headLoss(call, bench->context); });
  const double flops = (dW         ? 6.0
                        : gradient ? 4.0
                                   : 2.0) *
                       static_cast<double>(rows) * static_cast<double>(width) * static_cast<double>(vocabulary);
  std::printf("headLoss %-34s %8.2f ms %7.1f TFLOP/s\n", name, seconds * 1e3, flops / seconds * 1e-12);
  for (const View& v : {h, w, logits, nll, dH, dWeight, dLabels, weights}) cuda::test::release(v);
}

void measureAll() {
  Bench shared;
  bench = &shared;
  measure("8B 8192x4096x128256", 8192, 4096, 128256, 1024, true, false);
  measure("8B 8192, chunks of 2048", 8192, 4096, 128256, 2048, true, false);
  measure("8B 8192, loss alone", 8192, 4096, 128256, 1024, false, false);
  measure("8B 4096 with dW", 4096, 4096, 128256, 1024, true, true);
  measure("8B 1280", 1280, 4096, 128256, 1024, true, false);
  measure("1B 16384x2048x128256", 16384, 2048, 128256, 1024, true, false);
  measure("0.5B 16384x896x151936", 16384, 896, 151936, 896, true, false);
  measure("gemma-2 4096x2304x256000 softcap", 4096, 2304, 256000, 512, true, false, 30);
  measure("gpt2 8192x768x50257", 8192, 768, 50257, 2560, true, false);
  measure("32k vocabulary 8192x4096x32000", 8192, 4096, 32000, 4096, true, false);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || std::string(arguments[1]) != "bench") return runCases("cudaHeadLossTest", count, arguments, {heads, padding});
  measureAll();
  return 0;
}
