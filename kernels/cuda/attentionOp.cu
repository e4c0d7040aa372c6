#include "attention.h"
#include "operands.h"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

constexpr int64_t mostHeadDim = 256;

/** The operands that both commands share; those from q on stand at `at`. */
AttentionArgs argsOf(const Call& call, const Operands& operands, int64_t at) {
  AttentionArgs a;
  a.heads = call.i(0), a.kvHeads = call.i(1), a.window = call.i(2);
  a.scale = static_cast<float>(call.f(0)), a.softcap = static_cast<float>(call.f(1));
  operands.require(a.heads > 0 && a.kvHeads > 0 && a.heads % a.kvHeads == 0, "heads must be a multiple of kvHeads");
  operands.require(a.window >= 0 && a.softcap >= 0, "window and softcap must not be negative");
  a.q = operands.matrix(at, "q");
  a.group = a.heads / a.kvHeads;
  a.headDim = static_cast<int>(a.q.cols / a.heads);
  if (a.q.cols % a.heads != 0 || a.headDim < 1 || a.headDim > mostHeadDim)
    operands.refuse("q is " + Operands::describe(a.q) + ", expected " + std::to_string(a.heads) + " heads of 1 to " +
                    std::to_string(mostHeadDim) + " columns");
  a.k = operands.typed(at + 1, "k", a.q.dtype, Operands::any, static_cast<int64_t>(a.kvHeads) * a.headDim);
  a.v = operands.typed(at + 2, "v", a.q.dtype, a.k.rows, a.k.cols);
  a.sequences = static_cast<int>(call.dims.sequences);
  a.qStart = operands.list<int32_t>(at + 3, "qStart", DType::I32, a.sequences + 1);
  a.kvStart = operands.list<int32_t>(at + 4, "kvStart", DType::I32, a.sequences);
  a.kvLength = operands.list<int32_t>(at + 5, "kvLength", DType::I32, a.sequences);
  return a;
}

}  // namespace

void attention(const Call& call, const Context& context) {
  const Operands operands(call, "attention", 8, 3, 2);
  AttentionArgs a = argsOf(call, operands, 2);
  a.o = operands.typed(0, "o", a.q.dtype, a.q.rows, a.q.cols);
  a.lse = operands.typed(1, "lse", DType::F32, a.q.rows, a.heads);
  if (a.q.rows == 0 || a.sequences == 0) return;
  if (attentionDecode(a, context) || attentionWgmma(a, context) || attentionMma(a, context)) return;
  attentionSimple(a, context);
}

void attentionGrad(const Call& call, const Context& context) {
  const Operands operands(call, "attentionGrad", 13, 3, 2);
  AttentionArgs a = argsOf(call, operands, 7);
  a.dq = operands.typed(0, "dq", a.q.dtype, a.q.rows, a.q.cols);
  a.dk = operands.typed(1, "dk", a.q.dtype, a.k.rows, a.k.cols);
  a.dv = operands.typed(2, "dv", a.q.dtype, a.k.rows, a.k.cols);
  a.delta = operands.typed(3, "delta", DType::F32, a.q.rows, a.heads);
  a.dO = operands.typed(4, "dO", a.q.dtype, a.q.rows, a.q.cols);
  a.o = operands.typed(5, "o", a.q.dtype, a.q.rows, a.q.cols);
  a.lse = operands.typed(6, "lse", DType::F32, a.q.rows, a.heads);
  if (a.q.rows == 0 && a.k.rows == 0) return;
  if (attentionGradWgmma(a, context) || attentionGradMma(a, context)) return;
  attentionGradSimple(a, context);
}

}  // namespace unsloth::cuda::ops
