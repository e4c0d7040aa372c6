#include "loadQuantised.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "../core/error.h"
#include "../core/fileReader.h"
#include "../core/quant4.h"
#include "../core/quant8.h"
#include "threadPool.h"
#include "vectorKernels.h"

namespace unsloth::cpu {
namespace {

bool finite(float x) { return std::fabs(x) <= 3.4028235e38f; }

/** Runs fill(first, count, out) over pieces of a tensor with all threads and writes each round of pieces to the device. */
template <class Fill>
uint64_t convert(const LoadPart& part, uint64_t unit, Device& device, int threads, const Fill& fill) {
  ThreadPool pool(threads);
  const uint64_t width = bytesPerElement(part.target);
  const uint64_t piece = std::max(unit, (uint64_t{1} << 20) / unit * unit), round = piece * static_cast<uint64_t>(threads) * 2;
  std::vector<std::byte> out(std::min(round, part.elements) * width);
  std::atomic<uint64_t> bad{0};
  for (uint64_t start = 0; start < part.elements; start += round) {
    const uint64_t end = std::min(part.elements, start + round);
    pool.parallelFor(static_cast<int64_t>((end - start + piece - 1) / piece), [&](int64_t task, int) {
      const uint64_t first = start + static_cast<uint64_t>(task) * piece, count = std::min(piece, end - first);
      bad += fill(first, count, out.data() + (first - start) * width);
    });
    device.write(part.buffer, part.offset + start * width, out.data(), (end - start) * width);
  }
  return bad;
}

}  // namespace

uint64_t load(const Unpack4Part& part, Device& device, int threads) {
  FileReader file(part.from.path);
  if (part.code.size() != 16 || part.absmax.size() < (part.from.elements + part.blockSize - 1) / part.blockSize) fail("a quantisation table is cut short");
  const VectorKernels& kernels = vectorKernels();
  const uint64_t width = bytesPerElement(part.from.target);
  return convert(part.from, 4096, device, threads, [&](uint64_t first, uint64_t count, std::byte* out) {
    std::vector<uint8_t> codes((count + 1) / 2);
    file.read(part.from.fileOffset + first / 2, codes.data(), codes.size());
    float values[Quant4Layout::block];
    uint16_t rounded[Quant4Layout::block];
    const uint64_t step = std::min<uint64_t>(part.blockSize, Quant4Layout::block);
    uint64_t bad = 0;
    for (uint64_t at = 0; at < count; at += step) {
      const auto n = static_cast<int64_t>(std::min(step, count - at));
      const float absmax = part.absmax[(first + at) / part.blockSize];
      bad += !finite(absmax);
      kernels.unpack4(values, codes.data() + at / 2, part.code.data(), absmax, n);
      if (part.rounding != DType::F32) {
        kernels.narrow(rounded, part.rounding, values, n);
        kernels.widen(values, rounded, part.rounding, n);
      }
      kernels.narrow(out + at * width, part.from.target, values, n);
    }
    return bad;
  });
}

uint64_t load(const ScaledPart& part, Device& device, int threads) {
  FileReader file(part.from.path);
  const uint64_t rows = part.cols == 0 ? 0 : part.from.elements / part.cols;
  const uint64_t across = (part.cols + part.blockCols - 1) / part.blockCols, down = (rows + part.blockRows - 1) / part.blockRows;
  if (part.scales.size() != across * down) fail("the scales do not fit the matrix");
  float table[256];
  for (int i = 0; i < 256; ++i) table[i] = part.fp8 ? e4m3ToFloat(static_cast<uint8_t>(i)) : static_cast<float>(static_cast<int8_t>(i));
  const VectorKernels& kernels = vectorKernels();
  const uint64_t width = bytesPerElement(part.from.target);
  return convert(part.from, part.cols, device, threads, [&](uint64_t first, uint64_t count, std::byte* out) {
    std::vector<uint8_t> numbers(count);
    file.read(part.from.fileOffset + first, numbers.data(), count);
    std::vector<float> values(part.cols);
    std::vector<uint16_t> rounded(part.cols);
    uint64_t bad = 0;
    for (uint64_t at = 0; at < count; at += part.cols) {
      const float* scales = part.scales.data() + (first + at) / part.cols / part.blockRows * across;
      for (uint64_t c = 0; c < part.cols; ++c) {
        const float value = table[numbers[at + c]] * scales[c / part.blockCols];
        bad += !finite(value);
        values[c] = value / part.divisor;
      }
      const auto n = static_cast<int64_t>(part.cols);
      kernels.narrow(rounded.data(), DType::BF16, values.data(), n);
      kernels.widen(values.data(), rounded.data(), DType::BF16, n);
      kernels.narrow(out + at * width, part.from.target, values.data(), n);
    }
    return bad;
  });
}

}  // namespace unsloth::cpu
