#pragma once
#include "tensor.h"

/** Parts of matrices. */
namespace unsloth {

inline View rowsOf(const View& v, int64_t first, int64_t count) {
  View part = v;
  part.data = static_cast<std::byte*>(v.data) + static_cast<size_t>(first * v.ld) * bytesPerElement(v.dtype);
  part.rows = count;
  return part;
}

inline View columnsOf(const View& v, int64_t first, int64_t count) {
  View part = v;
  part.data = static_cast<std::byte*>(v.data) + static_cast<size_t>(first) * bytesPerElement(v.dtype);
  part.cols = count;
  return part;
}

/** Whether any memory from the first to the last element of one lies between those of the other; not when one is absent. */
inline bool overlap(const View& a, const View& b) {
  const auto begin = [](const View& v) { return reinterpret_cast<uintptr_t>(v.data); };
  const auto end = [&](const View& v) {
    return begin(v) + static_cast<size_t>((v.rows - 1) * v.ld + v.cols) * bytesPerElement(v.dtype);
  };
  return a.present() && b.present() && begin(a) < end(b) && begin(b) < end(a);
}

}  // namespace unsloth
