#pragma once
#include <cuda.h>

#include <cstdint>
#include <vector>

#include "../gemm.h"

namespace unsloth::cuda::sm90 {

constexpr int maxWgmmaTerms = 4;

/** A low-rank pair as the kernel reads it. */
struct WgmmaTerm {
  CUtensorMap a, b;
  int column, width, rank;
};

/** Operands of gemmWgmmaKernel; tile rows and columns are those of a cluster. */
struct WgmmaParams {
  CUtensorMap a, b, c, source;  // source: what is added, `add` or c itself
  WgmmaTerm terms[maxWgmmaTerms];
  int n, slices, tileRows, tileColumns, band, termCount;
  int pair;         // blocks that share b: 1 or 2
  int shares;       // blocks, or pairs, that share a tile along k: of one cluster, or apart where `partial` is given
  float* partial;   // scratch for them: 128·tileN sums for each block
  unsigned* flags;  // two for each block, 0 between launches
  int m;            // and where c and the source lie, for tiles that a cluster shares
  void* out;
  const void* added;
  int64_t outLd, addedLd;
  float alpha;
  bool hasSource;
  DType outType, biasType;
  const void* bias;
  CUtensorMap h;   // glu of c, of a kernel that makes both: c is gate, and from column `apart` on up
  int apart, activation;
};

/**
 * Columns of a tile. Those of `someWidths` are for bf16 throughout, and products of modes 0 and 1 that do not add to what c
 * holds.
 */
constexpr int allWidths[] = {256, 192, 128}, someWidths[] = {224, 160, 96, 64};

/** How a product is cut up. */
struct WgmmaTiling {
  int tileN = 256;     // columns: of allWidths or someWidths
  int cluster = 2;     // 1 or 2 blocks that share b
  int shares = 1;      // such blocks or pairs that work at one tile, each at a part of k
  bool loose = false;  // they add up through the scratch, instead of as a cluster of at most 8 blocks
};

/** Tilings that fit a product, those of the least estimated time first. */
std::vector<WgmmaTiling> rankTilings(const GemmArgs& args, const Context& context);

/** gemmWgmma with a given tiling. */
bool gemmWgmmaTiled(const GemmArgs& args, const Context& context, const WgmmaTiling& tiling);

/**
 * A product of mode 0 that is gate and up side by side, and h = act(gate)⊙up with it, the same to the bit as glu makes of the
 * rounded c. False, and nothing done, where something is added to c, or h is not half of it, a multiple of 128 columns, of the
 * operands' type, or the tiling not one of 256 columns whose blocks work alone or add up through the scratch.
 */
bool gemmGluWgmmaTiled(const GemmArgs& args, const View& h, int activation, const Context& context, const WgmmaTiling& tiling);

/** Clusters of so many blocks (1 … 8) that a GPU runs at once: each stays within a group of its multiprocessors. */
int wgmmaClustersAtOnce(int blocks);

/** Launches the kernel of one mode (sm90/gemmWgmmaNt.cu and its neighbours). */
using WgmmaLaunch = void(const WgmmaParams& params, DType type, int tileN, int blocks, const Context& context);
WgmmaLaunch launchWgmmaNt, launchWgmmaNn, launchWgmmaTn, launchWgmmaGlu;

}  // namespace unsloth::cuda::sm90
