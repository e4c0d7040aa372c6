#pragma once
#include <vector>

#include "../core/command.h"
#include "context.h"

namespace unsloth::cuda {

/** A low-rank pair of `gemm`: alpha·a·op(b) added to columns [column, column + width) of c. */
struct GemmTerm {
  View a, b;
  int64_t column = 0, width = 0, rank = 0;
  float alpha = 1;
};

/**
 * The `gemm` command of engine/graph/commands.ts, decoded: c[m,n] = [c +] alpha·op(a)op(b) + Σ terms + bias + add.
 * mode 0: a[m,k] b[n,k]; 1: a[m,k] b[k,n]; 2: a[k,m] b[k,n].
 */
struct GemmArgs {
  int mode = 0;
  int64_t m = 0, n = 0, k = 0;
  View c, a, b, bias, add;  // bias [1,n] or [n,1], add [m,n]; absent: data == nullptr
  bool accumulate = false;
  float alpha = 1;
  bool tf32 = false;  // operands may be rounded to TF32
  std::vector<GemmTerm> terms;
};

/**
 * One way to compute a product. Each returns false, without having enqueued anything, for what it does not take (types,
 * alignment, sizes, GPU), and the next is asked; `gemmSimple` takes everything.
 */
bool gemmWgmma(const GemmArgs& args, const Context& context);     // sm_90a: wgmma and TMA
bool gemmCublasLt(const GemmArgs& args, const Context& context);  // where the library was found
bool gemmMma(const GemmArgs& args, const Context& context);       // sm_80 and later: mma.sync
bool gemmSkinny(const GemmArgs& args, const Context& context);    // one side is at most 128: LoRA's U, dU, dA, dB
bool gemmTf32(const GemmArgs& args, const Context& context);      // sm_80 and later, where TF32 is wanted; any type and shape
bool gemmSimple(const GemmArgs& args, const Context& context);    // fp32 arithmetic, any type and shape

/** A product of mode 0 that is [gate | up], and the glu of it: sm_90a. */
bool gemmGluWgmma(const GemmArgs& args, const View& h, int activation, const Context& context);

constexpr int cublasLtProposals = 8;
/** cuBLASLt by its proposal of this number, 0 … cublasLtProposals − 1, for rows of this class; it may have fewer. */
bool gemmCublasLtProposal(const GemmArgs& args, const Context& context, int index);

/** The product, without its low-rank pairs, with a quantised b (core/quant4.h): few rows as it is, more by way of the scratch. */
void gemmQuantised(const GemmArgs& args, const Context& context);

/** Chooses one of them. */
void runGemm(const GemmArgs& args, const Context& context);

}  // namespace unsloth::cuda
