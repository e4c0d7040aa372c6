#include "gemmWgmma.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "../../core/wholeNumbers.h"
#include "tensorMap.h"

namespace unsloth::cuda {
namespace sm90 {
namespace {

constexpr int64_t tileM = 128, sliceK = 64, boxElements = 64, chunkRows = 64, gluBoxRows = 16, swizzleBytes = 128;

constexpr int largestCluster = 8;  // that every GPU with clusters takes
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

/** Whether tiles may have this width. */
bool takesWidth(const GemmArgs& args, int tileN) {
  const auto among = [&](const auto& widths) { return std::ranges::find(widths, tileN) != std::end(widths); };
  if (among(allWidths)) return true;
  const bool addsToItself = args.accumulate || args.add.data == args.c.data;
  return among(someWidths) && args.mode != 2 && args.a.dtype == DType::BF16 &&
         args.c.dtype == DType::BF16 && !addsToItself;
}

/** Whether so many blocks may share tiles by way of the scratch: all of them at work at once, and room for their sums. */
bool looseFits(int64_t tileN, int64_t blocks, const Context& context) {
  return blocks <= std::min(context.gpu->multiprocessors, maxBlocks) &&
         static_cast<size_t>(blocks * tileM * tileN) * sizeof(float) <= context.workspaceBytes;
}

/**
 * Time of a slice of a tile, in units of 4 cycles, fitted to an H200: narrower tiles read more shared memory for each product.
 * Where rows of b are columns of c, widths that are no multiple of 128 bytes read some lines twice.
 */
struct TileCost {
  int tileN;
  double paired[2], alone[2];  // in modes 0 and 2, and in mode 1
};
constexpr TileCost costs[] = {
    {256, {264, 263}, {267, 266}}, {224, {234, 240}, {239, 270}}, {192, {206, 205}, {209, 208}}, {160, {186, 190}, {191, 220}},
    {128, {147, 147}, {154, 153}}, {96, {126, 145}, {134, 165}},  {64, {100, 103}, {105, 108}}};

/** Calls consider(tiling, estimated time) for each tiling that fits. */
template <class Consider>
void eachTiling(const GemmArgs& args, const Context& context, const Consider& consider) {
  const int64_t tileRows = divideUp(args.m, tileM), slices = divideUp(args.k, sliceK);
  const auto slow = [&](const double (&of)[2]) { return of[args.mode == 1]; };
  for (const TileCost& cost : costs) {
    const int tileN = cost.tileN;
    if (!takesWidth(args, tileN)) continue;
    for (const int cluster : {2, 1}) {
      const bool halfEmpty = cluster == 2 && tileRows % 2 == 1;  // a block of the last pair has no rows
      if (halfEmpty && tileRows < 8) continue;
      const int64_t tiles = divideUp(tileRows, cluster) * divideUp(args.n, tileN);
      const double perSlice = (halfEmpty ? 1.12 : 1) * slow(cluster == 2 ? cost.paired : cost.alone);
      for (const int shares : {1, 2, 3, 4, 8}) {
        if (shares > slices) break;
        const double sums = static_cast<double>(divideUp(slices, shares)) * perSlice;
        if (shares > 1 && looseFits(tileN, tiles * cluster * shares, context))
          consider(WgmmaTiling{tileN, cluster, shares, true}, sums + (6 + 6.5 * shares) * tileN);
        if (cluster * shares > largestCluster) continue;
        const int64_t rounds = divideUp(tiles, wgmmaClustersAtOnce(cluster * shares));
        const double perTile = shares == 1 ? 2 * tileN + 256 : 18 * tileN + 700;
        consider(WgmmaTiling{tileN, cluster, shares, false}, static_cast<double>(rounds) * (sums + perTile));
      }
    }
  }
}

/** The tiling of the least estimated time. */
WgmmaTiling chooseTiling(const GemmArgs& args, const Context& context) {
  WgmmaTiling best;
  double least = 0;
  eachTiling(args, context, [&](const WgmmaTiling& tiling, double time) {
    if (least != 0 && time >= least) return;
    least = time;
    best = tiling;
  });
  return best;
}

}  // namespace

std::vector<WgmmaTiling> rankTilings(const GemmArgs& args, const Context& context) {
  std::vector<std::pair<double, WgmmaTiling>> timed;
  if (takes(args))
    eachTiling(args, context, [&](const WgmmaTiling& tiling, double time) { timed.emplace_back(time, tiling); });
  std::stable_sort(timed.begin(), timed.end(), [](const auto& x, const auto& y) { return x.first < y.first; });
  std::vector<WgmmaTiling> tilings;
  for (const auto& [time, tiling] : timed) tilings.push_back(tiling);
  return tilings;
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
  p.m = static_cast<int>(args.m);
  p.n = static_cast<int>(args.n);
  p.pair = tiling.cluster;
  p.shares = tiling.shares;
  p.out = args.c.data;
  p.outLd = args.c.ld;
  p.added = args.accumulate ? args.c.data : args.add.data;
  p.addedLd = args.accumulate ? args.c.ld : args.add.ld;
  p.slices = static_cast<int>(divideUp(args.k, sliceK));
  p.tileRows = static_cast<int>(divideUp(args.m, tileM * tiling.cluster));
  p.tileColumns = static_cast<int>(divideUp(withGlu ? h.cols : args.n, stepN));
  p.band = std::min(tiling.cluster == 2 ? 8 : 16, p.tileRows);
  p.alpha = args.alpha;
  p.outType = args.c.dtype;
  p.bias = args.bias.data;
  p.biasType = args.bias.dtype;

  const int64_t most = context.gpu->multiprocessors / tiling.cluster, tiles = int64_t{p.tileRows} * p.tileColumns;
  const int64_t clusters = tiling.shares > 1 ? tiles * tiling.shares : std::min(tiles, most);
  const int blocks = static_cast<int>(clusters) * tiling.cluster;
  if (tiling.shares > p.slices || (!tiling.loose && tiling.shares * tiling.cluster > largestCluster)) return false;
  if (tiling.shares > 1 && tiling.loose) {
    if (!looseFits(tiling.tileN, blocks, context)) return false;
    p.partial = scratch<float>(context, 0, static_cast<size_t>(blocks * tileM * tiling.tileN), "gemm");
    p.flags = shareFlags();
  }
  const auto kernel = withGlu ? launchWgmmaGlu : args.mode == 0 ? launchWgmmaNt : args.mode == 1 ? launchWgmmaNn : launchWgmmaTn;
  kernel(p, args.a.dtype, tiling.tileN, blocks, context);
  return true;
}

bool gemmWgmmaTiled(const GemmArgs& args, const Context& context, const WgmmaTiling& tiling) {
  if (context.gpu->capability != 90 || !takes(args) || !takesWidth(args, tiling.tileN)) return false;
  return launch(args, View{}, 0, context, tiling);
}

bool gemmGluWgmmaTiled(const GemmArgs& args, const View& h, int activation, const Context& context, const WgmmaTiling& tiling) {
  if (context.gpu->capability != 90 || !takes(args) || args.mode != 0 || tiling.tileN != 256) return false;
  if (tiling.shares > 1 && !tiling.loose) return false;
  if (args.bias.present() || args.add.present() || args.accumulate || args.c.dtype != args.a.dtype) return false;
  if (h.dtype != args.c.dtype || h.rows != args.m || 2 * h.cols != args.n || h.cols % 128 != 0 || !tensorMapFits(h)) return false;
  return activation >= 0 && activation <= 2 && launch(args, h, activation, context, tiling);
}

}  // namespace sm90

bool gemmGluWgmma(const GemmArgs& args, const View& h, int activation, const Context& context) {
  if (context.gpu->capability != 90) return false;
  constexpr double worth = 1.06;  // of the time of the product alone, that making h with it saves
  double least = 0, leastWhole = 0;
  sm90::WgmmaTiling best, whole;
  sm90::eachTiling(args, context, [&](const sm90::WgmmaTiling& tiling, double time) {
    if (least == 0 || time < least) least = time, best = tiling;
    if (tiling.tileN != 256 || (tiling.shares > 1 && !tiling.loose) || (leastWhole != 0 && time >= leastWhole)) return;
    leastWhole = time;
    whole = tiling;
  });
  // The same order of sums as the product alone has.
  return leastWhole <= worth * least && whole.shares == best.shares &&
         sm90::gemmGluWgmmaTiled(args, h, activation, context, whole);
}

bool gemmWgmma(const GemmArgs& args, const Context& context) {
  if (context.gpu->capability != 90) return false;
  return sm90::gemmWgmmaTiled(args, context, sm90::chooseTiling(args, context));
}

}  // namespace unsloth::cuda
