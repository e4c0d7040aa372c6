#include "gemmMma.cuh"

namespace unsloth::cuda {

using namespace mma;

namespace {

bool alignedRows(const View& v) { return reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && v.ld % 8 == 0; }

Source sourceOf(const View& a, const View& b, int mode, int64_t k, int64_t column, int64_t width, float alpha) {
  return {a.data,
          b.data,
          a.ld,
          b.ld,
          static_cast<int>(k),
          static_cast<int>(column),
          static_cast<int>(width),
          alpha,
          alignedRows(a),
          alignedRows(b) && (mode == 0 || column % 8 == 0)};
}

}  // namespace

bool gemmMma(const GemmArgs& args, const Context& context) {
  const DType dtype = args.a.dtype;
  if (args.b.dtype != dtype || !hasTensorCores(dtype, context.gpu->capability) || args.terms.size() >= maxSources ||
      !fitsFeed(args))
    return false;
  for (const GemmTerm& t : args.terms)
    if (t.a.dtype != dtype || t.b.dtype != dtype) return false;
  if (args.m == 0 || args.n == 0) return true;
  MmaArgs call{};
  call.out = epilogueOf(args);
  // A factor of zero is a product without k: sums are carried in units of each factor in turn.
  call.sources[call.sourceCount++] = sourceOf(args.a, args.b, args.mode, args.alpha == 0 ? 0 : args.k, 0, args.n, args.alpha);
  for (const GemmTerm& t : args.terms)
    if (t.alpha != 0) call.sources[call.sourceCount++] = sourceOf(t.a, t.b, args.mode, t.rank, t.column, t.width, t.alpha);
  if (dtype == DType::BF16) multiply<bf16>(call, args.mode, context);
  else multiply<__half>(call, args.mode, context);
  return true;
}

}  // namespace unsloth::cuda
