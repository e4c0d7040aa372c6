#pragma once
#include "attentionGradTiles.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

/** The warps beside the gradient's two main warpgroups: what they share, the copies, and the sums of dQ. */
namespace unsloth::cuda::sm90::attention {

/** Shared memory of the main kernel: offsets in bytes, then barriers by number. */
template <int headDim>
struct GradLayout {
  static constexpr int panels = headDim / 64, stages = headDim == 64 ? 4 : 3, statFloats = 80;
  static constexpr int kvBytes = tileKeys * headDim * 2, qBytes = tileRows * headDim * 2, dsBytes = tileRows * tileKeys * 2;
  static constexpr int kAt = 0, vAt = kvBytes, qAt = 2 * kvBytes, oAt = qAt + stages * qBytes, dsAt = oAt + stages * qBytes,
                       statsAt = dsAt + stages * dsBytes, barriersAt = statsAt + stages * 2 * statFloats * 4;
  static constexpr int kvFull = 0, kvEmpty = 1, qFull = 2, qEmpty = qFull + stages, oFull = qEmpty + stages,
                       oEmpty = oFull + stages, statFull = oEmpty + stages, statEmpty = statFull + stages,
                       dsFull = statEmpty + stages, dsEmpty = dsFull + 2 * stages, tileFull = dsEmpty + stages,
                       tileEmpty = tileFull + 2, barriers = tileEmpty + 2;
  static constexpr int tilesAt = barriersAt + barriers * 8, bytes = tilesAt + 2 * static_cast<int>(sizeof(Tile)) + 1024;
  static constexpr int producerRegisters = 24, dqRegisters = 72, mainRegisters = 208;  // per thread; the last for two warpgroups
  static constexpr int qPanel = tileRows * 128, kvPanel = tileKeys * 128;
};

/** Where a block's shared memory is. */
template <int headDim>
struct GradShared {
  using L = GradLayout<headDim>;
  uint32_t at;
  unsigned char* base;
  __device__ __forceinline__ uint32_t barrier(int index) const { return at + L::barriersAt + index * 8; }
  __device__ __forceinline__ Tile* tiles() const { return reinterpret_cast<Tile*>(base + L::tilesAt); }
  __device__ __forceinline__ float* statistics(int stage) const {
    return reinterpret_cast<float*>(base + L::statsAt) + stage * 2 * L::statFloats;
  }
  /** Calls each(tile) for the tiles of this block, and tells the producer when it is done with one. */
  template <class Fn>
  __device__ __forceinline__ void forTiles(Fn&& each) const {
    for (int round = 0;; ++round) {
      barrierWait(barrier(L::tileFull + round % 2), round / 2 % 2);
      const volatile Tile& tile = tiles()[round % 2];
      if (tile.keys == 0) return;
      each(tile, round);
      __syncwarp();
      if (threadIdx.x % 32 == 0) barrierArrive(barrier(L::tileEmpty + round % 2));
    }
  }
};

/** One warp: takes tiles, and copies K, V and the blocks of Q and dO. */
template <int headDim>
__device__ __forceinline__ void produce(const GradShared<headDim>& shared, const GradParams& params, const CUtensorMap& qMap,
                                        const CUtensorMap& kMap, const CUtensorMap& vMap, const CUtensorMap& oMap) {
  using L = GradLayout<headDim>;
  if (threadIdx.x % 32 != 0) return;
  const int total = params.counter[1];
  Ring<L::stages> ring;
  const auto load = [&](const CUtensorMap& map, int to, int full, int column, int row, int panelBytes) {
    for (int panel = 0; panel < L::panels; ++panel)
      loadBox(shared.at + to + panel * panelBytes, &map, column + panel * 64, row, shared.barrier(full));
  };
  for (int round = 0;; ++round) {
    const int number = atomicAdd(params.counter, 1);
    Tile tile{};
    if (number < total * params.kvHeads * params.parts) tile = chooseTile(params, number, total);
    barrierWait(shared.barrier(L::tileEmpty + round % 2), round / 2 % 2 ^ 1);
    shared.tiles()[round % 2] = tile;
    barrierArrive(shared.barrier(L::tileFull + round % 2));
    if (tile.keys == 0) return;
    barrierWait(shared.barrier(L::kvEmpty), round % 2 ^ 1);
    barrierExpect(shared.barrier(L::kvFull), 2 * L::kvBytes);
    load(kMap, L::kAt, L::kvFull, tile.kvHead * headDim, tile.keyRow, L::kvPanel);
    load(vMap, L::vAt, L::kvFull, tile.kvHead * headDim, tile.keyRow, L::kvPanel);
    for (int head = tile.firstHead; head < tile.endHead; ++head) {
      const int column = head * headDim;
      for (int step = 0; step < tile.steps; ++step, ring.advance()) {
        const int row = (tile.firstStep + step) * tileRows, s = ring.stage;
        barrierWait(shared.barrier(L::qEmpty + s), ring.phase ^ 1);
        barrierExpect(shared.barrier(L::qFull + s), L::qBytes);
        load(qMap, L::qAt + s * L::qBytes, L::qFull + s, column, row, L::qPanel);
        barrierWait(shared.barrier(L::oEmpty + s), ring.phase ^ 1);
        barrierExpect(shared.barrier(L::oFull + s), L::qBytes);
        load(oMap, L::oAt + s * L::qBytes, L::oFull + s, column, row, L::qPanel);
      }
    }
  }
}

/** One warp: lse·log2(e) and delta of each block of rows, as the four lanes of a quad read them. */
template <int headDim>
__device__ __forceinline__ void copyStatistics(const GradShared<headDim>& shared, const GradParams& params) {
  using L = GradLayout<headDim>;
  const int lane = threadIdx.x % 32;
  Ring<L::stages> ring;
  shared.forTiles([&](const volatile Tile& tile, int) {
    const int first = tile.queryRow, end = tile.queryEnd, endHead = tile.endHead;
    for (int head = tile.firstHead; head < endHead; ++head)
      for (int step = 0; step < tile.steps; ++step, ring.advance()) {
        float lse[2], delta[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = (tile.firstStep + step) * tileRows + lane + 32 * i;
          const bool live = row >= first && row < end;
          lse[i] = live ? params.lse[row * params.lseStride + head] * log2e : INFINITY;  // no probability elsewhere
          delta[i] = live ? params.delta[row * params.deltaStride + head] : 0;
        }
        barrierWait(shared.barrier(L::statEmpty + ring.stage), ring.phase ^ 1);
        // columns 8i + 2q + {0, 1} for lane q of a quad side by side, the four lanes' in different banks
        float* to = shared.statistics(ring.stage) + lane % 8 / 2 * 20 + lane / 8 * 2 + lane % 2;
        to[0] = lse[0], to[8] = lse[1], to[L::statFloats] = delta[0], to[L::statFloats + 8] = delta[1];
        barrierArrive(shared.barrier(L::statFull + ring.stage));
      }
  });
}

/** One warpgroup: dQ = dS·K of each block of rows, added to the sums in global memory. */
template <class T, int headDim>
__device__ __forceinline__ void sumDq(const GradShared<headDim>& shared, const GradParams& params) {
  using L = GradLayout<headDim>;
  const int thread = threadIdx.x % 128;
  const bool signals = thread % 32 == 0;
  Ring<L::stages> ring;
  shared.forTiles([&](const volatile Tile& tile, int round) {
    barrierWait(shared.barrier(L::kvFull), round % 2);
    const int endHead = tile.endHead;
    for (int head = tile.firstHead; head < endHead; ++head)
      for (int step = 0; step < tile.steps; ++step, ring.advance()) {
        const int number = tile.firstStep + step;
        const int64_t at = static_cast<int64_t>(number) * params.heads + head;
        int* turn = nullptr;
        barrierWait(shared.barrier(L::dsFull + ring.stage), ring.phase);
        barrierWait(shared.barrier(L::dsFull + L::stages + ring.stage), ring.phase);
        if (params.turns) {
          // Tiles of later keys first; they have started before this one.
          const int newest = min(tile.queryEnd - 1, number * tileRows + tileRows - 1) + tile.shift;
          turn = params.turns + at + static_cast<int64_t>(tile.sequence) * params.heads;
          if (thread == 0) awaitTurn(turn, newest / tileKeys);
          namedBarrier(1, 128);
        }
#pragma unroll 1
        for (int panel = 0; panel < L::panels; ++panel) {
          float dq[32];
          const uint64_t ds = operandDescriptor(shared.at + L::dsAt + ring.stage * L::dsBytes),
                         keys = operandDescriptor(shared.at + L::kAt + panel * L::kvPanel, L::kvPanel);
          wgmmaFence();
#pragma unroll
          for (int k = 0; k < tileKeys / 16; ++k) wgmma<T, 64, 1, 1>(dq, ds + k * 128, keys + k * 128, k > 0);
          wgmmaCommit();
          wgmmaWait<0>();
          pin(dq);
          if (panel == L::panels - 1 && signals) barrierArrive(shared.barrier(L::dsEmpty + ring.stage));
          float* to = params.dq + at * (tileRows * headDim) + panel * tileRows * 64 + thread * 4;
#pragma unroll
          for (int i = 0; i < 8; ++i) reduceAdd(to + i * 512, dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
        }
        if (params.turns) {
          __threadfence();
          namedBarrier(1, 128);
          if (thread == 0) passTurn(turn);
        }
      }
    if (signals) barrierArrive(shared.barrier(L::kvEmpty));
  });
}

}  // namespace unsloth::cuda::sm90::attention
