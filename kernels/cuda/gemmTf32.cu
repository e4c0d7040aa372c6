#include "gemmTiles.cuh"
#include "launch.cuh"
#include "mma.cuh"

namespace unsloth::cuda {

using namespace tiles;

namespace {

__device__ unsigned arrived[maxSplitTiles];

/**
 * d[16,8] += a[16,8]·b[8,8] of TF32. Lane l holds, with g = l / 4 and t = l % 4: d as in multiplyAdd; a (g, t), (g+8, t), (g, t+4),
 * (g+8, t+4); b (t, g), (t+4, g). PTX ISA, "Matrix Fragments for mma.m16n8k8".
 */
__device__ __forceinline__ void multiplyAddTf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/**
 * c = [c +] Σ alpha·op(a)op(b) + bias + add with operands rounded to TF32 and sums in fp32: as gemmSimple's kernel, but each of
 * warpsM×warpsN warps adds up its part of the tile on the tensor cores. Rows of shared memory are 8 elements longer than the tile: the
 * lanes of a fragment, 4 rows of 8 neighbours, meet no bank twice. 2mnk FLOPs; reads as there.
 */
template <int tileM, int tileN, int warpsM, int warpsN, int mode>
__global__ void __launch_bounds__(threads) tf32Kernel(const __grid_constant__ TileArgs args) {
  awaitPrior();
#if __CUDA_ARCH__ < 800
  return neverLaunched();
#endif
  static_assert(warpsM * warpsN * 32 == threads);
  using SideA = Side<tileM, mode != 2, 8, true>;
  using SideB = Side<tileN, mode == 0, 8, true>;
  __shared__ alignas(16) float sharedA[2][depth * SideA::stride];
  __shared__ alignas(16) float sharedB[2][depth * SideB::stride];
  __shared__ int flag;
  constexpr int warpRows = tileM / warpsM, warpColumns = tileN / warpsN, rowTiles = warpRows / 16, columnTiles = warpColumns / 8;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int warpRow = warp / warpsN * warpRows, warpColumn = warp % warpsN * warpColumns;
  const int64_t m0 = static_cast<int64_t>(blockIdx.x) * tileM, n0 = static_cast<int64_t>(blockIdx.y) * tileN;
  float sum[rowTiles][columnTiles][4] = {};

  const int lastSource = blockIdx.z == 0 ? args.sourceCount : 1;
  for (int s = 0; s < lastSource; ++s) {
    const Source& source = args.sources[s];
    const int64_t firstColumn = n0 - source.column;
    if (firstColumn >= source.width || firstColumn + tileN <= 0) continue;
    const int64_t begin = s == 0 ? blockIdx.z * args.depthsPerSplit * depth : 0;
    const int64_t end = s == 0 ? min(source.k, begin + args.depthsPerSplit * depth) : source.k;
    if (begin >= end) continue;
    SideA a;
    SideB b;
    const auto load = [&](int64_t k0) {
      a.load(source.a, source.aType, source.aVector, source.lda, m0, args.out.m, k0, end);
      b.load(source.b, source.bType, source.bVector, source.ldb, firstColumn, source.width, k0, end);
    };
    load(begin);
    int buffer = 0;
    a.store(sharedA[0], source.alpha);
    b.store(sharedB[0], 1);
    __syncthreads();
    for (int64_t k0 = begin; k0 < end; k0 += depth) {
      const bool more = k0 + depth < end;
      if (more) load(k0 + depth);
#pragma unroll
      for (int k = 0; k < depth; k += 8) {
        const auto* fromA = reinterpret_cast<const uint32_t*>(&sharedA[buffer][(k + t) * SideA::stride + warpRow + g]);
        const auto* fromB = reinterpret_cast<const uint32_t*>(&sharedB[buffer][(k + t) * SideB::stride + warpColumn + g]);
        uint32_t x[rowTiles][4], y[columnTiles][2];
#pragma unroll
        for (int i = 0; i < rowTiles; ++i) {
          x[i][0] = fromA[i * 16], x[i][1] = fromA[i * 16 + 8];
          x[i][2] = fromA[4 * SideA::stride + i * 16], x[i][3] = fromA[4 * SideA::stride + i * 16 + 8];
        }
#pragma unroll
        for (int j = 0; j < columnTiles; ++j) y[j][0] = fromB[j * 8], y[j][1] = fromB[4 * SideB::stride + j * 8];
#pragma unroll
        for (int i = 0; i < rowTiles; ++i)
#pragma unroll
          for (int j = 0; j < columnTiles; ++j) multiplyAddTf32(sum[i][j], x[i], y[j]);
      }
      if (more) {
        a.store(sharedA[buffer ^ 1], source.alpha);
        b.store(sharedB[buffer ^ 1], 1);
      }
      __syncthreads();
      buffer ^= 1;
    }
  }

  const auto at = [&](int i) -> float& { return sum[i / 4 / columnTiles][i / 4 % columnTiles][i % 4]; };
  if (args.splits > 1 && !addSplits<rowTiles * columnTiles * 4>(args, arrived, &flag, at)) return;
#pragma unroll
  for (int i = 0; i < rowTiles; ++i)
#pragma unroll
    for (int j = 0; j < columnTiles; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        args.out.storePair(m0 + warpRow + i * 16 + half * 8 + g, n0 + warpColumn + j * 8 + 2 * t, sum[i][j][2 * half], sum[i][j][2 * half + 1]);
}

template <int tileM, int tileN, int warpsM, int warpsN>
void launch(const TileArgs& args, int mode, const Context& context) {
  const auto kernel = mode == 0   ? tf32Kernel<tileM, tileN, warpsM, warpsN, 0>
                      : mode == 1 ? tf32Kernel<tileM, tileN, warpsM, warpsN, 1>
                                  : tf32Kernel<tileM, tileN, warpsM, warpsN, 2>;
  launchTiles(args, tileM, tileN, kernel, "gemmTf32", context);
}

}  // namespace

bool gemmTf32(const GemmArgs& args, const Context& context) {
  constexpr int64_t narrow = 32;  // up to here, reading the other side is all the time there is
  if (!args.tf32 || context.gpu->capability < 80 || args.m <= narrow || args.n <= narrow) return false;
  launchSources(args, [&](const TileArgs& call) {
    if ((args.m + 127) / 128 * ((args.n + 127) / 128) < context.gpu->multiprocessors) launch<64, 64, 2, 4>(call, args.mode, context);
    else launch<128, 128, 2, 4>(call, args.mode, context);
  });
  return true;
}

}  // namespace unsloth::cuda
