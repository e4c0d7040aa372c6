#include "attentionMmaGrad.cuh"

namespace unsloth::cuda {

/**
 * Three kernels: delta; dk and dv by tiles of keys; dq by tiles of queries. Scores are computed twice, 14·d FLOPs for each visible
 * pair and head instead of 10·d, but no two blocks add to one row: every sum has a fixed order, and dq needs no fp32 copy.
 */
bool attentionGradMma(const AttentionArgs& args, const Context& context) {
  if (!hasTensorCores(args.q.dtype, context.gpu->capability) || args.headDim > 256 || !(args.scale > 0)) return false;
  for (const View* v : {&args.q, &args.k, &args.v, &args.o, &args.dO, &args.dq, &args.dk, &args.dv})
    if (!headsVectorised(*v, args.headDim)) return false;
  const bool fits = withHeadDim(args.headDim, [&](auto width) {
    return stagesOf<GradKeysShape<width.value>>(context) > 0 && stagesOf<GradQueriesShape<width.value>>(context) > 0;
  });
  if (!fits) return false;
  attentionDelta(args, context);
  attentionGradKeysMma(args, context);
  attentionGradQueriesMma(args, context);
  return true;
}

}  // namespace unsloth::cuda
