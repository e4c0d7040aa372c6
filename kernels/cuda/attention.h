#pragma once
#include "../core/command.h"
#include "context.h"

namespace unsloth::cuda {

/**
 * The commands `attention` and `attentionGrad` of engine/graph/commands.ts, decoded and checked as far as the host can.
 * q, o, dO, dq [n, heads·headDim]; k, v, dk, dv [kvRows, kvHeads·headDim], head h at columns h·headDim; these are of one type,
 * f32, bf16 or f16, each with its own row stride. lse, delta [n, heads] are f32 with their own row stride; lse is the natural
 * logarithm. The gradient's views are absent in the forward pass.
 *
 * Sequence j (of `sequences`, some of length zero) has query rows qStart[j] … qStart[j+1]−1 and key rows kvStart[j] …
 * kvStart[j]+kvLength[j]−1, all three on the device and read by the kernels only. Its query row i stands at position
 * kvLength − queries + i and sees the keys up to that position, no older than `window` − 1 (0: all). Query head h uses kv head
 * h / group. A row of q that belongs to no sequence has undefined o, lse and delta (never NaN from a read of scratch) and a
 * gradient of zero; a row of k that belongs to none has zero dk and dv.
 */
struct AttentionArgs {
  View q, k, v, o, lse;
  View dO, dq, dk, dv, delta;
  const int32_t* qStart = nullptr;
  const int32_t* kvStart = nullptr;
  const int32_t* kvLength = nullptr;
  int sequences = 0;
  int heads = 0, kvHeads = 0, group = 1, headDim = 0;
  int window = 0;     // 0: every key up to the query's position
  float scale = 1;    // of q·k
  float softcap = 0;  // 0: none

  int64_t rows() const { return q.rows; }
  /** At most so many tiles of `tile` query rows, none of which spans two sequences. */
  int64_t queryTiles(int64_t tile) const { return q.rows / tile + sequences; }
  /** The same of key rows. Only where no key row belongs to two sequences, as in training. */
  int64_t keyTiles(int64_t tile) const { return k.rows / tile + sequences; }
};

/**
 * Ways to compute `attention`. Each returns false, without having enqueued anything, for what it does not take (types, alignment,
 * head dimension, GPU), and the next is asked; `attentionSimple` takes everything.
 */
bool attentionWgmma(const AttentionArgs& args, const Context& context);   // sm_90a: wgmma and TMA
bool attentionDecode(const AttentionArgs& args, const Context& context);  // few query rows per sequence: keys are split
bool attentionMma(const AttentionArgs& args, const Context& context);     // sm_80 and later: mma.sync, bf16 and f16
void attentionSimple(const AttentionArgs& args, const Context& context);  // fp32 arithmetic, any type and head dimension

/** The same of `attentionGrad`; all write dq, dk, dv and delta whole. With context.deterministic two runs give the same bits. */
bool attentionGradWgmma(const AttentionArgs& args, const Context& context);
bool attentionGradMma(const AttentionArgs& args, const Context& context);
void attentionGradSimple(const AttentionArgs& args, const Context& context);

}  // namespace unsloth::cuda
