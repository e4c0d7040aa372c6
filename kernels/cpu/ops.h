#pragma once
#include "../core/command.h"
#include "threadPool.h"

/** One function per command; engine/graph/commands.ts says what each computes and which operands it takes. */
namespace unsloth::cpu::ops {
#define UNSLOTH_OP(name) void name(const Call& call, ThreadPool& pool);
#include "../core/ops.def"
#undef UNSLOTH_OP
}  // namespace unsloth::cpu::ops
