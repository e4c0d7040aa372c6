#pragma once
#include <algorithm>
#include <string>

#include "../core/command.h"
#include "../core/error.h"
#include "threadPool.h"

namespace unsloth::cpu {

inline std::string describe(const View& v) {
  static const char* const names[] = {"f32", "bf16", "f16", "i32", "f64", "u8", "q4", "q4n", "q8", "f8"};
  return std::string(names[static_cast<int32_t>(v.dtype)]) + "[" + std::to_string(v.rows) + "," + std::to_string(v.cols) + "]";
}

/** A list of numbers given as a column or as a row. */
template <class T>
struct Vector {
  const T* data;
  int64_t count, stride;
  T operator[](int64_t i) const { return data[i * stride]; }
};

/** The operands of one command, checked: a wrong shape or type is an error that names both. */
class Operands {
 public:
  static constexpr int64_t any = -1;

  Operands(const Call& call, const char* op, int64_t tensors, int64_t ints, int64_t floats) : call_(call), op_(op) {
    if (call.tensorCount < tensors || call.intCount < ints || call.floatCount < floats)
      fail(std::string(op) + ": expected " + std::to_string(tensors) + " operands, " + std::to_string(ints) + " ints and " +
           std::to_string(floats) + " floats");
  }

  bool has(int64_t i) const { return call_.has(i); }
  [[noreturn]] void refuse(const std::string& message) const { fail(std::string(op_) + ": " + message); }
  void require(bool holds, const char* message) const {
    if (!holds) refuse(message);
  }

  /** An fp32 matrix; `any` leaves a dimension free. */
  const View& matrix(int64_t i, const char* name, int64_t rows, int64_t cols) const {
    const View& v = shaped(i, name, rows, cols);
    if (v.dtype != DType::F32) refuse(std::string(name) + " is " + describe(v) + ", expected f32");
    return v;
  }

  /** An fp32, bf16 or fp16 matrix. */
  const View& weight(int64_t i, const char* name, int64_t rows, int64_t cols) const {
    const View& v = shaped(i, name, rows, cols);
    if (v.dtype != DType::F32 && v.dtype != DType::BF16 && v.dtype != DType::F16)
      refuse(std::string(name) + " is " + describe(v) + ", expected f32, bf16 or f16");
    return v;
  }

  /** An i32 matrix. */
  const View& integers(int64_t i, const char* name, int64_t rows, int64_t cols) const {
    const View& v = shaped(i, name, rows, cols);
    if (v.dtype != DType::I32) refuse(std::string(name) + " is " + describe(v) + ", expected i32");
    return v;
  }

  /** Every entry of an i32 matrix is a row number below `limit`. */
  void entries(const View& v, const char* name, int64_t limit) const {
    for (int64_t r = 0; r < v.rows; ++r)
      for (int64_t c = 0; c < v.cols; ++c) {
        const int32_t value = v.i32()[r * v.ld + c];
        if (value < 0 || value >= limit)
          refuse(std::string(name) + "[" + std::to_string(r) + "," + std::to_string(c) + "] = " + std::to_string(value) +
                 " is not below " + std::to_string(limit));
      }
  }

  /** A matrix of any type. */
  const View& shaped(int64_t i, const char* name, int64_t rows, int64_t cols) const {
    const View& v = call_.t(i);
    if (!call_.has(i)) refuse(std::string(name) + " is absent");
    if ((rows != any && v.rows != rows) || (cols != any && v.cols != cols))
      refuse(std::string(name) + " is " + describe(v) + ", expected [" + (rows == any ? "any" : std::to_string(rows)) + "," +
             (cols == any ? "any" : std::to_string(cols)) + "]");
    return v;
  }

  /** At least `count` numbers of type T. */
  template <class T>
  Vector<T> numbers(int64_t i, const char* name, int64_t count) const {
    const View& v = shaped(i, name, any, any);
    constexpr DType wanted = std::is_same_v<T, int32_t> ? DType::I32 : std::is_same_v<T, double> ? DType::F64 : DType::F32;
    const int64_t length = v.cols == 1 ? v.rows : v.rows == 1 ? v.cols : 0;
    if (v.dtype != wanted || length < count) {
      View expected = v;
      expected.dtype = wanted, expected.rows = count, expected.cols = 1;
      refuse(std::string(name) + " is " + describe(v) + ", expected " + describe(expected));
    }
    return {static_cast<const T*>(v.data), length, v.cols == 1 ? v.ld : 1};
  }

  /** Row numbers from `least` on and below `limit`. */
  Vector<int32_t> indices(int64_t i, const char* name, int64_t count, int64_t limit, const char* into, int32_t least = 0) const {
    const Vector<int32_t> list = numbers<int32_t>(i, name, count);
    for (int64_t r = 0; r < count; ++r)
      if (list[r] < least || list[r] >= limit)
        refuse(std::string(name) + "[" + std::to_string(r) + "] = " + std::to_string(list[r]) + " is not a row of " + into +
               ", which has " + std::to_string(limit) + " rows");
    return list;
  }

 private:
  const Call& call_;
  const char* op_;
};

/** Elements that one task of an element-wise kernel visits; also where a long row is cut. */
constexpr int64_t elementsPerTask = 16384;

/** Calls fn(row, column, count) over a rows × cols matrix in pieces that depend on the shape alone. */
template <class Fn>
void forPieces(ThreadPool& pool, int64_t rows, int64_t cols, const Fn& fn) {
  if (rows <= 0 || cols <= 0) return;
  const int64_t cuts = (cols + elementsPerTask - 1) / elementsPerTask;
  const int64_t rowsPerTask = std::max<int64_t>(1, elementsPerTask / cols), rowTasks = (rows + rowsPerTask - 1) / rowsPerTask;
  pool.parallelFor(rowTasks * cuts, [&](int64_t task, int) {
    const int64_t firstRow = task / cuts * rowsPerTask, lastRow = std::min(rows, firstRow + rowsPerTask);
    const int64_t column = task % cuts * elementsPerTask, count = std::min(elementsPerTask, cols - column);
    for (int64_t r = firstRow; r < lastRow; ++r) fn(r, column, count);
  });
}

/** Calls fn(row) for every row, `cost` elements of work each. */
template <class Fn>
void forRows(ThreadPool& pool, int64_t rows, int64_t cost, const Fn& fn) {
  if (rows <= 0) return;
  const int64_t perTask = std::max<int64_t>(1, elementsPerTask / std::max<int64_t>(1, cost));
  pool.parallelFor((rows + perTask - 1) / perTask, [&](int64_t task, int) {
    for (int64_t r = task * perTask; r < std::min(rows, (task + 1) * perTask); ++r) fn(r);
  });
}

/** Columns of one task where rows are summed; each task walks all rows in order. */
constexpr int64_t columnBlock = 64;

/**
 * Adds Σ_rows into out[0, cols): add(row, column, count, sums) adds one row to fp32 sums; every 128 rows these go on in fp64.
 */
template <class Fn>
void sumRows(ThreadPool& pool, int64_t rows, int64_t cols, float* out, float alpha, const Fn& add) {
  if (rows <= 0) return;
  pool.parallelFor((cols + columnBlock - 1) / columnBlock, [&](int64_t task, int) {
    const int64_t column = task * columnBlock, count = std::min(columnBlock, cols - column);
    double total[columnBlock] = {};
    for (int64_t first = 0; first < rows; first += 128) {
      float sums[columnBlock] = {};
      for (int64_t r = first; r < std::min(rows, first + 128); ++r) add(r, column, count, sums);
      for (int64_t c = 0; c < count; ++c) total[c] += static_cast<double>(sums[c]);
    }
    for (int64_t c = 0; c < count; ++c) out[column + c] += static_cast<float>(static_cast<double>(alpha) * total[c]);
  });
}

/** Whether the rows of a matrix follow each other without a gap. */
inline bool gapless(const View& v) { return v.ld == v.cols || v.rows <= 1; }

}  // namespace unsloth::cpu
