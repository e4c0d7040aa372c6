#pragma once
#include "../core/command.h"
#include "context.h"

namespace unsloth::cuda {

/** Which stack keeps matrix e in columns e, e+E, e+2E, … instead of rows from e·rows on. */
enum class ExpertColumns { none = 0, main = 1, low = 2 };

/**
 * The `expertGemm` command of engine/graph/commands.ts, decoded. Mode 0 and 1: m slots, every expert's b is [n,k] or [k,n].
 * Mode 2: c_e[m,n] += alpha·a[S_e]ᵀ·b[S_e], k slots.
 */
struct ExpertGemmArgs {
  int mode = 0;
  ExpertColumns columns = ExpertColumns::none;
  int64_t experts = 0, m = 0, n = 0, k = 0;
  View c, a, b, lowA, lowB;        // lowA, lowB absent: data == nullptr
  const int32_t* first = nullptr;  // on the device: experts + 1 numbers, slots of expert e are first[e] … first[e+1] − 1
  float alpha = 1, lowAlpha = 1;
};

/** sm_90a: wgmma and TMA. Returns false, without having enqueued anything, for what it does not take. */
bool expertGemmWgmma(const ExpertGemmArgs& args, const Context& context);

/** In fp32 arithmetic, for every type and shape. */
void expertGemmSimple(const ExpertGemmArgs& args, const Context& context);

}  // namespace unsloth::cuda
