#include "gemmTiles.cuh"
#include "launch.cuh"

namespace unsloth::cuda {

using namespace tiles;

namespace {

__device__ unsigned arrived[maxSplitTiles];

/**
 * c = [c +] Σ alpha·op(a)op(b) + bias + add in fp32 arithmetic, a tile of tileM×tileN for each block, rows×columns sums for each
 * thread. 2mnk FLOPs on the fp32 units (67 TFLOP/s on an H200); reads (m/tileM + n/tileN)·… of the operands through L2.
 */
template <int tileM, int tileN, int rows, int columns, int mode>
__global__ void __launch_bounds__(threads) simpleKernel(const __grid_constant__ TileArgs args) {
  awaitPrior();
  static_assert(tileM / rows * (tileN / columns) == threads);
  using SideA = Side<tileM, mode != 2>;
  using SideB = Side<tileN, mode == 0>;
  __shared__ alignas(16) float sharedA[2][depth * SideA::stride];
  __shared__ alignas(16) float sharedB[2][depth * SideB::stride];
  __shared__ int flag;
  const int tx = threadIdx.x % (tileN / columns), ty = threadIdx.x / (tileN / columns);
  const int64_t m0 = static_cast<int64_t>(blockIdx.x) * tileM, n0 = static_cast<int64_t>(blockIdx.y) * tileN;
  const Epilogue& out = args.out;
  float sum[rows][columns] = {};

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
    a.load(source.a, source.aType, source.aVector, source.lda, m0, out.m, begin, end);
    b.load(source.b, source.bType, source.bVector, source.ldb, firstColumn, source.width, begin, end);
    int buffer = 0;
    a.store(sharedA[0], source.alpha);
    b.store(sharedB[0], 1);
    __syncthreads();
    for (int64_t k0 = begin; k0 < end; k0 += depth) {
      const bool more = k0 + depth < end;
      if (more) {
        a.load(source.a, source.aType, source.aVector, source.lda, m0, out.m, k0 + depth, end);
        b.load(source.b, source.bType, source.bVector, source.ldb, firstColumn, source.width, k0 + depth, end);
      }
#pragma unroll
      for (int k = 0; k < depth; ++k) {
        float x[rows], y[columns];
#pragma unroll
        for (int i = 0; i < rows; i += 4)
          *reinterpret_cast<float4*>(&x[i]) =
              *reinterpret_cast<const float4*>(&sharedA[buffer][k * SideA::stride + i / 4 * (tileM / (rows / 4)) + ty * 4]);
#pragma unroll
        for (int j = 0; j < columns; j += 4)
          *reinterpret_cast<float4*>(&y[j]) =
              *reinterpret_cast<const float4*>(&sharedB[buffer][k * SideB::stride + j / 4 * (tileN / (columns / 4)) + tx * 4]);
#pragma unroll
        for (int i = 0; i < rows; ++i)
#pragma unroll
          for (int j = 0; j < columns; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
      }
      if (more) {
        a.store(sharedA[buffer ^ 1], source.alpha);
        b.store(sharedB[buffer ^ 1], 1);
      }
      __syncthreads();
      buffer ^= 1;
    }
  }

  const auto at = [&](int i) -> float& { return sum[i / columns][i % columns]; };
  if (args.splits > 1 && !addSplits<rows * columns>(args, arrived, &flag, at)) return;
#pragma unroll
  for (int i = 0; i < rows; ++i)
#pragma unroll
    for (int j = 0; j < columns; j += 2)
      out.storePair(m0 + i / 4 * (tileM / (rows / 4)) + ty * 4 + i % 4, n0 + j / 4 * (tileN / (columns / 4)) + tx * 4 + j % 4,
                    sum[i][j], sum[i][j + 1]);
}

template <int tileM, int tileN, int rows, int columns>
void launch(const TileArgs& args, int mode, const Context& context) {
  const auto kernel = mode == 0   ? simpleKernel<tileM, tileN, rows, columns, 0>
                      : mode == 1 ? simpleKernel<tileM, tileN, rows, columns, 1>
                                  : simpleKernel<tileM, tileN, rows, columns, 2>;
  launchTiles(args, tileM, tileN, kernel, "gemmSimple", context);
}

}  // namespace

bool gemmSimple(const GemmArgs& args, const Context& context) {
  if (args.m == 0 || args.n == 0) return true;
  launchSources(args, [&](const TileArgs& call) {
    if (args.n <= 32) launch<128, 32, 4, 4>(call, args.mode, context);
    else if (args.m <= 32) launch<32, 128, 4, 4>(call, args.mode, context);
    else if ((args.m + 127) / 128 * ((args.n + 127) / 128) < context.gpu->multiprocessors)
      launch<64, 64, 4, 4>(call, args.mode, context);
    else launch<128, 128, 8, 8>(call, args.mode, context);
  });
  return true;
}

}  // namespace unsloth::cuda
