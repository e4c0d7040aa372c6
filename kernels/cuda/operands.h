#pragma once
#include <string>

#include "../core/command.h"
#include "../core/error.h"

namespace unsloth::cuda {

/** The operands of one command, checked on the host by shape and type: a wrong one is an error that names both. */
class Operands {
 public:
  static constexpr int64_t any = -1;

  Operands(const Call& call, const char* op, int64_t tensors, int64_t ints, int64_t floats) : call_(call), op_(op) {
    if (call.tensorCount < tensors || call.intCount < ints || call.floatCount < floats)
      refuse("expected " + std::to_string(tensors) + " operands, " + std::to_string(ints) + " ints and " +
             std::to_string(floats) + " floats");
  }

  bool has(int64_t i) const { return call_.has(i); }
  [[noreturn]] void refuse(const std::string& message) const { fail(std::string(op_) + ": " + message); }
  void require(bool holds, const char* message) const {
    if (!holds) refuse(message);
  }

  /** A matrix of f32, bf16 or f16; `any` leaves a dimension free. */
  const View& matrix(int64_t i, const char* name, int64_t rows = any, int64_t cols = any) const {
    const View& v = shaped(i, name, rows, cols);
    if (v.dtype != DType::F32 && v.dtype != DType::BF16 && v.dtype != DType::F16)
      refuse(std::string(name) + " is " + describe(v) + ", expected f32, bf16 or f16");
    return v;
  }

  /** A matrix of one type. */
  const View& typed(int64_t i, const char* name, DType dtype, int64_t rows = any, int64_t cols = any) const {
    const View& v = shaped(i, name, rows, cols);
    if (v.dtype != dtype) refuse(std::string(name) + " is " + describe(v));
    return v;
  }

  /** A list of at least `count` numbers of one type, a column or a row without gaps. */
  template <class T>
  const T* list(int64_t i, const char* name, DType dtype, int64_t count) const {
    const View& v = typed(i, name, dtype);
    const bool column = v.cols == 1 && v.ld == 1 && v.rows >= count, row = v.rows == 1 && v.cols >= count;
    if (!column && !row) refuse(std::string(name) + " is " + describe(v) + ", expected " + std::to_string(count) + " numbers");
    return static_cast<const T*>(v.data);
  }

  const View& shaped(int64_t i, const char* name, int64_t rows, int64_t cols) const {
    if (!call_.has(i)) refuse(std::string(name) + " is absent");
    const View& v = call_.t(i);
    if ((rows != any && v.rows != rows) || (cols != any && v.cols != cols))
      refuse(std::string(name) + " is " + describe(v) + ", expected [" + (rows == any ? "any" : std::to_string(rows)) + "," +
             (cols == any ? "any" : std::to_string(cols)) + "]");
    return v;
  }

  static std::string describe(const View& v) {
    static const char* const names[] = {"f32", "bf16", "f16", "i32", "f64", "u8", "q4", "q4n", "q8", "f8"};
    return std::string(names[static_cast<int32_t>(v.dtype)]) + "[" + std::to_string(v.rows) + "," + std::to_string(v.cols) + "]";
  }

 private:
  const Call& call_;
  const char* op_;
};

}  // namespace unsloth::cuda
