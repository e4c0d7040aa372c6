#pragma once
#include "../core/command.h"
#include "context.h"

/** One function per command; engine/graph/commands.ts says what each computes and which operands it takes. */
namespace unsloth::cuda::ops {
#define UNSLOTH_OP(name) void name(const Call& call, const Context& context);
#include "../core/ops.def"
#undef UNSLOTH_OP
}  // namespace unsloth::cuda::ops
