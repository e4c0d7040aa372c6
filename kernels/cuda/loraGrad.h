#pragma once
#include <vector>

#include "../core/tensor.h"
#include "context.h"

namespace unsloth::cuda {

/** Columns of dY that one adapter of a group stands for. */
struct LoraGradPart {
  int64_t column = 0, width = 0;
};

/** The `loraGrad` command of engine/graph/commands.ts, decoded. */
struct LoraGradArgs {
  View du, db, dy, u, b;
  float alpha = 1;
  std::vector<LoraGradPart> parts;
};

/**
 * Both products of all parts in one pass over dY; false, with nothing enqueued, for what it does not take (types, alignment,
 * ranks above 32 or no multiple of 8, GPU).
 */
bool loraGradFused(const LoraGradArgs& args, const Context& context);

}  // namespace unsloth::cuda
