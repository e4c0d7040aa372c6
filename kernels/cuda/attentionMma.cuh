#pragma once
#include "attentionTiles.cuh"
#include "mma.cuh"

/** Building blocks of the mma.sync attention kernels: tiles in shared memory with their 16-byte pieces permuted, and operands. */
namespace unsloth::cuda {

/** Four bytes from device to shared memory, or zeros when not `valid`. */
__device__ __forceinline__ void copyAsync4(uint32_t shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(valid ? 4 : 0) : "memory");
#else
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared), "r"(valid ? *static_cast<const uint32_t*>(global) : 0u) : "memory");
#endif
}

/** Whether the code being compiled multiplies matrices of T: none of bf16 before sm_80, where launchers refuse it. */
template <class T>
__device__ constexpr bool multiplies() {
#if __CUDA_ARCH__ < 800
  return !std::is_same_v<T, bf16>;
#else
  return true;
#endif
}

/** Two values rounded into one register, the first in the lower half. */
template <class T>
__device__ __forceinline__ uint32_t packPair(float low, float high) {
  if constexpr (std::is_same_v<T, bf16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

/** Two neighbouring accumulators d[16, 8] as one operand a[16, 16]: the layouts coincide, see multiplyAdd. */
template <class T>
__device__ __forceinline__ void packOperand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = packPair<T>(left[0], left[1]), a[1] = packPair<T>(left[2], left[3]);
  a[2] = packPair<T>(right[0], right[1]), a[3] = packPair<T>(right[2], right[3]);
}

/** left[16, 8] += a·b and right[16, 8] += a·b' for the two operands b that one load of four matrices brings. */
template <class T>
__device__ __forceinline__ void multiplyAddPair(float (&left)[4], float (&right)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[4]) {
  multiplyAdd<T>(left, a, b[0], b[1]);
  multiplyAdd<T>(right, a, b[2], b[3]);
}

/** Element (row, column) of a matrix in device memory. */
template <class T>
__device__ __forceinline__ T* element(const View& v, int64_t row, int64_t column) {
  return static_cast<T*>(v.data) + row * v.ld + column;
}

/**
 * A matrix of `width` 16-bit columns in shared memory. The 16-byte pieces of a row are permuted by the row's number, so that the
 * eight rows that one matrix load touches lie in distinct banks.
 */
template <int width>
struct SharedTile {
  static_assert(width % 64 == 0 || width == 96 || width == 32);
  static constexpr int pieces = width / 8, rowBytes = width * 2;
  /** What a row's piece numbers are xor-ed with. */
  __device__ static int permutation(int row) { return width % 64 == 0 ? row % 8 : row / 2 % 4; }
  __device__ static uint32_t offset(int row, int piece) {
    return static_cast<uint32_t>(row * rowBytes + ((piece ^ permutation(row)) << 4));
  }

  /** What a lane adds and xors to reach its row of the four 8×8 matrices of a load. Rows given to `at` are multiples of 8. */
  struct Lane {
    uint32_t add, mask;
    __device__ uint32_t at(uint32_t tile, int row, int column) const {
      return tile + add + static_cast<uint32_t>(row * rowBytes) + ((static_cast<uint32_t>(column) * 2) ^ mask);
    }
  };
  /** Matrices (rows 0–7, columns 0–7), (8–15, 0–7), (0–7, 8–15), (8–15, 8–15): operand a, or two operands b when transposed. */
  __device__ static Lane rowsFirst() {
    const int lane = threadIdx.x % 32, row = lane % 16;
    return {static_cast<uint32_t>(row * rowBytes), static_cast<uint32_t>((lane / 16 ^ permutation(row)) << 4)};
  }
  /** Matrices (rows 0–7, columns 0–7), (0–7, 8–15), (8–15, 0–7), (8–15, 8–15): two operands b of eight rows each. */
  __device__ static Lane columnsFirst() {
    const int lane = threadIdx.x % 32, row = lane % 8 + lane / 16 * 8;
    return {static_cast<uint32_t>(row * rowBytes), static_cast<uint32_t>((lane / 8 % 2 ^ permutation(row)) << 4)};
  }

  /** Starts to copy `rows` rows; those from `valid` on and columns from `columns` on become zero. */
  template <int rows, int threads, class T>
  __device__ static void copy(uint32_t tile, const T* from, int64_t ld, int valid, int columns) {
    if constexpr (threads % pieces == 0) {
      constexpr int step = threads / pieces;  // rows that the block copies at a time
      static_assert(rows % step == 0);
      const int row = static_cast<int>(threadIdx.x) / pieces, piece = static_cast<int>(threadIdx.x) % pieces;
      const T* source = from + row * ld + piece * 8;
      const int64_t stride = step * ld;
      valid = piece * 8 < columns ? valid - row : 0;
#pragma unroll
      for (int i = 0; i < rows / step; ++i, source += stride)
        copyAsync16(tile + offset(row + i * step, piece), source, i * step < valid ? 16 : 0);
    } else {
      for (int item = static_cast<int>(threadIdx.x); item < rows * pieces; item += threads) {
        const int row = item / pieces, piece = item % pieces;
        copyAsync16(tile + offset(row, piece), from + row * ld + piece * 8, row < valid && piece * 8 < columns ? 16 : 0);
      }
    }
  }

  /** Stores `rows` rows of a tile, `valid` of them and `columns` columns being wanted. */
  template <int rows, int threads, class T>
  __device__ static void store(const unsigned char* tile, T* to, int64_t ld, int valid, int columns) {
    for (int item = static_cast<int>(threadIdx.x); item < rows * pieces; item += threads) {
      const int row = item / pieces, piece = item % pieces;
      if (row < valid && piece * 8 < columns)
        *reinterpret_cast<uint4*>(to + row * ld + piece * 8) = *reinterpret_cast<const uint4*>(tile + offset(row, piece));
    }
  }
};

/** Whether rows and heads of a matrix can be read in 16-byte pieces. */
inline bool headsVectorised(const View& v, int headDim) {
  return headDim % 8 == 0 && reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && v.ld % 8 == 0;
}

/** fn(std::integral_constant<int, head dimension padded to what kernels are compiled for>). */
template <class Fn>
auto withHeadDim(int headDim, Fn&& fn) {
  if (headDim <= 64) return fn(std::integral_constant<int, 64>{});
  if (headDim <= 96) return fn(std::integral_constant<int, 96>{});
  if (headDim <= 128) return fn(std::integral_constant<int, 128>{});
  return fn(std::integral_constant<int, 256>{});
}

}  // namespace unsloth::cuda
