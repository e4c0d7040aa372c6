#pragma once
/**
 * Vectors of fp32 for kernels that are compiled once per instruction set. A translation unit defines UNSLOTH_ISA (avx512, avx2 or
 * portable) and includes this; everything lands in the namespace of that name, so that no inline function built for one
 * instruction set can replace that of another at link time. Such units call nothing inline from elsewhere.
 *
 * Each backend gives: Vec, Mask, lanes, and the functions used below. `min(a, b)` and `max(a, b)` return b when either is NaN.
 */
#include <cstddef>
#include <cstdint>

#ifndef UNSLOTH_ISA
#error "define UNSLOTH_ISA before including vector.h"
#endif

#define UNSLOTH_ISA_NAMESPACE_BEGIN \
  namespace unsloth::cpu {          \
  namespace UNSLOTH_ISA {
#define UNSLOTH_ISA_NAMESPACE_END \
  }                               \
  }

#if defined(__GNUC__)
#define UNSLOTH_INLINE inline __attribute__((always_inline))
#define UNSLOTH_FLATTEN __attribute__((flatten))
#else
#define UNSLOTH_INLINE inline
#define UNSLOTH_FLATTEN
#endif

#if defined(UNSLOTH_ISA_AVX512)
#include "vectorAvx512.h"
#elif defined(UNSLOTH_ISA_AVX2)
#include "vectorAvx2.h"
#else
#include "vectorPortable.h"
#endif

UNSLOTH_ISA_NAMESPACE_BEGIN

/** Says how many of a vector's lanes a load or store touches. */
struct Full {};
struct Part {
  int count;
};

UNSLOTH_INLINE Vec load(const float* p, Full) { return load(p); }
UNSLOTH_INLINE Vec load(const float* p, Part part) { return loadPart(p, part.count); }
UNSLOTH_INLINE void store(float* p, Vec v, Full) { store(p, v); }
UNSLOTH_INLINE void store(float* p, Vec v, Part part) { storePart(p, v, part.count); }

/** Calls body(i, Full or Part) for i = 0, lanes, 2·lanes … so that [0, n) is covered once. */
template <class Body>
UNSLOTH_INLINE void eachVector(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) body(i, Full{});
  if (i < n) body(i, Part{static_cast<int>(n - i)});
}

UNSLOTH_ISA_NAMESPACE_END
