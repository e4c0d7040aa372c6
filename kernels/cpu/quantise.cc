#include "quantise.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <vector>

#include "../core/error.h"
#include "../core/fileReader.h"
#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu {
namespace {

constexpr int64_t block = Quant4Layout::block;

/** One matrix, ready to be read. */
class Reader {
 public:
  explicit Reader(const View& v) : q_(v), header_(quant4Header(q_)), kernels_(vectorKernels()) {}

  DType rounding() const { return static_cast<DType>(header_.rounding); }

  float absmax(int64_t index) const {
    if (q_.absmax != nullptr) return q_.absmax[index];
    const float* group = q_.nested + 2 * (index >> header_.groupShift);
    return q_.nestedCode[q_.absmaxCode[index]] * group[0] + group[1];
  }

  /** Elements [first, first + count) of the flattened matrix, not rounded. */
  void read(float* y, int64_t first, int64_t count) const {
    while (count > 0) {
      const int64_t index = first / block, into = first % block, length = std::min(block - into, count);
      const uint8_t* codes = q_.codes + first / 2;
      const float scale = absmax(index);
      if (first % 2 == 0) {
        kernels_.unpack4(y, codes, q_.code, scale, length);
      } else {
        y[0] = q_.code[*codes & 15] * scale;
        if (length > 1) kernels_.unpack4(y + 1, codes + 1, q_.code, scale, length - 1);
      }
      y += length, first += length, count -= length;
    }
  }

 private:
  Quant4View q_;
  Quant4Header header_;
  const VectorKernels& kernels_;
};

/** torch's sum of fp32 on a GPU, as far as one block of threads does it: 4 sums for each of up to 512 threads, then halves. */
float blockSum(const float* x, int64_t n) {
  const bool vectors = n > 128;
  int64_t width = 1;
  while (width * 2 <= std::min<int64_t>(vectors ? n / 4 : n, 512)) width *= 2;
  std::vector<float> sums(static_cast<size_t>(4 * width));
  if (vectors) {
    for (int64_t i = 0; i < n / 4 * 4; ++i) sums[static_cast<size_t>((i / 4 % width) * 4 + i % 4)] += x[i];
    for (int64_t i = n / 4 * 4; i < n; ++i) sums[static_cast<size_t>((i - n / 4 * 4) * 4)] += x[i];
  } else {
    for (int64_t i = 0; i < n; ++i) sums[static_cast<size_t>(i % width * 4 + i / width % 4)] += x[i];
  }
  std::vector<float> lanes(static_cast<size_t>(width));
  for (int64_t i = 0; i < width; ++i) {
    const float* four = sums.data() + 4 * i;
    lanes[static_cast<size_t>(i)] = four[0] + four[1] + four[2] + four[3];
  }
  for (int64_t half = width / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lanes[static_cast<size_t>(i)] += lanes[static_cast<size_t>(i + half)];
  return lanes[0];
}

/** absmax in 8 bits, in blocks of 256, relative to its mean; scale and offset once for every 2^groupShift of them. */
void nest(const Quant4Target& target, int64_t blocks, ThreadPool& pool) {
  static constexpr Map8 map = dynamicMap(true);
  const float offset = blockSum(target.absmax, blocks) * (1.0f / static_cast<float>(blocks));
  const int64_t nestedBlocks = (blocks + Quant4Layout::nestedBlock - 1) / Quant4Layout::nestedBlock;
  forRows(pool, nestedBlocks, 16 * Quant4Layout::nestedBlock, [&](int64_t block) {
    const int64_t first = block * Quant4Layout::nestedBlock, last = std::min(blocks, first + Quant4Layout::nestedBlock);
    float largest = 0;
    for (int64_t i = first; i < last; ++i) largest = std::max(largest, std::fabs(target.absmax[i] - offset));
    const float inverse = 1.0f / largest;
    for (int64_t i = first; i < last; ++i)
      target.absmaxCode[i] = nearest8(map.at, largest == 0 ? 0.0f : (target.absmax[i] - offset) * inverse);
    for (int64_t group = first >> target.groupShift; group << target.groupShift < last; ++group) {
      target.nested[2 * group] = largest;
      target.nested[2 * group + 1] = offset;
    }
  });
}

/** Calls fill(task, elements of the type) for pieces of whole blocks, in parallel, and quantises them. */
uint64_t quantisePieces(DType type, int64_t elements, bool fp4, const Quant4Target& target, ThreadPool& pool,
                        const std::function<const std::byte*(int64_t first, int64_t count, std::byte* scratch)>& fetch) {
  constexpr int64_t perTask = 4096 * block;
  std::atomic<uint64_t> bad{0};
  const VectorKernels& kernels = vectorKernels();
  pool.parallelFor((elements + perTask - 1) / perTask, [&](int64_t task, int thread) {
    const int64_t first = task * perTask, count = std::min(perTask, elements - first);
    const std::byte* values = fetch(first, count, pool.scratch(thread));
    uint64_t wrong = 0;
    float wide[block];
    for (int64_t at = 0; at < count; at += block) {
      const int64_t length = std::min(block, count - at);
      kernels.widen(wide, values + static_cast<size_t>(at) * bytesPerElement(type), type, length);
      const float absmax = kernels.pack4(target.codes + (first + at) / 2, wide, length, fp4);
      target.absmax[(first + at) / block] = absmax;
      if (absmax != absmax)
        for (int64_t i = 0; i < length; ++i) wrong += !(std::fabs(wide[i]) <= 3.4028235e38f);
    }
    bad += wrong;
  });
  if (target.absmaxCode != nullptr && bad == 0) nest(target, (elements + block - 1) / block, pool);
  return bad;
}

}  // namespace

DType dequantisedType(const View& q) { return Reader(q).rounding(); }

int64_t dequantisedWidth(const View& q) { return static_cast<int64_t>(bytesPerElement(dequantisedType(q))); }

void dequantise(const View& q, int64_t row, int64_t rows, int64_t column, int64_t cols, void* out, DType type) {
  const Reader reader(q);
  const VectorKernels& kernels = vectorKernels();
  const DType rounding = reader.rounding();
  constexpr int64_t piece = 1024;
  float values[piece];
  uint16_t rounded[piece];
  auto* to = static_cast<std::byte*>(out);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; c += piece) {
      const int64_t count = std::min(piece, cols - c);
      reader.read(values, (row + r) * q.cols + column + c, count);
      std::byte* at = to + static_cast<size_t>(r * cols + c) * bytesPerElement(type);
      if (type == rounding || rounding == DType::F32) {
        kernels.narrow(at, type, values, count);
        continue;
      }
      kernels.narrow(rounded, rounding, values, count);
      kernels.widen(values, rounded, rounding, count);
      kernels.narrow(at, type, values, count);
    }
}

uint64_t quantiseFile(const LoadPart& part, bool fp4, const Quant4Target& target, ThreadPool& pool) {
  FileReader file(part.path);
  const uint64_t width = bytesPerElement(part.source);
  return quantisePieces(part.source, static_cast<int64_t>(part.elements), fp4, target, pool, [&](int64_t first, int64_t count, std::byte* scratch) {
    file.read(part.fileOffset + static_cast<uint64_t>(first) * width, scratch, static_cast<uint64_t>(count) * width);
    return scratch;
  });
}

uint64_t quantise(const void* values, DType type, int64_t elements, bool fp4, const Quant4Target& target, ThreadPool& pool) {
  const auto* bytes = static_cast<const std::byte*>(values);
  return quantisePieces(type, elements, fp4, target, pool,
                        [&](int64_t first, int64_t, std::byte*) { return bytes + static_cast<size_t>(first) * bytesPerElement(type); });
}

namespace ops {

void dequantise(const Call& call, ThreadPool& pool) {
  const Operands args(call, "dequantise", 2, 1, 0);
  const View& y = args.weight(0, "y", Operands::any, Operands::any);
  const View& x = args.shaped(1, "x", Operands::any, y.cols);
  args.require(isQuantised(x.dtype), "x is not quantised");
  const int64_t first = call.i(0);
  args.require(first >= 0 && first + y.rows <= x.rows, "the rows are not in x");
  const size_t width = bytesPerElement(y.dtype);
  forRows(pool, y.rows, y.cols, [&](int64_t r) {
    cpu::dequantise(x, first + r, 1, 0, y.cols, static_cast<std::byte*>(y.data) + static_cast<size_t>(r * y.ld) * width, y.dtype);
  });
}

}  // namespace ops
}  // namespace unsloth::cpu
