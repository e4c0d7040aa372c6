// offload, prefetch and awaitCopy: activations wait for the backward pass in memory of the system. Bytes: the matrix over the bus, once
// each way; nothing is computed.
#include "copies.h"
#include "operands.h"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

void startCopy(const Call& call, const Context& context, const char* op, Copies::Direction direction) {
  const Operands args(call, op, 2, 0, 0);
  const View& from = args.shaped(1, "the source", Operands::any, Operands::any);
  const View& to = args.typed(0, "the target", from.dtype, from.rows, from.cols);
  args.require(from.ld == from.cols && to.ld == to.cols, "both must be whole matrices");
  const size_t bytes = static_cast<size_t>(from.rows) * static_cast<size_t>(from.cols) * bytesPerElement(from.dtype);
  if (bytes > 0) context.copies->start(direction, to.data, from.data, bytes, direction == Copies::toHost ? from.data : to.data, context.stream);
}

}  // namespace

void offload(const Call& call, const Context& context) { startCopy(call, context, "offload", Copies::toHost); }

void prefetch(const Call& call, const Context& context) { startCopy(call, context, "prefetch", Copies::toDevice); }

void awaitCopy(const Call& call, const Context& context) {
  const Operands args(call, "awaitCopy", 1, 0, 0);
  context.copies->await(args.shaped(0, "x", Operands::any, Operands::any).data, context.stream);
}

}  // namespace unsloth::cuda::ops
