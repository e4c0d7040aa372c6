#pragma once
#include "../core/command.h"
#include "context.h"

/** Neighbouring commands that one kernel does faster than two. */
namespace unsloth::cuda {

/**
 * A product [gate | up] and the glu of it, with the same results to the bit. False, and nothing enqueued, where two kernels have
 * to do it: other commands, another GPU, other shapes or types, or an h that lies where the product still reads (plan.ts keeps it
 * from that).
 */
bool runTogether(Op first, const Call& gemm, Op second, const Call& next, const Context& context);

}  // namespace unsloth::cuda
