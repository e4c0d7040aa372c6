// How tensors of files come to the GPU: several threads read a piece into pinned memory, while the one before is copied and converted.
#include <algorithm>
#include <thread>

#include "../core/fileReader.h"
#include "../core/quant4.h"
#include "cudaDevice.h"
#include "quantise.h"
#include "transfer.h"

namespace unsloth::cuda {
namespace {

/** One thread reads from the page cache at a third or less of what the bus takes. */
constexpr int mostReaders = 8;
constexpr uint64_t readAtOnce = uint64_t{512} << 10;

int readerThreads() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 2, 1, mostReaders); }

}  // namespace

/**
 * Brings a tensor to the device in pieces of at most a slot, multiples of `unit` elements, at `target` or, where that is null, one after
 * another at the begin of the scratch. landed(first element, count, their address) enqueues what becomes of a piece. Returns
 * what the kernels have counted in `counter_`.
 */
template <class Landed>
uint64_t CudaDevice::stream(const LoadPart& part, uint64_t unit, std::byte* target, const Landed& landed) {
  check(cudaSetDevice(gpu_.index), "selecting it");
  const uint64_t width = bytesPerElement(part.source), chunk = Staging::slotBytes / width / unit * unit;
  if (chunk == 0) fail("rows of " + std::to_string(unit) + " numbers are too long");
  if (readers_ == nullptr) readers_ = std::make_unique<cpu::ThreadPool>(readerThreads());
  FileReader file(part.path);
  check(cudaMemsetAsync(counter_, 0, sizeof *counter_, stream_), "loading weights");
  for (uint64_t first = 0; first < part.elements; first += chunk) {
    const uint64_t count = std::min(chunk, part.elements - first), bytes = count * width, from = part.fileOffset + first * width;
    std::byte* const slot = staging_->acquire();
    readers_->parallelFor(static_cast<int64_t>((bytes + readAtOnce - 1) / readAtOnce), [&](int64_t task, int) {
      const uint64_t at = static_cast<uint64_t>(task) * readAtOnce;
      file.read(from + at, slot + at, std::min(readAtOnce, bytes - at));
    });
    std::byte* const landing = target == nullptr ? static_cast<std::byte*>(context_.workspace) : target + first * width;
    staging_->send(landing, bytes);
    landed(first, count, landing);
  }
  unsigned long long bad = 0;
  check(cudaMemcpyAsync(&bad, counter_, sizeof bad, cudaMemcpyDeviceToHost, stream_), "loading weights");
  check(cudaStreamSynchronize(stream_), "loading weights");
  return bad;
}

uint64_t CudaDevice::load(const LoadPart& part) {
  const uint64_t width = bytesPerElement(part.target);
  std::byte* const target = range(part.buffer, part.offset, part.elements * width);
  if (part.source == part.target) {
    const bool numbers = part.source != DType::I32 && part.source != DType::U8;
    return stream(part, 1, target, [&](uint64_t, uint64_t count, const std::byte* landed) {
      if (numbers) countNonFinite(landed, part.target, count, counter_, stream_);
    });
  }
  return stream(part, 1, nullptr, [&](uint64_t first, uint64_t count, const std::byte* landed) {
    convert(target + first * width, part.target, landed, part.source, count, counter_, stream_);
  });
}

uint64_t CudaDevice::load(const Pack4Part& part) {
  const auto elements = static_cast<int64_t>(part.from.elements);
  const int64_t blocks = (elements + Quant4Layout::block - 1) / Quant4Layout::block;
  const auto at = [&](uint64_t offset, int64_t bytes) { return range(part.from.buffer, offset, static_cast<size_t>(bytes)); };
  auto* const codes = reinterpret_cast<uint8_t*>(at(part.codesAt, (elements + 1) / 2));
  const auto pack = [&](float* absmax) {
    return stream(part.from, Quant4Layout::block, nullptr, [&](uint64_t first, uint64_t count, const std::byte* landed) {
      float* const maxima = absmax + first / Quant4Layout::block;
      packBlocks(landed, part.from.source, static_cast<int64_t>(count), part.fp4, codes + first / 2, maxima, counter_, stream_);
    });
  };
  if (!part.nested) return pack(reinterpret_cast<float*>(at(part.absmaxAt, 4 * blocks)));

  auto* const absmaxCodes = reinterpret_cast<uint8_t*>(at(part.absmaxAt, blocks));
  const int64_t groups = (blocks + (int64_t{1} << part.groupShift) - 1) >> part.groupShift;
  auto* const nested = reinterpret_cast<float*>(at(part.nestedAt, 8 * groups));
  // Maxima in fp32 stand behind the pieces in the scratch; for a stack of experts they may need memory of their own.
  struct Lent {
    CudaDevice& device;
    int32_t buffer = 0;
    ~Lent() {
      try {
        if (buffer != 0) device.free(buffer);
      } catch (const Error&) {  // the GPU has failed, which what follows will say
      }
    }
  } lent{*this};
  auto* absmax = reinterpret_cast<float*>(static_cast<std::byte*>(context_.workspace) + Staging::slotBytes);
  const size_t bytes = static_cast<size_t>(4 * blocks);
  if (bytes > context_.workspaceBytes - Staging::slotBytes) {
    lent.buffer = alloc(bytes, Place::device);
    absmax = reinterpret_cast<float*>(block(lent.buffer).data);
  }
  const uint64_t bad = pack(absmax);
  if (bad == 0) nestMaxima(absmax, blocks, part.groupShift, absmaxCodes, nested, reinterpret_cast<float*>(counter_ + 1), stream_);
  return bad;
}

uint64_t CudaDevice::load(const Pack8Part& part) {
  const int64_t cols = part.cols, rows = cols == 0 ? 0 : static_cast<int64_t>(part.from.elements) / cols;
  auto* const numbers = reinterpret_cast<uint8_t*>(range(part.from.buffer, part.numbersAt, part.from.elements));
  auto* const scales = reinterpret_cast<float*>(range(part.from.buffer, part.scalesAt, static_cast<size_t>(4 * rows)));
  const auto unit = static_cast<uint64_t>(std::max<int64_t>(1, cols));
  return stream(part.from, unit, nullptr, [&](uint64_t first, uint64_t count, const std::byte* landed) {
    float* const maxima = scales + static_cast<int64_t>(first) / cols;
    packRows(landed, part.from.source, static_cast<int64_t>(count) / cols, cols, numbers + first, maxima, counter_, stream_);
  });
}

}  // namespace unsloth::cuda
