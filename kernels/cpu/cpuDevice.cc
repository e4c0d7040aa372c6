#include "cpuDevice.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <string>

#include "../core/error.h"
#include "../core/fileReader.h"
#include "../core/quant4.h"
#include "ops.h"
#include "pages.h"
#include "quantise.h"
#include "random.h"
#include "vectorKernels.h"

namespace unsloth::cpu {
namespace {

using OpFunction = void (*)(const Call&, ThreadPool&);
constexpr OpFunction opTable[] = {
#define UNSLOTH_OP(name) ops::name,
#include "../core/ops.def"
#undef UNSLOTH_OP
};

constexpr uint64_t loadChunk = uint64_t{1} << 18;  // elements; of fp64 they fit a thread's scratch

float widen(const std::byte* data, DType dtype, uint64_t i) {
  switch (dtype) {
    case DType::BF16: return bf16ToFloat(reinterpret_cast<const uint16_t*>(data)[i]);
    case DType::F16: return f16ToFloat(reinterpret_cast<const uint16_t*>(data)[i]);
    case DType::F64: return static_cast<float>(reinterpret_cast<const double*>(data)[i]);
    default: return reinterpret_cast<const float*>(data)[i];
  }
}

void narrow(std::byte* data, DType dtype, uint64_t i, float value) {
  switch (dtype) {
    case DType::BF16: reinterpret_cast<uint16_t*>(data)[i] = floatToBf16(value); return;
    case DType::F16: reinterpret_cast<uint16_t*>(data)[i] = floatToF16(value); return;
    default: reinterpret_cast<float*>(data)[i] = value; return;
  }
}

uint64_t countNonFinite(const std::byte* data, DType dtype, uint64_t elements) {
  uint64_t bad = 0;
  for (uint64_t i = 0; i < elements; ++i) {
    if (dtype == DType::F8) {
      bad += (static_cast<uint8_t>(data[i]) & 0x7fu) == 0x7fu;
    } else if (dtype == DType::BF16) {
      bad += (reinterpret_cast<const uint16_t*>(data)[i] & 0x7f80u) == 0x7f80u;
    } else if (dtype == DType::F16) {
      bad += (reinterpret_cast<const uint16_t*>(data)[i] & 0x7c00u) == 0x7c00u;
    } else {
      uint32_t bits;
      const float value = widen(data, dtype, i);
      std::memcpy(&bits, &value, sizeof bits);
      bad += (bits & 0x7f800000u) == 0x7f800000u;
    }
  }
  return bad;
}

}  // namespace

CpuDevice::~CpuDevice() {
  for (auto& [id, block] : blocks_) freePages(block.data, block.bytes);
}

int32_t CpuDevice::alloc(size_t bytes, Place) {
  const size_t size = bytes == 0 ? 64 : bytes;
  auto* data = static_cast<std::byte*>(allocatePages(size));
  if (data == nullptr) throw Error("MEMORY", "The system has no " + std::to_string(size) + " bytes of memory left.");
  blocks_[nextBuffer_] = {data, size};
  return nextBuffer_++;
}

void CpuDevice::free(int32_t buffer) {
  const Block gone = block(buffer);
  freePages(gone.data, gone.bytes);
  blocks_.erase(buffer);
}

Reserved CpuDevice::reserved() const {
  Reserved all;
  for (const auto& [id, block] : blocks_) all.device += block.bytes;
  return all;
}

const CpuDevice::Block& CpuDevice::block(int32_t buffer) const {
  const auto found = blocks_.find(buffer);
  if (found == blocks_.end()) fail("there is no buffer " + std::to_string(buffer));
  return found->second;
}

std::byte* CpuDevice::range(int32_t buffer, size_t offset, size_t count) const {
  const Block& b = block(buffer);
  if (offset > b.bytes || count > b.bytes - offset) fail("a range of " + std::to_string(count) + " bytes is outside of its buffer");
  return b.data + offset;
}

void CpuDevice::write(int32_t buffer, size_t offset, const void* data, size_t count) {
  std::memcpy(range(buffer, offset, count), data, count);
}

void CpuDevice::read(int32_t buffer, size_t offset, void* data, size_t count) { std::memcpy(data, range(buffer, offset, count), count); }

std::function<void(void*)> CpuDevice::readLater(int32_t buffer, size_t offset, size_t count) {
  const std::byte* data = range(buffer, offset, count);
  return [copy = std::vector<std::byte>(data, data + count)](void* target) { std::memcpy(target, copy.data(), copy.size()); };
}

uint64_t CpuDevice::load(const LoadPart& part) {
  const size_t sourceWidth = bytesPerElement(part.source), targetWidth = bytesPerElement(part.target);
  std::byte* const target = range(part.buffer, part.offset, part.elements * targetWidth);
  const bool same = part.source == part.target, numbers = part.source != DType::I32 && part.source != DType::U8;
  const VectorKernels& kernels = vectorKernels();
  FileReader file(part.path);
  std::atomic<uint64_t> bad{0};
  pool_.parallelFor(static_cast<int64_t>((part.elements + loadChunk - 1) / loadChunk), [&](int64_t task, int thread) {
    const uint64_t first = static_cast<uint64_t>(task) * loadChunk, count = std::min(loadChunk, part.elements - first);
    std::byte* const to = target + first * targetWidth;
    std::byte* const read = same ? to : pool_.scratch(thread);
    file.read(part.fileOffset + first * sourceWidth, read, count * sourceWidth);
    constexpr uint64_t piece = 1024;
    float wide[piece];
    for (uint64_t at = 0; at < (same ? 0 : count); at += piece) {
      const uint64_t n = std::min(piece, count - at);
      if (part.source == DType::F64) for (uint64_t i = 0; i < n; ++i) wide[i] = widen(read, part.source, at + i);
      else kernels.widen(wide, read + at * sourceWidth, part.source, static_cast<int64_t>(n));
      kernels.narrow(to + at * targetWidth, part.target, wide, static_cast<int64_t>(n));
    }
    if (numbers) bad += countNonFinite(to, part.target, count);
  });
  return bad;
}

uint64_t CpuDevice::load(const Pack4Part& part) {
  const auto elements = static_cast<int64_t>(part.from.elements), blocks = (elements + Quant4Layout::block - 1) / Quant4Layout::block;
  const auto at = [&](uint64_t offset, int64_t bytes) { return range(part.from.buffer, offset, static_cast<size_t>(bytes)); };
  Quant4Target target{};
  target.codes = reinterpret_cast<uint8_t*>(at(part.codesAt, (elements + 1) / 2));
  target.groupShift = part.groupShift;
  if (!part.nested) {
    target.absmax = reinterpret_cast<float*>(at(part.absmaxAt, 4 * blocks));
    return quantise4(part.from, part.fp4, target, pool_);
  }
  std::vector<float> absmax(static_cast<size_t>(blocks));
  target.absmax = absmax.data();
  target.absmaxCode = reinterpret_cast<uint8_t*>(at(part.absmaxAt, blocks));
  target.nested = reinterpret_cast<float*>(at(part.nestedAt, 8 * ((blocks + (int64_t{1} << part.groupShift) - 1) >> part.groupShift)));
  return quantise4(part.from, part.fp4, target, pool_);
}

uint64_t CpuDevice::load(const Pack8Part& part) {
  const auto elements = static_cast<int64_t>(part.from.elements), rows = part.cols == 0 ? 0 : elements / part.cols;
  auto* numbers = reinterpret_cast<uint8_t*>(range(part.from.buffer, part.numbersAt, static_cast<size_t>(elements)));
  auto* scales = reinterpret_cast<float*>(range(part.from.buffer, part.scalesAt, static_cast<size_t>(4 * rows)));
  return quantise8(part.from, part.cols, numbers, scales, pool_);
}

void CpuDevice::fillUniform(int32_t buffer, size_t offset, uint64_t elements, DType dtype, float a, float b, uint32_t seed, uint32_t stream) {
  std::byte* target = range(buffer, offset, elements * bytesPerElement(dtype));
  constexpr uint64_t perTask = uint64_t{1} << 16;
  pool_.parallelFor(static_cast<int64_t>((elements + perTask - 1) / perTask), [&](int64_t task, int) {
    const uint64_t first = static_cast<uint64_t>(task) * perTask, last = std::min(elements, first + perTask);
    for (uint64_t i = first; i < last; i += 4) {
      const uint64_t block = i / 4;
      const auto words = philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), stream, 0}, {seed, 0x756e6974u});
      if (dtype == DType::I32) {
        std::memcpy(target + 4 * i, words.data(), 4 * std::min<uint64_t>(4, last - i));
        continue;
      }
      for (uint64_t k = 0; k < 4 && i + k < last; ++k)
        narrow(target, dtype, i + k, a + (b - a) * (static_cast<float>(words[k] >> 8) * 0x1p-24f));
    }
  });
}

RunResult CpuDevice::run(const Plan& plan, const Dims& dims, const Dims&, int64_t first, int64_t last, bool profile) {
  using Clock = std::chrono::steady_clock;
  std::vector<std::byte*> bases;
  for (const int32_t buffer : plan.buffers) bases.push_back(block(buffer).data);
  const std::vector<View> views = viewsOf(plan, dims, bases);

  RunResult result;
  std::vector<View> operands;
  const int64_t end = std::min<int64_t>(last, static_cast<int64_t>(plan.commands.size()));
  for (int64_t at = first; at < end; ++at) {
    if (stop_.load(std::memory_order_relaxed)) {
      result.stopped = true;
      break;
    }
    const PlanCommand& command = plan.commands[static_cast<size_t>(at)];
    operands.clear();
    for (int32_t i = 0; i < command.tensorCount; ++i) {
      const int32_t tensor = plan.operands[static_cast<size_t>(command.firstTensor + i)];
      operands.push_back(tensor < 0 ? View{} : views[static_cast<size_t>(tensor)]);
    }
    const Call call{operands.data(), command.tensorCount, plan.ints.data() + command.firstInt, command.intCount,
                    plan.floats.data() + command.firstFloat, command.floatCount, dims};
    const auto before = Clock::now();
    if (!isEmpty(command, views)) opTable[static_cast<int32_t>(command.op)](call, pool_);
    if (profile) result.seconds.push_back(std::chrono::duration<double>(Clock::now() - before).count());
    ++result.executed;
  }
  return result;
}

}  // namespace unsloth::cpu
