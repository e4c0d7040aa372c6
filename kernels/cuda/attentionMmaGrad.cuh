#pragma once
#include <algorithm>

#include "attentionMma.cuh"

namespace unsloth::cuda {

/** The two halves of the gradient. delta must be there, and shared memory for `stagesOf` at least one. */
void attentionGradKeysMma(const AttentionArgs& args, const Context& context);
void attentionGradQueriesMma(const AttentionArgs& args, const Context& context);

/**
 * How a block of the kernel for dk and dv divides its work. Of each tile of `keys` keys every warp owns 16·keyTiles. When
 * `halves` is 2, two warps share their keys: each computes the probabilities of half of the queries, they exchange them, and each
 * owns half of the columns of dk and dv. `small`: for head dimension 256 where shared memory is that of a consumer GPU.
 */
template <int D, bool small = false>
struct GradKeysShape {
  static constexpr int halves = D > 128 ? 2 : 1, keyTiles = D == 64 ? 2 : 1, keys = D == 64 || D == 96 ? 128 : small ? 32 : 64;
  static constexpr int queries = D == 128 || small ? 32 : 64;   // rows of a tile of q and dO
  static constexpr int chunk = D == 96 ? 64 : small ? 16 : 32;  // queries whose probabilities a warp holds at once
  static constexpr int warps = keys / 16 / keyTiles * halves, threads = warps * 32, columns = D / halves;
  static constexpr size_t fixedBytes = (2 * keys * D + (halves > 1 ? 2 * keys * queries : 0)) * 2;
  static constexpr size_t stageBytes = 2 * queries * D * 2 + 2 * queries * 4;
  static constexpr int blocks = 65536 / 256 / threads;  // that registers allow on a multiprocessor
};

/** How a block of the kernel for dq divides its work. `small`: for head dimension 128 on such a GPU. */
template <int D, bool small = false>
struct GradQueriesShape {
  static constexpr int warps = 4, threads = 128, queries = D > 128 || small ? 64 : 128, keys = D == 64 ? 64 : 32;
  static constexpr size_t fixedBytes = 2 * queries * D * 2, stageBytes = 2 * keys * D * 2;
  static constexpr int blocks = 2;
};

/** Whether a multiprocessor has less shared memory than those made for data centres: up to 100 KB. */
inline bool hasSmallShared(const Context& context) { return context.gpu->sharedPerBlock < 160 * 1024; }

/**
 * Tiles in flight that a multiprocessor has shared memory for without running fewer blocks at once: 2, 1, or 0 when not one fits.
 */
template <class Shape>
int stagesOf(const Context& context) {
  constexpr size_t reserved = 1024;  // what the driver takes of each block
  const auto running = [&](size_t stages) {
    return std::min<size_t>(
        Shape::blocks, (context.gpu->sharedPerBlock + reserved) / (Shape::fixedBytes + stages * Shape::stageBytes + reserved));
  };
  return running(1) == 0 ? 0 : running(2) >= running(1) ? 2 : 1;
}

/** Waits for the two warps of pair number `pair`. */
__device__ __forceinline__ void pairBarrier(int pair) { asm volatile("bar.sync %0, 64;" ::"r"(pair + 1) : "memory"); }

/** The probability of a dot product, and in `bend` how a softcap flattens its score. `shift`: lse·log₂e. */
template <bool general>
__device__ __forceinline__ float probabilityOf(const AttentionArgs& a, float dot, float scale, float inner, float shift,
                                               float& bend) {
  bend = 1;
  if (general && a.softcap > 0) {
    const float bent = tanhFast(dot * inner);
    const float p = exp2Fast(bent * a.softcap * log2e - shift);
    bend = 1 - bent * bent;
    return p;
  }
  return exp2Fast(dot * scale - shift);
}

/** fn(Tag<type>, padded head dimension, whether there is a window or a softcap) for the instance that `args` needs. */
template <class Fn>
void withInstance(const AttentionArgs& args, Fn&& fn) {
  withHeadDim(args.headDim, [&](auto width) {
    const auto withGeneral = [&](auto general) {
      if (args.q.dtype == DType::BF16) fn(Tag<bf16>{}, width, general);
      else fn(Tag<__half>{}, width, general);
    };
    if (args.window > 0 || args.softcap > 0) withGeneral(std::true_type{});
    else withGeneral(std::false_type{});
  });
}

}  // namespace unsloth::cuda
