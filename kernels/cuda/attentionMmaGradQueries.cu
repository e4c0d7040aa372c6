#include "attentionMmaGrad.cuh"
#include "launch.cuh"

namespace unsloth::cuda {
namespace {

/**
 * dq of a tile of queries of one head: scores and their gradients are computed again by tiles of keys and stay in registers as
 * the operand of dq += dS·k. 6·d FLOPs for each visible pair and head; reads k and v once for each tile of queries.
 */
template <class T, int D, bool general, bool small>
__global__ void __launch_bounds__(128, 2) attentionGradQueriesKernel(const __grid_constant__ AttentionArgs a, const int stages) {
  awaitPrior();
  using Shape = GradQueriesShape<D, small>;
  using Tile = SharedTile<D>;
  constexpr int BM = Shape::queries, BN = Shape::keys, warpRows = BM / Shape::warps, MT = warpRows / 16, NT = BN / 8,
                threads = Shape::threads;
  if (!multiplies<T>()) return neverLaunched();
  AttentionTile tile;
  if (!locateQueries<threads>(a, BM, blockIdx.x / a.group, tile)) return;
  const int kvHead = blockIdx.y, head = kvHead * a.group + blockIdx.x % a.group, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const AttentionSequence s(a, tile.sequence);
  const int queries = min(BM, s.queries - tile.first), firstPosition = s.offset() + tile.first;
  const int end = firstPosition + queries, begin = general && a.window > 0 ? max(0, firstPosition - a.window + 1) : 0;
  const int64_t row = s.qStart + tile.first;
  const T* k = element<const T>(a.k, s.kvStart, kvHead * a.headDim);
  const T* v = element<const T>(a.v, s.kvStart, kvHead * a.headDim);

  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t qTile = sharedAddress(memory), gTile = qTile + BM * D * 2, firstStage = gTile + BM * D * 2;
  Tile::template copy<BM, threads>(qTile, element<const T>(a.q, row, head * a.headDim), a.q.ld, queries, a.headDim);
  Tile::template copy<BM, threads>(gTile, element<const T>(a.dO, row, head * a.headDim), a.dO.ld, queries, a.headDim);
  const auto copyKeys = [&](int n, uint32_t stage) {
    Tile::template copy<BN, threads>(stage, k + static_cast<int64_t>(n) * BN * a.k.ld, a.k.ld, s.keys - n * BN, a.headDim);
    Tile::template copy<BN, threads>(stage + BN * D * 2, v + static_cast<int64_t>(n) * BN * a.v.ld, a.v.ld, s.keys - n * BN,
                                     a.headDim);
    commitCopies();
  };

  const int last = begin / BN;
  int n = (end - 1) / BN;
  copyKeys(n, firstStage);
  float shift[MT][2], mean[MT][2], dq[MT][D / 8][4] = {};
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = warp * warpRows + m * 16 + i * 8 + lane / 4;
      const bool is = query < queries;
      shift[m][i] = is ? *element<const float>(a.lse, row + query, head) * log2e : 0;
      mean[m][i] = is ? *element<const float>(a.delta, row + query, head) : 0;
    }
  const typename Tile::Lane rowsFirst = Tile::rowsFirst(), columnsFirst = Tile::columnsFirst();
  const float scale = a.scale * log2e, inner = general && a.softcap > 0 ? a.scale / a.softcap : 0;

  for (int which = 0; n >= last; --n, which ^= stages - 1) {
    const uint32_t kTile = firstStage + which * static_cast<uint32_t>(Shape::stageBytes), vTile = kTile + BN * D * 2;
    waitCopies<0>();
    __syncthreads();
    if (stages > 1 && n > last) copyKeys(n - 1, firstStage + (which ^ 1) * static_cast<uint32_t>(Shape::stageBytes));
    const int first = n * BN;
    const bool edge = first + BN - 1 > firstPosition || (general && a.window > 0 && firstPosition + BM - 1 - first >= a.window);
    float score[MT][NT][4] = {}, slope[MT][NT][4] = {};
#pragma unroll
    for (int c = 0; c < D; c += 16) {
      uint32_t rows[MT][4], gradients[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        loadMatrices(rows[m], rowsFirst.at(qTile, warp * warpRows + m * 16, c));
        loadMatrices(gradients[m], rowsFirst.at(gTile, warp * warpRows + m * 16, c));
      }
#pragma unroll
      for (int t = 0; t < NT; t += 2) {
        uint32_t other[4];
        loadMatrices(other, columnsFirst.at(kTile, t * 8, c));
#pragma unroll
        for (int m = 0; m < MT; ++m) multiplyAddPair<T>(score[m][t], score[m][t + 1], rows[m], other);
        loadMatrices(other, columnsFirst.at(vTile, t * 8, c));
#pragma unroll
        for (int m = 0; m < MT; ++m) multiplyAddPair<T>(slope[m][t], slope[m][t + 1], gradients[m], other);
      }
    }
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int t = 0; t < NT; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float bend, p = probabilityOf<general>(a, score[m][t][i], scale, inner, shift[m][i / 2], bend);
          if (edge) {
            const int distance =
                firstPosition + warp * warpRows + m * 16 + lane / 4 + i / 2 * 8 - (first + t * 8 + lane % 4 * 2 + i % 2);
            if (distance < 0 || (general && a.window > 0 && distance >= a.window)) p = 0;
          }
          slope[m][t][i] = general ? p * bend * (slope[m][t][i] - mean[m][i / 2]) : p * (slope[m][t][i] - mean[m][i / 2]);
        }
#pragma unroll
    for (int t = 0; t < NT; t += 2) {
      uint32_t ds[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) packOperand<T>(ds[m], slope[m][t], slope[m][t + 1]);
#pragma unroll
      for (int c = 0; c < D / 8; c += 2) {
        uint32_t other[4];
        loadMatricesTransposed(other, rowsFirst.at(kTile, t * 8, c * 8));
#pragma unroll
        for (int m = 0; m < MT; ++m) multiplyAddPair<T>(dq[m][c], dq[m][c + 1], ds[m], other);
      }
    }
    if (stages == 1 && n > last) {
      __syncthreads();
      copyKeys(n - 1, firstStage);
    }
  }

  // Each warp's rows of dq go through its own rows of the q tile, to be stored in 16-byte pieces.
  __syncwarp();
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int c = 0; c < D / 8; ++c)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<uint32_t*>(memory + Tile::offset(warp * warpRows + m * 16 + i * 8 + lane / 4, c) + lane % 4 * 4) =
            packPair<T>(dq[m][c][i * 2] * a.scale, dq[m][c][i * 2 + 1] * a.scale);
  __syncthreads();
  Tile::template store<BM, threads>(memory, element<T>(a.dq, row, head * a.headDim), a.dq.ld, queries, a.headDim);
}

template <class T, int D, bool general, bool small>
void launch(const AttentionArgs& args, const Context& context) {
  using Shape = GradQueriesShape<D, small>;
  const int stages = stagesOf<Shape>(context);
  const size_t bytes = Shape::fixedBytes + static_cast<size_t>(stages) * Shape::stageBytes;
  const auto kernel = attentionGradQueriesKernel<T, D, general, small>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "preparing attentionGrad");
  const dim3 grid(static_cast<unsigned>(args.queryTiles(Shape::queries) * args.group), static_cast<unsigned>(args.kvHeads));
  launchDependent(context, "running attentionGrad", kernel, {grid, Shape::threads, bytes}, args, stages);
}

}  // namespace

void attentionGradQueriesMma(const AttentionArgs& args, const Context& context) {
  withInstance(args, [&](auto tag, auto width, auto general) {
    using T = typename decltype(tag)::type;
    constexpr int D = width.value;
    if (D == 128 && hasSmallShared(context)) launch<T, D, general.value, D == 128>(args, context);
    else launch<T, D, general.value, false>(args, context);
  });
}

}  // namespace unsloth::cuda
