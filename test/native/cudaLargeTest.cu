// One command of each family of kernels on matrices of more than 2³¹ elements, whose last rows are checked against the same
// command on those rows alone. Up to 46 GB of GPU memory: a case that does not fit says so and counts as not run. With the name
// of a case as argument only that one.
#include "../../kernels/core/quant4.h"
#include "../../kernels/cpu/random.h"
#include "../../kernels/cuda/attention.h"
#include "../../kernels/cuda/expertGemm.h"
#include "../../kernels/cuda/gemm.h"
#include "../../kernels/cuda/ops.h"
#include "../../kernels/cuda/transfer.h"
#include "cudaLarge.h"

namespace unsloth::cuda {
namespace {

using namespace test;

constexpr int64_t rows = 75008, cols = 28672, last = 256;  // rows · cols = 2.151e9
static_assert(rows * cols > int64_t{1} << 31 && rows % 128 == 0 && last % 128 == 0);
constexpr DType bf = DType::BF16, f32 = DType::F32;

const Context& context = cases.context;

View end(const View& v) { return test::end(v, last); }

void elements() {
  run("glu", 13.2, [](Memory& m) {  // maps: gate and up lie side by side
    const View both = m.normal(bf, rows, 2 * cols), h = m.zeros(bf, rows, cols), alone = m.zeros(bf, last, cols);
    const View gate = columnsOf(both, 0, cols), up = columnsOf(both, cols, cols);
    run(ops::glu, {h, gate, up}, {0}), run(ops::glu, {alone, end(gate), end(up)}, {0});
    expectSame("glu", end(h), alone);
  });
  run("cast", 13.2, [](Memory& m) {
    const View x = m.normal(f32, rows, cols), y = m.zeros(bf, rows, cols), alone = m.zeros(bf, last, cols);
    run(ops::cast, {y, x}), run(ops::cast, {alone, end(x)});
    expectSame("cast", end(y), alone);
    run(ops::fill, {y}, {}, {0.25}), run(ops::fill, {alone}, {}, {0.25});
    expectSame("fill", end(y), alone);
  });
  run("dropout", 9.0, [](Memory& m) {
    const View x = m.normal(bf, rows, cols), y = m.zeros(bf, rows, cols), alone = m.zeros(bf, last, cols);
    View keys = m.list(sequence(2 * rows, 0, 1)), random = m.list({7, 3}), scale = m.normal(f32, rows, 1);
    keys.rows = rows, keys.cols = keys.ld = 2, random.rows = 1, random.cols = random.ld = 2;
    run(ops::dropout, {y, x, keys, random}, {1, 0}, {0.1}), run(ops::dropout, {alone, end(x), end(keys), random}, {1, 0}, {0.1});
    expectSame("dropout", end(y), alone);
    run(ops::noise, {y, x, scale, keys, random}, {1}, {5});
    run(ops::noise, {alone, end(x), end(scale), end(keys), random}, {1}, {5});
    expectSame("noise", end(y), alone);
  });
  run("norms", 9.0, [](Memory& m) {
    const View x = m.normal(bf, rows, cols), y = m.zeros(bf, rows, cols), alone = m.zeros(bf, last, cols);
    const View w = m.normal(bf, 1, cols);
    const View stats = m.zeros(f32, rows, 2), few = m.zeros(f32, last, 2);
    const auto one = [](const View& v) { return columnsOf(v, 0, 1); };
    run(ops::rmsNorm, {y, one(stats), x, w}, {1, 0}, {1e-5}), run(ops::rmsNorm, {alone, one(few), end(x), w}, {1, 0}, {1e-5});
    expectSame("rmsNorm", end(y), alone);
    // y is now dy; over it goes dx.
    run(ops::rmsNormGrad, {alone, {}, end(y), end(x), w, one(few)}, {1, 0, 0});
    run(ops::rmsNormGrad, {y, {}, y, x, w, one(stats)}, {1, 0, 0});
    expectSame("rmsNormGrad", end(y), alone);
    run(ops::layerNorm, {y, stats, x, w, w}, {1}, {1e-5}), run(ops::layerNorm, {alone, few, end(x), w, w}, {1}, {1e-5});
    expectSame("layerNorm", end(y), alone);
  });
  run("rope", 9.0, [](Memory& m) {
    constexpr int64_t headDim = 128;
    const View x = m.normal(bf, rows, cols), y = m.zeros(bf, rows, cols), alone = m.zeros(bf, last, cols);
    const View cosSin = m.normal(f32, rows, headDim);
    const std::vector<int32_t> ints{cols / headDim, headDim, 0, 0};
    run(ops::rope, {y, x, cosSin}, ints), run(ops::rope, {alone, end(x), end(cosSin)}, ints);
    expectSame("rope", end(y), alone);
  });
  run("sums", 9.0, [](Memory& m) {  // zeros but for the last rows
    const View x = m.zeros(f32, rows, cols), some = m.normal(f32, last, cols);
    check(cudaMemcpy(end(x).data, some.data, last * cols * 4, cudaMemcpyDeviceToDevice), "copying");
    const View sum = m.zeros(f32, 1, cols), alone = m.zeros(f32, 1, cols), squares = m.zeros(DType::F64, 1, 2);
    run(ops::columnSum, {sum, x}, {}, {1}), run(ops::columnSum, {alone, some}, {}, {1});
    expectSame("columnSum", sum, alone, 1e-5);
    run(ops::sumSquares, {squares, x}, {0, 0}), run(ops::sumSquares, {squares, some}, {1, 0});
    double both[2];
    check(cudaMemcpy(both, squares.data, sizeof both, cudaMemcpyDeviceToHost), "reading");
    const bool same = both[1] > 0 && std::abs(both[0] - both[1]) <= 1e-12 * both[1];
    ++cases.checks, cases.failures += !same;
    if (!same) std::printf("WRONG sumSquares: %.15g, %.15g\n", both[0], both[1]);
  });
}

/** What fills and converts weights while a model is loaded. */
void transfers() {
  run("transfers", 13.2, [](Memory& m) {
    constexpr int64_t count = rows * cols, some = 256, first = count - some;
    constexpr uint32_t seed = 3, number = 5;
    const View x = m.zeros(bf, 1, count), y = m.zeros(f32, 1, count), bad = m.zeros(DType::F64, 1, 1);
    fillUniform(x.data, bf, count, -1, 1, seed, number, context.stream);
    convert(y.data, f32, x.data, bf, count, static_cast<unsigned long long*>(bad.data), context.stream);
    check(cudaStreamSynchronize(context.stream), "filling");
    std::vector<float> wanted;
    for (int64_t block = first / 4; block < count / 4; ++block)
      for (const uint32_t word : cpu::philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), number, 0},
                                                 {seed, 0x756e6974u}))
        wanted.push_back(bf16ToFloat(floatToBf16(-1 + 2 * (static_cast<float>(word >> 8) * 0x1p-24f))));
    const View list = m.zeros(f32, 1, some);
    check(cudaMemcpy(list.data, wanted.data(), wanted.size() * 4, cudaMemcpyHostToDevice), "copying");
    expectSame("fillUniform", columnsOf(x, first, some), list);
    expectSame("convert", columnsOf(y, first, some), list);
  });
}

void tables() {
  run("rows", 9.0, [](Memory& m) {
    const View x = m.normal(bf, rows, cols), y = m.zeros(bf, rows, cols), alone = m.zeros(bf, last, cols);
    const View own = m.list(sequence(last, 0, 1)), there = m.list(sequence(last, rows - last, 1));
    const View all = m.list(sequence(rows, 0, 1));
    run(ops::gatherRows, {y, x, all});
    expectSame("gatherRows", end(y), end(x));
    run(ops::storeRows, {y, rowsOf(x, 0, last), there});
    expectSame("storeRows", end(y), rowsOf(x, 0, last));
    run(ops::scatterRows, {y, rowsOf(x, 5, last), there}, {0});
    expectSame("scatterRows", end(y), rowsOf(x, 5, last));
    View place = all, few = own;
    const View w = m.normal(f32, rows, 1), dw = m.zeros(f32, rows, 1), fewDw = m.zeros(f32, last, 1);
    run(ops::combineRows, {y, x, place, {}}, {0}), run(ops::combineRows, {alone, end(x), few, {}}, {0});
    expectSame("combineRows", end(y), alone);
    run(ops::scaleRows, {y, x, w}), run(ops::scaleRows, {alone, end(x), end(w)});
    expectSame("scaleRows", end(y), alone);
    run(ops::scaleRowsGrad, {alone, fewDw, end(y), end(x), end(w)}), run(ops::scaleRowsGrad, {y, dw, y, x, w});
    expectSame("scaleRowsGrad", end(y), alone);
    expectSame("scaleRowsGrad: dw", end(dw), fewDw);
  });
  run("embed", 13.5, [](Memory& m) {
    const View table = m.normal(bf, rows, cols), gradient = m.zeros(f32, rows, cols), out = m.zeros(bf, last, cols);
    const View ids = m.list(sequence(last, rows - last, 1)), own = m.list(sequence(last, 0, 1)), alone = m.zeros(f32, last, cols);
    run(ops::embed, {out, ids, table}, {}, {1});
    expectSame("embed", out, end(table));
    run(ops::embedGrad, {gradient, ids, out}, {}, {1}), run(ops::embedGrad, {alone, own, out}, {}, {1});
    expectSame("embedGrad", end(gradient), alone);
  });
}

void optimizers() {
  constexpr int64_t n = (int64_t{1} << 31) + 4096, some = 4096;
  const auto tailOf = [](View v, int64_t count) { return v = columnsOf(v, v.cols - count, count), v.ld = count, v; };
  const auto tail = [&](const View& v) { return tailOf(v, some); };
  const auto scalars = [](Memory& m) {
    const View v = m.zeros(DType::F64, 1, 4);
    const double values[] = {0.7, 0.1, 0.001, 1e-3};
    check(cudaMemcpy(v.data, values, sizeof values, cudaMemcpyHostToDevice), "copying");
    return v;
  };
  const auto copy = [](Memory& m, const View& v) {
    const View own = m.zeros(v.dtype, v.rows, v.cols);
    const size_t bytes = static_cast<size_t>(v.cols) * bytesPerElement(v.dtype);
    check(cudaMemcpy(own.data, v.data, bytes, cudaMemcpyDeviceToDevice), "copying");
    return own;
  };
  run("adamw", 35.0, [&](Memory& m) {
    const View p = m.normal(f32, 1, n), mean = m.normal(f32, 1, n), square = m.zeros(f32, 1, n), grad = m.normal(f32, 1, n);
    const View ownP = copy(m, tail(p)), ownMean = copy(m, tail(mean)), ownSquare = copy(m, tail(square)), list = scalars(m);
    run(ops::adamw, {p, mean, square, grad, list}, {0}, {0.9, 0.999, 1e-8, 0.01});
    run(ops::adamw, {ownP, ownMean, ownSquare, tail(grad), list}, {0}, {0.9, 0.999, 1e-8, 0.01});
    expectSame("adamw: p", tail(p), ownP);
    expectSame("adamw: v", tail(square), ownSquare);
  });
  run("adamw8", 22.0, [&](Memory& m) {
    const View p = m.normal(f32, 1, n), grad = m.normal(f32, 1, n);
    const View mean = m.zeros(DType::U8, 1, n), square = m.zeros(DType::U8, 1, n);
    const View most = m.zeros(f32, 1, n / 256), mostSquare = m.zeros(f32, 1, n / 256), list = scalars(m), ownP = copy(m, tail(p));
    const View ownMean = copy(m, tail(mean)), ownSquare = copy(m, tail(square));
    const View ownMost = m.zeros(f32, 1, some / 256), ownMostSquare = m.zeros(f32, 1, some / 256);
    run(ops::adamw8, {p, mean, square, most, mostSquare, grad, list}, {0}, {0.9, 0.999, 1e-8, 0.01});
    run(ops::adamw8, {ownP, ownMean, ownSquare, ownMost, ownMostSquare, tail(grad), list}, {0}, {0.9, 0.999, 1e-8, 0.01});
    expectSame("adamw8: p", tail(p), ownP);
    expectSame("adamw8: absmax", tailOf(most, some / 256), ownMost);
  });
}

struct Way {
  const char* name;
  bool (*multiply)(const GemmArgs&, const Context&);
};
const Way ways[] = {{"wgmma", gemmWgmma}, {"mma", gemmMma}, {"skinny", gemmSkinny}, {"simple", gemmSimple}};

GemmArgs product(int mode, const View& c, const View& a, const View& b) {
  GemmArgs g;
  g.mode = mode, g.m = c.rows, g.n = c.cols, g.k = mode == 2 ? a.rows : a.cols;
  g.c = c, g.a = a, g.b = b;
  return g;
}

/** Every way that takes it, and the part of c that must be as in the smaller product. */
void compareProducts(const char* what, const GemmArgs& large, const GemmArgs& small, const View& part) {
  for (const Way& way : ways) {
    if (!way.multiply(large, context)) continue;
    check(cudaStreamSynchronize(context.stream), what);
    if (!way.multiply(small, context)) gemmSimple(small, context);
    check(cudaStreamSynchronize(context.stream), what);
    expectSame(std::string("gemm ") + way.name + ": " + what, part, small.c, large.c.dtype == f32 ? 1e-5 : 4e-3);
  }
}

void products() {
  run("gemm a", 5.0, [](Memory& m) {
    const View a = m.normal(bf, rows, cols);
    for (const int64_t n : {16, 256}) {
      const View b = m.normal(bf, n, cols, 0.01f), bT = m.normal(bf, cols, n, 0.01f), c = m.zeros(bf, rows, n);
      const View alone = m.zeros(bf, last, n), sums = m.zeros(f32, cols, n), few = m.zeros(f32, cols, n);
      compareProducts("XWᵀ, X", product(0, c, a, b), product(0, alone, end(a), b), end(c));
      compareProducts("dYW, dY", product(1, c, a, bT), product(1, alone, end(a), bT), end(c));
      check(cudaMemset(c.data, 0, static_cast<size_t>(rows * n) * 2), "clearing");  // as dY: zeros but for the last rows
      const View some = m.normal(bf, last, n, 0.01f);
      check(cudaMemcpy(end(c).data, some.data, static_cast<size_t>(last * n) * 2, cudaMemcpyDeviceToDevice), "copying");
      compareProducts("dYᵀX, X", product(2, sums, a, c), product(2, few, end(a), some), sums);
    }
  });
  run("gemm b and c", 9.5, [](Memory& m) {
    const View b = m.normal(bf, rows, cols, 0.01f), x = m.normal(bf, 128, cols);
    const View y = m.zeros(bf, 128, rows), few = m.zeros(bf, 128, last);
    compareProducts("XWᵀ, W", product(0, y, x, b), product(0, few, x, end(b)), columnsOf(y, rows - last, last));
    const View thin = m.normal(bf, rows, 64), w = m.normal(bf, cols, 64, 0.1f);
    const View c = m.zeros(bf, rows, cols), own = m.zeros(bf, last, cols);
    compareProducts("XWᵀ, Y", product(0, c, thin, w), product(0, own, end(thin), w), end(c));
  });
  run("expertGemm", 5.5, [](Memory& m) {
    constexpr int64_t experts = 8, n = 256;
    const View a = m.normal(bf, rows, cols), b = m.normal(bf, experts * n, cols, 0.01f);
    const View c = m.zeros(bf, rows, n), own = m.zeros(bf, last, n);
    std::vector<int32_t> first = sequence(experts, 0, rows / experts / 2);
    first[experts - 1] = static_cast<int32_t>(rows - last), first.push_back(static_cast<int32_t>(rows));
    const View starts = m.list(first), whole = m.list({0, static_cast<int32_t>(last)});
    const auto argsOf = [&](const View& out, const View& x, const View& w, const View& list, int64_t count) {
      ExpertGemmArgs g;
      g.experts = count, g.m = x.rows, g.n = n, g.k = cols, g.c = out, g.a = x, g.b = w, g.first = list.i32();
      return g;
    };
    const ExpertGemmArgs large = argsOf(c, a, b, starts, experts), small = argsOf(own, end(a), test::end(b, n), whole, 1);
    for (const bool simple : {true, false}) {
      if (simple) expertGemmSimple(large, context), expertGemmSimple(small, context);
      else if (!expertGemmWgmma(large, context) || !expertGemmWgmma(small, context)) continue;
      check(cudaStreamSynchronize(context.stream), "expertGemm");
      expectSame(simple ? "expertGemm simple" : "expertGemm wgmma", end(c), own, 4e-3);
    }
  });
  run("4 bits", 6.5, [](Memory& m) {
    const auto make = [&](int64_t r, const View* like) {
      const Quant4Layout layout{r * cols, false};
      const View bytes = m.zeros(DType::U8, 1, layout.leastBytes());
      auto* at = static_cast<std::byte*>(bytes.data);
      const uint32_t header[2] = {8, static_cast<uint32_t>(bf)};
      check(cudaMemcpy(at, nf4Code, sizeof nf4Code, cudaMemcpyHostToDevice), "copying");
      check(cudaMemcpy(at + 64, header, sizeof header, cudaMemcpyHostToDevice), "copying");
      const View maxima{at + layout.absmaxAt(), f32, 1, r * cols / 64, r * cols / 64};
      if (like == nullptr) {  // any bytes are codes, any numbers maxima
        fillNormal<<<1024, 256>>>(at + Quant4Layout::codesAt, f32, r * cols / 8, 1, 5);
        fillNormal<<<1024, 256>>>(maxima.data, f32, maxima.cols, 1, 6);
        check(cudaDeviceSynchronize(), "filling");
      } else {
        const Quant4View whole(*like);
        const int64_t skipped = (like->rows - r) * cols;
        const auto copy = [](void* to, const void* source, int64_t bytes) {
          check(cudaMemcpy(to, source, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice), "copying");
        };
        copy(at + Quant4Layout::codesAt, whole.codes + skipped / 2, r * cols / 2);
        copy(maxima.data, whole.absmax + skipped / 64, r * cols / 16);
      }
      return View{bytes.data, DType::Q4, r, cols, cols};
    };
    const View q = make(rows, nullptr), few = make(last, &q), y = m.zeros(bf, rows, cols), own = m.zeros(bf, last, cols);
    run(ops::dequantise, {y, q}, {0}), run(ops::dequantise, {own, few}, {0});
    expectSame("dequantise", end(y), own);
    for (const int64_t count : {1, 8}) {
      const View x = m.normal(bf, count, cols, 0.01f), c = m.zeros(bf, count, rows), alone = m.zeros(bf, count, last);
      gemmQuantised(product(0, c, x, q), context), gemmQuantised(product(0, alone, x, few), context);
      check(cudaStreamSynchronize(context.stream), "gemmQuantised");
      expectSame("gemm of 4 bits", columnsOf(c, rows - last, last), alone, 4e-3);
    }
  });
  run("headLoss", 5.5, [](Memory& m) {
    constexpr int64_t count = 16512, vocabulary = 131072, width = 64;  // logits of one visit
    static_assert(count * vocabulary > int64_t{1} << 31);
    const View h = m.normal(bf, count, width), w = m.normal(bf, vocabulary, width, 0.25f);
    const View logits = m.zeros(bf, count, vocabulary);
    const View labels = m.list(sequence(count, 0, 7)), weights = m.normal(f32, count, 1), nll = m.zeros(f32, count, 1);
    const View dH = m.zeros(bf, count, width), ownNll = m.zeros(f32, last, 1), ownDH = m.zeros(bf, last, width);
    run(ops::headLoss, {nll, dH, {}, logits, {}, h, w, labels, weights, {}}, {0}, {1, 0});
    run(ops::headLoss, {ownNll, ownDH, {}, end(logits), {}, end(h), w, end(labels), end(weights), {}}, {0}, {1, 0});
    expectSame("headLoss: nll", end(nll), ownNll, 1e-3);
    expectSame("headLoss: dH", end(dH), ownDH, 4e-3);
  });
}

/** Packed sequences of 128 tokens; every way in both directions. */
void attentions() {
  constexpr int64_t length = 128, heads = 32, headDim = 128, width = heads * headDim, tokens = 4097 * length;
  static_assert(tokens * width > int64_t{1} << 31);
  struct Problem {
    AttentionArgs args;
    Problem(Memory& m, int64_t count) {
      AttentionArgs& a = args;
      for (View* v : {&a.q, &a.k, &a.v, &a.o, &a.dO, &a.dq, &a.dk, &a.dv}) *v = m.zeros(bf, count, width);
      a.lse = m.zeros(f32, count, heads), a.delta = m.zeros(f32, count, heads);
      a.sequences = static_cast<int>(count / length);
      a.qStart = a.kvStart = m.list(sequence(a.sequences + 1, 0, length)).i32();
      a.kvLength = m.list(sequence(a.sequences, length, 0)).i32();
      a.heads = a.kvHeads = heads, a.headDim = headDim, a.scale = 0.088f;
    }
  };
  run("attention", 46.0, [](Memory& m) {
    Context roomy = context;
    roomy.workspaceBytes = size_t{10} << 30;
    const View workspace = m.zeros(DType::U8, 1, static_cast<int64_t>(roomy.workspaceBytes));
    roomy.workspace = workspace.data;
    const Problem large(m, tokens), small(m, last);
    const AttentionArgs &a = large.args, &b = small.args;
    uint64_t seed = 40;
    for (const auto& [whole, part] : {std::pair{&a.q, &b.q}, {&a.k, &b.k}, {&a.v, &b.v}, {&a.dO, &b.dO}}) {
      fillNormal<<<1024, 256>>>(whole->data, bf, tokens * width, 1, ++seed);
      check(cudaMemcpy(part->data, end(*whole).data, static_cast<size_t>(last * width) * 2, cudaMemcpyDeviceToDevice), "copying");
    }
    struct {
      const char* name;
      bool (*forward)(const AttentionArgs&, const Context&);
      bool (*gradient)(const AttentionArgs&, const Context&);
    } const candidates[] = {
        {"simple", [](const AttentionArgs& x, const Context& c) { return attentionSimple(x, c), true; },
         [](const AttentionArgs& x, const Context& c) { return attentionGradSimple(x, c), true; }},
        {"mma", attentionMma, attentionGradMma},
        {"wgmma", attentionWgmma, attentionGradWgmma}};
    for (const auto& [name, forward, gradient] : candidates) {
      if (!forward(a, roomy) || !forward(b, context)) continue;
      check(cudaStreamSynchronize(context.stream), name);
      const std::string what = std::string("attention ") + name + ": ";
      expectSame(what + "o", end(a.o), b.o, 1e-3);
      expectSame(what + "lse", end(a.lse), b.lse, 1e-5);
      if (!gradient(a, roomy) || !gradient(b, roomy)) continue;
      check(cudaStreamSynchronize(context.stream), name);
      expectSame(what + "dq", end(a.dq), b.dq, 1e-3);
      expectSame(what + "dk", end(a.dk), b.dk, 1e-3);
      expectSame(what + "dv", end(a.dv), b.dv, 1e-3);
    }
  });
  run("decode", 9.5, [](Memory& m) {  // one query of each sequence, keys at the end of a large cache
    constexpr int64_t count = 32, keys = 512;
    const View q = m.normal(bf, count, width), k = m.normal(bf, tokens, width), v = m.normal(bf, tokens, width);
    const auto decode = [&](const View& o, const View& lse, int64_t cached) {
      AttentionArgs a;
      a.q = q, a.k = test::end(k, cached), a.v = test::end(v, cached), a.o = o, a.lse = lse;
      a.sequences = count, a.heads = a.kvHeads = heads, a.headDim = headDim, a.scale = 0.088f;
      a.qStart = m.list(sequence(count + 1, 0, 1)).i32(), a.kvLength = m.list(sequence(count, keys, 0)).i32();
      a.kvStart = m.list(sequence(count, cached - count * keys, keys)).i32();
      const bool taken = attentionDecode(a, context);
      check(cudaStreamSynchronize(context.stream), "decode");
      return taken;
    };
    const View o = m.zeros(bf, count, width), own = m.zeros(bf, count, width);
    const View lse = m.zeros(f32, count, heads), ownLse = m.zeros(f32, count, heads);
    if (!decode(o, lse, tokens) || !decode(own, ownLse, count * keys)) return;
    expectSame("attention decode: o", o, own, 1e-3);
    expectSame("attention decode: lse", lse, ownLse, 1e-5);
  });
}

}  // namespace
}  // namespace unsloth::cuda

int main(int count, char** words) {
  using namespace unsloth::cuda;
  return test::runProgram("cudaLargeTest", [&] {
    auto& [gpu, context, only, checks, failures, notRun] = test::cases;
    only = count > 1 ? words[1] : "";
    gpu = test::readGpu();
    context = test::openContext(gpu, size_t{256} << 20);
    elements();
    transfers();
    tables();
    optimizers();
    products();
    attentions();
    return test::finish("cudaLargeTest", checks, failures, notRun);
  });
}
