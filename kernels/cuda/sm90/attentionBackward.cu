#include <algorithm>

#include "../attention.h"
#include "../element.cuh"
#include "../launch.cuh"
#include "attentionGradRoles.cuh"
#include "tensorMap.h"

namespace unsloth::cuda {
namespace {

using namespace sm90;
using namespace sm90::attention;

/** Hides scores of keys (rows) from queries (columns) before column `limit` or, with a window, from `limit` + window on. */
__device__ __forceinline__ void mask(float (&scores)[32], int limit, int window) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int column = i / 4 * 8 + i % 2, below = i % 4 / 2 * 8;
    if (column < limit + below || column >= limit + below + window) scores[i] = -INFINITY;
  }
}

/** Of four neighbouring columns (two of one block of 8, two of the next) the one of accumulator e of these blocks. */
__device__ __forceinline__ float ofPair(const float4& columns, int e) {
  return e / 4 ? (e % 2 ? columns.w : columns.z) : (e % 2 ? columns.y : columns.x);
}

template <class T>
__device__ __forceinline__ void toOperand(uint32_t (&p)[4][4], const float (&values)[32]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) p[i / 4][i % 4] = packPair<T>(values[2 * i], values[2 * i + 1]);
}

__device__ __forceinline__ float4 loadShared(uint32_t at) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(at) : "memory");
  return x;
}

/**
 * Gradient of flash attention (arXiv 2205.14135, 2407.08608) for 128 keys of one kv head per tile; goes through all blocks of 64
 * query rows of all heads of its group, so that dK and dV stay in registers. Each of two warpgroups holds 64 keys:
 * Sᵀ = KQᵀ, dPᵀ = VdOᵀ, Pᵀ = exp(Sᵀ − lse), dSᵀ = Pᵀ⊙(dPᵀ − delta), dV += PᵀdO, dK += dSᵀQ. A third one adds dQ = dS·K to fp32
 * sums in L2. The warpgroups do not wait for each other: one's products run during the other's arithmetic. 10·headDim FLOPs per
 * visible pair and head.
 */
template <class T, int headDim, bool softcapped>
__global__ void __launch_bounds__(512, 1)
    gradKernel(const __grid_constant__ CUtensorMap qMap, const __grid_constant__ CUtensorMap kMap,
               const __grid_constant__ CUtensorMap vMap, const __grid_constant__ CUtensorMap oMap,
               const __grid_constant__ GradParams params) {
  using L = GradLayout<headDim>;
  constexpr int mainWarps = 8, dqWarps = 4;
  extern __shared__ unsigned char raw[];
  GradShared<headDim> shared;
  shared.at = (sharedAddress(raw) + 1023) & ~1023u;
  shared.base = raw + (shared.at - sharedAddress(raw));
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

  if (threadIdx.x == 0) {
    const auto init = [&](int full, int writers, int empty, int readers, int stages) {
      for (int s = 0; s < stages; ++s) {
        barrierInit(shared.barrier(full + s), writers);
        barrierInit(shared.barrier(empty + s), readers);
      }
    };
    init(L::kvFull, 1, L::kvEmpty, mainWarps + dqWarps, 1);
    init(L::qFull, 1, L::qEmpty, mainWarps, L::stages);
    init(L::oFull, 1, L::oEmpty, mainWarps, L::stages);
    init(L::statFull, 32, L::statEmpty, mainWarps * 32, L::stages);  // every lane, as racecheck knows no other order
    init(L::dsFull, 4, L::dsEmpty, dqWarps, L::stages);
    for (int s = 0; s < L::stages; ++s) barrierInit(shared.barrier(L::dsFull + L::stages + s), 4);
    init(L::tileFull, 1, L::tileEmpty, mainWarps + dqWarps + 1, 2);
    barrierInitFence();
  }
  awaitPrior();
  __syncthreads();

  if (warp < 4) {
    fewerRegisters<L::producerRegisters>();
    if (warp == 0) produce<headDim>(shared, params, qMap, kMap, vMap, oMap);
    if (warp == 1) copyStatistics<headDim>(shared, params);
  } else if (warp >= 12) {
    fewerRegisters<L::dqRegisters>();
    sumDq<T, headDim>(shared, params);
  } else {
    moreRegisters<L::mainRegisters>();
    const int warpgroup = warp / 4 - 1, rowInTile = warpgroup * 64 + warp % 4 * 16 + lane / 4;
    // stmatrix: this lane's row of the four 8×8 matrices that make one operand of 16 columns
    const uint32_t dsRow = shared.at + L::dsAt + (warpgroup * 64 + warp % 4 * 16 + lane % 16) * 128;
    // Wide heads leave no registers for P and dP side by side: dP comes after P, and P is taken as rounded for the product.
    constexpr bool narrow = headDim == 64;
    Ring<L::stages> ring;
    const auto signal = [&](int index) {
      if (lane == 0) barrierArrive(shared.barrier(index));
    };
    shared.forTiles([&](const volatile Tile& tile, int round) {
      float dk[headDim / 2], dv[headDim / 2];
#pragma unroll
      for (int i = 0; i < headDim / 2; ++i) dk[i] = dv[i] = 0;
      // the block before
      const auto stageBefore = [&] { return ring.stage == 0 ? L::stages - 1 : ring.stage - 1; };

      // 64 keys of this warpgroup by the 64 rows of q or dO
      const auto multiplyRows = [&](float (&to)[32], int keysAt, int rowsAt) {
        const uint64_t keys = operandDescriptor(shared.at + keysAt + warpgroup * 64 * 128),
                       rows = operandDescriptor(shared.at + rowsAt);
#pragma unroll
        for (int k = 0; k < headDim / 16; ++k)
          wgmma<T, 64, 0, 0>(to, keys + (k / 4 * L::kvPanel + k % 4 * 32) / 16,
                                              rows + (k / 4 * L::qPanel + k % 4 * 32) / 16, k > 0);
        wgmmaCommit();
      };
      const auto multiplyDk = [&] {  // of the block before
        const int stage = stageBefore();
        barrierWait(shared.barrier(L::dsFull + warpgroup * L::stages + stage), ring.phase ^ (ring.stage == 0));
        const uint64_t ds = operandDescriptor(shared.at + L::dsAt + stage * L::dsBytes + warpgroup * 64 * 128),
                       rows = operandDescriptor(shared.at + L::qAt + stage * L::qBytes, L::qPanel);
        wgmmaFence();
#pragma unroll
        for (int k = 0; k < tileRows / 16; ++k) wgmma<T, headDim, 0, 1>(dk, ds + k * 2, rows + k * 128, 1);
        wgmmaCommit();
      };
      const auto goThrough = [&](auto isFirst, int ahead) {
        constexpr bool first = decltype(isFirst)::value;
        const int stage = ring.stage;
        float s[32], spare[32];
        float(&dp)[32] = narrow ? spare : s;
        uint32_t p[4][4];
        const auto multiplyDp = [&] {
          barrierWait(shared.barrier(L::oFull + stage), ring.phase);
          wgmmaFence();
          multiplyRows(dp, L::vAt, L::oAt + stage * L::qBytes);
        };
        barrierWait(shared.barrier(L::qFull + stage), ring.phase);
        wgmmaFence();
        multiplyRows(s, L::kAt, L::qAt + stage * L::qBytes);
        if constexpr (narrow) multiplyDp();
        if constexpr (!first) multiplyDk();
        barrierWait(shared.barrier(L::statFull + stage), ring.phase);
        const uint32_t lse = shared.at + L::statsAt + stage * 2 * L::statFloats * 4 + lane % 4 * 80;
        wgmmaWait<narrow + !first>();
        pin(s);
        if constexpr (narrow && !first) {
          pin(dv);
          signal(L::oEmpty + stageBefore());
        }
        if constexpr (softcapped) {
#pragma unroll
          for (int i = 0; i < 32; ++i) s[i] = tanhApprox(s[i] * params.inner);
        }
        if (ahead < tileKeys - 1 || ahead + tileRows > params.window) mask(s, rowInTile - ahead - lane % 4 * 2, params.window);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float4 l = loadShared(lse + 16 * i);
#pragma unroll
          for (int e = 0; e < 8; ++e) s[8 * i + e] = exp2Approx(fmaf(s[8 * i + e], params.scaleLog2, -ofPair(l, e)));
        }
        toOperand<T>(p, s);
        const uint64_t rows = operandDescriptor(shared.at + L::oAt + stage * L::qBytes, L::qPanel);
        if constexpr (!narrow) barrierWait(shared.barrier(L::oFull + stage), ring.phase);
        wgmmaFence();
#pragma unroll
        for (int k = 0; k < tileRows / 16; ++k) wgmma<T, headDim, 1>(dv, p[k], rows + k * 128, 1);
        wgmmaCommit();
        if constexpr (!narrow) multiplyDp();
        wgmmaWait<narrow ? 1 + !first : 0>();
        pin(dp);
        if constexpr (!narrow) {
          pin(dv);
          signal(L::oEmpty + stage);
        }
        if constexpr (!narrow && !first) {
          pin(dk);
          signal(L::qEmpty + stageBefore());
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float4 d = loadShared(lse + L::statFloats * 4 + 16 * i);
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            const float probability = narrow ? s[8 * i + e] : half<T>(p[i][e / 2], e % 2);
            float x = probability * (dp[8 * i + e] - ofPair(d, e));
            if constexpr (softcapped) {  // 1 − tanh², the tanh from P = exp(softcap·tanh − lse)
              const float y = (log2f(probability) + ofPair(loadShared(lse + 16 * i), e)) / params.scaleLog2;
              x *= fmaxf(0.0f, 1 - fminf(y * y, 1.0f));
            }
            dp[8 * i + e] = x;
          }
        }
        barrierArrive(shared.barrier(L::statEmpty + stage));
        uint32_t ds[4][4];
        toOperand<T>(ds, dp);
        barrierWait(shared.barrier(L::dsEmpty + stage), ring.phase ^ 1);
#pragma unroll
        for (int k = 0; k < 4; ++k) storeMatrices(dsRow + stage * L::dsBytes + (((2 * k + lane / 16) ^ (lane % 8)) << 4), ds[k]);
        proxyFence();
        __syncwarp();
        signal(L::dsFull + warpgroup * L::stages + stage);
        if constexpr (narrow && !first) {
          wgmmaWait<1>();
          pin(dk);
          signal(L::qEmpty + stageBefore());
        }
        ring.advance();
      };

      barrierWait(shared.barrier(L::kvFull), round % 2);
      if (tile.steps > 0) {
        // `ahead`: the first row's position less that of the tile's first key
        int ahead = tile.firstStep * tileRows + tile.shift, left = tile.endHead - tile.firstHead;
        goThrough(std::true_type{}, ahead);
        for (;;) {
          ahead += tileRows;
          if (ahead == (tile.firstStep + tile.steps) * tileRows + tile.shift) {
            if (--left == 0) break;
            ahead = tile.firstStep * tileRows + tile.shift;
          }
          goThrough(std::false_type{}, ahead);
        }
        multiplyDk();
        wgmmaWait<0>();
        pin(dk);
        pin(dv);
        if (narrow) signal(L::oEmpty + stageBefore());
        signal(L::qEmpty + stageBefore());
      }
      signal(L::kvEmpty);
      if (params.parts > 1) {
        float4* to = reinterpret_cast<float4*>(params.sums + tile.number * tileSums(headDim)) + threadIdx.x - 128;
#pragma unroll
        for (int i = 0; i < headDim / 2; i += 4) {
          to[i * 64] = make_float4(dk[i], dk[i + 1], dk[i + 2], dk[i + 3]);
          to[(headDim / 2 + i) * 64] = make_float4(dv[i], dv[i + 1], dv[i + 2], dv[i + 3]);
        }
        return;
      }
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        const int row = rowInTile + below * 8, column = tile.kvHead * headDim;
        const bool live = row < tile.keys;
        const int64_t at = tile.keyRow + row;
        storeRow<T, headDim>(static_cast<T*>(params.dk) + at * params.dkStride + column, dk, below, params.scale, live);
        storeRow<T, headDim>(static_cast<T*>(params.dv) + at * params.dvStride + column, dv, below, 1, live);
      }
    });
  }
}

template <class T, int headDim, bool softcapped>
void launch(const AttentionArgs& args, const Context& context) {
  using L = GradLayout<headDim>;
  auto* kernel = gradKernel<T, headDim, softcapped>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::bytes), "attentionGrad");
  GradParams params = gradParams(args, context);
  params.scaleLog2 = (softcapped ? args.softcap : args.scale) * log2e;
  params.inner = softcapped ? args.scale / args.softcap : 0;
  prepareGrad<T, headDim>(args, params, context);
  launchDependent(context, "attentionGrad", kernel, {params.blocks, 512, L::bytes}, tensorMap(args.q, tileRows, 64),
                  tensorMap(args.k, tileKeys, 64), tensorMap(args.v, tileKeys, 64), tensorMap(args.dO, tileRows, 64), params);
  finishGrad<T, headDim>(args, params, context);
}

template <class T, int headDim>
bool launchEither(const AttentionArgs& args, const Context& context) {
  if (args.softcap > 0) launch<T, headDim, true>(args, context);
  else launch<T, headDim, false>(args, context);
  return true;
}

}  // namespace

bool attentionGradWgmma(const AttentionArgs& args, const Context& context) {
  if (context.gpu->capability != 90) return false;
  for (const View* v : {&args.q, &args.k, &args.v, &args.o, &args.dO, &args.dq, &args.dk, &args.dv})
    if (!tensorMapFits(*v)) return false;
  if (gradScratchBytes(args, context) > context.workspaceBytes) return false;
  if (context.deterministic && args.k.rows > tileKeys * listKeys) return false;
  if (args.q.dtype != DType::BF16) return false;
  if (args.headDim == 64) return launchEither<bf16, 64>(args, context);
  if (args.headDim == 128) return launchEither<bf16, 128>(args, context);
  return false;
}

}  // namespace unsloth::cuda
