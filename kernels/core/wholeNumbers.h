#pragma once
#include <cstdint>

namespace unsloth {

/** n / by, rounded up; both positive, or n 0. */
constexpr int64_t divideUp(int64_t n, int64_t by) { return (n + by - 1) / by; }
/** The first multiple of a unit that is not below n. */
constexpr int64_t roundUp(int64_t n, int64_t unit) { return divideUp(n, unit) * unit; }

}  // namespace unsloth
