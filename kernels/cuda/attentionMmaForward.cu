#include "attentionMma.cuh"
#include "launch.cuh"

namespace unsloth::cuda {
namespace {

/**
 * 32 keys let two blocks of head dimension 128 share the 100 KB of a consumer GPU's multiprocessor; elsewhere 64 are no faster.
 */
template <int D>
struct ForwardShape {
  static constexpr int warps = 4, queries = D > 128 ? 64 : 128, keys = D == 128 ? 32 : 64, threads = warps * 32;
  static constexpr size_t sharedBytes = (queries + 2 * keys) * D * 2;
};

/**
 * o = softmax(scale·q·kᵀ)·v over tiles, arXiv 2307.08691: a block owns a tile of queries of one head, each warp 16 or 32 of its
 * rows, and visits the visible keys from the last tile to the first. Scores stay in registers and become the next product's
 * operand. 4·d FLOPs for each visible pair and head; reads k and v once for each tile of queries (from L2 mostly). `general`:
 * with a window or a softcap.
 */
template <class T, int D, bool general>
__global__ void __launch_bounds__(ForwardShape<D>::threads) attentionForwardKernel(const __grid_constant__ AttentionArgs a) {
  awaitPrior();
  using Shape = ForwardShape<D>;
  using Tile = SharedTile<D>;
  constexpr int BM = Shape::queries, BN = Shape::keys, warpRows = BM / Shape::warps, MT = warpRows / 16, NT = BN / 8, DT = D / 8;
  if (!multiplies<T>()) return neverLaunched();
  AttentionTile tile;
  if (!locateQueries<Shape::threads>(a, BM, blockIdx.x / a.group, tile)) return;
  const int kvHead = blockIdx.y, head = kvHead * a.group + blockIdx.x % a.group, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const AttentionSequence s(a, tile.sequence);
  const int queries = min(BM, s.queries - tile.first), firstPosition = s.offset() + tile.first;
  const int end = firstPosition + queries, begin = general && a.window > 0 ? max(0, firstPosition - a.window + 1) : 0;
  const T* q = element<const T>(a.q, s.qStart + tile.first, head * a.headDim);
  const T* k = element<const T>(a.k, s.kvStart, kvHead * a.headDim);
  const T* v = element<const T>(a.v, s.kvStart, kvHead * a.headDim);

  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t qTile = sharedAddress(memory), kTile = qTile + BM * D * 2, vTile = kTile + BN * D * 2;
  const typename Tile::Lane rowsFirst = Tile::rowsFirst(), columnsFirst = Tile::columnsFirst();

  int n = (end - 1) / BN;
  const int last = begin / BN;
  Tile::template copy<BM, Shape::threads>(qTile, q, a.q.ld, queries, a.headDim);
  Tile::template copy<BN, Shape::threads>(kTile, k + static_cast<int64_t>(n) * BN * a.k.ld, a.k.ld, s.keys - n * BN, a.headDim);
  commitCopies();

  float out[MT][DT][4] = {}, top[MT][2], sum[MT][2] = {};
#pragma unroll
  for (int m = 0; m < MT; ++m) top[m][0] = top[m][1] = -INFINITY;
  const float scale = general && a.softcap > 0 ? log2e : a.scale * log2e;

  for (; n >= last; --n) {
    const int first = n * BN;
    waitCopies<0>();
    __syncthreads();
    Tile::template copy<BN, Shape::threads>(vTile, v + static_cast<int64_t>(first) * a.v.ld, a.v.ld, s.keys - first, a.headDim);
    commitCopies();

    float score[MT][NT][4] = {};
#pragma unroll
    for (int c = 0; c < D; c += 16) {
      uint32_t rows[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) loadMatrices(rows[m], rowsFirst.at(qTile, warp * warpRows + m * 16, c));
#pragma unroll
      for (int t = 0; t < NT; t += 2) {
        uint32_t keys[4];
        loadMatrices(keys, columnsFirst.at(kTile, t * 8, c));
#pragma unroll
        for (int m = 0; m < MT; ++m) { multiplyAddPair<T>(score[m][t], score[m][t + 1], rows[m], keys); }
      }
    }
    waitCopies<0>();
    __syncthreads();
    if (n > last) {
      Tile::template copy<BN, Shape::threads>(kTile, k + static_cast<int64_t>(first - BN) * a.k.ld, a.k.ld, BN, a.headDim);
      commitCopies();
    }

    if (general && a.softcap > 0) {
      const float inner = a.scale / a.softcap;
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int t = 0; t < NT; ++t)
#pragma unroll
          for (int i = 0; i < 4; ++i) score[m][t][i] = a.softcap * tanhFast(score[m][t][i] * inner);
    }
    if (first + BN - 1 > firstPosition || (general && a.window > 0 && firstPosition + BM - 1 - first >= a.window)) {
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int t = 0; t < NT; ++t)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int position = firstPosition + warp * warpRows + m * 16 + lane / 4 + i / 2 * 8;
            const int key = first + t * 8 + lane % 4 * 2 + i % 2;
            if (key > position || (general && a.window > 0 && position - key >= a.window)) score[m][t][i] = -INFINITY;
          }
    }

#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = top[m][half];
#pragma unroll
        for (int t = 0; t < NT; ++t) most = fmaxf(most, fmaxf(score[m][t][half * 2], score[m][t][half * 2 + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float shift = most == -INFINITY ? 0.0f : most * scale, rescale = exp2Fast(top[m][half] * scale - shift);
        top[m][half] = most;
        float part = 0;
#pragma unroll
        for (int t = 0; t < NT; ++t)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& x = score[m][t][half * 2 + i];
            x = exp2Fast(x * scale - shift);
            part += x;
          }
        sum[m][half] = sum[m][half] * rescale + part;
#pragma unroll
        for (int t = 0; t < DT; ++t) out[m][t][half * 2] *= rescale, out[m][t][half * 2 + 1] *= rescale;
      }

#pragma unroll
    for (int t = 0; t < NT; t += 2) {
      uint32_t weights[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) packOperand<T>(weights[m], score[m][t], score[m][t + 1]);
#pragma unroll
      for (int c = 0; c < DT; c += 2) {
        uint32_t values[4];
        loadMatricesTransposed(values, rowsFirst.at(vTile, t * 8, c * 8));
#pragma unroll
        for (int m = 0; m < MT; ++m) { multiplyAddPair<T>(out[m][c], out[m][c + 1], weights[m], values); }
      }
    }
  }

  // Each warp's rows of o go through its own rows of the q tile, to be stored in 16-byte pieces.
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = sum[m][half];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const int row = warp * warpRows + m * 16 + half * 8 + lane / 4;
      const float inverse = total > 0 ? 1.0f / total : 0.0f;
      if (lane % 4 == 0 && row < queries)
        *element<float>(a.lse, s.qStart + tile.first + row, head) = top[m][half] * scale * ln2 + logf(total);
#pragma unroll
      for (int t = 0; t < DT; ++t)
        *reinterpret_cast<uint32_t*>(memory + Tile::offset(row, t) + lane % 4 * 4) =
            packPair<T>(out[m][t][half * 2] * inverse, out[m][t][half * 2 + 1] * inverse);
    }
  __syncwarp();
  T* o = element<T>(a.o, s.qStart + tile.first, head * a.headDim);
  for (int i = lane; i < warpRows * Tile::pieces; i += 32) {
    const int row = warp * warpRows + i / Tile::pieces, piece = i % Tile::pieces;
    if (row < queries && piece * 8 < a.headDim)
      *reinterpret_cast<uint4*>(o + row * a.o.ld + piece * 8) =
          *reinterpret_cast<const uint4*>(memory + Tile::offset(row, piece));
  }
}

template <class T, int D, bool general>
bool launch(const AttentionArgs& args, const Context& context) {
  using Shape = ForwardShape<D>;
  if (Shape::sharedBytes > context.gpu->sharedPerBlock) return false;
  const auto kernel = attentionForwardKernel<T, D, general>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::sharedBytes), "preparing attention");
  const dim3 grid(static_cast<unsigned>(args.queryTiles(Shape::queries) * args.group), static_cast<unsigned>(args.kvHeads));
  launchDependent(context, "running attention", kernel, {grid, Shape::threads, Shape::sharedBytes}, args);
  return true;
}

template <class T>
bool launchType(const AttentionArgs& args, const Context& context) {
  return withHeadDim(args.headDim, [&](auto width) {
    return args.window > 0 || args.softcap > 0 ? launch<T, width.value, true>(args, context)
                                               : launch<T, width.value, false>(args, context);
  });
}

}  // namespace

bool attentionMma(const AttentionArgs& args, const Context& context) {
  if (!hasTensorCores(args.q.dtype, context.gpu->capability) || args.headDim > 256 || !(args.scale > 0)) return false;
  for (const View* v : {&args.q, &args.k, &args.v, &args.o})
    if (!headsVectorised(*v, args.headDim)) return false;
  return args.q.dtype == DType::BF16 ? launchType<bf16>(args, context) : launchType<__half>(args, context);
}

}  // namespace unsloth::cuda
