#include <algorithm>
#include <vector>

#include "../core/wholeNumbers.h"
#include "launch.cuh"
#include "loraGrad.h"
#include "loraGradSums.cuh"

namespace unsloth::cuda {
namespace {

using namespace lora;

/**
 * For each part of a group, dU = alpha·dY·B and what a block's rows add to dB = dYᵀ·U, in one pass over dY: 2·rows·columns bytes,
 * and about 8·rank·√(blocks·rows·columns) of partial sums; 4·rows·columns·rank FLOPs. A warp keeps its columns' sums of dB and their
 * rows of B in registers for as long as a block stays in a chunk.
 */
template <class S>
__global__ void __launch_bounds__(threads, 1) loraGradKernel(const __grid_constant__ LoraGradCall call) {
#if __CUDA_ARCH__ < 800
  if constexpr (std::is_same_v<typename S::T, bf16>) return neverLaunched();
#endif
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  awaitPrior();
  multiplyTiles<S>(call, sharedBytes);
}

/** Adds up in order, out of L2, what the blocks left: dU over the chunks of a part, dB over the blocks of a chunk. */
template <class S>
__global__ void __launch_bounds__(threads) loraGradSumKernel(const __grid_constant__ LoraGradCall call) {
  awaitPrior();
  const int block = static_cast<int>(blockIdx.x), warp = static_cast<int>(threadIdx.x) / 32;
  if (block < call.duBlocks) sumDu<S>(call, (block * warps + warp) / call.duWays, call.duWays);
  else sumDb<S>(call, ((block - call.duBlocks) * warps + warp) / call.dbWays, call.dbWays);
}

/** How a call is cut into chunks and tiles by one shape; `cost` in bytes, of tiles and partial sums. */
struct Cut {
  int64_t chunks, tiles, blocks, scratchBytes, cost;
  int stages;
};

template <class S>
Cut cutOf(const LoraGradArgs& args, int64_t rows, const GpuInfo& gpu) {
  Cut cut{};
  for (const LoraGradPart& part : args.parts) cut.chunks += divideUp(part.width, S::columns);
  cut.tiles = cut.chunks * divideUp(rows, S::tileRows);
  cut.blocks = std::min<int64_t>({cut.tiles, gpu.multiprocessors, mostBlocks});
  cut.scratchBytes = 16 * (cut.tiles * S::duQuads + (cut.blocks + cut.chunks) * S::dbQuads) + 8 * cut.chunks;
  // Measured on an H200: a tile takes as long as reading all of it would, and narrow ones longer.
  cut.cost = divideUp(cut.tiles, cut.blocks) * gpu.multiprocessors * (S::dyBytes + S::dyBytes / 8 + 2048) + 2 * cut.scratchBytes;
  cut.stages = std::min(mostStages, (static_cast<int>(gpu.sharedPerBlock) - 128 - S::sumBytes) / S::stageBytes);
  return cut;
}

template <class S>
void launchRows(const LoraGradArgs& args, int64_t firstRow, int64_t rows, const Context& context) {
  using T = typename S::T;
  const Cut cut = cutOf<S>(args, rows, *context.gpu);
  LoraGradCall call{};
  const auto rowsFrom = [&](const View& v) { return static_cast<T*>(v.data) + firstRow * v.ld; };
  call.dy = rowsFrom(args.dy), call.u = rowsFrom(args.u), call.du = rowsFrom(args.du);
  call.b = args.b.data, call.db = args.db.f32();
  call.dyLd = args.dy.ld, call.uLd = args.u.ld, call.bLd = args.b.ld, call.duLd = args.du.ld, call.dbLd = args.db.ld;
  call.alpha = args.alpha;
  call.rows = static_cast<int>(rows), call.rank = static_cast<int>(args.b.cols);
  call.parts = static_cast<int>(args.parts.size());
  call.chunks = static_cast<int>(cut.chunks), call.rowTiles = static_cast<int>(cut.tiles / cut.chunks), call.stages = cut.stages;
  call.duPartial = static_cast<float4*>(context.workspace);
  call.dbPartial = call.duPartial + cut.tiles * S::duQuads;
  call.spans = reinterpret_cast<int2*>(call.dbPartial + (cut.blocks + cut.chunks) * S::dbQuads);

  const auto ways = [&](int64_t lists, int64_t terms) {
    constexpr int64_t busy = 16;  // warps of a multiprocessor
    int64_t each = 1;
    while (each < warps && 2 * each < terms && 2 * each * lists <= context.gpu->multiprocessors * busy) each *= 2;
    return static_cast<int>(each);
  };
  const int64_t duLists = int64_t{call.parts} * call.rowTiles * (S::duQuads / 64), dbLists = cut.chunks * (S::dbQuads / 32);
  call.duWays = ways(duLists, cut.chunks / call.parts);
  call.dbWays = ways(dbLists, cut.blocks / cut.chunks);
  call.duBlocks = static_cast<int>(divideUp(duLists * call.duWays, warps));

  // Each block gets its share of the columns that are read; a tile without any costs as much as `overhead` of them.
  constexpr int64_t overhead = S::columns / 2, unit = 32;
  std::vector<int64_t> until;  // cost of all tiles of the chunks before
  int64_t total = 0, row = 0;
  int chunk = 0;
  for (size_t p = 0; p < args.parts.size(); ++p) {
    const LoraGradPart& part = args.parts[p];
    const int64_t count = divideUp(part.width, S::columns), width = divideUp(divideUp(part.width, count), unit) * unit;
    call.part[p] = {static_cast<int>(part.column), static_cast<int>(part.width), static_cast<int>(row), chunk,
                    static_cast<int>(width)};
    row += part.width;
    chunk += static_cast<int>(count);
    for (int64_t i = 0; i < count; ++i) {
      until.push_back(total);
      total += call.rowTiles * (std::clamp<int64_t>(part.width - i * width, 0, width) + overhead);
    }
  }
  until.push_back(total);
  const int64_t blocks = cut.blocks;
  size_t in = 0;
  for (int64_t block = 1; block < blocks; ++block) {
    const int64_t target = total * block / blocks;
    while (until[in + 1] <= target) ++in;
    const int64_t each = (until[in + 1] - until[in]) / call.rowTiles;
    const int64_t tile = static_cast<int64_t>(in) * call.rowTiles + (target - until[in] + each / 2) / each;
    call.begin[block] = static_cast<int>(std::clamp<int64_t>(tile, call.begin[block - 1] + 1, cut.tiles - (blocks - block)));
  }
  call.begin[blocks] = static_cast<int>(cut.tiles);

  const auto kernel = loraGradKernel<S>;
  const int bytes = S::sumBytes + cut.stages * S::stageBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "loraGrad: shared memory");
  launchDependent(context, "loraGrad", kernel, {static_cast<unsigned>(blocks), threads, static_cast<size_t>(bytes)}, call);
  const int64_t sumBlocks = call.duBlocks + divideUp(dbLists * call.dbWays, warps);
  launchDependent(context, "loraGrad: sums", loraGradSumKernel<S>, {static_cast<unsigned>(sumBlocks), threads}, call);
}

/** As many rows at a time as the scratch holds sums for. */
template <class S>
bool launch(const LoraGradArgs& args, const Context& context) {
  const int64_t all = args.dy.rows;
  int64_t rows = all;
  while (cutOf<S>(args, rows, *context.gpu).scratchBytes > static_cast<int64_t>(context.workspaceBytes)) {
    if (rows <= S::tileRows) return false;
    rows = (rows / 2 + S::tileRows - 1) / S::tileRows * S::tileRows;
  }
  for (int64_t row = 0; row < all; row += rows) launchRows<S>(args, row, std::min(rows, all - row), context);
  return true;
}

/** The way to cut that costs least, of those that find room for enough stages. */
template <class... Shapes>
bool launchBest(const LoraGradArgs& args, const Context& context) {
  constexpr int leastStages = 3;
  int64_t best = -1;
  bool (*chosen)(const LoraGradArgs&, const Context&) = nullptr;
  const auto consider = [&](const Cut& cut, bool (*way)(const LoraGradArgs&, const Context&)) {
    if (cut.stages < leastStages || (best >= 0 && cut.cost >= best)) return;
    best = cut.cost;
    chosen = way;
  };
  (consider(cutOf<Shapes>(args, args.dy.rows, *context.gpu), launch<Shapes>), ...);
  return chosen != nullptr && chosen(args, context);
}

template <class T>
bool chooseRank(const LoraGradArgs& args, const Context& context) {
  if (args.b.cols <= 16) return launchBest<Shape<T, 16, 128, 16>, Shape<T, 16, 64, 32>, Shape<T, 16, 32, 32>>(args, context);
  return launchBest<Shape<T, 32, 64, 32>, Shape<T, 32, 32, 32>>(args, context);
}

bool alignedTo(const View& v, size_t bytes) {
  return reinterpret_cast<uintptr_t>(v.data) % bytes == 0 && static_cast<size_t>(v.ld) * bytesPerElement(v.dtype) % bytes == 0;
}

}  // namespace

bool loraGradFused(const LoraGradArgs& args, const Context& context) {
  // Of a rank above `widest` partial sums outweigh what one pass spares: 1.1–2.1 times as long at 64.
  constexpr int64_t most = int64_t{1} << 30, widest = 32, unit = 8;
  const DType type = args.dy.dtype;
  if (!hasTensorCores(type, context.gpu->capability) || args.parts.size() > mostParts) return false;
  if (args.u.dtype != type || args.b.dtype != type || args.du.dtype != type || args.db.dtype != DType::F32) return false;
  if (args.b.cols > widest || args.b.cols % unit != 0 || args.dy.rows >= most || args.b.rows >= most) return false;
  if (!alignedTo(args.dy, 16) || !alignedTo(args.u, 16) || !alignedTo(args.b, 4)) return false;
  if (!alignedTo(args.du, 8) || !alignedTo(args.db, 8)) return false;
  for (const LoraGradPart& part : args.parts)
    if (part.column % unit != 0) return false;
  return type == DType::BF16 ? chooseRank<bf16>(args, context) : chooseRank<__half>(args, context);
}

}  // namespace unsloth::cuda
