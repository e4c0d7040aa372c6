#include <algorithm>
#include <cstdlib>
#include <string>

#include "../core/views.h"
#include "cublasLt.h"
#include "fused.h"
#include "gemmChoices.h"
#include "operands.h"
#include "ops.h"
#include "sm90/gemmWgmma.h"

namespace unsloth::cuda {
namespace {

enum class Preference { unset, fastest, own, cublasLt };

/**
 * UNSLOTH_GEMM=own or cublaslt leaves the other out, so that both can be measured; fastest times them. Unset: our own on Hopper,
 * where it is as fast as the library, and the library elsewhere if it is found.
 */
Preference preference() {
  static const Preference chosen = [] {
    const char* const text = std::getenv("UNSLOTH_GEMM");
    const std::string value = text == nullptr ? "" : text;
    if (value.empty()) return Preference::unset;
    if (value == "fastest") return Preference::fastest;
    if (value == "own") return Preference::own;
    if (value != "cublaslt") fail("UNSLOTH_GEMM is '" + value + "', expected own, cublaslt or fastest");
    if (!cublasLtStatus().found)
      fail("UNSLOTH_GEMM=cublaslt, but " + cublasLtStatus().problem + "; set UNSLOTH_CUBLASLT to its path");
    return Preference::cublasLt;
  }();
  return chosen;
}

/** Each low-rank pair as a product of its own, added to its columns of c. */
void addTerms(const GemmArgs& args, const Context& context) {
  for (const GemmTerm& term : args.terms) {
    GemmArgs part;
    part.mode = args.mode;
    part.m = args.m;
    part.n = term.width;
    part.k = term.rank;
    part.c = columnsOf(args.c, term.column, term.width);
    part.a = term.a;
    part.b = term.b;
    part.accumulate = true;
    part.alpha = term.alpha;
    part.tf32 = args.tf32;
    runGemm(part, context);
  }
}

template <class Way>
bool alone(const GemmArgs& args, const Context& context, const Way& way) {
  GemmArgs main = args;
  main.terms.clear();
  if (!way(main, context)) return false;
  addTerms(args, context);
  return true;
}

/** The product where nothing is timed. */
bool multiplyUsually(const GemmArgs& args, const Context& context) {
  const Preference preferred = preference();
  if (preferred != Preference::own && (preferred == Preference::cublasLt || context.gpu->capability != 90) &&
      alone(args, context, gemmCublasLt))
    return true;
  if (gemmWgmma(args, context)) return true;
  if (!args.terms.empty() && alone(args, context, gemmWgmma)) return true;
  return gemmMma(args, context);
}

/** Up to here one side is narrow enough that reading the other is all the time there is. */
constexpr int64_t narrow = 64;

}  // namespace

bool multiplyBy(const GemmChoice& choice, const GemmArgs& args, const Context& context) {
  const auto& n = choice.numbers;
  const auto tiled = [&](const GemmArgs& g, const Context& c) {
    return sm90::gemmWgmmaTiled(g, c, {n[0], n[1], n[2], n[3] != 0});
  };
  const auto proposed = [&](const GemmArgs& g, const Context& c) { return gemmCublasLtProposal(g, c, n[0]); };
  switch (choice.way) {
    case GemmChoice::Way::wgmma: return tiled(args, context) || (!args.terms.empty() && alone(args, context, tiled));
    case GemmChoice::Way::mma: return gemmMma(args, context);
    case GemmChoice::Way::cublasLt: return alone(args, context, proposed);
    default: return multiplyUsually(args, context);
  }
}

void runGemm(const GemmArgs& args, const Context& context) {
  if (args.m == 0 || args.n == 0) return;
  if (isQuantised(args.b.dtype)) {
    gemmQuantised(args, context);
    return addTerms(args, context);
  }
  if (args.tf32 && gemmTf32(args, context)) return;
  const Preference preferred = preference();
  const bool isNarrow = std::min(args.m, args.n) <= narrow;
  if (isNarrow && args.terms.empty() && preferred != Preference::cublasLt && gemmSkinny(args, context)) return;
  if (preferred == Preference::fastest) {
    const GemmChoice choice = fastestWay(args, context);
    if (choice.way != GemmChoice::Way::usual && multiplyBy(choice, args, context)) return;
  }
  if (multiplyUsually(args, context)) return;
  if (gemmSkinny(args, context)) return;
  gemmSimple(args, context);
}

namespace {

void requireTerm(const Operands& operands, const GemmArgs& g, const GemmTerm& term, int64_t rankOfB, size_t index) {
  if (term.a.rows == g.m && term.a.cols == rankOfB && term.column >= 0 && term.column + term.width <= g.n) return;
  operands.refuse("low-rank term " + std::to_string(index) + " a " + Operands::describe(term.a) + ", b " +
                  Operands::describe(term.b) + " at column " + std::to_string(term.column) + " does not fit c " +
                  Operands::describe(g.c));
}

GemmArgs decode(const Call& call) {
  constexpr int64_t fixedTensors = 5, fixedInts = 3, fixedFloats = 1;
  const Operands operands(call, "gemm", 3, fixedInts, fixedFloats);
  const int64_t terms = call.intCount - fixedInts;
  if (call.tensorCount != fixedTensors + 2 * terms || call.floatCount != fixedFloats + terms)
    operands.refuse(std::to_string(terms) + " columns do not match " + std::to_string(call.tensorCount - fixedTensors) +
                    " low-rank operands and " + std::to_string(call.floatCount - fixedFloats) + " factors");
  operands.require(call.i(0) >= 0 && call.i(0) <= 2, "the mode is unknown");

  GemmArgs g;
  g.mode = call.i(0);
  g.accumulate = call.i(1) != 0;
  g.alpha = static_cast<float>(call.f(0));
  g.tf32 = call.i(2) == 2;
  g.c = operands.matrix(0, "c");
  g.a = operands.matrix(1, "a");
  g.b = operands.has(2) && g.mode != 2 && isQuantised(call.t(2).dtype) ? call.t(2) : operands.matrix(2, "b");
  g.m = g.mode == 2 ? g.a.cols : g.a.rows;
  g.k = g.mode == 2 ? g.a.rows : g.a.cols;
  g.n = g.mode == 0 ? g.b.rows : g.b.cols;
  if (g.c.rows != g.m || g.c.cols != g.n || (g.mode == 0 ? g.b.cols : g.b.rows) != g.k)
    operands.refuse("c " + Operands::describe(g.c) + ", a " + Operands::describe(g.a) + " and b " + Operands::describe(g.b) +
                    " do not fit in mode " + std::to_string(g.mode));
  if (operands.has(3)) g.bias = operands.matrix(3, "bias", 1, g.n);
  if (operands.has(4)) g.add = operands.matrix(4, "add", g.m, g.n);
  operands.require(terms == 0 || g.mode != 2, "low-rank terms need mode 0 or 1");
  for (int64_t j = 0; j < terms; ++j) {
    GemmTerm term;
    term.a = operands.matrix(fixedTensors + 2 * j, "a of a low-rank term");
    term.b = operands.matrix(fixedTensors + 2 * j + 1, "b of a low-rank term");
    term.column = call.i(fixedInts + j);
    term.rank = term.a.cols;
    term.width = g.mode == 0 ? term.b.rows : term.b.cols;
    term.alpha = static_cast<float>(call.f(fixedFloats + j));
    requireTerm(operands, g, term, g.mode == 0 ? term.b.cols : term.b.rows, g.terms.size());
    g.terms.push_back(term);
  }
  return g;
}

bool sameMatrix(const View& a, const View& b) {
  return a.data == b.data && a.dtype == b.dtype && a.rows == b.rows && a.cols == b.cols && a.ld == b.ld;
}

/** Whether a product reads or writes memory of v. */
bool touches(const GemmArgs& g, const View& v) {
  return overlap(g.a, v) || overlap(g.b, v) || overlap(g.bias, v) || overlap(g.c, v) ||
         std::any_of(g.terms.begin(), g.terms.end(), [&](const GemmTerm& term) {
           return overlap(term.a, v) || overlap(term.b, v);
         });
}

bool gemmGlu(const Call& gemm, const Call& glu, const Context& context) {
  const View &h = glu.t(0), &c = gemm.t(0);
  if (c.cols != 2 * h.cols || !sameMatrix(glu.t(1), columnsOf(c, 0, h.cols)) ||
      !sameMatrix(glu.t(2), columnsOf(c, h.cols, h.cols)))
    return false;
  const GemmArgs args = decode(gemm);
  return !args.tf32 && std::min(args.m, args.n) > narrow && !touches(args, h) && gemmGluWgmma(args, h, glu.i(0), context);
}

}  // namespace

bool runTogether(Op first, const Call& gemm, Op second, const Call& next, const Context& context) {
  if (first != Op::gemm || second != Op::glu || next.tensorCount < 3 || next.intCount < 1) return false;
  if (context.gpu->capability != 90 || preference() == Preference::cublasLt || isQuantised(gemm.t(2).dtype)) return false;
  return gemmGlu(gemm, next, context);
}

void ops::gemm(const Call& call, const Context& context) { runGemm(decode(call), context); }

}  // namespace unsloth::cuda
