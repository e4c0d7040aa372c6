// The head and its loss on the GPU against the CPU; with the argument `bench` their speed at the shapes of real models, with
// `bench 8B` of those whose name contains that.
#include "../../kernels/cuda/gemm.h"
#include "cudaCase.h"

using namespace unsloth;
using namespace unsloth::test;

namespace {

struct Head {
  int64_t rows, width, vocabulary, chunk;
  double scale = 1, softcap = 0;
  bool bias = false, dW = false, gradient = true;
  double spread = 2;  // deviation of the logits before the scale
};

/** The numbers of a case as the operands hold them. */
struct HeadNumbers {
  std::vector<double> h, w, bias, labels, weights;
};

/** What the elements of nll and dW may be off by roundings to 16 bits. */
struct HeadBounds {
  std::vector<double> nll, dW;
};

/**
 * With u = 2⁻⁸ or 2⁻¹¹. A logit is rounded once: |Δx| ≤ u·|x|, and |Δz| is no more, since a softcap flattens. With
 * L = log Σ p·exp|Δz| ≥ |Δ log Σ exp z|, |Δnll| ≤ L + |Δz[label]|, |Δp| ≤ p·(exp(|Δz| + L) − 1), and t = 1 − (z/softcap)² has
 * |Δt| ≤ (2|z| + |Δz|)·|Δz|/softcap². g = weight·scale·(p − onehot)·t is rounded once more, and where the factor before
 * softmax goes to h instead, h is too, so that |Δg| ≤ (1 + u)²·weight·scale·(|Δp|·(t + |Δt|) + |p − onehot|·|Δt|) + 2.1u·|g|.
 * In dW = Σ g·h over n rows each adds |Δg|·|h|, and fp32 sums of tensor cores, which cut off, at most n·2⁻²²·|g·h|. `least`: half
 * of the smallest number of the type; 1e-5: the fp32 arithmetic before the roundings.
 */
HeadBounds roundingBounds(const Head& head, DType type, const HeadNumbers& numbers) {
  const double u = type == DType::BF16 ? 0x1p-8 : 0x1p-11, least = type == DType::BF16 ? 0 : 0x1p-25;
  const auto vocabulary = static_cast<size_t>(head.vocabulary), width = static_cast<size_t>(head.width);
  HeadBounds bounds{{}, std::vector<double>(head.dW ? vocabulary * width : 0, 0.0)};
  std::vector<double> z(vocabulary), dz(vocabulary);
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
    bounds.nll.push_back(L + dz[static_cast<size_t>(numbers.labels[r])]);
    for (size_t v = 0; head.dW && v < vocabulary; ++v) {
      const double p = std::exp(z[v] - top) / sum, dp = p * std::expm1(dz[v] + L);
      const double cap = head.softcap * head.softcap, off = std::abs(p - (static_cast<double>(v) == numbers.labels[r]));
      const double t = head.softcap > 0 ? 1 - z[v] * z[v] / cap : 1;
      const double dt = head.softcap > 0 ? (2 * std::abs(z[v]) + dz[v]) * dz[v] / cap : 0;
      const double g = factor * off * t;
      const double dg = (1 + u) * (1 + u) * factor * (dp * (t + dt) + off * dt) + 2.1 * u * g + least;
      for (size_t c = 0; c < width; ++c)
        bounds.dW[v * width + c] += std::abs(h[c]) * (dg + static_cast<double>(head.rows) * 0x1p-22 * (g + dg));
    }
  }
  return bounds;
}

void check(const Head& head, DType type, Layout layout) {
  Case c = make("headLoss", cpu::ops::headLoss, cuda::ops::headLoss, layout);
  // 16-bit logits and gradients of logits are rounded on their way; one of thousands of elements may be off by five deviations.
  const double loss = 1e-5,
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
      roundedTo(c.normal(head.vocabulary * head.width, head.spread / std::sqrt(static_cast<double>(head.width)))),
      roundedTo(c.normal(head.vocabulary)),
      whole(head.rows, [&](int64_t i) { return i % 5 == 4 ? head.vocabulary - 1 : i * 7919 % head.vocabulary; }),
      whole(head.rows, [](int64_t i) { return i % 4 == 3 ? 0 : 1 + i % 3; })};
  const HeadBounds bounds = type == DType::F32 ? HeadBounds{} : roundingBounds(head, type, numbers);
  c.output(DType::F32, head.rows, 1, 0, loss);
  if (type != DType::F32) c.within(bounds.nll);
  if (head.gradient) c.output(type, head.rows, head.width, 0, gradient);
  else c.absent();
  if (head.dW) {
    const bool exact = type == DType::F32;
    c.output(DType::F32, head.vocabulary, head.width, exact ? 0 : fp32, exact ? gradient : 0,
             c.normal(head.vocabulary * head.width, 0.1));
    if (!exact) c.within(bounds.dW);
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
            Head{3, 16, 130001, 3, 1, 0, false, false}, Head{2, 16, 70000, 2, 1, 20},
            Head{600, 72, 3001, 384}})
        check(head, type, layout);
}

/**
 * Logits far above that of the label, in some rows or in all: 16-bit logits could not hold them, but where none are stored the
 * result is as close as ever.
 */
void steep() {
  for (const DType type : {DType::BF16, DType::F32})
    for (const Layout layout : {Layout::dense, Layout::alignedSlice})
      for (const Head& head : {Head{520, 64, 1104, 400, 1, 0, false, true, true, 25},
                               Head{300, 32, 776, 300, 0.5, 0, false, false, true, 400}})
        if (type == DType::F32 || bench->gpu.capability == 90) check(head, type, layout);
}

const char* measured = "";  // what the name of a measurement has to contain

void measure(const char* name, int64_t rows, int64_t width, int64_t vocabulary, int64_t chunk, bool gradient, bool dW,
             double softcap = 0) {
  using cuda::test::randomMatrix;
  if (std::strstr(name, measured) == nullptr) return;
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
  measure("0.5B 16384x896x151936", 16384, 896, 151936, 1024, true, false);
  measure("0.5B 16384, chunks of 768", 16384, 896, 151936, 768, true, false);
  measure("0.5B 16384, loss alone", 16384, 896, 151936, 1024, false, false);
  measure("gemma-2 4096x2304x256000 softcap", 4096, 2304, 256000, 512, true, false, 30);
  measure("gpt2 8192x768x50257", 8192, 768, 50257, 2560, true, false);
  measure("32k vocabulary 8192x4096x32000", 8192, 4096, 32000, 4096, true, false);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || std::string(arguments[1]) != "bench")
    return runCases("cudaHeadLossTest", count, arguments, {heads, steep, padding});
  if (count > 2) measured = arguments[2];
  measureAll();
  return 0;
}
