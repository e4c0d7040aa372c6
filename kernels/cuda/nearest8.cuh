#pragma once
#include <bit>
#include <cstdint>

#include "../core/quant4.h"

namespace unsloth::cuda {

/** A magnitude that is zero in both maps. */
constexpr float leastCoded = 0x1p-23f;

/** A number's place in the order of floats as an integer, −0 before +0; less than `leastCoded` counts as that with its sign. */
constexpr uint32_t placeOf(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  return (magnitude > std::bit_cast<uint32_t>(leastCoded) ? magnitude : std::bit_cast<uint32_t>(leastCoded)) ^
         (bits >> 31 != 0 ? 0xffffffffu : 0u);
}

/**
 * The nearest code of the dynamic 8-bit map by one look-up: places fall into cells of 2^shift, narrow enough that a cell has at
 * most one boundary between codes. A cell's entry is such that adding a place carries into the code's byte from the boundary on.
 */
template <bool isSigned>
struct NearestCells {
  static constexpr int shift = isSigned ? 17 : 16, count = 4096;
  alignas(16) uint32_t at[count];

  static constexpr uint32_t cellOf(uint32_t place) { return (place >> shift) & (count - 1); }
  /** The code in the highest byte. */
  static constexpr uint32_t codeOf(uint32_t entry, uint32_t place) { return (place << (24 - shift)) + entry; }
};

/** nearest8, and for a number other than +0 the nearest code of its own sign. */
template <bool isSigned>
constexpr int nearestOfSign(const Map8& map, float x) {
  const int code = nearest8(map.at, x);
  if (!isSigned || std::bit_cast<uint32_t>(map.at[code]) >> 31 == std::bit_cast<uint32_t>(x) >> 31) return code;
  return x > 0 ? code + 1 : code - 1;
}

/** The place from which on a number's code is above `code`: ties go to even codes, numbers below +0 to negative ones. */
template <bool isSigned>
constexpr uint32_t boundaryAbove(const Map8& map, int code) {
  if (isSigned && code == 126) return 0;
  return placeOf((map.at[code + 1] + map.at[code]) * 0.5f) + (code % 2 == 0 ? 1 : 0);
}

template <bool isSigned>
constexpr NearestCells<isSigned> nearestCells() {
  using Cells = NearestCells<isSigned>;
  const Map8 map = dynamicMap(isSigned);
  Cells cells{};
  const auto fill = [&](float first, float last, int code) {
    for (uint32_t cell = placeOf(first) >> Cells::shift; cell <= placeOf(last) >> Cells::shift; ++cell) {
      constexpr uint32_t size = 1u << Cells::shift;
      const uint32_t begin = cell << Cells::shift, offset = code < 255 ? boundaryAbove<isSigned>(map, code) - begin : size;
      const uint32_t boundary = offset < size ? offset : size;
      cells.at[cell % Cells::count] = ((static_cast<uint32_t>(code) << Cells::shift) + size - boundary - begin)
                                      << (24 - Cells::shift);
      if (boundary < size) ++code;
    }
  };
  if (isSigned) fill(-1.0f, -0.0f, 0);
  fill(0.0f, 1.0f, isSigned ? 127 : 0);
  return cells;
}

/** Both ways give codes that never fall as numbers grow: so they are the same if they are at either side of every boundary. */
template <bool isSigned>
constexpr bool sameAsSearch() {
  const NearestCells<isSigned> cells = nearestCells<isSigned>();
  const Map8 map = dynamicMap(isSigned);
  const auto same = [&](float x) {
    const uint32_t place = placeOf(x);
    return static_cast<int>(cells.codeOf(cells.at[cells.cellOf(place)], place) >> 24) == nearestOfSign<isSigned>(map, x);
  };
  bool all = same(0.0f) && same(1.0f) && (!isSigned || (same(-0.0f) && same(-1.0f)));
  for (int code = 0; code < 255; ++code) {
    const uint32_t above = boundaryAbove<isSigned>(map, code);
    if (above == 0) continue;
    const uint32_t sign = above >> 31 != 0 ? 0xffffffffu : 0u;
    const auto number = [&](uint32_t place) { return std::bit_cast<float>((place ^ sign) | (sign & 0x80000000u)); };
    const int reached = nearestOfSign<isSigned>(map, number(above)), before = nearestOfSign<isSigned>(map, number(above - 1));
    all = all && reached == code + 1 && before == code && same(number(above)) && same(number(above - 1));
  }
  return all;
}

static_assert(sameAsSearch<true>() && sameAsSearch<false>());

}  // namespace unsloth::cuda
