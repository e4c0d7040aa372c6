#include "plan.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "error.h"
#include "quant4.h"
#include "quant8.h"

namespace unsloth {
namespace {

constexpr int64_t numbersPerTensor = 8, rowRules = 4, mostRepeats = 1024;

int64_t wholeNumber(double value, const char* what) {
  if (!(value >= 0) || value > 9007199254740991.0 || std::floor(value) != value) fail(std::string("plan: ") + what + " is not a whole number");
  return static_cast<int64_t>(value);
}

PlanTensor decodeTensor(const double* numbers, const std::vector<size_t>& bufferBytes) {
  PlanTensor t;
  const int64_t dtype = wholeNumber(numbers[0], "dtype");
  if (dtype > static_cast<int64_t>(DType::Q8)) fail("plan: unknown dtype " + std::to_string(dtype));
  t.dtype = static_cast<DType>(dtype);
  const int64_t buffer = wholeNumber(numbers[1], "buffer");
  if (buffer >= static_cast<int64_t>(bufferBytes.size())) fail("plan: tensor names buffer " + std::to_string(buffer));
  t.buffer = static_cast<int32_t>(buffer);
  t.offset = wholeNumber(numbers[2], "offset");
  t.rows = wholeNumber(numbers[3], "rows");
  t.cols = wholeNumber(numbers[4], "cols");
  t.ld = wholeNumber(numbers[5], "row stride");
  const int64_t rule = wholeNumber(numbers[6], "row rule");
  if (rule >= rowRules * mostRepeats) fail("plan: unknown row rule " + std::to_string(rule));
  t.rule = static_cast<RowRule>(rule % rowRules);
  t.repeat = rule / rowRules + 1;
  t.firstRow = wholeNumber(numbers[7], "first row") - 1;
  if (t.firstRow >= 0 && t.rule == RowRule::fixed) fail("plan: a window on a matrix of fixed rows");
  if (t.ld < t.cols) fail("plan: row stride " + std::to_string(t.ld) + " is below " + std::to_string(t.cols) + " columns");
  if (isQuantised(t.dtype)) {
    if (t.ld != t.cols || t.rule != RowRule::fixed || t.offset % Quant4Layout::part != 0) fail("plan: a quantised matrix is not whole");
    const int64_t least = t.dtype == DType::Q8 ? Quant8Layout{t.rows, t.cols}.leastBytes()
                                               : Quant4Layout{t.rows * t.cols, t.dtype == DType::Q4N}.leastBytes();
    if (static_cast<size_t>(t.offset + least) > bufferBytes[static_cast<size_t>(buffer)])
      fail("plan: a quantised matrix of " + std::to_string(t.rows) + "x" + std::to_string(t.cols) + " does not fit its buffer");
    return t;
  }
  const size_t width = bytesPerElement(t.dtype);
  const int64_t elements = t.rows == 0 || t.cols == 0 ? 0 : (t.rows - 1) * t.ld + t.cols;
  if (t.offset % static_cast<int64_t>(width) != 0) fail("plan: tensor is not aligned to its elements");
  if (static_cast<size_t>(t.offset) + static_cast<size_t>(elements) * width > bufferBytes[static_cast<size_t>(buffer)])
    fail("plan: a tensor of " + std::to_string(t.rows) + "x" + std::to_string(t.cols) + " does not fit its buffer");
  return t;
}

}  // namespace

const char* opName(Op op) {
  static const char* const names[] = {
#define UNSLOTH_OP(name) #name,
#include "ops.def"
#undef UNSLOTH_OP
  };
  return op < Op::count ? names[static_cast<int32_t>(op)] : "?";
}

namespace {

int64_t liveRows(const PlanTensor& tensor, const Dims& dims) {
  switch (tensor.rule) {
    case RowRule::tokens: return dims.tokens * tensor.repeat;
    case RowRule::labelled: return dims.labelled * tensor.repeat;
    case RowRule::sequences: return dims.sequences * tensor.repeat;
    case RowRule::fixed: break;
  }
  return tensor.rows;
}

}  // namespace

std::vector<View> viewsOf(const Plan& plan, const Dims& dims, const std::vector<std::byte*>& bases) {
  std::vector<View> views(plan.tensors.size());
  for (size_t i = 0; i < views.size(); ++i) {
    const PlanTensor& t = plan.tensors[i];
    int64_t rows = liveRows(t, dims);
    if (t.firstRow >= 0) rows = std::clamp(rows - t.firstRow, int64_t{0}, t.rows);
    if (rows > t.rows) fail("this run has " + std::to_string(rows) + " rows, the plan was built for " + std::to_string(t.rows));
    views[i] = {bases[static_cast<size_t>(t.buffer)] + t.offset, t.dtype, rows, t.cols, t.ld};
  }
  return views;
}

std::vector<Stretch> stretchesOf(const Plan& plan, int64_t first, int64_t last) {
  std::vector<Stretch> stretches;
  for (int64_t at = first; at < last; ++at) {
    const PlanCommand& command = plan.commands[static_cast<size_t>(at)];
    if (command.op == Op::offload || command.op == Op::prefetch) return {{first, last, true}};
    if (stretches.empty() || stretches.back().labelled != command.labelled) stretches.push_back({at, at, command.labelled});
    stretches.back().last = at + 1;
  }
  return stretches;
}

Plan decodePlan(const double* tensors, size_t tensorNumbers, const int32_t* commands, size_t commandNumbers, const double* floats,
                size_t floatNumbers, std::vector<int32_t> buffers, const std::vector<size_t>& bufferBytes) {
  static std::atomic<uint64_t> next{1};
  Plan plan;
  plan.id = next++;
  plan.buffers = std::move(buffers);
  if (tensorNumbers % numbersPerTensor != 0) fail("plan: the tensor table is cut short");
  for (size_t at = 0; at < tensorNumbers; at += numbersPerTensor) plan.tensors.push_back(decodeTensor(tensors + at, bufferBytes));

  size_t floatsUsed = 0;
  for (size_t at = 0; at < commandNumbers;) {
    if (at + 4 > commandNumbers) fail("plan: the command list is cut short");
    const int32_t op = commands[at], operandCount = commands[at + 1], intCount = commands[at + 2], floatCount = commands[at + 3];
    if (op < 0 || op >= static_cast<int32_t>(Op::count)) fail("plan: unknown command " + std::to_string(op));
    if (operandCount < 0 || intCount < 0 || floatCount < 0) fail("plan: a count is negative");
    at += 4;
    if (at + static_cast<size_t>(operandCount) + static_cast<size_t>(intCount) > commandNumbers) fail("plan: the command list is cut short");
    if (floatsUsed + static_cast<size_t>(floatCount) > floatNumbers) fail("plan: the float list is cut short");
    plan.commands.push_back({static_cast<Op>(op), static_cast<int32_t>(plan.operands.size()), operandCount,
                             static_cast<int32_t>(plan.ints.size()), intCount, static_cast<int32_t>(plan.floats.size()), floatCount, -1, false});
    for (int32_t i = 0; i < operandCount; ++i) {
      const int32_t tensor = commands[at++];
      if (tensor < -1 || tensor >= static_cast<int32_t>(plan.tensors.size())) fail("plan: a command names tensor " + std::to_string(tensor));
      plan.operands.push_back(tensor);
      if (tensor < 0) continue;
      const PlanTensor& operand = plan.tensors[static_cast<size_t>(tensor)];
      if (operand.firstRow >= 0) plan.commands.back().window = tensor;
      if (operand.rule == RowRule::labelled) plan.commands.back().labelled = true;
    }
    for (int32_t i = 0; i < intCount; ++i) plan.ints.push_back(commands[at++]);
    for (int32_t i = 0; i < floatCount; ++i) plan.floats.push_back(floats[floatsUsed++]);
  }
  return plan;
}

}  // namespace unsloth
