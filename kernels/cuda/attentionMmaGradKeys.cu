#include "attentionMmaGrad.cuh"
#include "launch.cuh"

namespace unsloth::cuda {
namespace {

constexpr int joinThreads = 256, joinKeys = 32;

/**
 * Where few blocks would otherwise run: the heads of a group are divided among gridDim.z blocks, each of which writes its sums
 * here, [part][dk, dv][kvRows, kvHeads·d], to be added afterwards in order. Unused when there is one part.
 */
struct Parts {
  float* sums;
  int64_t stride;  // kvRows · kvHeads · d
};

/**
 * dk and dv of a tile of keys of one kv head, over the queries of all its heads that see it. Scores are computed transposed, keys
 * by queries, so that probabilities and their gradients come out of one product as the operand of the next, in registers. 8·d
 * FLOPs for each visible pair and head; reads q and dO once for each tile of keys.
 */
template <class T, int D, bool general, bool small>
__global__ void __launch_bounds__(GradKeysShape<D, small>::threads, 1)
    attentionGradKeysKernel(const __grid_constant__ AttentionArgs a, const Parts parts, const int stages) {
  awaitPrior();
  using Shape = GradKeysShape<D, small>;
  using Tile = SharedTile<D>;
  using Exchange = SharedTile<Shape::queries>;
  constexpr int BN = Shape::keys, BM = Shape::queries, KT = Shape::keyTiles, QC = Shape::chunk, threads = Shape::threads;
  if (!multiplies<T>()) return neverLaunched();
  AttentionTile tile;
  if (!locateKeys<threads>(a, BN, blockIdx.x, tile)) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = Shape::halves > 1 ? warp % 2 : 0;
  const int warpKey = warp / Shape::halves * KT * 16, kvHead = blockIdx.y;
  const int part = blockIdx.z, partCount = gridDim.z;
  const int firstHead = kvHead * a.group + a.group * part / partCount,
            lastHead = kvHead * a.group + a.group * (part + 1) / partCount;
  const AttentionSequence s(a, tile.sequence);
  const int firstKey = tile.first, keys = min(BN, s.keys - firstKey), offset = s.offset();
  const int begin = max(0, firstKey - offset);
  const int end = general && a.window > 0 ? min(s.queries, firstKey + keys - 1 + a.window - offset) : s.queries;
  const int tiles = max(0, (end - begin + BM - 1) / BM), steps = tiles * (lastHead - firstHead);

  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t kTile = sharedAddress(memory), vTile = kTile + BN * D * 2, exchange = vTile + BN * D * 2;
  const uint32_t firstStage = kTile + Shape::fixedBytes;
  Tile::template copy<BN, threads>(kTile, element<const T>(a.k, s.kvStart + firstKey, kvHead * a.headDim), a.k.ld, keys,
                                   a.headDim);
  Tile::template copy<BN, threads>(vTile, element<const T>(a.v, s.kvStart + firstKey, kvHead * a.headDim), a.v.ld, keys,
                                   a.headDim);
  commitCopies();

  const auto copyStep = [&](int step, uint32_t stage) {
    const int head = firstHead + step / tiles, first = begin + step % tiles * BM, count = end - first;
    const int64_t row = s.qStart + first;
    Tile::template copy<BM, threads>(stage, element<const T>(a.q, row, head * a.headDim), a.q.ld, count, a.headDim);
    Tile::template copy<BM, threads>(stage + BM * D * 2, element<const T>(a.dO, row, head * a.headDim), a.dO.ld, count,
                                     a.headDim);
    if (threadIdx.x < 2 * BM) {
      const int i = threadIdx.x % BM;
      const View& v = threadIdx.x < BM ? a.lse : a.delta;
      copyAsync4(stage + 2 * BM * D * 2 + threadIdx.x * 4, element<const float>(v, row + (i < count ? i : 0), head), i < count);
    }
    commitCopies();
  };

  const typename Tile::Lane rowsFirst = Tile::rowsFirst(), columnsFirst = Tile::columnsFirst();
  const float scale = a.scale * log2e, inner = general && a.softcap > 0 ? a.scale / a.softcap : 0;
  float dk[KT][Shape::columns / 8][4] = {}, dv[KT][Shape::columns / 8][4] = {};
  if (steps > 0) copyStep(0, firstStage);
  for (int step = 0; step < steps; ++step) {
    const uint32_t stage = firstStage + (stages > 1 ? step % 2 : 0) * static_cast<uint32_t>(Shape::stageBytes);
    const uint32_t qTile = stage, gTile = stage + BM * D * 2;
    const float* numbers = reinterpret_cast<const float*>(memory + (stage - kTile) + 2 * BM * D * 2);
    waitCopies<0>();
    __syncthreads();
    if (stages > 1 && step + 1 < steps)
      copyStep(step + 1, firstStage + (step + 1) % 2 * static_cast<uint32_t>(Shape::stageBytes));
    const int first = begin + step % tiles * BM;
    const bool edge =
        firstKey + BN - 1 > offset + first || (general && a.window > 0 && offset + first + BM - 1 - firstKey >= a.window);

#pragma unroll
    for (int part = 0; part < (Shape::halves > 1 ? 1 : BM / QC); ++part) {
      const int chunk = (Shape::halves > 1 ? half : part) * QC;  // its first query in the tile
      float score[KT][QC / 8][4] = {}, slope[KT][QC / 8][4] = {};
#pragma unroll
      for (int c = 0; c < D; c += 16) {
        uint32_t rows[KT][4];
#pragma unroll
        for (int m = 0; m < KT; ++m) loadMatrices(rows[m], rowsFirst.at(kTile, warpKey + m * 16, c));
#pragma unroll
        for (int t = 0; t < QC / 8; t += 2) {
          uint32_t other[4];
          loadMatrices(other, columnsFirst.at(qTile, chunk + t * 8, c));
#pragma unroll
          for (int m = 0; m < KT; ++m) multiplyAddPair<T>(score[m][t], score[m][t + 1], rows[m], other);
        }
      }
#pragma unroll
      for (int c = 0; c < D; c += 16) {
        uint32_t rows[KT][4];
#pragma unroll
        for (int m = 0; m < KT; ++m) loadMatrices(rows[m], rowsFirst.at(vTile, warpKey + m * 16, c));
#pragma unroll
        for (int t = 0; t < QC / 8; t += 2) {
          uint32_t other[4];
          loadMatrices(other, columnsFirst.at(gTile, chunk + t * 8, c));
#pragma unroll
          for (int m = 0; m < KT; ++m) multiplyAddPair<T>(slope[m][t], slope[m][t + 1], rows[m], other);
        }
      }
      // score becomes the probabilities P, slope their gradient dS without the scale.
#pragma unroll
      for (int t = 0; t < QC / 8; ++t) {
        const int query = chunk + t * 8 + lane % 4 * 2;
        const float2 lse = *reinterpret_cast<const float2*>(numbers + query),
                     delta = *reinterpret_cast<const float2*>(numbers + BM + query);
#pragma unroll
        for (int m = 0; m < KT; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float shift = (i % 2 ? lse.y : lse.x) * log2e, mean = i % 2 ? delta.y : delta.x;
            float bend, p = probabilityOf<general>(a, score[m][t][i], scale, inner, shift, bend);
            if (edge) {
              const int distance = offset + first + query + i % 2 - (firstKey + warpKey + m * 16 + lane / 4 + i / 2 * 8);
              if (distance < 0 || (general && a.window > 0 && distance >= a.window)) p = 0;
            }
            score[m][t][i] = p;
            slope[m][t][i] = general ? p * bend * (slope[m][t][i] - mean) : p * (slope[m][t][i] - mean);
          }
      }

      if constexpr (Shape::halves == 1) {
#pragma unroll
        for (int t = 0; t < QC / 8; t += 2) {
          uint32_t p[KT][4], ds[KT][4];
#pragma unroll
          for (int m = 0; m < KT; ++m)
            packOperand<T>(p[m], score[m][t], score[m][t + 1]), packOperand<T>(ds[m], slope[m][t], slope[m][t + 1]);
#pragma unroll
          for (int c = 0; c < D / 8; c += 2) {
            uint32_t other[4];
            loadMatricesTransposed(other, rowsFirst.at(gTile, chunk + t * 8, c * 8));
#pragma unroll
            for (int m = 0; m < KT; ++m) multiplyAddPair<T>(dv[m][c], dv[m][c + 1], p[m], other);
            loadMatricesTransposed(other, rowsFirst.at(qTile, chunk + t * 8, c * 8));
#pragma unroll
            for (int m = 0; m < KT; ++m) multiplyAddPair<T>(dk[m][c], dk[m][c + 1], ds[m], other);
          }
        }
      } else {
        constexpr int dsBytes = BN * BM * 2;
#pragma unroll
        for (int m = 0; m < KT; ++m)
#pragma unroll
          for (int t = 0; t < QC / 8; ++t)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              unsigned char* at = memory + (exchange - kTile) +
                                  Exchange::offset(warpKey + m * 16 + i * 8 + lane / 4, chunk / 8 + t) + lane % 4 * 4;
              *reinterpret_cast<uint32_t*>(at) = packPair<T>(score[m][t][i * 2], score[m][t][i * 2 + 1]);
              *reinterpret_cast<uint32_t*>(at + dsBytes) = packPair<T>(slope[m][t][i * 2], slope[m][t][i * 2 + 1]);
            }
        pairBarrier(warp / 2);
        const typename Exchange::Lane exchanged = Exchange::rowsFirst();
#pragma unroll
        for (int query = 0; query < BM; query += 16)
#pragma unroll
          for (int m = 0; m < KT; ++m) {
            uint32_t p[4], ds[4];
            loadMatrices(p, exchanged.at(exchange, warpKey + m * 16, query));
            loadMatrices(ds, exchanged.at(exchange + dsBytes, warpKey + m * 16, query));
#pragma unroll
            for (int c = 0; c < Shape::columns / 8; c += 2) {
              uint32_t other[4];
              loadMatricesTransposed(other, rowsFirst.at(gTile, query, half * Shape::columns + c * 8));
              multiplyAddPair<T>(dv[m][c], dv[m][c + 1], p, other);
              loadMatricesTransposed(other, rowsFirst.at(qTile, query, half * Shape::columns + c * 8));
              multiplyAddPair<T>(dk[m][c], dk[m][c + 1], ds, other);
            }
          }
      }
    }
    if (stages == 1 && step + 1 < steps) {
      __syncthreads();
      copyStep(step + 1, firstStage);
    }
  }

  if (partCount > 1) {
    float* to = parts.sums + 2 * parts.stride * part + (s.kvStart + firstKey) * a.k.cols + kvHead * a.headDim;
#pragma unroll
    for (int m = 0; m < KT; ++m)
#pragma unroll
      for (int c = 0; c < Shape::columns / 8; ++c)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = warpKey + m * 16 + i * 8 + lane / 4, column = half * Shape::columns + c * 8 + lane % 4 * 2;
          if (row >= keys || column >= a.headDim) continue;
          float* at = to + row * a.k.cols + column;
          *reinterpret_cast<float2*>(at) = make_float2(dk[m][c][i * 2] * a.scale, dk[m][c][i * 2 + 1] * a.scale);
          *reinterpret_cast<float2*>(at + parts.stride) = make_float2(dv[m][c][i * 2], dv[m][c][i * 2 + 1]);
        }
    return;
  }

  // The results go through the tiles of k and v, to be stored in 16-byte pieces.
  waitCopies<0>();
  __syncthreads();
#pragma unroll
  for (int m = 0; m < KT; ++m)
#pragma unroll
    for (int c = 0; c < Shape::columns / 8; ++c)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        unsigned char* at =
            memory + Tile::offset(warpKey + m * 16 + i * 8 + lane / 4, half * Shape::columns / 8 + c) + lane % 4 * 4;
        *reinterpret_cast<uint32_t*>(at) = packPair<T>(dk[m][c][i * 2] * a.scale, dk[m][c][i * 2 + 1] * a.scale);
        *reinterpret_cast<uint32_t*>(at + BN * D * 2) = packPair<T>(dv[m][c][i * 2], dv[m][c][i * 2 + 1]);
      }
  __syncthreads();
  Tile::template store<BN, threads>(memory, element<T>(a.dk, s.kvStart + firstKey, kvHead * a.headDim), a.dk.ld, keys, a.headDim);
  Tile::template store<BN, threads>(memory + BN * D * 2, element<T>(a.dv, s.kvStart + firstKey, kvHead * a.headDim), a.dv.ld,
                                    keys, a.headDim);
}

/** dk and dv of a tile of keys of one kv head from `count` parts. */
template <class T>
__global__ void __launch_bounds__(joinThreads) joinKernel(const __grid_constant__ AttentionArgs a, const Parts parts, int count) {
  awaitPrior();
  AttentionTile tile;
  if (!locateKeys<joinThreads>(a, joinKeys, blockIdx.x, tile)) return;
  const AttentionSequence s(a, tile.sequence);
  const int keys = min(joinKeys, s.keys - tile.first), pieces = a.headDim / 4;
  for (int i = threadIdx.x; i < 2 * keys * pieces; i += joinThreads) {
    const int which = i / (keys * pieces), row = s.kvStart + tile.first + i / pieces % keys;
    const int column = static_cast<int>(blockIdx.y) * a.headDim + i % pieces * 4;
    const float* from = parts.sums + which * parts.stride + row * a.k.cols + column;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int part = 0; part < count; ++part) {
      const float4 x = *reinterpret_cast<const float4*>(from + 2 * parts.stride * part);
      sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    *reinterpret_cast<uint2*>(element<T>(which == 0 ? a.dk : a.dv, row, column)) =
        make_uint2(packPair<T>(sum.x, sum.y), packPair<T>(sum.z, sum.w));
  }
}

/** The fewest parts of a group with which three times as many blocks arise as run at once; at most what scratch memory allows. */
int partsOf(const AttentionArgs& args, const Context& context, int64_t keys, int64_t blocks) {
  const int64_t whole = std::max<int64_t>(1, args.k.rows / keys) * args.kvHeads,
                wanted = 3 * blocks * context.gpu->multiprocessors;
  const int64_t bytes = 2 * args.k.rows * args.k.cols * static_cast<int64_t>(sizeof(float));
  const int64_t allowed = static_cast<int64_t>(context.workspaceBytes) / std::max<int64_t>(1, bytes);
  return static_cast<int>(
      std::max<int64_t>(1, std::min({static_cast<int64_t>(args.group), (wanted + whole - 1) / whole, allowed})));
}

template <class T, int D, bool general, bool small>
void launch(const AttentionArgs& args, const Context& context) {
  using Shape = GradKeysShape<D, small>;
  const int stages = stagesOf<Shape>(context);
  const size_t bytes = Shape::fixedBytes + static_cast<size_t>(stages) * Shape::stageBytes;
  const auto kernel = attentionGradKeysKernel<T, D, general, small>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "preparing attentionGrad");
  const int count = partsOf(args, context, Shape::keys, Shape::blocks);
  const Parts parts{static_cast<float*>(context.workspace), args.k.rows * args.k.cols};
  const auto kvHeads = static_cast<unsigned>(args.kvHeads);
  const dim3 grid(static_cast<unsigned>(args.keyTiles(Shape::keys)), kvHeads, static_cast<unsigned>(count));
  launchDependent(context, "running attentionGrad", kernel, {grid, Shape::threads, bytes}, args, parts, stages);
  if (count == 1) return;
  launchDependent(context, "running attentionGrad", joinKernel<T>,
                  {dim3(static_cast<unsigned>(args.keyTiles(joinKeys)), kvHeads), joinThreads}, args, parts, count);
}

}  // namespace

void attentionGradKeysMma(const AttentionArgs& args, const Context& context) {
  withInstance(args, [&](auto tag, auto width, auto general) {
    using T = typename decltype(tag)::type;
    constexpr int D = width.value;
    if (D == 256 && hasSmallShared(context)) launch<T, D, general.value, D == 256>(args, context);
    else launch<T, D, general.value, false>(args, context);
  });
}

}  // namespace unsloth::cuda
