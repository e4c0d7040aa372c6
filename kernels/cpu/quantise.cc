#include "quantise.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "../core/fileReader.h"
#include "../core/quant4.h"
#include "../core/quant8.h"
#include "operands.h"
#include "vectorKernels.h"

namespace unsloth::cpu {
namespace {

constexpr int64_t block = Quant4Layout::block;

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

/** How many of these are NaN or infinite. */
uint64_t notFinite(const float* x, int64_t n) {
  uint64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += !(std::fabs(x[i]) <= 3.4028235e38f);
  return count;
}

/** Quantises pieces of whole blocks in parallel; fetch(first, count, scratch) gives the elements of one. */
template <class Fetch>
uint64_t packBlocks(DType type, int64_t elements, bool fp4, const Quant4Target& target, ThreadPool& pool, const Fetch& fetch) {
  constexpr int64_t perTask = 4096 * block;
  std::atomic<uint64_t> bad{0};
  const VectorKernels& kernels = vectorKernels();
  pool.parallelFor((elements + perTask - 1) / perTask, [&](int64_t task, int thread) {
    const int64_t first = task * perTask, count = std::min(perTask, elements - first);
    const std::byte* const values = fetch(first, count, pool.scratch(thread));
    uint64_t wrong = 0;
    float wide[block];
    for (int64_t at = 0; at < count; at += block) {
      const int64_t length = std::min(block, count - at);
      kernels.widen(wide, values + static_cast<size_t>(at) * bytesPerElement(type), type, length);
      const float absmax = kernels.pack4(target.codes + (first + at) / 2, wide, length, fp4);
      target.absmax[(first + at) / block] = absmax;
      if (absmax != absmax) wrong += notFinite(wide, length);
    }
    bad += wrong;
  });
  if (target.absmaxCode != nullptr && bad == 0) nest(target, (elements + block - 1) / block, pool);
  return bad;
}

}  // namespace

uint64_t quantise4(const LoadPart& part, bool fp4, const Quant4Target& target, ThreadPool& pool) {
  FileReader file(part.path);
  const uint64_t width = bytesPerElement(part.source);
  const auto elements = static_cast<int64_t>(part.elements);
  return packBlocks(part.source, elements, fp4, target, pool, [&](int64_t first, int64_t count, std::byte* scratch) {
    file.read(part.fileOffset + static_cast<uint64_t>(first) * width, scratch, static_cast<uint64_t>(count) * width);
    return scratch;
  });
}

uint64_t quantise4(const void* values, DType type, int64_t elements, bool fp4, const Quant4Target& target, ThreadPool& pool) {
  const auto* bytes = static_cast<const std::byte*>(values);
  const size_t width = bytesPerElement(type);
  return packBlocks(type, elements, fp4, target, pool,
                    [&](int64_t first, int64_t, std::byte*) { return bytes + static_cast<size_t>(first) * width; });
}

uint64_t quantise8(const LoadPart& part, int64_t cols, uint8_t* numbers, float* scales, ThreadPool& pool) {
  constexpr int64_t piece = 1024, perTask = int64_t{1} << 18;
  FileReader file(part.path);
  const VectorKernels& kernels = vectorKernels();
  const int64_t rows = cols == 0 ? 0 : static_cast<int64_t>(part.elements) / cols;
  const int64_t rowsPerTask = std::max<int64_t>(1, perTask / std::max<int64_t>(1, cols));
  const uint64_t width = bytesPerElement(part.source);
  std::atomic<uint64_t> bad{0};
  pool.parallelFor((rows + rowsPerTask - 1) / rowsPerTask, [&](int64_t task, int) {
    std::vector<std::byte> row(static_cast<size_t>(cols) * width);
    float wide[piece];
    uint16_t half[piece];
    uint64_t wrong = 0;
    for (int64_t r = task * rowsPerTask; r < std::min(rows, (task + 1) * rowsPerTask); ++r) {
      file.read(part.fileOffset + static_cast<uint64_t>(r) * row.size(), row.data(), row.size());
      float largest = 0;
      for (int64_t c = 0; c < cols; c += piece) {
        const int64_t count = std::min(piece, cols - c);
        kernels.widen(wide, row.data() + static_cast<size_t>(c) * width, part.source, count);
        const float here = kernels.absmax(wide, count);
        if (here != here) wrong += notFinite(wide, count);
        else largest = std::max(largest, here);
      }
      const bool halves = largest <= mostOfHalf;
      const float absmax = halves ? f16ToFloat(floatToF16(largest)) : largest, factor = absmax == 0 ? 0.0f : 127.0f / absmax;
      scales[r] = absmax;
      for (int64_t c = 0; c < cols; c += piece) {
        const int64_t count = std::min(piece, cols - c);
        kernels.widen(wide, row.data() + static_cast<size_t>(c) * width, part.source, count);
        if (halves) {
          kernels.narrow(half, DType::F16, wide, count);
          kernels.widen(wide, half, DType::F16, count);
        }
        kernels.pack8(numbers + r * cols + c, wide, factor, count);
      }
    }
    bad += wrong;
  });
  return bad;
}

}  // namespace unsloth::cpu
