#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

/** How the sm_90a attention kernels share out their tiles, and arithmetic that both directions need. */
namespace unsloth::cuda::sm90::attention {

constexpr float log2e = 1.4426950408889634f, ln2 = 0.6931471805599453f;

/** Where the packed sequences lie; on the device. See AttentionArgs. */
struct Sequences {
  const int32_t *qStart, *kvStart, *kvLength;
  int count;
};

/**
 * Finds the sequence of a tile, for tile numbers that only grow. Sequence j has ⌈query rows/tileRows⌉·perTile tiles, numbered
 * without gaps in the order of sequences. All 32 lanes of a warp call it together.
 */
template <int tileRows>
class TileCursor {
 public:
  __device__ TileCursor(const Sequences& sequences, int perTile) : sequences_(sequences), perTile_(perTile) { load(); }

  /** Sets sequence, first (its first tile's number) and tiles (of one of its perTile parts); false past the last tile. */
  __device__ bool find(int tile, int& sequence, int& first, int& tiles) {
    for (;;) {
      const unsigned holds = __ballot_sync(0xffffffffu, tile < base_ + upTo_);
      if (holds) {
        const int lane = __ffs(holds) - 1;
        sequence = chunk_ + lane;
        tiles = __shfl_sync(0xffffffffu, own_, lane);
        first = base_ + __shfl_sync(0xffffffffu, upTo_, lane) - tiles * perTile_;
        return true;
      }
      if (chunk_ + 32 >= sequences_.count) return false;
      base_ += __shfl_sync(0xffffffffu, upTo_, 31);
      chunk_ += 32;
      load();
    }
  }

 private:
  __device__ void load() {
    const int lane = threadIdx.x % 32, j = chunk_ + lane;
    int rows = 0;
    if (j < sequences_.count) rows = sequences_.qStart[j + 1] - sequences_.qStart[j];
    own_ = (rows + tileRows - 1) / tileRows;
    upTo_ = own_ * perTile_;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(0xffffffffu, upTo_, step);
      if (lane >= step) upTo_ += before;
    }
  }

  const Sequences& sequences_;
  int perTile_, chunk_ = 0, base_ = 0, own_ = 0, upTo_ = 0;
};

__device__ __forceinline__ float exp2Approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float tanhApprox(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/** Two numbers rounded to T, `low` in the lower half. */
template <class T>
__device__ __forceinline__ uint32_t packPair(float low, float high) {
  uint32_t pair;
  if constexpr (sizeof(T) == 2 && __is_same(T, __half)) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/** The lower or upper number of a pair. */
template <class T>
__device__ __forceinline__ float half(uint32_t pair, bool upper) {
  if constexpr (__is_same(T, __half))
    return __half2float(__ushort_as_half(static_cast<unsigned short>(upper ? pair >> 16 : pair & 0xffff)));
  else return __uint_as_float(upper ? pair & 0xffff0000u : pair << 16);
}

/** Transposes words[i] of the four lanes of a quad: lane q ends with the words that lanes 0 to 3 had at q. */
__device__ __forceinline__ void transposeQuad(uint32_t (&words)[4], int quadLane) {
#pragma unroll
  for (int bit = 1; bit < 4; bit *= 2) {
    const bool upper = quadLane & bit;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? words[i] : words[i | bit], bit);
      if (upper) words[i] = other;
      else words[i | bit] = other;
    }
  }
}

/** Writes accumulators of one row (`half` of the two that a thread holds), times `factor`, in pieces of 16 bytes where it can. */
template <class T, int columns>
__device__ __forceinline__ void storeRow(T* row, const float (&values)[columns / 2], int half, float factor, bool live) {
  const int quadLane = threadIdx.x % 4;
  const auto word = [&](int block) {
    const int at = block * 4 + half * 2;
    return packPair<T>(values[at] * factor, values[at + 1] * factor);
  };
  constexpr int whole = columns / 32 * 4;
#pragma unroll
  for (int block = 0; block < whole; block += 4) {
    uint32_t words[4] = {word(block), word(block + 1), word(block + 2), word(block + 3)};
    transposeQuad(words, quadLane);
    if (live) *reinterpret_cast<uint4*>(row + (block + quadLane) * 8) = make_uint4(words[0], words[1], words[2], words[3]);
  }
#pragma unroll
  for (int block = whole; block < columns / 8; ++block)
    if (live) *reinterpret_cast<uint32_t*>(row + block * 8 + quadLane * 2) = word(block);
}

}  // namespace unsloth::cuda::sm90::attention
