// Bandwidth of the small commands of the GPU at the sizes of an 8B and a 0.5B model, in bf16: microseconds for each launch within
// a CUDA graph, and bytes over time beside the rate of a device copy. Large operands rotate through more memory than the L2
// holds. With names of commands as arguments only those.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "../../kernels/cuda/ops.h"
#include "cudaTest.h"

using namespace unsloth;

namespace {

using Op = void (*)(const Call&, const cuda::Context&);
using cuda::check;

cuda::GpuInfo gpu;
cuda::Context context;
std::byte* arena;
size_t used = 0;
constexpr size_t arenaBytes = size_t{12} << 30;
double copyRate = 0;
std::vector<std::string> only;

View take(DType type, int64_t rows, int64_t cols, int64_t ld = 0) {
  const View v{arena + used, type, rows, cols, ld == 0 ? cols : ld};
  used += (static_cast<size_t>(rows * v.ld) * bytesPerElement(type) + 255) / 256 * 256;
  if (used > arenaBytes) fail("the bench needs a larger arena");
  return v;
}

View integers(int64_t rows, int64_t cols, const std::function<int64_t(int64_t)>& value) {
  std::vector<int32_t> values(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int32_t>(value(static_cast<int64_t>(i)));
  const View v = take(DType::I32, rows, cols);
  check(cudaMemcpy(v.data, values.data(), values.size() * 4, cudaMemcpyHostToDevice), "writing indices");
  return v;
}

struct Operands {
  std::vector<View> views;
  std::vector<int32_t> ints;
  std::vector<double> floats;
};

/** `bytes`: what one launch has to move. */
void bench(const char* name, const char* shape, Op op, double bytes, const std::function<Operands()>& make) {
  if (!only.empty() && std::find(only.begin(), only.end(), name) == only.end()) return;
  used = 0;
  std::vector<Operands> sets;
  const size_t most = 16;
  do sets.push_back(make());
  while (sets.size() < most && used < size_t{400} << 20);
  const double time = 1e6 * cuda::test::secondsInGraph(context.stream, 24, [&](int i) {
                        const Operands& o = sets[static_cast<size_t>(i) % sets.size()];
                        op({o.views.data(),
                            static_cast<int64_t>(o.views.size()),
                            o.ints.data(),
                            static_cast<int64_t>(o.ints.size()),
                            o.floats.data(),
                            static_cast<int64_t>(o.floats.size()),
                            {}},
                           context);
                      });
  const double rate = bytes / time * 1e-6;
  std::printf("%-14s %-30s %9.2f us %8.3f TB/s %5.1f %%\n", name, shape, time, rate, 100 * rate / copyRate);
}

struct Model {
  const char* name;
  int64_t rows, hidden, ffn, heads, headDim, vocabulary;
};

void benchModel(const Model& m) {
  constexpr DType t = DType::BF16, f = DType::F32;
  const auto N = static_cast<double>(m.rows), H = static_cast<double>(m.hidden), F = static_cast<double>(m.ffn);
  const std::string shape = std::string(m.name) + " " + std::to_string(m.rows) + "x", wide = shape + std::to_string(m.ffn),
                    thin = shape + std::to_string(m.hidden);
  const auto hidden = [&] { return take(t, m.rows, m.hidden); };
  bench("rmsNorm", thin.c_str(), cuda::ops::rmsNorm, 4 * N * H,
        [&] { return Operands{{hidden(), take(f, m.rows, 1), hidden(), take(t, 1, m.hidden)}, {1, 0}, {1e-5}}; });
  const auto grad = [&](bool accumulate, bool dw) {
    return Operands{{hidden(), dw ? take(f, 1, m.hidden) : View{}, hidden(), hidden(), take(t, 1, m.hidden), take(f, m.rows, 1)},
                    {1, 0, accumulate},
                    {}};
  };
  bench("rmsNormGrad", (thin + " +=").c_str(), cuda::ops::rmsNormGrad, 8 * N * H, [&] { return grad(true, false); });
  bench("rmsNormGrad", (thin + " =").c_str(), cuda::ops::rmsNormGrad, 6 * N * H, [&] { return grad(false, false); });
  bench("rmsNormGrad", (thin + " += dw").c_str(), cuda::ops::rmsNormGrad, 8 * N * H, [&] { return grad(true, true); });
  const int64_t qHeads = m.heads, all = qHeads * m.headDim;
  bench("rmsNorm", (shape + std::to_string(qHeads) + " heads").c_str(), cuda::ops::rmsNorm, 4 * N * static_cast<double>(all),
        [&] {
          return Operands{{take(t, m.rows, all), take(f, m.rows, qHeads), take(t, m.rows, all), take(t, 1, m.headDim)},
                          {static_cast<int32_t>(qHeads), 0},
                          {1e-5}};
        });
  for (const bool dw : {false, true})
    bench("rmsNormGrad", (shape + std::to_string(qHeads) + (dw ? " heads dw" : " heads")).c_str(), cuda::ops::rmsNormGrad,
          6 * N * static_cast<double>(all), [&] {
            return Operands{{take(t, m.rows, all), dw ? take(f, 1, m.headDim) : View{}, take(t, m.rows, all),
                             take(t, m.rows, all), take(t, 1, m.headDim), take(f, m.rows, qHeads)},
                            {static_cast<int32_t>(qHeads), 0, 0},
                            {}};
          });
  bench("layerNorm", thin.c_str(), cuda::ops::layerNorm, 4 * N * H, [&] {
    return Operands{{hidden(), take(f, m.rows, 2), hidden(), take(t, 1, m.hidden), take(t, 1, m.hidden)}, {1}, {1e-5}};
  });
  for (const bool dw : {false, true})
    bench("layerNormGrad", (thin + (dw ? " += dw db" : " +=")).c_str(), cuda::ops::layerNormGrad, 8 * N * H, [&] {
      const auto parameter = [&] { return dw ? take(f, 1, m.hidden) : View{}; };
      return Operands{
          {hidden(), parameter(), parameter(), hidden(), hidden(), take(t, 1, m.hidden), take(f, m.rows, 2)}, {1, 1}, {}};
    });
  bench("rope", (shape + std::to_string(qHeads) + " heads, half of q").c_str(), cuda::ops::rope,
        N * (4.0 * static_cast<double>(all) + 4.0 * static_cast<double>(m.headDim)), [&] {
          const View x = take(t, m.rows, all, all + all / 4);
          return Operands{
              {x, x, take(f, m.rows, m.headDim)}, {static_cast<int32_t>(qHeads), static_cast<int32_t>(m.headDim), 0, 0}, {}};
        });
  bench("ropeTable", shape.c_str(), cuda::ops::ropeTable, N * 4.0 * static_cast<double>(m.headDim), [&] {
    return Operands{{take(f, m.rows, m.headDim), integers(m.rows, 1, [](int64_t i) { return i % 2048; }),
                     integers(m.rows, 1, [](int64_t) { return 0; }), take(f, 1, m.headDim / 2), take(f, 1, 1)},
                    {},
                    {}};
  });
  const auto gateUp = [&] {
    const View both = take(t, m.rows, m.ffn, 2 * m.ffn);
    View up = both;
    up.data = static_cast<uint16_t*>(up.data) + m.ffn;
    return std::pair(both, up);
  };
  for (const int32_t kind : {0, 1, 2})
    bench("glu", (wide + " kind " + std::to_string(kind)).c_str(), cuda::ops::glu, 6 * N * F, [&] {
      const auto [gate, up] = gateUp();
      return Operands{{take(t, m.rows, m.ffn), gate, up}, {kind}, {}};
    });
  for (const int32_t kind : {0, 1, 2})
    bench("gluGrad", (wide + " in place " + std::to_string(kind)).c_str(), cuda::ops::gluGrad, 10 * N * F, [&] {
      const auto [gate, up] = gateUp();
      return Operands{{gate, up, View{}, take(t, m.rows, m.ffn), gate, up}, {kind}, {}};
    });
  bench("gluGrad", (wide + " in place, with h").c_str(), cuda::ops::gluGrad, 12 * N * F, [&] {
    const auto [gate, up] = gateUp();
    const View dh = take(t, m.rows, m.ffn);
    return Operands{{gate, up, dh, dh, gate, up}, {0}, {}};
  });
  bench("activation", (wide + " gelu").c_str(), cuda::ops::activation, 4 * N * F,
        [&] { return Operands{{take(t, m.rows, m.ffn), take(t, m.rows, m.ffn)}, {1}, {}}; });
  bench("add", thin.c_str(), cuda::ops::add, 6 * N * H, [&] { return Operands{{hidden(), hidden(), hidden()}, {}, {1, 1}}; });
  bench("columnSum", wide.c_str(), cuda::ops::columnSum, 2 * N * F,
        [&] { return Operands{{take(f, 1, m.ffn), take(t, m.rows, m.ffn)}, {}, {1}}; });
  bench("fill", thin.c_str(), cuda::ops::fill, 2 * N * H, [&] { return Operands{{hidden()}, {}, {0}}; });
  bench("cast", (thin + " f32 to bf16").c_str(), cuda::ops::cast, 6 * N * H,
        [&] { return Operands{{hidden(), take(f, m.rows, m.hidden)}, {}, {}}; });
  bench("logitCap", wide.c_str(), cuda::ops::logitCap, 4 * N * F,
        [&] { return Operands{{take(t, m.rows, m.ffn)}, {}, {1, 30}}; });
  const auto tokens = [&] { return integers(m.rows, 1, [&](int64_t i) { return i * 7919 % m.vocabulary; }); };
  bench("embed", thin.c_str(), cuda::ops::embed, 4 * N * H,
        [&] { return Operands{{hidden(), tokens(), take(t, m.vocabulary, m.hidden)}, {}, {1}}; });
  bench("embedGrad", thin.c_str(), cuda::ops::embedGrad, 10 * N * H,
        [&] { return Operands{{take(f, m.vocabulary, m.hidden), tokens(), hidden()}, {}, {1}}; });
  const auto mixed = [&](int64_t count) { return integers(count, 1, [&](int64_t i) { return i * 2731 % m.rows; }); };
  bench("gatherRows", thin.c_str(), cuda::ops::gatherRows, 4 * N * H,
        [&] { return Operands{{hidden(), hidden(), mixed(m.rows)}, {}, {}}; });
  bench("scatterRows", (thin + ", half").c_str(), cuda::ops::scatterRows, 3 * N * H,
        [&] { return Operands{{hidden(), take(t, m.rows / 2, m.hidden), mixed(m.rows / 2)}, {0}, {}}; });
  bench("combineRows", (thin + ", 8 choices").c_str(), cuda::ops::combineRows, 18 * N * H, [&] {
    return Operands{
        {hidden(), take(t, 8 * m.rows, m.hidden), integers(m.rows, 8, [&](int64_t i) { return i * 2731 % (8 * m.rows); })},
        {0},
        {}};
  });
  bench("scaleRows", wide.c_str(), cuda::ops::scaleRows, 4 * N * F, [&] {
    const View x = take(t, m.rows, m.ffn);
    return Operands{{x, x, take(f, m.rows, 1)}, {}, {}};
  });
  bench("scaleRowsGrad", wide.c_str(), cuda::ops::scaleRowsGrad, 6 * N * F, [&] {
    const View d = take(t, m.rows, m.ffn);
    return Operands{{d, take(f, m.rows, 1), d, take(t, m.rows, m.ffn), take(f, m.rows, 1)}, {}, {}};
  });
  for (const int32_t accumulate : {0, 1})
    bench(
        "dropout", (thin + (accumulate != 0 ? " +=" : " =")).c_str(), cuda::ops::dropout, (accumulate != 0 ? 6 : 4) * N * H, [&] {
          return Operands{
              {hidden(), hidden(), integers(m.rows, 2, [](int64_t i) { return i; }), integers(1, 2, [](int64_t i) { return i; })},
              {3, accumulate},
              {0.1}};
        });
  const int64_t parameters =
      m.hidden > 2000 ? 41943040 : 8798208;  // LoRA of rank 16 on all matrices of the 8B and the 0.5B model
  const auto P = static_cast<double>(parameters);
  const auto flat = [&] {
    const View v = take(f, 1, parameters);
    cuda::test::fillNormal<<<2048, 256, 0, context.stream>>>(v.data, f, parameters, 1, used);
    return v;
  };
  bench("sumSquares", std::to_string(parameters).c_str(), cuda::ops::sumSquares, 4 * P,
        [&] { return Operands{{take(DType::F64, 1, 1), flat()}, {0, 0}, {}}; });
  bench("adamw", std::to_string(parameters).c_str(), cuda::ops::adamw, 28 * P,
        [&] { return Operands{{flat(), flat(), flat(), flat(), take(DType::F64, 1, 5)}, {0}, {0.9, 0.999, 1e-8, 0.01}}; });
  const auto state = [&](DType type, int64_t count) {
    const View v = take(type, 1, count);
    check(cudaMemset(v.data, 0, static_cast<size_t>(count) * bytesPerElement(type)), "clearing");
    return v;
  };
  const auto codes = [&] { return state(DType::U8, parameters); };
  const auto largest = [&] { return state(f, (parameters + 255) / 256); };
  const auto scalars = [&] {
    const double values[4] = {1, 0.1, 0.001, 1e-4};
    const View v = take(DType::F64, 1, 4);
    check(cudaMemcpy(v.data, values, sizeof values, cudaMemcpyHostToDevice), "writing scalars");
    return v;
  };
  bench("adamw8", std::to_string(parameters).c_str(), cuda::ops::adamw8, 16 * P, [&] {
    return Operands{{flat(), codes(), codes(), largest(), largest(), flat(), scalars()}, {0}, {0.9, 0.999, 1e-8, 0.01}};
  });
  bench("lion8", std::to_string(parameters).c_str(), cuda::ops::lion8, 14 * P,
        [&] { return Operands{{flat(), codes(), largest(), flat(), scalars()}, {0}, {0.9, 0.99, 0.01}}; });
  const auto routing = [&] {
    const int64_t slots = 8 * m.rows;
    return Operands{{take(f, slots, 1), take(DType::I32, slots, 1), take(DType::I32, m.rows, 8), take(DType::I32, 129, 1),
                     take(DType::F64, 1, 256), take(t, m.rows, 128)},
                    {1},
                    {}};
  };
  bench("route", (shape + "128, 8 choices").c_str(), cuda::ops::route, N * (128 * 2 + 8 * 12), routing);
  bench("routeGrad", (shape + "128, 8 choices").c_str(), cuda::ops::routeGrad, N * (128 * 4 + 8 * 8), [&] {
    Operands r = routing();
    cuda::ops::route({r.views.data(), 6, r.ints.data(), 1, nullptr, 0, {}}, context);
    return Operands{{take(t, m.rows, 128), take(f, 8 * m.rows, 1), r.views[5], r.views[2], r.views[3]}, {1}, {}};
  });
}

}  // namespace

int main(int count, char** arguments) {
  only.assign(arguments + 1, arguments + count);
  gpu = cuda::test::readGpu();
  context = cuda::test::openContext(gpu, size_t{64} << 20);
  check(cudaMalloc(reinterpret_cast<void**>(&arena), arenaBytes), "taking the arena");
  cuda::test::fillNormal<<<2048, 256, 0, context.stream>>>(arena, DType::BF16, arenaBytes / 2, 1, 1);
  check(cudaDeviceSynchronize(), "filling the arena");
  const size_t half = size_t{2} << 30;
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start), "making events");
  check(cudaEventCreate(&stop), "making events");
  for (int i = 0; i < 4; ++i) {
    check(cudaEventRecord(start, context.stream), "timing");
    check(cudaMemcpyAsync(arena, arena + half, half, cudaMemcpyDeviceToDevice, context.stream), "copying");
    check(cudaEventRecord(stop, context.stream), "timing");
    check(cudaEventSynchronize(stop), "copying");
    float milliseconds;
    check(cudaEventElapsedTime(&milliseconds, start, stop), "timing");
    copyRate = std::max(copyRate, 2.0 * static_cast<double>(half) / static_cast<double>(milliseconds) * 1e-9);
  }
  std::printf("%s: device copy %.3f TB/s\n", gpu.name.c_str(), copyRate);
  benchModel({"8B", 8192, 4096, 14336, 32, 128, 128256});
  benchModel({"0.5B", 1024, 896, 4864, 14, 64, 151936});
  return 0;
}
