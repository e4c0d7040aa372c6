#pragma once
#include <cstdint>
#include <vector>

#include "tensor.h"

namespace unsloth {

enum class Op : int32_t {
#define UNSLOTH_OP(name) name,
#include "ops.def"
#undef UNSLOTH_OP
  count,
};

/** How many rows of the plan's maximum are live in this run. */
struct Dims {
  int64_t tokens = 0;     // packed tokens of the micro-step
  int64_t labelled = 0;   // rows that carry a label
  int64_t sequences = 0;  // packed sequences

  bool operator==(const Dims&) const = default;
};

/** One command as a kernel sees it: operands in the order that engine/graph/commands.ts documents. */
struct Call {
  const View* tensors;
  int64_t tensorCount;
  const int32_t* ints;
  int64_t intCount;
  const double* floats;
  int64_t floatCount;
  Dims dims;

  const View& t(int64_t i) const { return tensors[i]; }
  bool has(int64_t i) const { return i < tensorCount && tensors[i].present(); }
  int32_t i(int64_t k) const { return ints[k]; }
  double f(int64_t k) const { return floats[k]; }
};

}  // namespace unsloth
