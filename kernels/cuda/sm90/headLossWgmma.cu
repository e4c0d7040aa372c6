#include <algorithm>

#include "../../core/views.h"
#include "../../core/wholeNumbers.h"
#include "../headLoss.h"
#include "headExpWgmma.cuh"
#include "tensorMap.h"

/**
 * Logits, loss and gradient with no pass over the logits of their own. With z the logits of a row, b = z[label] and
 * e[v] = exp(z[v] − b) for v ≠ label, 0 for the label, S = Σ e: nll = log(1 + S) and
 * dH = weight·scale/(1 + S) · (Σ_v e[v]·w[v] − S·w[label]).
 * The product's epilogue rounds e to bf16, whose exponents reach far enough, and leaves the sums of each tile; the label's column
 * becomes −S. Where z rises so far above b that e might overflow, those rows are computed again relative to their largest logit.
 */
namespace unsloth::cuda {
namespace sm90 {
namespace {

constexpr float log2e = 1.4426950408889634f, ln2 = 0.6931471805599453f;

/** base = highest = scale·log2(e)·h·w[label] for each row, one warp each; clears `again`. Reads 4H bytes of a row. */
__global__ void __launch_bounds__(256) headBaseKernel(float* base, float* highest, unsigned* again, int againCount, const bf16* h,
                                                      int64_t ldH, const bf16* w, int64_t ldW, int width, int vocabulary,
                                                      const int32_t* labels, float scaleLog2, int64_t rows) {
  awaitPrior();
  const int64_t thread = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x, row = thread / 32;
  if (thread < againCount) again[thread] = 0;
  if (row >= rows) return;
  const int label = labels[row];
  float sum = 0;
  if (label >= 0 && label < vocabulary) {
    const auto* const a = reinterpret_cast<const __nv_bfloat162*>(h + row * ldH);
    const auto* const b = reinterpret_cast<const __nv_bfloat162*>(w + label * ldW);
#pragma unroll 4
    for (int i = threadIdx.x % 32; i < width / 2; i += 32) {
      const float2 x = __bfloat1622float2(a[i]), y = __bfloat1622float2(b[i]);
      sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
    }
#pragma unroll
    for (int shift = 16; shift > 0; shift /= 2) sum += __shfl_xor_sync(~0u, sum, shift);
  }
  if (threadIdx.x % 32 == 0) base[row] = highest[row] = sum * scaleLog2;
}

struct RowSums {
  const float *sums, *base, *highest, *weights;
  const int32_t* labels;
  float *nll, *factors;  // factors null: no gradient
  bf16* e;
  int64_t nllStride, ldE;
  int rows, tiles, ldSums, vocabulary;
  float scale;
};

constexpr int rowsTogether = 8, rowSegments = 64;  // of a block: rows, and threads to each

/** The loss of each row from the sums of its tiles, the factor of its gradient, and −S in the label's column of e. */
__global__ void __launch_bounds__(rowsTogether * rowSegments) headRowsKernel(const RowSums p) {
  awaitPrior();
  __shared__ float parts[rowSegments][rowsTogether];
  const int segment = threadIdx.y, row = static_cast<int>(blockIdx.x) * rowsTogether + static_cast<int>(threadIdx.x);
  float sum = 0;
  if (row < p.rows) {
#pragma unroll 8
    for (int tile = segment; tile < p.tiles; tile += rowSegments) sum += p.sums[static_cast<int64_t>(tile) * p.ldSums + row];
  }
  parts[segment][threadIdx.x] = sum;
  for (int half = rowSegments / 2; half > 0; half /= 2) {
    __syncthreads();
    if (segment < half) parts[segment][threadIdx.x] = sum += parts[segment + half][threadIdx.x];
  }
  if (segment > 0 || row >= p.rows) return;
  const int label = p.labels[row];
  const bool known = label >= 0 && label < p.vocabulary;
  const float above = p.highest[row] - p.base[row];  // 0 but for rows that were computed again
  const float total = known ? sum + exp2f(-above) : sum;
  p.nll[row * p.nllStride] = !known ? NAN : above == 0 ? log1pf(sum) : logf(total) + above * ln2;
  if (p.factors == nullptr) return;
  const float weight = p.weights[row] * p.scale;
  p.factors[row] = weight == 0 || total == 0 ? 0 : weight / total;
  if (known) p.e[row * p.ldE + label] = narrow<bf16>(-sum);
}

/** out = factors ⊙ x, rounded: the hidden states as the gradient of w needs them. */
__global__ void __launch_bounds__(256) scaleRowsKernel(bf16* out, int64_t ldOut, const bf16* x, int64_t ldX,
                                                       const float* factors, int rows, int pairs) {
  awaitPrior();
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x, row = i / pairs, at = i % pairs * 2;
  if (row >= rows) return;
  const float2 v = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(x + row * ldX + at));
  *reinterpret_cast<__nv_bfloat162*>(out + row * ldOut + at) = __floats2bfloat162_rn(v.x * factors[row], v.y * factors[row]);
}

/** Scratch of a call, piece after piece. */
class Scratch {
 public:
  explicit Scratch(const Context& context) : rest_(context) {}
  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    if (bytes > rest_.workspaceBytes) return nullptr;
    auto* const piece = static_cast<T*>(rest_.workspace);
    rest_.workspace = static_cast<std::byte*>(rest_.workspace) + bytes;
    rest_.workspaceBytes -= bytes;
    return piece;
  }
  const Context& rest() const { return rest_; }

 private:
  Context rest_;
};

}  // namespace
}  // namespace sm90

bool headLossWgmma(const HeadLoss& head, const Context& context) {
  using namespace sm90;
  const View &h = head.h, &w = head.w, &logits = head.logits;
  const int64_t rows = h.rows, width = h.cols, vocabulary = w.rows;
  const bool gradient = head.dH.present(), weightGradient = head.dW.present();
  if (context.gpu->capability != 90 || head.scale <= 0 || width % 2 != 0) return false;
  for (const View* v : {&h, &w, &logits})
    if (v->dtype != DType::BF16 || !tensorMapFits(*v)) return false;

  // Chunks of about equal size, in whole tiles of clusters.
  constexpr int64_t unit = 2 * expRows;
  const int64_t chunks = divideUp(rows, logits.rows), perChunk = std::min(logits.rows, roundUp(divideUp(rows, chunks), unit));
  const int64_t tileColumns = divideUp(vocabulary, expColumns), ldSums = roundUp(perChunk, expRows);
  const int64_t rowTiles = divideUp(perChunk, expRows);  // at most so many `again` for each chunk
  Scratch scratch(context);
  auto* const base = scratch.take<float>(rows);
  auto* const highest = scratch.take<float>(rows);
  auto* const factors = scratch.take<float>(perChunk);
  auto* const again = scratch.take<unsigned>(rowTiles * divideUp(rows, perChunk));
  auto* const sums = scratch.take<float>(tileColumns * ldSums);
  const int64_t ldScaled = roundUp(width, 8);
  auto* const scaled = weightGradient ? scratch.take<bf16>(perChunk * ldScaled) : nullptr;
  if (sums == nullptr || (weightGradient && scaled == nullptr)) return false;
  if (gradient && !headGradWgmma(rowsOf(head.dH, 0, 0), rowsOf(logits, 0, std::min(rows, perChunk)), w, factors, scratch.rest()))
    return false;

  const float scaleLog2 = head.scale * log2e;
  const auto againCount = static_cast<int>(rowTiles * divideUp(rows, perChunk));
  const int64_t warps = std::max<int64_t>(rows, divideUp(againCount, 32));
  launchDependent(context, "headLoss labels", headBaseKernel, {static_cast<unsigned>(divideUp(warps, 8)), 256}, base, highest,
                  again, againCount, static_cast<const bf16*>(h.data), h.ld, static_cast<const bf16*>(w.data), w.ld,
                  static_cast<int>(width), static_cast<int>(vocabulary), head.labels, scaleLog2, rows);
  for (int64_t first = 0, chunk = 0; first < rows; first += perChunk, ++chunk) {
    const int64_t count = std::min(perChunk, rows - first);
    const View e = rowsOf(logits, 0, count), hidden = rowsOf(h, first, count);
    const int64_t tiles = divideUp(count, expRows);
    const auto kernel = gradient ? headExpKernel<true> : headExpKernel<false>;
    const int cluster = clusterSizeFor(tiles);
    constexpr int mostBand = 8;
    ExpParams p{};
    p.h = tensorMap(hidden, expRows, sliceK);
    p.w = tensorMap(w, expColumns / cluster, sliceK);
    p.e = tensorMap(e, chunkRows, 64);
    p.walk.rows = static_cast<int>(divideUp(tiles, cluster));
    p.walk.columns = static_cast<int>(tileColumns);
    p.walk.band = std::min(mostBand, p.walk.rows);
    p.rows = static_cast<int>(count), p.vocabulary = static_cast<int>(vocabulary);
    p.slices = static_cast<int>(divideUp(width, sliceK)), p.ldSums = static_cast<int>(ldSums);
    p.scaleLog2 = scaleLog2;
    p.labels = head.labels + first, p.base = base + first, p.highest = highest + first;
    p.again = again + chunk * rowTiles, p.sums = sums;
    const int64_t working = std::min<int64_t>(int64_t{p.walk.rows} * p.walk.columns, context.gpu->multiprocessors / cluster);
    for (const bool repair : {false, true}) {
      p.repair = repair;
      launchClusters(kernel, p, cluster, working, expSharedBytes, context, "headLoss");
    }
    const RowSums last{sums,
                       base + first,
                       highest + first,
                       head.weights + first,
                       head.labels + first,
                       head.nll.f32() + first * head.nll.ld,
                       gradient ? factors : nullptr,
                       static_cast<bf16*>(e.data),
                       head.nll.ld,
                       e.ld,
                       static_cast<int>(count),
                       static_cast<int>(tileColumns),
                       static_cast<int>(ldSums),
                       static_cast<int>(vocabulary),
                       head.scale};
    launchDependent(context, "headLoss rows", headRowsKernel,
                    {static_cast<unsigned>(divideUp(count, rowsTogether)), dim3(rowsTogether, rowSegments)}, last);
    if (!gradient) continue;
    headGradWgmma(rowsOf(head.dH, first, count), e, w, factors, scratch.rest());
    if (!weightGradient) continue;
    const int64_t pairs = width / 2;
    launchDependent(context, "headLoss rows of dW", scaleRowsKernel, {static_cast<unsigned>(divideUp(count * pairs, 256)), 256},
                    scaled, ldScaled, static_cast<const bf16*>(hidden.data), hidden.ld, factors, static_cast<int>(count),
                    static_cast<int>(pairs));
    GemmArgs g;
    g.mode = 2;
    g.m = vocabulary, g.n = width, g.k = count;
    g.c = head.dW, g.a = e, g.b = View{scaled, DType::BF16, count, width, ldScaled};
    g.accumulate = true;
    runGemm(g, scratch.rest());
  }
  return true;
}

}  // namespace unsloth::cuda
