#include <algorithm>

#include "../attention.h"
#include "../element.cuh"
#include "attentionGradTiles.cuh"
#include "attentionWgmma.cuh"
#include "tensorMap.h"
#include "tma.cuh"

namespace unsloth::cuda {
namespace {

using namespace sm90;
using namespace sm90::attention;

/** One block of 128 keys of one kv head, as the producer tells it to the other warps. */
struct Tile {
  int keyRow;              // first row in k and v
  int keys;                // live ones from there on; 0: no more tiles
  int kvHead;
  int firstStep, steps;    // aligned blocks of 64 rows of q that see any of the keys
  int queryRow, queryEnd;  // the sequence's rows in q
  int shift;               // row of q + shift − (key − first key of the tile) ≥ 0: the key is visible
  int slot;                // sequence number: makes (step, slot) unique
};

template <int headDim>
struct Layout {
  static constexpr int panels = headDim / 64, qStages = 3, oStages = 2, statStages = 2;
  static constexpr int kvBytes = tileKeys * headDim * 2, qBytes = tileRows * headDim * 2, dsBytes = tileRows * tileKeys * 2;
  static constexpr int kAt = 0, vAt = kvBytes, qAt = 2 * kvBytes, oAt = qAt + qStages * qBytes, dsAt = oAt + oStages * qBytes,
                       dqAt = dsAt + 2 * dsBytes, statsAt = dqAt + tileRows * headDim * 4,
                       barriersAt = statsAt + statStages * 2 * tileRows * 4;
  static constexpr int kvFull = 0, kvEmpty = 1, qFull = 2, qEmpty = qFull + qStages, oFull = qEmpty + qStages, oEmpty = oFull + oStages,
                       statFull = oEmpty + oStages, statEmpty = statFull + statStages, tileFull = statEmpty + statStages,
                       tileEmpty = tileFull + 2, barriers = tileEmpty + 2;
  static constexpr int tilesAt = barriersAt + barriers * 8, bytes = tilesAt + 2 * static_cast<int>(sizeof(Tile)) + 1024;
};

/** Hides scores of keys (rows) from queries (columns) before column `limit` or, with a window, from `limit` + window on. */
template <bool windowed>
__device__ __forceinline__ void mask(float (&scores)[32], int limit, int window) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int column = i / 4 * 8 + i % 2, below = i % 4 / 2 * 8;
    if (column < limit + below || (windowed && column >= limit + below + window)) scores[i] = -INFINITY;
  }
}

template <class T>
__device__ __forceinline__ void toOperand(uint32_t (&p)[4][4], const float (&values)[32]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) p[i / 4][i % 4] = packPair<T>(values[2 * i], values[2 * i + 1]);
}

/** The producer's and the statistics warp's view of the blocks of rows of q that a tile goes through. */
__device__ __forceinline__ Tile describeTile(const Sequences& where, const GradParams& params, int number, int sequence, int first,
                                             int count) {
  const int begin = where.qStart[sequence], queries = where.qStart[sequence + 1] - begin, keys = where.kvLength[sequence],
            local = number - first, offset = keys - queries,
            block = params.turns ? count - 1 - local % count : local % count, firstKey = block * tileKeys;
  Tile tile;
  tile.kvHead = local / count;
  tile.keyRow = where.kvStart[sequence] + firstKey;
  tile.keys = min(tileKeys, keys - firstKey);
  tile.queryRow = begin, tile.queryEnd = begin + queries;
  tile.shift = offset - begin - firstKey;
  tile.slot = sequence;
  int end = begin + queries;
  if (params.window > 0) end = min(end, begin + firstKey + tileKeys - 1 + params.window - offset);
  tile.firstStep = (begin + max(0, firstKey - offset)) / tileRows;
  tile.steps = max(0, (end + tileRows - 1) / tileRows - tile.firstStep);
  if (queries == 0) tile.steps = 0;
  return tile;
}

/**
 * Gradient of flash attention (arXiv 2205.14135, 2407.08608) for 128 keys of one kv head per tile; goes through all blocks of 64
 * query rows of all heads of its group, so that dK and dV stay in registers. Each of two warpgroups holds 64 keys:
 * Sᵀ = KQᵀ, dPᵀ = VdOᵀ, Pᵀ = exp(Sᵀ − lse), dSᵀ = Pᵀ⊙(dPᵀ − delta), dV += PᵀdO, dK += dSᵀQ; dQ = dS·K is added to fp32 scratch
 * by the copy engine. The products dQ and dK of a block run while Pᵀ and dSᵀ of the next one are computed. 10·headDim FLOPs per
 * visible pair and head.
 */
template <class T, int headDim, bool softcapped, bool windowed>
__global__ void __launch_bounds__(384, 1)
    gradKernel(const __grid_constant__ CUtensorMap qMap, const __grid_constant__ CUtensorMap kMap,
               const __grid_constant__ CUtensorMap vMap, const __grid_constant__ CUtensorMap oMap,
               const __grid_constant__ GradParams params) {
  using L = Layout<headDim>;
  constexpr int consumerWarps = 8, qPanel = tileRows * 128, kvPanel = tileKeys * 128, dqColumns = headDim / 2;
  extern __shared__ unsigned char raw[];
  const uint32_t shared = (sharedAddress(raw) + 1023) & ~1023u;
  unsigned char* base = raw + (shared - sharedAddress(raw));
  Tile* tiles = reinterpret_cast<Tile*>(base + L::tilesAt);
  float* stats = reinterpret_cast<float*>(base + L::statsAt);
  const auto barrier = [&](int index) { return shared + L::barriersAt + index * 8; };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  if (threadIdx.x == 0) {
    const auto init = [&](int full, int empty, int stages, int readers) {
      for (int s = 0; s < stages; ++s) barrierInit(barrier(full + s), 1), barrierInit(barrier(empty + s), readers);
    };
    init(L::kvFull, L::kvEmpty, 1, consumerWarps);
    init(L::qFull, L::qEmpty, L::qStages, consumerWarps);
    init(L::oFull, L::oEmpty, L::oStages, consumerWarps);
    init(L::statFull, L::statEmpty, L::statStages, consumerWarps);
    init(L::tileFull, L::tileEmpty, 2, consumerWarps + 1);
    barrierInitFence();
  }
  __syncthreads();

  if (warp < 4) {
    fewerRegisters<40>();
    if (warp == 0) {
      if (lane == 0) prefetchMap(&qMap), prefetchMap(&kMap), prefetchMap(&vMap), prefetchMap(&oMap);
      TileCursor<tileKeys, true> cursor(params.sequences, params.kvHeads);
      Ring<L::qStages> q;
      Ring<L::oStages> o;
      for (int round = 0;; ++round) {
        int number = 0, sequence = 0, first = 0, count = 0;
        if (lane == 0) number = atomicAdd(params.counter, 1);
        number = __shfl_sync(0xffffffffu, number, 0);
        const bool more = cursor.find(number, sequence, first, count);
        if (lane == 0) {
          Tile tile{};
          if (more) tile = describeTile(params.sequences, params, number, sequence, first, count);
          barrierWait(barrier(L::tileEmpty + round % 2), round / 2 % 2 ^ 1);
          tiles[round % 2] = tile;
          barrierArrive(barrier(L::tileFull + round % 2));
          const auto load = [&](const CUtensorMap& map, int to, int full, int column, int row, int panelBytes) {
            for (int panel = 0; panel < L::panels; ++panel)
              loadBox(shared + to + panel * panelBytes, &map, column + panel * 64, row, barrier(full));
          };
          if (more) {
            barrierWait(barrier(L::kvEmpty), round % 2 ^ 1);
            barrierExpect(barrier(L::kvFull), 2 * L::kvBytes);
            load(kMap, L::kAt, L::kvFull, tile.kvHead * headDim, tile.keyRow, kvPanel);
            load(vMap, L::vAt, L::kvFull, tile.kvHead * headDim, tile.keyRow, kvPanel);
            for (int member = 0; member < params.group; ++member) {
              const int column = (tile.kvHead * params.group + member) * headDim;
              for (int step = 0; step < tile.steps; ++step) {
                const int row = (tile.firstStep + step) * tileRows;
                barrierWait(barrier(L::qEmpty + q.stage), q.phase ^ 1);
                barrierExpect(barrier(L::qFull + q.stage), L::qBytes);
                load(qMap, L::qAt + q.stage * L::qBytes, L::qFull + q.stage, column, row, qPanel);
                q.advance();
                barrierWait(barrier(L::oEmpty + o.stage), o.phase ^ 1);
                barrierExpect(barrier(L::oFull + o.stage), L::qBytes);
                load(oMap, L::oAt + o.stage * L::qBytes, L::oFull + o.stage, column, row, qPanel);
                o.advance();
              }
            }
          }
        }
        __syncwarp();
        if (!more) return;
      }
    }
    if (warp == 1) {
      Ring<L::statStages> ring;
      for (int round = 0;; ++round) {
        barrierWait(barrier(L::tileFull + round % 2), round / 2 % 2);
        const Tile tile = tiles[round % 2];
        __syncwarp();
        if (lane == 0) barrierArrive(barrier(L::tileEmpty + round % 2));
        if (tile.keys == 0) return;
        for (int member = 0; member < params.group; ++member) {
          const int head = tile.kvHead * params.group + member;
          for (int step = 0; step < tile.steps; ++step) {
            float lse[2], delta[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int row = (tile.firstStep + step) * tileRows + lane + 32 * i;
              const bool live = row >= tile.queryRow && row < tile.queryEnd;
              lse[i] = live ? params.lse[row * params.lseStride + head] * log2e : INFINITY;  // no probability elsewhere
              delta[i] = live ? params.delta[row * params.deltaStride + head] : 0;
            }
            barrierWait(barrier(L::statEmpty + ring.stage), ring.phase ^ 1);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              stats[ring.stage * 2 * tileRows + lane + 32 * i] = lse[i];
              stats[(ring.stage * 2 + 1) * tileRows + lane + 32 * i] = delta[i];
            }
            __syncwarp();
            if (lane == 0) barrierArrive(barrier(L::statFull + ring.stage));
            ring.advance();
          }
        }
      }
    }
    return;
  }

  moreRegisters<232>();
  const int warpgroup = warp / 4 - 1, thread = threadIdx.x % 128, rowInTile = warpgroup * 64 + warp % 4 * 16 + lane / 4;
  // stmatrix: this lane's row of the four 8×8 matrices that make one operand of 16 columns
  const uint32_t dsRow = shared + L::dsAt + (warpgroup * 64 + warp % 4 * 16 + lane % 16) * 128;
  const int dsBlock = lane / 16, dsSwizzle = lane % 8;
  Ring<L::qStages> q;
  Ring<L::oStages> o;
  Ring<L::statStages> stat;
  const auto signal = [&](int index) {
    if (lane == 0) barrierArrive(barrier(index));
  };
  const uint64_t kRows = descriptor(shared + L::kAt + warpgroup * 64 * 128), vRows = descriptor(shared + L::vAt + warpgroup * 64 * 128),
                 kColumns = descriptor(shared + L::kAt + (headDim == 128 ? warpgroup * kvPanel : warpgroup * 64), kvPanel);

  for (int round = 0;; ++round) {
    barrierWait(barrier(L::tileFull + round % 2), round / 2 % 2);
    const Tile tile = tiles[round % 2];
    __syncwarp();
    signal(L::tileEmpty + round % 2);
    if (tile.keys == 0) break;

    float dk[headDim / 2], dv[headDim / 2], s[32], dp[32], dq[dqColumns / 2];
    uint32_t p[4][4];
#pragma unroll
    for (int i = 0; i < headDim / 2; ++i) dk[i] = dv[i] = 0;
    int buffer = 0, lastQ = 0, lastO = 0, lastStep = 0, lastHead = 0;

    const auto multiplyDq = [&] {  // of the block before
      const uint64_t ds = descriptor(shared + L::dsAt + (buffer ^ 1) * L::dsBytes);
#pragma unroll
      for (int k = 0; k < tileKeys / 16; ++k)
        Wgmma<T, dqColumns>::template shared<1, 1>(dq, ds + k * 128, kColumns + k * 128, k > 0);
      wgmmaCommit();
    };
    const auto multiplyDk = [&] {  // of the block before
      const uint64_t ds = descriptor(shared + L::dsAt + (buffer ^ 1) * L::dsBytes + warpgroup * 64 * 128),
                     rows = descriptor(shared + L::qAt + lastQ * L::qBytes, qPanel);
#pragma unroll
      for (int k = 0; k < tileRows / 16; ++k) Wgmma<T, headDim>::template shared<0, 1>(dk, ds + k * 2, rows + k * 128, 1);
      wgmmaCommit();
    };
    const auto addDq = [&] {
      float4* stage = reinterpret_cast<float4*>(base + L::dqAt + warpgroup * tileRows * dqColumns * 4);
#pragma unroll
      for (int i = 0; i < dqColumns / 8; ++i)
        stage[i * 128 + thread] = make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
      proxyFence();
      namedBarrier(2 + warpgroup, 128);
      if (thread == 0) {
        const int64_t at = (static_cast<int64_t>(lastStep) * params.heads + lastHead) * 2 + warpgroup;
        float* to = params.dq + at * tileRows * dqColumns;
        const uint32_t from = shared + L::dqAt + warpgroup * tileRows * dqColumns * 4;
        constexpr int bytes = tileRows * dqColumns * 4;
        if (params.turns) {
          // Tiles of later keys first; they have started before this one.
          const int newest = min(tile.queryEnd - 1, lastStep * tileRows + tileRows - 1) + tile.shift;
          int* turn = params.turns + ((static_cast<int64_t>(lastStep) + tile.slot) * params.heads + lastHead) * 2 + warpgroup;
          awaitTurn(turn, newest / tileKeys);
          bulkReduceAdd(to, from, bytes);
          bulkWait<0>();
          passTurn(turn);
        } else {
          bulkReduceAdd(to, from, bytes);
        }
      }
    };
    const auto block = [&](auto isFirst, int head, int step) {
      constexpr bool first = decltype(isFirst)::value;
      barrierWait(barrier(L::qFull + q.stage), q.phase);
      const uint64_t qRows = descriptor(shared + L::qAt + q.stage * L::qBytes);
      pin(s);
      wgmmaFence();
#pragma unroll
      for (int k = 0; k < headDim / 16; ++k)
        Wgmma<T, 64>::template shared<0, 0>(s, kRows + (k / 4 * kvPanel + k % 4 * 32) / 16, qRows + (k / 4 * qPanel + k % 4 * 32) / 16,
                                            k > 0);
      wgmmaCommit();
      if constexpr (!first) {
        multiplyDq();
        wgmmaWait<2>();
        pin(dv);
        signal(L::oEmpty + lastO);
        wgmmaWait<1>();
      } else {
        wgmmaWait<0>();
      }
      pin(s);
      barrierWait(barrier(L::statFull + stat.stage), stat.phase);
      const float* lse = stats + stat.stage * 2 * tileRows + lane % 4 * 2;
      if constexpr (softcapped) {
#pragma unroll
        for (int i = 0; i < 32; ++i) s[i] = tanhApprox(s[i] * params.inner);
      }
      const int row = step * tileRows, ahead = row + tile.shift;
      if (ahead < tileKeys - 1 || (windowed && ahead + tileRows > params.window))
        mask<windowed>(s, rowInTile - ahead - lane % 4 * 2, params.window);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 l = *reinterpret_cast<const float2*>(lse + 8 * i);
        s[4 * i] = exp2Approx(fmaf(s[4 * i], params.scaleLog2, -l.x));
        s[4 * i + 1] = exp2Approx(fmaf(s[4 * i + 1], params.scaleLog2, -l.y));
        s[4 * i + 2] = exp2Approx(fmaf(s[4 * i + 2], params.scaleLog2, -l.x));
        s[4 * i + 3] = exp2Approx(fmaf(s[4 * i + 3], params.scaleLog2, -l.y));
      }
      toOperand<T>(p, s);
      if constexpr (!first) {
        wgmmaWait<0>();
        pin(dq);
        addDq();
      }
      barrierWait(barrier(L::oFull + o.stage), o.phase);
      const uint64_t oRows = descriptor(shared + L::oAt + o.stage * L::qBytes),
                     oColumns = descriptor(shared + L::oAt + o.stage * L::qBytes, qPanel);
      pin(dp);
      wgmmaFence();
#pragma unroll
      for (int k = 0; k < headDim / 16; ++k)
        Wgmma<T, 64>::template shared<0, 0>(dp, vRows + (k / 4 * kvPanel + k % 4 * 32) / 16, oRows + (k / 4 * qPanel + k % 4 * 32) / 16,
                                            k > 0);
      wgmmaCommit();
      if constexpr (!first) multiplyDk();
#pragma unroll
      for (int k = 0; k < tileRows / 16; ++k) Wgmma<T, headDim>::template registers<1>(dv, p[k], oColumns + k * 128, 1);
      wgmmaCommit();
      wgmmaWait<first ? 1 : 2>();
      pin(dp);
      const float* delta = lse + tileRows;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 d = *reinterpret_cast<const float2*>(delta + 8 * i);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float x = s[4 * i + e] * (dp[4 * i + e] - (e % 2 ? d.y : d.x));
          if constexpr (softcapped) {  // 1 − tanh², the tanh from P = exp(softcap·tanh − lse)
            const float y = (log2f(s[4 * i + e]) + lse[8 * i + e % 2]) / params.scaleLog2;
            x *= fmaxf(0.0f, 1 - fminf(y * y, 1.0f));
          }
          dp[4 * i + e] = x;
        }
      }
      __syncwarp();
      signal(L::statEmpty + stat.stage);
      uint32_t ds[4][4];
      toOperand<T>(ds, dp);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        storeMatrices(dsRow + buffer * L::dsBytes + ((2 * k + dsBlock ^ dsSwizzle) << 4), ds[k]);
      proxyFence();
      if constexpr (!first) {
        wgmmaWait<1>();
        pin(dk);
        signal(L::qEmpty + lastQ);
      }
      if (thread == 0) bulkWaitRead<0>();
      namedBarrier(1, 256);
      buffer ^= 1;
      lastQ = q.stage, lastO = o.stage, lastStep = step, lastHead = head;
      q.advance(), o.advance(), stat.advance();
    };

    barrierWait(barrier(L::kvFull), round % 2);
    if (tile.steps > 0) {
      int step = 0, member = 0;
      const auto next = [&] {
        if (++step == tile.steps) step = 0, ++member;
      };
      block(std::true_type{}, tile.kvHead * params.group, tile.firstStep);
      next();
      for (; member < params.group; next()) block(std::false_type{}, tile.kvHead * params.group + member, tile.firstStep + step);
      wgmmaFence();
      multiplyDq();
      multiplyDk();
      wgmmaWait<2>();
      pin(dv);
      signal(L::oEmpty + lastO);
      wgmmaWait<1>();
      pin(dq);
      addDq();
      wgmmaWait<0>();
      pin(dk);
      signal(L::qEmpty + lastQ);
      if (thread == 0) bulkWaitRead<0>();
      namedBarrier(1, 256);
    }
    signal(L::kvEmpty);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = rowInTile + half * 8;
      const int64_t at = tile.keyRow + row;
      storeRow<T, headDim>(static_cast<T*>(params.dk) + at * params.dkStride + tile.kvHead * headDim, dk, half, params.scale, row < tile.keys);
      storeRow<T, headDim>(static_cast<T*>(params.dv) + at * params.dvStride + tile.kvHead * headDim, dv, half, 1, row < tile.keys);
    }
  }
  if (thread == 0) bulkWait<0>();
}

template <class T, int headDim, bool softcapped, bool windowed>
void launch(const AttentionArgs& args, const Context& context) {
  using L = Layout<headDim>;
  auto* kernel = gradKernel<T, headDim, softcapped, windowed>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::bytes), "attentionGrad");
  GradParams params = gradParams(args, context);
  params.scaleLog2 = (softcapped ? args.softcap : args.scale) * log2e;
  params.inner = softcapped ? args.scale / args.softcap : 0;
  prepareGrad<T, headDim>(args, params, context);
  const int blocks = static_cast<int>(std::min<int64_t>(context.gpu->multiprocessors, args.keyTiles(tileKeys) * args.kvHeads));
  kernel<<<blocks, 384, L::bytes, context.stream>>>(tensorMap(args.q, tileRows, 64), tensorMap(args.k, tileKeys, 64),
                                                    tensorMap(args.v, tileKeys, 64), tensorMap(args.dO, tileRows, 64), params);
  checkLaunch("attentionGrad");
  finishGrad<T, headDim>(args, params, context);
}

template <class T, int headDim>
void chooseVariant(const AttentionArgs& args, const Context& context) {
  if (args.softcap > 0) {
    if (args.window > 0) launch<T, headDim, true, true>(args, context);
    else launch<T, headDim, true, false>(args, context);
  } else {
    if (args.window > 0) launch<T, headDim, false, true>(args, context);
    else launch<T, headDim, false, false>(args, context);
  }
}

template <class T>
void chooseHeadDim(const AttentionArgs& args, const Context& context) {
  if (args.headDim == 64) chooseVariant<T, 64>(args, context);
  else chooseVariant<T, 128>(args, context);
}

}  // namespace

bool attentionGradWgmma(const AttentionArgs& args, const Context& context) {
  if (context.gpu->capability != 90 || (args.q.dtype != DType::BF16 && args.q.dtype != DType::F16)) return false;
  if (args.headDim != 64 && args.headDim != 128) return false;
  for (const View* v : {&args.q, &args.k, &args.v, &args.o, &args.dO, &args.dq, &args.dk, &args.dv})
    if (!tensorMapFits(*v)) return false;
  if (args.q.dtype == DType::BF16) chooseHeadDim<bf16>(args, context);
  else chooseHeadDim<__half>(args, context);
  return true;
}

}  // namespace unsloth::cuda
