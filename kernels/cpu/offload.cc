// offload, prefetch and awaitCopy: on a processor a copy is done when it is asked for.
#include <cstring>

#include "operands.h"
#include "ops.h"

namespace unsloth::cpu::ops {
namespace {

void copy(const Call& call, ThreadPool& pool, const char* op) {
  const Operands args(call, op, 2, 0, 0);
  const View& from = args.shaped(1, "the source", Operands::any, Operands::any);
  const View& to = args.shaped(0, "the target", from.rows, from.cols);
  args.require(from.dtype == to.dtype, "both must be of one type");
  args.require(from.ld == from.cols && to.ld == to.cols, "both must be whole matrices");
  const size_t width = static_cast<size_t>(from.cols) * bytesPerElement(from.dtype);
  forRows(pool, from.rows, from.cols, [&](int64_t r) {
    const size_t at = static_cast<size_t>(r) * width;
    std::memcpy(static_cast<std::byte*>(to.data) + at, static_cast<const std::byte*>(from.data) + at, width);
  });
}

}  // namespace

void offload(const Call& call, ThreadPool& pool) { copy(call, pool, "offload"); }

void prefetch(const Call& call, ThreadPool& pool) { copy(call, pool, "prefetch"); }

void awaitCopy(const Call& call, ThreadPool&) { Operands(call, "awaitCopy", 1, 0, 0).shaped(0, "x", Operands::any, Operands::any); }

}  // namespace unsloth::cpu::ops
