#include "../launch.cuh"
#include "expertWgmma.cuh"

#include <algorithm>

#include "../expertGemm.h"
#include "tensorMap.h"

namespace unsloth::cuda {
namespace sm90 {
namespace {

/** stack[e·rows + r, c] = columns[r, c·experts + e]: matrices that lie by columns, one below the other. 4 bytes an element. */
template <class T>
__global__ void stackColumns(const T* columns, int64_t ldColumns, T* stack, int64_t ldStack, int64_t rows, int64_t cols,
                             int experts) {
  awaitPrior();
  const int64_t r = blockIdx.x;
  for (int64_t i = threadIdx.x; i < cols * experts; i += blockDim.x)
    stack[(i % experts * rows + r) * ldStack + i / experts] = columns[r * ldColumns + i];
}

/** A copy in the workspace of matrices that lie by columns. */
View stacked(const View& v, int64_t experts, const Context& context) {
  const int64_t cols = v.cols / experts, ld = (cols + 7) / 8 * 8;
  auto* const target = scratch<uint16_t>(context, 0, static_cast<size_t>(v.rows * experts * ld), "expertGemm");
  launchDependent(context, "expertGemm: stack of columns", stackColumns<uint16_t>, {static_cast<unsigned>(v.rows), 256},
                  static_cast<const uint16_t*>(v.data), v.ld, target, ld, v.rows, cols, static_cast<int>(experts));
  return {target, v.dtype, v.rows * experts, cols, ld};
}

template <class T, int tileN, bool majorM, bool majorN>
void launchExpert(const ExpertParams& params, const Context& context) {
  using Shape = TileShape<tileN>;
  const auto kernel = expertWgmmaKernel<T, tileN, majorM, majorN>;
  static const bool ready = [&] {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::sharedBytes),
          "expertGemm: shared memory");
    return true;
  }();
  static_cast<void>(ready);
  launchDependent(context, "expertWgmma", kernel, {static_cast<unsigned>(context.gpu->multiprocessors), blockThreads,
                  Shape::sharedBytes}, params);
}

template <class T>
void launchMode(const ExpertParams& params, int mode, int tileN, const Context& context) {
  if (mode == 2) launchExpert<T, 128, true, true>(params, context);
  else if (mode == 0 && tileN == 256) launchExpert<T, 256, false, false>(params, context);
  else if (mode == 0) launchExpert<T, 128, false, false>(params, context);
  else if (tileN == 256) launchExpert<T, 256, false, true>(params, context);
  else launchExpert<T, 128, false, true>(params, context);
}

bool takes(const ExpertGemmArgs& g, const Context& context) {
  if (context.gpu->capability != 90 || g.alpha == 0) return false;
  const DType type = g.a.dtype;
  if ((type != DType::BF16 && type != DType::F16) || g.b.dtype != type || !tensorMapFits(g.a)) return false;
  if (g.mode == 2) return g.c.dtype == DType::F32 && tensorMapFits(g.b);
  const auto fits = [&](const View& v, bool byColumns) {
    const int64_t cols = v.cols / g.experts;
    return byColumns ? static_cast<size_t>(v.rows * g.experts * ((cols + 7) / 8 * 8) * 2) <= context.workspaceBytes
                     : tensorMapFits(v);
  };
  if (g.c.dtype != type || !tensorMapFits(g.c) || g.n % 8 != 0 || !fits(g.b, g.columns == ExpertColumns::main)) return false;
  return !g.lowA.present() || (g.lowA.dtype == type && g.lowB.dtype == type && tensorMapFits(g.lowA) && g.lowA.cols > 0 &&
                               fits(g.lowB, g.columns == ExpertColumns::low));
}

}  // namespace
}  // namespace sm90

bool expertGemmWgmma(const ExpertGemmArgs& g, const Context& context) {
  using namespace sm90;
  if (!takes(g, context)) return false;
  const bool gradient = g.mode == 2, majorN = g.mode != 0;
  const int tileN = g.n > 128 ? 256 : 128;
  const auto leftMap = [&](const View& v) { return gradient ? tensorMap(v, sliceK, boxElements) : tensorMap(v, tileM, sliceK); };
  const auto rightMap = [&](const View& v) { return majorN ? tensorMap(v, sliceK, boxElements) : tensorMap(v, tileN, sliceK); };

  ExpertParams p{};
  p.first = g.first;
  p.experts = static_cast<int>(g.experts);
  p.m = static_cast<int>(g.m);
  p.n = static_cast<int>(g.n);
  p.alpha = g.alpha;
  p.lowScale = g.lowAlpha / g.alpha;
  p.out = g.c.data;
  p.ld = g.c.ld;
  p.a = leftMap(g.a);
  if (gradient) {
    const bool byColumns = g.columns == ExpertColumns::main;
    p.b = rightMap(g.b);
    p.rowStep = byColumns ? 0 : g.m;
    p.columnScale = byColumns ? g.experts : 1;
    p.columnStep = byColumns ? 1 : 0;
  } else {
    const View b = g.columns == ExpertColumns::main ? stacked(g.b, g.experts, context) : g.b;
    p.b = rightMap(b);
    p.stepB = static_cast<int>(b.rows / g.experts);
    p.c = tensorMap(g.c, chunkRows, boxElements);
    p.slices = static_cast<int>((g.k + sliceK - 1) / sliceK);
    if (g.lowA.present()) {
      const View lowB = g.columns == ExpertColumns::low ? stacked(g.lowB, g.experts, context) : g.lowB;
      p.lowA = leftMap(g.lowA);
      p.lowB = rightMap(lowB);
      p.stepLow = static_cast<int>(lowB.rows / g.experts);
      p.rank = static_cast<int>(g.lowA.cols);
    }
  }
  if (g.a.dtype == DType::F16) launchMode<__half>(p, g.mode, tileN, context);
  else launchMode<bf16>(p, g.mode, tileN, context);
  return true;
}

}  // namespace unsloth::cuda
