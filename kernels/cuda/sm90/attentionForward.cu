#include <algorithm>

#include "../attention.h"
#include "../element.cuh"
#include "../launch.cuh"
#include "attentionTiles.cuh"
#include "tensorMap.h"
#include "tma.cuh"
#include "wgmma.cuh"

namespace unsloth::cuda {
namespace {

using namespace sm90;
using namespace sm90::attention;

struct Params {
  Sequences sequences;
  void* o;
  float* lse;
  int64_t oStride, lseStride;
  int heads, group, window;
  float scaleLog2;  // what exp2 multiplies scores by: scale·log2(e), with a softcap softcap·log2(e)
  float inner;      // with a softcap: scale/softcap
  int* counter;     // tiles taken so far; zero at the start
};

/** One tile of query rows, as the producer tells it to the consumers. */
struct Tile {
  int row;       // first query row in q and o
  int rows;      // live rows from there on; 0: no more tiles
  int position;  // of the first row in its sequence
  int head;
  int firstBlock, endBlock;  // blocks of keys, worked off from the last to the first
  int wholeFrom, wholeEnd;   // those that every row of the tile sees whole
};

template <int headDim, int tileRows, int tileKeys>
struct Layout {
  static constexpr int warpgroups = tileRows / 64, panels = (headDim + 63) / 64, stages = 2, qStages = headDim > 128 ? 1 : 2;
  static constexpr int qBytes = tileRows * panels * 128, kvBytes = tileKeys * panels * 128;
  static constexpr int kAt = qStages * qBytes, vAt = kAt + stages * kvBytes, barriersAt = vAt + stages * kvBytes;
  // barriers, 8 bytes each
  static constexpr int qFull = 0, qEmpty = qStages, kFull = qEmpty + qStages, kEmpty = kFull + stages, vFull = kEmpty + stages,
                       vEmpty = vFull + stages, tileFull = vEmpty + stages, tileEmpty = tileFull + 2, barriers = tileEmpty + 2;
  static constexpr int tilesAt = barriersAt + barriers * 8, bytes = tilesAt + 2 * static_cast<int>(sizeof(Tile)) + 1024;
};

/**
 * Hides scores of keys that the thread's two rows do not see. `limit`: the last visible key of the upper row, counted from the
 * thread's first column; `oldest`: the first visible one.
 */
template <int count>
__device__ __forceinline__ void mask(float (&scores)[count], int limit, int oldest) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const int column = i / 4 * 8 + i % 2, below = i % 4 / 2 * 8;
    if (column > limit + below || column < oldest + below) scores[i] = -INFINITY;
  }
}

/** The running softmax of a thread's two rows. */
struct Softmax {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  /**
   * scores become exp2(scale·(score − top)); returns in `rescale` what earlier results must be multiplied by. A new maximum
   * counts only when it is 2⁸ times the old one: until then the numbers are larger than 1, which fp32 sums do not mind.
   */
  template <int count>
  __device__ __forceinline__ void step(float (&scores)[count], float scale, float (&rescale)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = top[half];
#pragma unroll
      for (int i = 2 * half; i < count; i += 4) highest = fmaxf(highest, fmaxf(scores[i], scores[i + 1]));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
      if ((highest - top[half]) * scale <= 8) highest = top[half];
      const float base = highest == -INFINITY ? 0.0f : highest * scale;
      rescale[half] = highest == top[half] ? 1.0f : exp2Approx(top[half] * scale - base);
      top[half] = highest;
      float total = sum[half] * rescale[half];
#pragma unroll
      for (int i = 2 * half; i < count; i += 4) {
        scores[i] = exp2Approx(fmaf(scores[i], scale, -base));
        scores[i + 1] = exp2Approx(fmaf(scores[i + 1], scale, -base));
        total += scores[i] + scores[i + 1];
      }
      sum[half] = total;
    }
  }
};

template <class T, int count>
__device__ __forceinline__ void toOperand(uint32_t (&p)[count / 8][4], const float (&scores)[count]) {
#pragma unroll
  for (int i = 0; i < count / 2; ++i) p[i / 4][i % 4] = packPair<T>(scores[2 * i], scores[2 * i + 1]);
}

/**
 * Flash attention (arXiv 2407.08608) of tileRows query rows of one head per tile: one warp copies Q and blocks of K and V to
 * shared memory, each of the other warpgroups holds 64 rows: S = QKᵀ of the next block runs while the softmax of this one does,
 * and the warpgroups take turns at the tensor cores. 4·headDim FLOPs per visible pair; K and V are read from L2 once per tile.
 */
template <class T, int headDim, int tileRows, int tileKeys, bool softcapped>
__global__ void __launch_bounds__(tileRows * 2 + 128, 1)
    forwardKernel(const __grid_constant__ CUtensorMap qMap, const __grid_constant__ CUtensorMap kMap,
                  const __grid_constant__ CUtensorMap vMap, const __grid_constant__ Params params) {
  using L = Layout<headDim, tileRows, tileKeys>;
  constexpr int consumerWarps = L::warpgroups * 4, qPanel = tileRows * 128, kvPanel = tileKeys * 128;
  extern __shared__ unsigned char raw[];
  const uint32_t shared = (sharedAddress(raw) + 1023) & ~1023u;
  unsigned char* base = raw + (shared - sharedAddress(raw));
  Tile* tiles = reinterpret_cast<Tile*>(base + L::tilesAt);
  const auto barrier = [&](int index) { return shared + L::barriersAt + index * 8; };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  if (threadIdx.x == 0) {
    for (int s = 0; s < L::qStages; ++s) {
      barrierInit(barrier(L::qFull + s), 1);
      barrierInit(barrier(L::qEmpty + s), consumerWarps);
    }
    for (int s = 0; s < L::stages; ++s) {
      barrierInit(barrier(L::kFull + s), 1);
      barrierInit(barrier(L::vFull + s), 1);
      barrierInit(barrier(L::kEmpty + s), consumerWarps);
      barrierInit(barrier(L::vEmpty + s), consumerWarps);
    }
    for (int s = 0; s < 2; ++s) {
      barrierInit(barrier(L::tileFull + s), 1);
      barrierInit(barrier(L::tileEmpty + s), consumerWarps);
    }
    barrierInitFence();
  }
  awaitPrior();
  __syncthreads();

  if (warp < 4) {
    fewerRegisters<L::warpgroups == 2 ? 40 : 32>();
    if (warp != 0) return;
    if (lane == 0) prefetchMap(&qMap), prefetchMap(&kMap), prefetchMap(&vMap);
    TileCursor<tileRows> cursor(params.sequences, params.heads);
    int stageK = 0, phaseK = 1, stageV = 0, phaseV = 1;
    for (int round = 0;; ++round) {
      int number = 0, sequence = 0, first = 0, count = 0;
      if (params.counter == nullptr) number = static_cast<int>(blockIdx.x + round * gridDim.x);
      else if (lane == 0) number = atomicAdd(params.counter, 1);
      number = __shfl_sync(0xffffffffu, number, 0);
      const bool more = cursor.find(number, sequence, first, count);
      if (lane == 0) {
        const int slot = round % 2, phase = round / 2 % 2;
        Tile tile{};
        int key = 0;
        if (more) {
          const Sequences& where = params.sequences;
          const int local = number - first, begin = where.qStart[sequence], queries = where.qStart[sequence + 1] - begin,
                    keys = where.kvLength[sequence], at = (count - 1 - local / params.heads) * tileRows;
          key = where.kvStart[sequence];
          tile.row = begin + at;
          tile.rows = min(tileRows, queries - at);
          tile.position = keys - queries + at;
          tile.head = local % params.heads;
          tile.endBlock = (tile.position + tile.rows + tileKeys - 1) / tileKeys;
          tile.wholeEnd = min(tile.endBlock, (tile.position + 1) / tileKeys);
          tile.firstBlock = max(0, tile.position - params.window + 1) / tileKeys;
          tile.wholeFrom = (max(0, tile.position + tile.rows - params.window) + tileKeys - 1) / tileKeys;
        }
        barrierWait(barrier(L::tileEmpty + slot), phase ^ 1);
        tiles[slot] = tile;
        barrierArrive(barrier(L::tileFull + slot));
        if (more) {
          const int column = tile.head / params.group * headDim;
          const auto load = [&](const CUtensorMap& map, int to, int full, int empty, int& stage, int& phase, int block) {
            barrierWait(barrier(empty + stage), phase);
            barrierExpect(barrier(full + stage), L::kvBytes);
            for (int panel = 0; panel < L::panels; ++panel)
              loadBox(shared + to + stage * L::kvBytes + panel * kvPanel, &map, column + panel * 64, key + block * tileKeys,
                      barrier(full + stage));
            if (++stage == L::stages) stage = 0, phase ^= 1;
          };
          load(kMap, L::kAt, L::kFull, L::kEmpty, stageK, phaseK, tile.endBlock - 1);
          const int q = round % L::qStages;
          barrierWait(barrier(L::qEmpty + q), round / L::qStages % 2 ^ 1);
          barrierExpect(barrier(L::qFull + q), L::qBytes);
          for (int panel = 0; panel < L::panels; ++panel)
            loadBox(shared + q * L::qBytes + panel * qPanel, &qMap, tile.head * headDim + panel * 64, tile.row,
                    barrier(L::qFull + q));
          for (int block = tile.endBlock - 1; block >= tile.firstBlock; --block) {
            if (block > tile.firstBlock) load(kMap, L::kAt, L::kFull, L::kEmpty, stageK, phaseK, block - 1);
            load(vMap, L::vAt, L::vFull, L::vEmpty, stageV, phaseV, block);
          }
        }
      }
      if (!more) return;
    }
  }

  moreRegisters<L::warpgroups == 2 ? 232 : 160>();
  const int warpgroup = warp / 4 - 1, rowInGroup = warp % 4 * 16 + lane / 4, next = (warpgroup + 1) % L::warpgroups;
  int stageK = 0, phaseK = 0, stageV = 0, phaseV = 0;
  const auto signal = [&](int index) {
    if (lane == 0) barrierArrive(barrier(index));
  };
  // Named barrier 1 + w lets warpgroup w issue its products; the last one lets the first begin.
  if (warpgroup == L::warpgroups - 1) namedArrive(1, 256);

  for (int round = 0;; ++round) {
    const int slot = round % 2, qSlot = round % L::qStages;
    barrierWait(barrier(L::tileFull + slot), round / 2 % 2);
    const Tile tile = tiles[slot];
    __syncwarp();
    signal(L::tileEmpty + slot);
    if (tile.rows == 0) break;

    float scores[tileKeys / 2], out[headDim / 2], rescale[2];
    uint32_t p[tileKeys / 16][4];
    Softmax softmax;
#pragma unroll
    for (int i = 0; i < headDim / 2; ++i) out[i] = 0;
    const int position = tile.position + warpgroup * 64 + rowInGroup;

    const auto multiplyQK = [&] {
      const uint64_t q = operandDescriptor(shared + qSlot * L::qBytes + warpgroup * 64 * 128),
                     k = operandDescriptor(shared + L::kAt + stageK * L::kvBytes);
#pragma unroll
      for (int step = 0; step < headDim / 16; ++step)
        wgmma<T, tileKeys, 0, 0>(scores, q + (step / 4 * qPanel + step % 4 * 32) / 16,
                                                  k + (step / 4 * kvPanel + step % 4 * 32) / 16, step > 0);
      wgmmaCommit();
    };
    const auto multiplyPV = [&] {
      const uint64_t v = operandDescriptor(shared + L::vAt + stageV * L::kvBytes, kvPanel);
#pragma unroll
      for (int step = 0; step < tileKeys / 16; ++step)
        wgmma<T, headDim, 1>(out, p[step], v + step * (16 * 128 / 16), 1);
      wgmmaCommit();
    };
    const auto releaseK = [&] {
      signal(L::kEmpty + stageK);
      if (++stageK == L::stages) stageK = 0, phaseK ^= 1;
    };
    const auto releaseV = [&] {
      signal(L::vEmpty + stageV);
      if (++stageV == L::stages) stageV = 0, phaseV ^= 1;
    };
    const auto prepare = [&](int block, bool masked) {
      if constexpr (softcapped) {
#pragma unroll
        for (int i = 0; i < tileKeys / 2; ++i) scores[i] = tanhApprox(scores[i] * params.inner);
      }
      if (masked) {
        const int limit = position - block * tileKeys - lane % 4 * 2;
        mask(scores, limit, limit - params.window + 1);
      }
    };
    // One further block: its scores, while the product of the block before runs.
    const auto advance = [&](int block, bool masked) {
      barrierWait(barrier(L::kFull + stageK), phaseK);
      namedBarrier(1 + warpgroup, 256);
      pin(scores);
      pin(out);
      wgmmaFence();
      multiplyQK();
      barrierWait(barrier(L::vFull + stageV), phaseV);
      multiplyPV();
      namedArrive(1 + next, 256);
      wgmmaWait<1>();
      pin(scores);
      releaseK();
      prepare(block, masked);
      softmax.step(scores, params.scaleLog2, rescale);
      wgmmaWait<0>();
      pin(out);
      releaseV();
      toOperand<T>(p, scores);
      if (__any_sync(0xffffffffu, rescale[0] != 1 || rescale[1] != 1))
#pragma unroll
        for (int i = 0; i < headDim / 2; ++i) out[i] *= rescale[i % 4 / 2];
    };

    barrierWait(barrier(L::qFull + qSlot), round / L::qStages % 2);
    barrierWait(barrier(L::kFull + stageK), phaseK);
    pin(scores);
    wgmmaFence();
    multiplyQK();
    wgmmaWait<0>();
    pin(scores);
    releaseK();
    int block = tile.endBlock - 1;
    prepare(block, true);
    softmax.step(scores, params.scaleLog2, rescale);
    toOperand<T>(p, scores);
    --block;
    for (; block >= tile.wholeEnd && block >= tile.firstBlock; --block) advance(block, true);
    for (; block >= tile.wholeFrom && block >= tile.firstBlock; --block) advance(block, false);
    for (; block >= tile.firstBlock; --block) advance(block, true);
    signal(L::qEmpty + qSlot);
    barrierWait(barrier(L::vFull + stageV), phaseV);
    pin(out);
    wgmmaFence();
    multiplyPV();

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      softmax.sum[half] += __shfl_xor_sync(0xffffffffu, softmax.sum[half], 1);
      softmax.sum[half] += __shfl_xor_sync(0xffffffffu, softmax.sum[half], 2);
    }
    wgmmaWait<0>();
    pin(out);
    releaseV();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warpgroup * 64 + rowInGroup + half * 8;
      const bool live = row < tile.rows;
      const int64_t at = tile.row + row;
      T* to = static_cast<T*>(params.o) + at * params.oStride + tile.head * headDim;
      storeRow<T, headDim>(to, out, half, 1 / softmax.sum[half], live);
      if (live && lane % 4 == 0)
        params.lse[at * params.lseStride + tile.head] = (softmax.top[half] * params.scaleLog2 + log2f(softmax.sum[half])) * ln2;
    }
  }
}

template <class T, int headDim, int tileRows, int tileKeys, bool softcapped>
void launch(const AttentionArgs& args, const Context& context) {
  using L = Layout<headDim, tileRows, tileKeys>;
  auto* kernel = forwardKernel<T, headDim, tileRows, tileKeys, softcapped>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::bytes), "attention");
  Params params;
  params.sequences = {args.qStart, args.kvStart, args.kvLength, args.sequences};
  params.o = args.o.data;
  params.lse = args.lse.f32();
  params.oStride = args.o.ld, params.lseStride = args.lse.ld;
  params.heads = args.heads, params.group = args.group;
  params.window = args.window > 0 ? args.window : 1 << 30;
  params.scaleLog2 = (softcapped ? args.softcap : args.scale) * log2e;
  params.inner = softcapped ? args.scale / args.softcap : 0;
  const int64_t most = args.queryTiles(tileRows) * args.heads;
  params.counter = nullptr;
  // Few tiles are short ones, and are dealt out in turns: clearing a counter would take as long as some of them.
  if (most > 4 * context.gpu->multiprocessors) {
    params.counter = scratch<int>(context, 0, 1, "attention");
    check(cudaMemsetAsync(params.counter, 0, sizeof(int), context.stream), "attention");
  }
  const int blocks = static_cast<int>(std::min<int64_t>(context.gpu->multiprocessors, most));
  launchDependent(context, "attention", kernel, {blocks, tileRows * 2 + 128, L::bytes}, tensorMap(args.q, tileRows, 64),
                  tensorMap(args.k, tileKeys, 64), tensorMap(args.v, tileKeys, 64), params);
}

template <class T, int headDim, int tileRows, int tileKeys>
bool launchEither(const AttentionArgs& args, const Context& context) {
  if (args.softcap > 0) launch<T, headDim, tileRows, tileKeys, true>(args, context);
  else launch<T, headDim, tileRows, tileKeys, false>(args, context);
  return true;
}

}  // namespace

bool attentionWgmma(const AttentionArgs& args, const Context& context) {
  if (context.gpu->capability != 90) return false;
  if (!tensorMapFits(args.q) || !tensorMapFits(args.k) || !tensorMapFits(args.v) || !tensorMapFits(args.o)) return false;
  if (args.q.dtype != DType::BF16) return false;
  switch (args.headDim) {
    case 64: return launchEither<bf16, 64, 192, 128>(args, context);
    case 80: return launchEither<bf16, 80, 128, 128>(args, context);
    case 96: return launchEither<bf16, 96, 128, 128>(args, context);
    case 128: return launchEither<bf16, 128, 128, 128>(args, context);
    case 256: return launchEither<bf16, 256, 128, 64>(args, context);
    default: return false;
  }
}

}  // namespace unsloth::cuda
