#pragma once
#include "mma.cuh"

/** The tiles of `loraGrad` (loraGrad.cu): how they reach shared memory, and their products. */
namespace unsloth::cuda::lora {

constexpr int warps = 8, threads = 32 * warps;
constexpr int mostParts = 8, mostBlocks = 256, mostStages = 8;

/**
 * Work is cut into tiles: `tileRows` rows by a chunk of columns of one part, as many as eight warps hold sums of dB for. They
 * are numbered down each chunk, chunk after chunk, and a block takes a stretch of them.
 */
struct Part {
  int column, width;  // of dY
  int row;            // of B and dB
  int firstChunk, chunkWidth;
};

/** What both kernels take. */
struct LoraGradCall {
  const void *dy, *u, *b;
  void* du;
  float* db;
  int64_t dyLd, uLd, bLd, duLd, dbLd;
  float alpha;
  int rows, rank, parts, chunks, rowTiles, stages;
  int duBlocks, duWays, dbWays;  // of the sums: blocks for dU; warps that share a list of terms
  float4* duPartial;             // [tile][16 rows][8 of rank][lane]
  float4* dbPartial;             // [block + chunk][warp][16 columns][8 of rank][lane]
  int2* spans;                   // the first and the last block of each chunk
  Part part[mostParts];
  int begin[mostBlocks + 1];  // first tile of each block
};

template <class T_, int rank_, int warpColumns_, int tileRows_>
struct Shape {
  using T = T_;
  static constexpr int rank = rank_;                // at most, a multiple of 16
  static constexpr int warpColumns = warpColumns_;  // of a tile's, for each warp
  static constexpr int tileRows = tileRows_;
  static constexpr int columns = warps * warpColumns;
  static constexpr int rowBlocks = tileRows / 16, columnBlocks = warpColumns / 16, rankBlocks = rank / 8;
  static constexpr int dyBytes = tileRows * columns * 2, uStride = 2 * rank + 16, stageBytes = dyBytes + tileRows * uStride;
  static constexpr int duQuads = tileRows * rank / 4;  // float4 of a tile's dU
  static constexpr int sumBytes = 2 * warps * duQuads * 16;
  static constexpr int dbQuads = columns * rank / 4;
  static_assert(duQuads * 4 % threads == 0 && dbQuads % threads == 0 && (warpColumns & (warpColumns - 1)) == 0);
};

/** A chunk's part, its first column of dY and row of B, and its columns. */
struct Chunk {
  int part, column, row, width;
};

__device__ __forceinline__ Chunk chunkOf(const LoraGradCall& call, int number) {
  int p = 0;
  while (p + 1 < call.parts && number >= call.part[p + 1].firstChunk) ++p;
  const Part& part = call.part[p];
  const int at = (number - part.firstChunk) * part.chunkWidth;
  return {p, part.column + at, part.row + at, min(part.chunkWidth, part.width - at)};
}

__device__ __forceinline__ void awaitStage(int pending) {
  switch (pending) {
    case 0: return waitCopies<0>();
    case 1: return waitCopies<1>();
    case 2: return waitCopies<2>();
    case 3: return waitCopies<3>();
    case 4: return waitCopies<4>();
    case 5: return waitCopies<5>();
    default: return waitCopies<6>();
  }
}

/** How L2 treats what is read once: it goes first, so that partial sums stay. */
__device__ __forceinline__ uint64_t evictFirst() {
  uint64_t policy = 0;
#if __CUDA_ARCH__ >= 800
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}

/** `copyAsync16` under a policy. */
__device__ __forceinline__ void copyOnce16(uint32_t shared, const void* global, int bytes, uint64_t policy) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared), "l"(global), "r"(bytes),
               "l"(policy)
               : "memory");
#else
  copyAsync16(shared, global, bytes);
#endif
}

/** Brings tiles of dY, in pieces of 16 bytes swizzled by the row, and the rows of U beside them. */
template <class S>
struct TileCopier {
  using T = typename S::T;
  static constexpr int perRow = S::columns / 8, rowStep = threads / perRow, pieces = S::tileRows / rowStep;
  static constexpr int uPerRow = S::rank / 8, uPieces = S::tileRows * uPerRow;
  static_assert(uPieces <= threads);
  const LoraGradCall& call;
  uint64_t policy;
  int chunk, rowTile, left;
  const T *dy, *u;
  int dyBytes;
  bool copiesU;

  __device__ __forceinline__ TileCopier(const LoraGradCall& call_, int begin, int end) : call(call_) {
    chunk = begin / call.rowTiles;
    rowTile = begin - chunk * call.rowTiles;
    left = end - begin;
    policy = evictFirst();
    enter();
  }
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / perRow; }
  static __device__ __forceinline__ int piece() { return static_cast<int>(threadIdx.x) % perRow; }
  static __device__ __forceinline__ int uRow() { return static_cast<int>(threadIdx.x) / uPerRow; }
  static __device__ __forceinline__ int uPiece() { return static_cast<int>(threadIdx.x) % uPerRow; }

  __device__ __forceinline__ void enter() {
    const Chunk c = chunkOf(call, min(chunk, call.chunks - 1));
    const int64_t first = int64_t{rowTile} * S::tileRows;
    dy = static_cast<const T*>(call.dy) + (first + row()) * call.dyLd + c.column + piece() * 8;
    dyBytes = min(max(2 * (c.width - piece() * 8), 0), 16);
    u = static_cast<const T*>(call.u) + (first + uRow()) * call.uLd + c.part * call.rank + uPiece() * 8;
    copiesU = static_cast<int>(threadIdx.x) < uPieces;
  }

  __device__ __forceinline__ void next(uint32_t stage) {
    if (left > 0) {
      const int first = rowTile * S::tileRows;
#pragma unroll
      for (int i = 0; i < pieces; ++i) {
        const int r = row() + i * rowStep;
        copyOnce16(stage + r * (2 * S::columns) + (piece() ^ (r & 7)) * 16, dy + int64_t{i} * rowStep * call.dyLd,
                   first + r < call.rows ? dyBytes : 0, policy);
      }
      if (copiesU)
        copyAsync16(stage + S::dyBytes + uRow() * S::uStride + uPiece() * 16, u,
                    first + uRow() < call.rows && uPiece() * 8 < call.rank ? 16 : 0);
      --left;
      dy += int64_t{S::tileRows} * call.dyLd;
      u += int64_t{S::tileRows} * call.uLd;
      if (++rowTile == call.rowTiles) {
        rowTile = 0;
        ++chunk;
        enter();
      }
    }
    commitCopies();
  }
};

/**
 * The warp's rows of B as the right operand of dY·B. Two neighbours of a row of B go to two products: product j takes the columns
 * 16·(j / 2) + 2n + j % 2 of B, n = 0 … 7.
 */
template <class S>
__device__ __forceinline__ void loadB(const LoraGradCall& call, int chunk, uint32_t (&b)[S::columnBlocks][S::rankBlocks][2]) {
  using T = typename S::T;
  const Chunk c = chunkOf(call, chunk);
  const int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x) / 32 * S::warpColumns;
  const T* from = static_cast<const T*>(call.b) + c.row * call.bLd;
#pragma unroll
  for (int s = 0; s < S::columnBlocks; ++s)
#pragma unroll
    for (int pair = 0; pair < S::rankBlocks / 2; ++pair)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t v[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = first + s * 16 + half * 8 + lane % 4 * 2 + i, column = pair * 16 + lane / 4 * 2;
          if (row < c.width && column < call.rank)
            v[i] = __ldg(reinterpret_cast<const unsigned*>(from + row * call.bLd + column));
        }
        b[s][2 * pair][half] = __byte_perm(v[0], v[1], 0x5410);
        b[s][2 * pair + 1][half] = __byte_perm(v[0], v[1], 0x7632);
      }
}

__device__ __forceinline__ void add(float4& sum, const float4& v) { sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w; }

/** Products of this block's tiles: their dU over the chunk's columns, and the chunk's dB over the block's rows. */
template <class S>
__device__ __forceinline__ void multiplyTiles(const LoraGradCall& call, unsigned char* sharedBytes) {
  using T = typename S::T;
  const int begin = call.begin[blockIdx.x], end = call.begin[blockIdx.x + 1];
  const uint32_t shared = sharedAddress(sharedBytes);
  auto* const sums = reinterpret_cast<float4*>(sharedBytes + call.stages * S::stageBytes);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, low = lane % 8, second = lane / 8 % 2, third = lane / 16;
  TileCopier<S> copier(call, begin, end);
  const int ahead = call.stages - 1;
  for (int s = 0; s < ahead; ++s) copier.next(shared + s * S::stageBytes);
  int chunk = begin / call.rowTiles, rowTile = begin - chunk * call.rowTiles;
  uint32_t b[S::columnBlocks][S::rankBlocks][2];
  float db[S::columnBlocks][S::rankBlocks][4] = {};

  const auto enterChunk = [&] {
    if (threadIdx.x == 0 && rowTile == 0) call.spans[chunk].x = static_cast<int>(blockIdx.x);
    loadB<S>(call, chunk, b);
  };
  const auto leaveChunk = [&] {
    if (threadIdx.x == 0 && rowTile == call.rowTiles) call.spans[chunk].y = static_cast<int>(blockIdx.x);
    float4* to = call.dbPartial + static_cast<int64_t>(blockIdx.x + chunk) * S::dbQuads +
                 warp * (S::columnBlocks * S::rankBlocks * 32) + lane;
#pragma unroll
    for (int s = 0; s < S::columnBlocks; ++s)
#pragma unroll
      for (int j = 0; j < S::rankBlocks; ++j)
        __stcg(to + (s * S::rankBlocks + j) * 32, make_float4(db[s][j][0], db[s][j][1], db[s][j][2], db[s][j][3]));
  };
  const auto storeDu = [&](int tile) {
    const float4* from = sums + (tile & 1) * (warps * S::duQuads);
    if constexpr (S::duQuads % threads == 0) {
#pragma unroll
      for (int i = 0; i < S::duQuads / threads; ++i) {
        const int at = i * threads + static_cast<int>(threadIdx.x);
        float4 sum = from[at];
#pragma unroll
        for (int w = 1; w < warps; ++w) add(sum, from[w * S::duQuads + at]);
        __stcg(call.duPartial + int64_t{tile} * S::duQuads + at, sum);
      }
    } else {
      const auto* part = reinterpret_cast<const float*>(from) + threadIdx.x;
      float* to = reinterpret_cast<float*>(call.duPartial + int64_t{tile} * S::duQuads) + threadIdx.x;
#pragma unroll
      for (int i = 0; i < 4 * S::duQuads / threads; ++i) {
        float sum = part[i * threads];
#pragma unroll
        for (int w = 1; w < warps; ++w) sum += part[w * 4 * S::duQuads + i * threads];
        __stcg(to + i * threads, sum);
      }
    }
  };

  enterChunk();
  // Where ldmatrix finds the 8×8 matrices of 16 rows by 16 columns: as they are for dU, transposed for dB.
  const uint32_t plainRow = (second * 8 + low) * (2 * S::columns), turnedRow = (third * 8 + low) * (2 * S::columns);
  const uint32_t plainPlace = ((warp * (S::warpColumns / 8) + third) ^ low) * 16,
                 turnedPlace = ((warp * (S::warpColumns / 8) + second) ^ low) * 16;
  const uint32_t uPlace = S::dyBytes + (second * 8 + low) * S::uStride + third * 16;
  int slot = 0, freeSlot = ahead;
  for (int tile = begin; tile < end; ++tile) {
    awaitStage(call.stages - 2);
    __syncthreads();
    copier.next(shared + freeSlot * S::stageBytes);
    const uint32_t stage = shared + slot * S::stageBytes;
    freeSlot = slot;
    slot = slot == ahead ? 0 : slot + 1;
    if (tile > begin) storeDu(tile - 1);
    if (rowTile == call.rowTiles) {
      leaveChunk();
#pragma unroll
      for (int s = 0; s < S::columnBlocks; ++s)
#pragma unroll
        for (int j = 0; j < S::rankBlocks; ++j)
#pragma unroll
          for (int q = 0; q < 4; ++q) db[s][j][q] = 0;
      rowTile = 0;
      ++chunk;
      enterChunk();
    }
    ++rowTile;
    float4* const mine = sums + ((tile & 1) * warps + warp) * S::duQuads + lane;
#pragma unroll
    for (int row = 0; row < S::rowBlocks; ++row) {
      float du[S::rankBlocks][4] = {};
      uint32_t u[S::rankBlocks / 2][4];
#pragma unroll
      for (int pair = 0; pair < S::rankBlocks / 2; ++pair)
        loadMatricesTransposed(u[pair], stage + uPlace + row * 16 * S::uStride + pair * 32);
      const uint32_t at = stage + row * (32 * S::columns);
      uint32_t plain[2][4], turned[2][4];
      const auto loadDy = [&](int s) {
        loadMatrices(plain[s % 2], at + plainRow + (plainPlace ^ (s * 32)));
        loadMatricesTransposed(turned[s % 2], at + turnedRow + (turnedPlace ^ (s * 32)));
      };
      loadDy(0);
#pragma unroll
      for (int s = 0; s < S::columnBlocks; ++s) {
        if (s + 1 < S::columnBlocks) loadDy(s + 1);
#pragma unroll
        for (int j = 0; j < S::rankBlocks; ++j) {
          multiplyAdd<T>(du[j], plain[s % 2], b[s][j][0], b[s][j][1]);
          multiplyAdd<T>(db[s][j], turned[s % 2], u[j / 2][j % 2 * 2], u[j / 2][j % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int j = 0; j < S::rankBlocks; ++j)
        mine[(row * S::rankBlocks + j) * 32] = make_float4(du[j][0], du[j][1], du[j][2], du[j][3]);
    }
  }
  leaveChunk();
  __syncthreads();
  storeDu(end - 1);
}

}  // namespace unsloth::cuda::lora
