#pragma once
#include "gemmSplitK.cuh"

/** How sums in registers become a tile of c: chunk after chunk through shared memory, whence the copy engine takes them. */
namespace unsloth::cuda::sm90 {

constexpr int tileM = 128, sliceK = 64, boxElements = 64, swizzleBytes = 128;
constexpr int warpgroup = 128, blockThreads = 3 * warpgroup;
constexpr int chunkRows = 64, chunkBytes = chunkRows * swizzleBytes;

template <int tileN>
struct TileShape {
  static constexpr int boxesB = (tileN + boxElements - 1) / boxElements;
  static constexpr int bytesA = tileM * sliceK * 2, bytesB = boxesB * boxElements * sliceK * 2, stageBytes = bytesA + bytesB;
  static constexpr int chunks = boxesB == 3 ? 3 : boxesB == 1 ? 1 : 2;  // buffers of each warpgroup for its part of c
  static constexpr int stages = tileN == 64 ? 8 : tileN <= 128 ? 6 : 4;
  static constexpr int barriers = 2 * stages + 2 * chunks;
  static constexpr int sharedBytes = stages * stageBytes + 2 * chunks * chunkBytes + 2 * tileN * 4 + barriers * 8;
};

/** Whether tiles of this width are made for fp32 results, too. */
template <int tileN>
constexpr bool takesWide = tileN == 128 || tileN == 192 || tileN == 256;

template <class T>
__device__ __forceinline__ uint32_t packPair(float x, float y) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

template <class T>
__device__ __forceinline__ float2 unpackPair(uint32_t bits) {
  if constexpr (std::is_same_v<T, __half>) return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  else return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
}

/** The bias of one thread's columns of a chunk, from shared memory: pair j is columns 8j and 8j + 1. */
template <int pairs>
__device__ __forceinline__ void readBias(uint32_t list, float2 (&bias)[pairs]) {
#pragma unroll
  for (int j = 0; j < pairs; ++j)
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(bias[j].x), "=f"(bias[j].y)
                 : "r"(list + 32 * j + threadIdx.x % 4 * 8)
                 : "memory");
}

/** One chunk of 64 rows × 64 columns of T, from registers d to shared memory, added to what lies there if `adds`. */
template <class T, bool adds>
__device__ __forceinline__ void writeChunk16(const float* d, float alpha, const float2 (&bias)[8], uint32_t buffer) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, row = 16 * warp + lane % 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t address = buffer + row * swizzleBytes + (((2 * i + lane / 16) ^ (row % 8)) << 4);
    float2 x[4];  // (row, pair 2i), (row + 8, pair 2i), (row, pair 2i + 1), (row + 8, pair 2i + 1)
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float2 b = bias[2 * i + q / 2];
      x[q] = make_float2(fmaf(alpha, d[8 * i + 2 * q], b.x), fmaf(alpha, d[8 * i + 2 * q + 1], b.y));
    }
    if constexpr (adds) {
      uint32_t s[4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(s[0]), "=r"(s[1]), "=r"(s[2]), "=r"(s[3])
                   : "r"(address)
                   : "memory");
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float2 v = unpackPair<T>(s[q]);
        x[q].x += v.x;
        x[q].y += v.y;
      }
    }
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(packPair<T>(x[0].x, x[0].y)), "r"(packPair<T>(x[1].x, x[1].y)), "r"(packPair<T>(x[2].x, x[2].y)),
                 "r"(packPair<T>(x[3].x, x[3].y))
                 : "memory");
  }
}

/** One chunk of 64 rows × 32 columns of fp32. */
template <bool adds>
__device__ __forceinline__ void writeChunk32(const float* d, float alpha, const float2 (&bias)[4], uint32_t buffer) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, row = 16 * warp + lane / 4;
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t address = buffer + (row + 8 * h) * swizzleBytes + (((2 * j + lane % 4 / 2) ^ (row % 8)) << 4) + lane % 2 * 8;
      float2 x = make_float2(fmaf(alpha, d[4 * j + 2 * h], bias[j].x), fmaf(alpha, d[4 * j + 2 * h + 1], bias[j].y));
      if constexpr (adds) {
        float2 s;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(s.x), "=f"(s.y) : "r"(address) : "memory");
        x.x += s.x;
        x.y += s.y;
      }
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x.x), "f"(x.y) : "memory");
    }
}

/**
 * A warpgroup's 64 rows of c, chunk after chunk through its buffers. `adds`: the buffers hold the source, which `barriers`
 * announce; `round` counts how often each was filled. Where columns are no multiple of a chunk's, the last one begins earlier.
 */
template <class T, int tileN, bool wide, bool adds>
__device__ __forceinline__ void writeTile(const WgmmaParams& p, const float (&d)[tileN / 2], uint32_t buffers, uint32_t barriers,
                                          uint32_t biasList, int row0, int n0, int part, uint32_t& round) {
  using Shape = TileShape<tileN>;
  constexpr int columns = wide ? 32 : 64, count = (tileN + columns - 1) / columns;
  const auto startOf = [](int chunk) { return min(chunk * columns, tileN - columns); };
  const bool leader = threadIdx.x % warpgroup == 0;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const uint32_t buffer = buffers + i % Shape::chunks * chunkBytes, barrier = barriers + i % Shape::chunks * 8;
    const int column = n0 + startOf(i);
    float2 bias[columns / 8] = {};
    if (p.bias != nullptr) readBias(biasList + startOf(i) * 4, bias);
    if constexpr (adds) {
      barrierWait(barrier, round & 1);
    } else {
      if (leader) storeWaitRead<Shape::chunks - 1>();
      namedBarrier(1 + part, warpgroup);
    }
    if constexpr (wide) writeChunk32<adds>(d + startOf(i) / 2, p.alpha, bias, buffer);
    else writeChunk16<T, adds>(d + startOf(i) / 2, p.alpha, bias, buffer);
    proxyFence();
    namedBarrier(1 + part, warpgroup);
    if (leader) {
      storeBox(&p.c, column, row0, buffer);
      storeCommit();
      if (adds && i + Shape::chunks < count) {
        storeWaitRead<0>();
        barrierExpect(barrier, chunkBytes);
        loadBox(buffer, &p.source, n0 + startOf(i + Shape::chunks), row0, barrier);
      }
    }
    __syncwarp();
    if (i % Shape::chunks == Shape::chunks - 1) ++round;
  }
}

}  // namespace unsloth::cuda::sm90
