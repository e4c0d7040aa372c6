#include <algorithm>
#include <string>

#include "../core/error.h"
#include "gemm.h"
#include "ops.h"

namespace unsloth::cpu::ops {
namespace {

std::string shape(const View& v) { return std::to_string(v.rows) + "x" + std::to_string(v.cols); }

void require(bool condition, const std::string& message) {
  if (!condition) fail("gemm: " + message);
}

bool isFloat(DType dtype) { return dtype == DType::F32 || dtype == DType::BF16 || dtype == DType::F16; }

void requireOperand(const View& v, const char* name) {
  require(v.present(), std::string(name) + " is missing");
  require(isFloat(v.dtype), std::string(name) + " must be fp32, bf16 or fp16");
}

void requireTerm(const LowRankTerm& term, const Gemm& g, const std::string& name) {
  requireOperand(term.a, (name + " a").c_str());
  requireOperand(term.b, (name + " b").c_str());
  const bool transposed = g.mode == GemmMode::NT;
  const int64_t rank = transposed ? term.b.cols : term.b.rows, width = transposed ? term.b.rows : term.b.cols;
  const std::string place = " at column " + std::to_string(term.column);
  require(term.a.rows == g.c.rows && term.a.cols == rank && term.column >= 0 && term.column + width <= g.c.cols,
          name + " a " + shape(term.a) + ", b " + shape(term.b) + place + " does not fit c " + shape(g.c));
}

}  // namespace

void gemm(const Call& call, ThreadPool& pool) {
  constexpr int64_t fixedTensors = 5, fixedInts = 3, fixedFloats = 1;
  require(call.tensorCount >= fixedTensors && call.intCount >= fixedInts && call.floatCount >= fixedFloats,
          "the command is cut short");
  const int64_t terms = call.intCount - fixedInts;
  require(call.tensorCount == fixedTensors + 2 * terms && call.floatCount == fixedFloats + terms,
          std::to_string(terms) + " columns do not match " + std::to_string(call.tensorCount - fixedTensors) +
              " low-rank operands and " + std::to_string(call.floatCount - fixedFloats) + " factors");
  require(call.i(0) >= 0 && call.i(0) <= 2, "mode " + std::to_string(call.i(0)) + " is unknown");
  require(call.i(2) == 0 || call.i(2) == 1, "precision " + std::to_string(call.i(2)) + " is unknown");

  Gemm g;
  g.mode = static_cast<GemmMode>(call.i(0));
  g.accumulate = call.i(1) != 0;
  g.precision = static_cast<Precision>(call.i(2));
  g.alpha = static_cast<float>(call.f(0));
  g.c = call.t(0);
  g.a = call.t(1);
  g.b = call.t(2);
  if (call.has(3)) g.bias = call.t(3);
  if (call.has(4)) g.add = call.t(4);

  require(g.c.present() && g.c.dtype == DType::F32, "c must be fp32");
  requireOperand(g.a, "a");
  if (!g.b.present() || !isQuantised(g.b.dtype)) requireOperand(g.b, "b");
  else require(g.mode != GemmMode::TN, "a quantised b needs mode NT or NN");
  const bool transposedA = g.mode == GemmMode::TN, transposedB = g.mode == GemmMode::NT;
  const int64_t m = transposedA ? g.a.cols : g.a.rows, k = transposedA ? g.a.rows : g.a.cols;
  const int64_t n = transposedB ? g.b.rows : g.b.cols, kOfB = transposedB ? g.b.cols : g.b.rows;
  static const char* const modes[] = {"NT", "NN", "TN"};
  require(g.c.rows == m && g.c.cols == n && k == kOfB,
          "c " + shape(g.c) + ", a " + shape(g.a) + " and b " + shape(g.b) + " do not fit in mode " + modes[call.i(0)]);
  if (g.bias.present()) {
    requireOperand(g.bias, "bias");
    require(g.bias.rows * g.bias.cols == n && g.bias.ld >= g.bias.cols && g.bias.rows == 1,
            "bias " + shape(g.bias) + " must be 1x" + std::to_string(n));
  }
  if (g.add.present())
    require(g.add.dtype == DType::F32 && g.add.rows == m && g.add.cols == n,
            "add " + shape(g.add) + " must be fp32 like c " + shape(g.c));
  require(terms == 0 || !transposedA, "low-rank terms need mode NT or NN");
  for (int64_t j = 0; j < terms; ++j) {
    const int64_t at = fixedTensors + 2 * j;
    const auto factor = static_cast<float>(call.f(fixedFloats + j));
    g.terms.push_back({call.t(at), call.t(at + 1), call.i(fixedInts + j), factor});
    requireTerm(g.terms.back(), g, "low-rank term " + std::to_string(j));
  }
  cpu::gemm(g, pool);
}

}  // namespace unsloth::cpu::ops
