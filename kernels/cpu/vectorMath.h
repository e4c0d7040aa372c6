#pragma once
/** Elementary functions on vectors, for the instruction set of the including unit (see vector.h). */
#include "vector.h"

UNSLOTH_ISA_NAMESPACE_BEGIN

template <int N>
UNSLOTH_INLINE Vec polynomial(Vec x, const float (&highestFirst)[N]) {
  Vec y = set(highestFirst[0]);
  for (int i = 1; i < N; ++i) y = mulAdd(y, x, set(highestFirst[i]));
  return y;
}

/** eˣ to about 1 ulp; infinity above 88.73, 0 below −104, NaN stays. Range reduction and coefficients as in Cephes expf. */
UNSLOTH_INLINE Vec exp(Vec x) {
  const Vec bounded = max(set(-105.0f), min(set(89.5f), x));
  const Vec n = roundToEven(bounded * set(1.44269504088896341f));
  Vec r = mulSub(n, set(0.693359375f), bounded);
  r = mulSub(n, set(-2.12194440e-4f), r);
  const float p[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  const Vec y = mulAdd(polynomial(r, p), r * r, r) + set(1.0f);
  return scaleByPowerOfTwo(y, n);
}

/** tanh to about 2 ulp; coefficients of Cephes tanhf. */
UNSLOTH_INLINE Vec tanh(Vec x) {
  const Vec size = abs(x), z = x * x;
  const float p[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f};
  const Vec small = mulAdd(polynomial(z, p) * z, x, x);
  const Vec big = set(1.0f) - set(2.0f) / (exp(size + size) + set(1.0f));
  const Vec signedBig = select(less(x, set(0.0f)), set(0.0f) - big, big);
  return select(less(size, set(0.625f)), small, signedBig);
}

/** σ(x) and σ(−x), both without cancellation. */
struct Sigmoid {
  Vec plus, minus;
};
UNSLOTH_INLINE Sigmoid sigmoid(Vec x) {
  const Vec e = exp(set(0.0f) - abs(x));
  const Vec bigger = set(1.0f) / (set(1.0f) + e), smaller = e * bigger;
  const Mask negative = less(x, set(0.0f));
  return {select(negative, smaller, bigger), select(negative, bigger, smaller)};
}

/** Standard normal distribution function Φ(x) and density φ(x), each to a few ulp of itself, tails included. */
struct Normal {
  Vec below, density;
};
UNSLOTH_INLINE Normal normal(Vec x) {
  // erfc(z) = t·P(t)·exp(−z²) with t = 1/(1 + z/2), z = |x|/√2; P is a Chebyshev interpolant on z ≤ 9.6, relative error 5e-9.
  const Vec z = min(set(9.6f), abs(x) * set(0.70710678118654752f));
  const Vec t = set(1.0f) / mulAdd(z, set(0.5f), set(1.0f));
  const Vec u = mulAdd(t, set(2.41666675f), set(-1.41666663f));
  const float p[] = {4.602631631e-06f, 6.586019743e-06f,  -6.143026011e-05f, 1.078555265e-06f,
                     5.715549111e-04f, -5.748152712e-04f, -6.006350329e-03f, 5.673752980e-03f,
                     1.007472541e-01f, 3.253711275e-01f,  5.742666410e-01f};
  // exp(−x²/2) with the rounding error of x² put back, which matters when x² is large.
  const Vec bounded = min(set(13.6f), abs(x)), square = bounded * bounded, rest = mulSub(bounded, bounded, square);
  const Vec rounded = exp(set(-0.5f) * square);
  const Vec gauss = mulAdd(rounded, set(0.5f) * rest, rounded);
  const Vec tail = set(0.5f) * t * polynomial(u, p) * gauss;
  return {select(less(x, set(0.0f)), tail, set(1.0f) - tail), gauss * set(0.39894228040143268f)};
}

UNSLOTH_ISA_NAMESPACE_END
