#include "gemmWgmma.h"

#include <algorithm>

#include "tensorMap.h"

namespace unsloth::cuda {
namespace sm90 {
namespace {

constexpr int64_t tileM = 128, sliceK = 64, boxElements = 64, chunkRows = 64, gluBoxRows = 16, swizzleBytes = 128;

constexpr int maxBlocks = 1024;
__device__ unsigned flags[2 * maxBlocks];  // all 0 but during a product whose tiles are shared

unsigned* shareFlags() {
  static unsigned* const address = [] {
    void* found = nullptr;
    check(cudaGetSymbolAddress(&found, flags), "gemm: flags");
    return static_cast<unsigned*>(found);
  }();
  return address;
}

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool takesTerms(const GemmArgs& args) {
  if (args.terms.empty()) return true;
  if (args.mode == 2 || args.alpha != 1 || args.terms.size() > maxWgmmaTerms) return false;
  return std::all_of(args.terms.begin(), args.terms.end(), [&](const GemmTerm& term) {
    return term.alpha == 1 && term.rank > 0 && term.a.dtype == args.a.dtype && term.b.dtype == args.a.dtype &&
           tensorMapFits(term.a) && tensorMapFits(term.b);
  });
}

/** 16-byte aligned 16-bit operands of one type, c of that type or fp32; `add` like c and not together with accumulate. */
bool takes(const GemmArgs& args) {
  const DType type = args.a.dtype;
  if ((type != DType::BF16 && type != DType::F16) || args.b.dtype != type) return false;
  if (args.c.dtype != DType::F32 && args.c.dtype != type) return false;
  if (args.bias.present() && args.bias.rows != 1 && args.bias.ld != 1) return false;
  if (args.k == 0 || !tensorMapFits(args.a) || !tensorMapFits(args.b) || !tensorMapFits(args.c)) return false;
  if (args.add.present() && (args.accumulate || args.add.dtype != args.c.dtype || !tensorMapFits(args.add))) return false;
  return takesTerms(args);
}

/** Whether so many blocks may share each tile: equal parts of k, all blocks at work at once, room for their sums. */
bool sharesFit(int64_t slices, int64_t tileN, int64_t blockTiles, int64_t shares, const Context& context) {
  const int64_t blocks = blockTiles * shares;
  return slices % shares == 0 && blocks <= std::min(context.gpu->multiprocessors, maxBlocks) &&
         static_cast<size_t>(blocks * tileM * tileN) * sizeof(float) <= context.workspaceBytes;
}

}  // namespace

WgmmaTiling chooseTiling(const GemmArgs& args, const Context& context) {
  WgmmaTiling best;
  double least = 0;
  const int64_t tileRows = ceilDiv(args.m, tileM), slices = ceilDiv(args.k, sliceK), blocks = context.gpu->multiprocessors;
  for (const int tileN : {256, 192, 128})
    for (const int cluster : {2, 1}) {
      const bool wasteful = cluster == 2 && tileRows % 2 == 1 && tileRows < 8;  // a block of the last pair has no rows
      if (wasteful) continue;
      const int64_t clusters = blocks / cluster, tiles = ceilDiv(tileRows, cluster) * ceilDiv(args.n, tileN);
      // In units of 4 cycles, fitted to an H200: narrower tiles read more shared memory for each product, shared ones more of L2
      // and the sums of the others.
      const double perSlice = tileN == 256 ? 256 : tileN == 192 ? 198 : cluster == 2 ? 134 : 144;
      const double perTile = 2.0 * tileN + 256;
      const auto consider = [&](double time, int64_t shares) {
        if (least != 0 && time >= least) return;
        least = time;
        best = {tileN, cluster, cluster == 2 ? 8 : 16, static_cast<int>(shares)};
      };
      consider(static_cast<double>(ceilDiv(tiles, clusters)) * (static_cast<double>(slices) * perSlice + perTile), 1);
      for (int64_t shares = 2; shares <= std::min<int64_t>(clusters / tiles, 8); ++shares)
        if (sharesFit(slices, tileN, tiles * cluster, shares, context))
          consider(
              1.3 * static_cast<double>(slices / shares) * perSlice + perTile + static_cast<double>((2 + 9 * shares) * tileN),
              shares);
    }
  return best;
}

/** `h` absent: the product alone. */
static bool launch(const GemmArgs& args, const View& h, int activation, const Context& context, const WgmmaTiling& tiling) {
  const bool majorM = args.mode == 2, majorN = args.mode != 0, withGlu = h.present();
  const int stepN = withGlu ? tiling.tileN / 2 : tiling.tileN, rowsOfB = withGlu ? stepN : tiling.tileN / tiling.cluster;
  const auto leftMap = [&](const View& v) { return majorM ? tensorMap(v, sliceK, boxElements) : tensorMap(v, tileM, sliceK); };
  const auto rightMap = [&](const View& v) {
    return majorN ? tensorMap(v, sliceK, boxElements) : tensorMap(v, rowsOfB, sliceK);
  };
  const int chunkColumns = static_cast<int>(swizzleBytes / static_cast<int64_t>(bytesPerElement(args.c.dtype)));

  WgmmaParams p{};
  p.a = leftMap(args.a);
  p.b = rightMap(args.b);
  p.c = tensorMap(args.c, withGlu ? gluBoxRows : chunkRows, chunkColumns);
  p.hasSource = args.accumulate || args.add.present();
  if (p.hasSource) p.source = args.accumulate ? p.c : tensorMap(args.add, chunkRows, chunkColumns);
  if (withGlu) {
    p.h = tensorMap(h, gluBoxRows, chunkColumns);
    p.apart = static_cast<int>(h.cols);
    p.activation = activation;
  }
  for (const GemmTerm& term : args.terms) {
    WgmmaTerm& t = p.terms[p.termCount++];
    t.a = leftMap(term.a);
    t.b = rightMap(term.b);
    t.column = static_cast<int>(term.column);
    t.width = static_cast<int>(term.width);
    t.rank = static_cast<int>(term.rank);
  }
  p.n = static_cast<int>(args.n);
  p.slices = static_cast<int>(ceilDiv(args.k, sliceK));
  p.tileRows = static_cast<int>(ceilDiv(args.m, tileM * tiling.cluster));
  p.tileColumns = static_cast<int>(ceilDiv(withGlu ? h.cols : args.n, stepN));
  p.band = std::min(tiling.band, p.tileRows);
  p.alpha = args.alpha;
  p.outType = args.c.dtype;
  p.bias = args.bias.data;
  p.biasType = args.bias.dtype;

  const int64_t most = context.gpu->multiprocessors / tiling.cluster, tiles = int64_t{p.tileRows} * p.tileColumns;
  const int blocks = static_cast<int>(std::min(tiles * tiling.shares, most)) * tiling.cluster;
  if (tiling.shares > 1) {
    if (!sharesFit(p.slices, tiling.tileN, tiles * tiling.cluster, tiling.shares, context)) return false;
    p.run = p.slices / tiling.shares;
    p.partial = scratch<float>(context, 0, static_cast<size_t>(blocks * tileM * tiling.tileN), "gemm");
    p.flags = shareFlags();
  }
  const auto kernel = withGlu ? launchWgmmaGlu : args.mode == 0 ? launchWgmmaNt : args.mode == 1 ? launchWgmmaNn : launchWgmmaTn;
  kernel(p, args.a.dtype, tiling.tileN, tiling.cluster, blocks, context);
  return true;
}

bool gemmWgmmaTiled(const GemmArgs& args, const Context& context, const WgmmaTiling& tiling) {
  if (context.gpu->capability != 90 || !takes(args)) return false;
  return launch(args, View{}, 0, context, tiling);
}

bool gemmGluWgmmaTiled(const GemmArgs& args, const View& h, int activation, const Context& context, const WgmmaTiling& tiling) {
  if (context.gpu->capability != 90 || !takes(args) || args.mode != 0 || tiling.tileN != 256) return false;
  if (args.bias.present() || args.add.present() || args.accumulate || args.c.dtype != args.a.dtype) return false;
  if (h.dtype != args.c.dtype || h.rows != args.m || 2 * h.cols != args.n || h.cols % 128 != 0 || !tensorMapFits(h)) return false;
  return activation >= 0 && activation <= 2 && launch(args, h, activation, context, tiling);
}

}  // namespace sm90

bool gemmGluWgmma(const GemmArgs& args, const View& h, int activation, const Context& context) {
  return sm90::gemmGluWgmmaTiled(args, h, activation, context, sm90::chooseTiling(args, context));
}

bool gemmWgmma(const GemmArgs& args, const Context& context) {
  return sm90::gemmWgmmaTiled(args, context, sm90::chooseTiling(args, context));
}

}  // namespace unsloth::cuda
