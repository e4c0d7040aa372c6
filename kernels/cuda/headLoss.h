#pragma once
#include "../core/tensor.h"
#include "context.h"

namespace unsloth::cuda {

/** The operands of `headLoss` (engine/graph/commands.ts), decoded; dH and dW may be absent. */
struct HeadLoss {
  View nll, dH, dW, logits, h, w;
  const int32_t* labels = nullptr;
  const float* weights = nullptr;
  float scale = 1;
};

/**
 * The command without bias and softcap on sm_90a, for bf16; false, with nothing enqueued, for what it does not take (types,
 * alignment, sizes, GPU, scratch).
 */
bool headLossWgmma(const HeadLoss& head, const Context& context);

/**
 * dH[rows, H] = factors ⊙ (a[rows, V]·w[V, H]) on sm_90a for 16-bit operands, V long: several blocks share the sums of a tile.
 * `factors`: one for each row, or null. False, with nothing enqueued, for what it does not take.
 */
bool headGradWgmma(const View& dH, const View& a, const View& w, const float* factors, const Context& context);

}  // namespace unsloth::cuda
