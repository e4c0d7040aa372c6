#pragma once
#include <bit>

#include "gemm.h"
#include "mma.cuh"

namespace unsloth::cuda {

/**
 * One operand's way into shared memory, a stage of `depth` of k after another: alongK [extent][depth], else [depth][extent], in
 * pieces of 16 bytes. Rows lie 16 bytes apart from each other, or without a gap and with pieces swizzled by the row (rows of at
 * least 128 bytes): either way ldmatrix meets no bank twice. A thread copies the same places of every stage.
 */
template <class T, int extent, int depth, bool alongK, int threads, bool swizzled>
struct Feed {
  static constexpr int rows = alongK ? extent : depth, columns = alongK ? depth : extent;
  static constexpr int stride = columns + (swizzled ? 0 : 8), bytes = rows * stride * 2;
  static constexpr int perRow = static_cast<int>(std::bit_ceil(static_cast<unsigned>(columns / 8))), rowStep = threads / perRow;
  static constexpr int pieces = (rows + rowStep - 1) / rowStep;  // of each thread
  static_assert(threads % perRow == 0 && columns % 8 == 0 && pieces <= 32);
  static_assert(!swizzled || (columns % 64 == 0 && rowStep % 8 == 0));

  const T* from;   // the first piece in the current stage
  int step;        // elements between pieces
  int advance;     // elements between stages
  uint32_t valid;  // alongK: which of the thread's rows exist; otherwise how many bytes of its columns

  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / perRow; }
  static __device__ __forceinline__ int column() { return static_cast<int>(threadIdx.x) % perRow * 8; }
  static __device__ __forceinline__ int clampBytes(int elements) { return min(max(2 * elements, 0), 16); }

  /** `first`: the operand's first row (column) in this tile, may be negative; `count` of them exist. */
  __device__ __forceinline__ void begin(const void* data, int64_t ld, int first, int count, int k0) {
    const int r = (alongK ? first : k0) + row(), c = (alongK ? k0 : first) + column();
    from = static_cast<const T*>(data) + (r * ld + c);
    step = rowStep * static_cast<int>(ld);
    advance = alongK ? depth : depth * static_cast<int>(ld);
    valid = 0;
    if (alongK) {
#pragma unroll
      for (int i = 0; i < pieces; ++i)
        if (row() + i * rowStep < rows && r + i * rowStep >= 0 && r + i * rowStep < count) valid |= 1u << i;
    } else if (c >= 0 && column() < columns) {
      valid = static_cast<uint32_t>(clampBytes(min(count - c, 8)));
    }
  }

  /** Piece i of the stage at `shared`; `left`: elements of k from the stage's first one on. */
  __device__ __forceinline__ void copy(uint32_t shared, int i, int left) const {
    const int r = row() + i * rowStep;
    if (rows % rowStep != 0 && r >= rows) return;
    if (columns / 8 != perRow && column() >= columns) return;
    const int place = swizzled ? ((column() / 8) ^ (r & 7)) * 16 : column() * 2;
    int count;
    if (alongK) count = (valid >> i & 1) != 0 ? clampBytes(left - column()) : 0;
    else count = r < left ? static_cast<int>(valid) : 0;
    copyAsync16(shared + r * (stride * 2) + place, from + static_cast<int64_t>(i) * step, count);
  }

  __device__ __forceinline__ void next() { from += advance; }

  /** A whole stage, for any alignment. */
  static __device__ __noinline__ void copySlowly(unsigned char* shared, const T* data, int64_t ld, int first, int count, int k0,
                                                 int k) {
    for (int i = threadIdx.x; i < rows * columns; i += threads) {
      const int row = i / columns, column = i % columns;
      const int r = (alongK ? first : k0) + row, c = (alongK ? k0 : first) + column;
      const bool exists = r >= 0 && c >= 0 && r < (alongK ? count : k) && c < (alongK ? k : count);
      const int place = swizzled ? ((column / 8) ^ (row & 7)) * 16 + column % 8 * 2 : column * 2;
      *reinterpret_cast<T*>(shared + row * (stride * 2) + place) = exists ? data[r * ld + c] : narrow<T>(0.f);
    }
  }
};

/**
 * Where a lane finds its rows of 8×8 matrices of one operand in a stage that `Source`, a Feed, filled. ldmatrix gives a the order
 * (rows 0, k 0) (rows 8, k 0) (rows 0, k 8) (rows 8, k 8), and b that with rows (columns) and k exchanged; see multiplyAdd.
 */
template <class Source, bool alongK, bool swizzled, bool isB>
struct Fragments {
  uint32_t base, place;

  __device__ __forceinline__ explicit Fragments(int warpFirst) {
    const int lane = threadIdx.x % 32, low = lane % 8, second = lane / 8 % 2, third = lane / 16;
    const int side = isB ? third : second, deep = isB ? second : third;  // by 8 along the side, along k
    const int row = low + (alongK ? warpFirst + side * 8 : deep * 8), eight = alongK ? deep : warpFirst / 8 + side;
    base = row * (Source::stride * 2);
    place = (swizzled ? eight ^ low : eight) * 16;
  }

  /** 16 rows (columns) from warpFirst + 16·i on, k from 16·step on. */
  __device__ __forceinline__ void load(uint32_t (&r)[4], uint32_t stage, int i, int step) const {
    const uint32_t rows = (alongK ? i : step) * 16 * (Source::stride * 2), pieces = (alongK ? step : i) * 32;
    const uint32_t address = stage + base + rows + (swizzled ? place ^ pieces : place + pieces);
    if (alongK) loadMatrices(r, address);
    else loadMatricesTransposed(r, address);
  }
};

/** Whether the sizes of a product fit the 32-bit arithmetic of feeds. */
inline bool fitsFeed(const GemmArgs& args) {
  constexpr int64_t most = int64_t{1} << 31, longest = int64_t{1} << 24;  // a stage of rows is at most 128 of them
  const auto fits = [](const View& a, const View& b) { return a.ld < longest && b.ld < longest; };
  for (const GemmTerm& term : args.terms)
    if (!fits(term.a, term.b)) return false;
  return args.m + 256 < most && args.n + 256 < most && args.k + 256 < most && fits(args.a, args.b);
}

/** Waits until at most `pending` (0 … 2) groups of copies are under way. */
__device__ __forceinline__ void waitCopies(int pending) {
  if (pending >= 2) waitCopies<2>();
  else if (pending == 1) waitCopies<1>();
  else waitCopies<0>();
}

}  // namespace unsloth::cuda
