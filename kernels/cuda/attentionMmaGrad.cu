#include "attentionMmaGrad.cuh"

namespace unsloth::cuda {

/**
 * Three kernels: delta; dk and dv by tiles of keys; dq by tiles of queries. Scores are computed twice, 14·d FLOPs for each
 * visible pair and head instead of 10·d, but no two blocks add to one row: every sum has a fixed order, and dq needs no fp32
 * copy.
 */
bool attentionGradMma(const AttentionArgs& args, const Context& context) {
  if (!hasTensorCores(args.q.dtype, context.gpu->capability) || args.headDim > 256 || !(args.scale > 0)) return false;
  for (const View* v : {&args.q, &args.k, &args.v, &args.o, &args.dO, &args.dq, &args.dk, &args.dv})
    if (!headsVectorised(*v, args.headDim)) return false;
  const bool fits = withHeadDim(args.headDim, [&](auto width) {
    constexpr int D = width.value;
    const bool small = hasSmallShared(context);
    const int keys = D == 256 && small ? stagesOf<GradKeysShape<D, D == 256>>(context) : stagesOf<GradKeysShape<D>>(context);
    const int queries =
        D == 128 && small ? stagesOf<GradQueriesShape<D, D == 128>>(context) : stagesOf<GradQueriesShape<D>>(context);
    return keys > 0 && queries > 0;
  });
  if (!fits) return false;
  attentionDelta(args, context);
  attentionGradKeysMma(args, context);
  attentionGradQueriesMma(args, context);
  return true;
}

}  // namespace unsloth::cuda
