#pragma once
#include "loraGradTiles.cuh"

/** The partial sums that the blocks of `loraGrad` (loraGrad.cu) leave, added up in order. */
namespace unsloth::cuda::lora {

/**
 * One list of `count` terms, each `vectors` float4 for every lane, `stride` float4 apart, added up in order. `ways` neighbouring
 * warps of the block share it, each taking every so many of its terms; the first of them has the sum.
 */
template <int vectors>
__device__ __forceinline__ void addTerms(const float4* from, int count, int64_t stride, int ways, float4 (&sum)[vectors]) {
  __shared__ float4 shared[warps][vectors][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, way = warp % ways;
  from += way * stride + lane;
#pragma unroll
  for (float4& s : sum) s = make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int i = way; i < count; i += ways, from += ways * stride)
#pragma unroll
    for (int v = 0; v < vectors; ++v) add(sum[v], __ldcg(from + v * 32));
  if (ways == 1) return;
#pragma unroll
  for (int v = 0; v < vectors; ++v) shared[warp][v][lane] = sum[v];
  __syncthreads();
  if (way > 0) return;
  for (int w = 1; w < ways; ++w)
#pragma unroll
    for (int v = 0; v < vectors; ++v) add(sum[v], shared[warp + w][v][lane]);
}

/** 16 rows and 16 of the rank of one part's dU, from its chunks. */
template <class S>
__device__ __forceinline__ void sumDu(const LoraGradCall& call, int list, int ways) {
  using T = typename S::T;
  constexpr int perTile = S::duQuads / 64;
  const int lane = threadIdx.x % 32, tile = list / perTile, within = list % perTile;
  const int p = tile / call.rowTiles, rowTile = tile - p * call.rowTiles;
  const int first = p < call.parts ? call.part[p].firstChunk : 0;
  const int last = p >= call.parts ? 0 : p + 1 < call.parts ? call.part[p + 1].firstChunk : call.chunks;
  float4 sum[2];
  addTerms(call.duPartial + (int64_t{first} * call.rowTiles + rowTile) * S::duQuads + within * 64, last - first,
           int64_t{call.rowTiles} * S::duQuads, ways, sum);
  const int row = rowTile * S::tileRows + within / (S::rankBlocks / 2) * 16 + lane / 4;
  const int column = within % (S::rankBlocks / 2) * 16 + lane % 4 * 4;
  if (static_cast<int>(threadIdx.x) / 32 % ways > 0 || column >= call.rank || p >= call.parts) return;
  const auto& [even, odd] = sum;
  const float values[2][4] = {{even.x, odd.x, even.y, odd.y}, {even.z, odd.z, even.w, odd.w}};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row + half * 8 >= call.rows) break;
    Pack<T, 4> out;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.at[i] = narrow<T>(call.alpha * values[half][i]);
    *reinterpret_cast<Pack<T, 4>*>(static_cast<T*>(call.du) + (row + half * 8) * call.duLd + p * call.rank + column) = out;
  }
}

/** 16 rows and 8 of the rank of dB, from the blocks that had tiles of their chunk. */
template <class S>
__device__ __forceinline__ void sumDb(const LoraGradCall& call, int list, int ways) {
  constexpr int perChunk = S::dbQuads / 32;
  const int lane = threadIdx.x % 32, chunk = list / perChunk, within = list % perChunk;
  const bool exists = chunk < call.chunks;
  const Chunk c = chunkOf(call, exists ? chunk : 0);
  const int column = within / S::rankBlocks * 16 + lane / 4, r = within % S::rankBlocks * 8 + lane % 4 * 2;
  const bool finishes = exists && r < call.rank && static_cast<int>(threadIdx.x) / 32 % ways == 0;
  float2* to[2];
  float2 old[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    to[half] = finishes && column + half * 8 < c.width
                   ? reinterpret_cast<float2*>(call.db + (c.row + column + half * 8) * call.dbLd + r)
                   : nullptr;
    if (to[half] != nullptr) old[half] = *to[half];
  }
  const int2 span = exists ? __ldcg(call.spans + chunk) : make_int2(0, -1);
  float4 sum[1];
  const float4* from = call.dbPartial + static_cast<int64_t>(span.x + chunk) * S::dbQuads + within * 32;
  addTerms(from, span.y - span.x + 1, S::dbQuads, ways, sum);
  if (to[0] != nullptr) *to[0] = make_float2(old[0].x + sum[0].x, old[0].y + sum[0].y);
  if (to[1] != nullptr) *to[1] = make_float2(old[1].x + sum[0].z, old[1].y + sum[0].w);
}

}  // namespace unsloth::cuda::lora
