#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "command.h"

namespace unsloth {

/** Which live row count a tensor follows; numbers as in engine/graph/plan.ts. */
enum class RowRule : int32_t { fixed = 0, tokens = 1, labelled = 2, sequences = 3 };

struct PlanTensor {
  DType dtype;
  int32_t buffer;  // index into Plan::buffers
  int64_t offset;  // bytes
  int64_t rows, cols, ld;
  RowRule rule;
  int64_t repeat;  // rows for each live one
  int64_t firstRow;  // a window on `rows` rows of a matrix from this one on, where the tensor starts; -1: the matrix itself
};

struct PlanCommand {
  Op op;
  int32_t firstTensor, tensorCount;
  int32_t firstInt, intCount;
  int32_t firstFloat, floatCount;
  int32_t window;  // a tensor that is a window: without live rows there, the command is left out; -1: none is
  bool labelled;   // whether an operand follows the count of labelled rows
};

/** A decoded plan: a flat list of commands over tensors that live in buffers of one device. */
struct Plan {
  uint64_t id = 0;                // differs between any two plans of a process
  std::vector<int32_t> buffers;  // device buffer handles
  std::vector<PlanTensor> tensors;
  std::vector<PlanCommand> commands;
  std::vector<int32_t> operands;  // tensor numbers, -1 for an absent operand
  std::vector<int32_t> ints;
  std::vector<double> floats;
};

const char* opName(Op op);

/**
 * Decodes what engine/graph/encodePlan.ts wrote: eight doubles per tensor (dtype, buffer, offset, rows, cols, ld,
 * rule + 4·(repeat − 1), 1 + first row of a window or 0), and per command op, operand count, int count, float count, operands, ints. Checks every number, so that
 * a wrong plan is an error and never a stray write. `bufferBytes[i]` is the size of buffers[i].
 */
Plan decodePlan(const double* tensors, size_t tensorNumbers, const int32_t* commands, size_t commandNumbers, const double* floats,
                size_t floatNumbers, std::vector<int32_t> buffers, const std::vector<size_t>& bufferBytes);

/** The plan's tensors in a run of so many rows; `bases[i]` is where buffers[i] lies. An error when the plan was built for fewer. */
std::vector<View> viewsOf(const Plan& plan, const Dims& dims, const std::vector<std::byte*>& bases);

/** Commands [first, last), of which all or none need the count of labelled rows. */
struct Stretch {
  int64_t first, last;
  bool labelled;
};

/**
 * Commands [first, last) in stretches of those that follow the count of labelled rows and those that do not, which are the same for
 * any such count. One stretch where copies run beside the commands: they last from one to the next.
 */
std::vector<Stretch> stretchesOf(const Plan& plan, int64_t first, int64_t last);

/** Whether a command works on a window that has no live rows in this run. */
inline bool isEmpty(const PlanCommand& command, const std::vector<View>& views) {
  return command.window >= 0 && views[static_cast<size_t>(command.window)].rows == 0;
}

}  // namespace unsloth
