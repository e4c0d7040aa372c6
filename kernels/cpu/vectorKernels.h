#pragma once
#include <cstddef>
#include <cstdint>

#include "../core/tensor.h"

namespace unsloth::cpu {

/** Activation kinds of `glu` and `activation`. */
enum class Activation : int32_t { silu = 0, geluTanh = 1, geluErf = 2, reluSquared = 3, relu = 4, sigmoid = 5 };

/** Constants of one AdamW step, folded as torch's single-tensor form does. */
struct AdamwStep {
  float gradientScale;
  float keep;  // 1 − lr·weightDecay
  float oneMinusBeta1;
  float beta2, oneMinusBeta2;
  float rate;    // lr / c1
  float rootC2;  // √c2
  float eps;
};

/** Constants of one step of 8-bit AdamW, and the maps of its moments; bitsandbytes' form: decay last. */
struct Adamw8Step {
  float gradientScale, beta1, beta2;
  float rate;  // lr·√c2/c1
  float eps;   // √c2·eps
  float keep;  // 1 − lr·weightDecay
  const float *signedMap, *unsignedMap;
};

struct LionStep {
  float gradientScale, beta1, beta2, rate, keep;
  const float* signedMap;
};

/** Where the Philox words of one row of a dropout mask come from. */
struct DropoutRow {
  uint32_t sample, position, site, seed, step;
  uint32_t threshold;  // a word at or above it keeps its element
};

/** Queries, keys and values of one sequence and one kv head; row r of the tile is query r / group of head r % group. */
struct AttentionHead {
  const float *q, *k, *v;  // first query row at the group's first head; first key and value row
  ptrdiff_t ldQ, ldK, ldV;
  int64_t headDim, group;
  int64_t offset;  // position of query 0
  int64_t window;  // 0: none
  float scale, softcap;
};

/** Rows [firstRow, firstRow + rows) against keys [firstKey, lastKey). */
struct AttentionTile {
  AttentionHead head;
  int64_t firstRow, rows, firstKey, lastKey;
  float* o;  // like q
  ptrdiff_t ldO;
  float* lse;  // first query row at the group's first head
  ptrdiff_t ldLse;
  /** When set, o and lse are left alone and (largest, sum, unscaled output) of each row go here: rows × (2 + headDim). */
  float* partial;
};

struct AttentionGradTile {
  AttentionHead head;
  int64_t firstRow, rows, firstKey, lastKey;
  const float *dO, *lse, *delta;
  ptrdiff_t ldDO, ldLse, ldDelta;
  float *dq, *dk, *dv;  // added to
  ptrdiff_t ldDq, ldDk, ldDv;
};

/** Rows of a forward tile (a multiple of every panel width) and the most keys of a gradient tile. */
constexpr int64_t attentionTileRows = 64;
constexpr int64_t attentionGradKeys = 128;
constexpr int64_t attentionMaxHeadDim = 512;

/**
 * Inner loops over contiguous fp32, built once per instruction set. Pointers of one call may be equal where the command allows
 * it, never partly overlapping. Every element's result is independent of n and of its place.
 */
struct VectorKernels {
  void (*widen)(float* y, const void* x, DType from, int64_t n);
  void (*narrow)(void* y, DType to, const float* x, int64_t n);

  void (*scale)(float* y, const float* a, float alpha, int64_t n);
  /** y = alpha·a + beta·b */
  void (*scaleAdd)(float* y, const float* a, const float* b, float alpha, float beta, int64_t n);
  void (*glu)(float* h, const float* gate, const float* up, Activation kind, int64_t n);
  void (*gluGrad)(float* dGate, float* dUp, const float* dH, const float* gate, const float* up, Activation kind, int64_t n);
  void (*activation)(float* y, const float* x, Activation kind, int64_t n);
  void (*activationGrad)(float* dx, const float* dy, const float* x, Activation kind, int64_t n);
  /** x = softcap·tanh(scale·x/softcap), or scale·x when softcap is 0. */
  void (*logitCap)(float* x, float scale, float softcap, int64_t n);
  void (*adamw)(float* p, float* m, float* v, const float* grad, const AdamwStep& step, int64_t n);
  /** y (+)= keep·scale·x, the first column of the row being column 0. */
  void (*dropout)(float* y, const float* x, const DropoutRow& row, float scale, bool accumulate, int64_t n);

  double (*sumSquares)(const float* x, int64_t n);
  float (*dot)(const float* a, const float* b, int64_t n);
  /** Returns r. */
  float (*rmsNorm)(float* y, const float* x, const float* w, double eps, int64_t n);
  void (*rmsNormGrad)(float* dx, const float* dy, const float* x, const float* w, float r, bool accumulate, int64_t n);
  void (*layerNorm)(float* y, float* stats, const float* x, const float* w, const float* b, double eps, int64_t n);
  void (*layerNormGrad)(float* dx, const float* dy, const float* x, const float* w, float mean, float r, bool accumulate,
                        int64_t n);
  /** dw += dy·(x − mean)·r */
  void (*addNormWeightGrad)(float* dw, const float* dy, const float* x, float mean, float r, int64_t n);
  void (*rotateHalves)(float* y, const float* x, const float* cosine, const float* sine, float direction, int64_t half);
  void (*rotatePairs)(float* y, const float* x, const float* cosine, const float* sine, float direction, int64_t half);

  float (*largest)(const float* x, int64_t n);
  /** Σ exp(x − shift) */
  double (*sumExp)(const float* x, float shift, int64_t n);
  /** z = factor·exp(z − shift)·(1 − (z/softcap)²); the last factor only when softcap is not 0. */
  void (*softmaxGrad)(float* z, float shift, float factor, float softcap, int64_t n);

  /** Bytes of 64-byte aligned scratch that the tiles take: at most ThreadPool::scratchBytes. */
  void (*attention)(const AttentionTile& tile, std::byte* scratch);
  void (*attentionGrad)(const AttentionGradTile& tile, std::byte* scratch);

  /** y[i] = table[q_i]·absmax for n ≤ 64 codes of 4 bits, of which the first is a high half. */
  void (*unpack4)(float* y, const uint8_t* codes, const float* table, float absmax, int64_t n);
  /** Codes of one block of n ≤ 64 elements (NF4 or FP4); returns its absmax, NaN when an element is not finite. */
  float (*pack4)(uint8_t* codes, const float* x, int64_t n, bool fp4);
  /** y[i] = value_i·scale / divisor; value: table[numbers[i]], or int8 without a table. */
  void (*unpack8)(float* y, const uint8_t* numbers, const float* table, float scale, float divisor, int64_t n);
  /** numbers[i] = int8 nearest to x[i]·factor, to even on a tie. */
  void (*pack8)(uint8_t* numbers, const float* x, float factor, int64_t n);
  /** Largest |x|, NaN when one is not finite. */
  float (*absmax)(const float* x, int64_t n);

  /** One block of n ≤ 256 parameters; m and v are their codes, absmaxM and absmaxV what these are relative to. */
  void (*adamw8)(float* p, uint8_t* m, uint8_t* v, float* absmaxM, float* absmaxV, const float* grad, const Adamw8Step& step,
                 int64_t n);
  void (*lion)(float* p, float* m, const float* grad, const LionStep& step, int64_t n);
  void (*lion8)(float* p, uint8_t* m, float* absmax, const float* grad, const LionStep& step, int64_t n);
};

/** The kernels for this machine; see cpuFeatures.h. */
const VectorKernels& vectorKernels();

namespace portable {
extern const VectorKernels* const kernels;
}
namespace avx2 {
extern const VectorKernels* const kernels;  // null where this build has none
}
namespace avx512 {
extern const VectorKernels* const kernels;  // null where this build has none
}

}  // namespace unsloth::cpu
