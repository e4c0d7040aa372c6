#pragma once
#include <cuda.h>

#include <cstdint>

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
  int run;          // slices that each cluster gets of a tile that several share; 0: whole tiles
  float* partial;   // scratch for `run`: 128·tileN sums for each block
  unsigned* flags;  // two for each block, 0 between launches
  float alpha;
  bool hasSource;
  DType outType, biasType;
  const void* bias;
  CUtensorMap h;   // glu of c, of a kernel that makes both: c is gate, and from column `apart` on up
  int apart, activation;
};

/** How a product is cut up. */
struct WgmmaTiling {
  int tileN = 256;  // 128, 192 or 256 columns
  int cluster = 2;  // 1 or 2 blocks that share b
  int band = 8;     // rows of clusters' tiles that are walked through together
  int shares = 1;   // blocks that work at one tile, each at an equal part of k
};

/** The tiling that takes the least estimated time. */
WgmmaTiling chooseTiling(const GemmArgs& args, const Context& context);

/** gemmWgmma with a given tiling. */
bool gemmWgmmaTiled(const GemmArgs& args, const Context& context, const WgmmaTiling& tiling);

/**
 * A product of mode 0 that is gate and up side by side, and h = act(gate)⊙up with it, the same to the bit as glu makes of the
 * rounded c. False, and nothing done, where something is added to c, or h is not half of it, a multiple of 128 columns, of the
 * operands' type, or the tiling not one of 256 columns.
 */
bool gemmGluWgmmaTiled(const GemmArgs& args, const View& h, int activation, const Context& context, const WgmmaTiling& tiling);

/** Launches the kernel of one mode (sm90/gemmWgmmaNt.cu and its neighbours). */
using WgmmaLaunch = void(const WgmmaParams& params, DType type, int tileN, int cluster, int blocks, const Context& context);
WgmmaLaunch launchWgmmaNt, launchWgmmaNn, launchWgmmaTn, launchWgmmaGlu;

}  // namespace unsloth::cuda::sm90
