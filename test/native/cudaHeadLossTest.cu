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

void check(const Head& head, DType type, Layout layout) {
  Case c = make("headLoss", cpu::ops::headLoss, cuda::ops::headLoss, layout);
  // 16-bit logits and gradients of logits are rounded on their way; one of thousands of elements may be off by five deviations.
  const double loss = type == DType::F32    ? 1e-5
                      : type == DType::BF16 ? 4e-3
                                            : 5e-4,
               gradient = type == DType::F32    ? 1e-4
                          : type == DType::BF16 ? 4e-2
                                                : 6e-3;
  // One label's row of dW is one product h·weight·scale: half a unit of up to 6, times h of up to 4.5, against the small mean of
  // all.
  const double weightGradient = type == DType::F32 ? gradient : 4 * gradient;
  const double ignored = 1e30;
  c.output(DType::F32, head.rows, 1, 0, loss);
  if (head.gradient) c.output(type, head.rows, head.width, 0, gradient);
  else c.absent();
  if (head.dW) c.output(DType::F32, head.vocabulary, head.width, 0, weightGradient, c.normal(head.vocabulary * head.width, 0.1));
  else c.absent();
  c.output(type, head.chunk, head.vocabulary, 0, ignored,
           std::vector<double>(static_cast<size_t>(head.chunk * head.vocabulary), 7));
  if (head.bias && head.gradient) c.output(DType::F32, 1, head.vocabulary, 0, gradient, c.normal(head.vocabulary));
  else c.absent();
  c.input(type, head.rows, head.width);
  c.fixed(type, head.vocabulary, head.width,
          c.normal(head.vocabulary * head.width, 2 / std::sqrt(static_cast<double>(head.width))));
  c.list(DType::I32, head.rows,
         whole(head.rows, [&](int64_t i) { return i % 5 == 4 ? head.vocabulary - 1 : i * 7919 % head.vocabulary; }));
  std::vector<double> weights(static_cast<size_t>(head.rows));
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = i % 4 == 3 ? 0 : 1 + static_cast<double>(i % 3);
  c.list(DType::F32, head.rows, weights);
  if (head.bias) c.fixed(type, 1, head.vocabulary, c.normal(head.vocabulary));
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
      ++bench->failuresOf["headLoss padding"];
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
