#pragma once
#include "element.cuh"

/** Activations of one number in fp32, for operands of type T. */
namespace unsloth::cuda {

/** Kinds as in commands.ts. */
enum ActivationKind { silu = 0, geluTanh = 1, geluErf = 2, reluSquared = 3, relu = 4, logistic = 5 };

/** For 16-bit results the approximate exponential and quotient (2 ulp of fp32) are exact enough; fp32 gets the full ones. */
template <class T>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (sizeof(T) == 4) return expf(x);
  else return __expf(x);
}
template <class T>
__device__ __forceinline__ float quotient(float a, float b) {
  if constexpr (sizeof(T) == 4) return a / b;
  else return __fdividef(a, b);
}

/** σ(x) and σ(−x), both without cancellation. */
struct Sigmoid {
  float plus, minus;
};
template <class T>
__device__ __forceinline__ Sigmoid sigmoid(float x) {
  const float e = exponential<T>(-fabsf(x)), bigger = quotient<T>(1.0f, 1.0f + e), smaller = e * bigger;
  return x < 0 ? Sigmoid{smaller, bigger} : Sigmoid{bigger, smaller};
}

/** The same for silu of 16-bit operands: σ(−x) = 1 − σ(x) loses what is too little to be seen beside σ(x). */
__device__ __forceinline__ Sigmoid quickSigmoid(float x) {
  float e, plus;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(plus) : "f"(1.0f + e));
  return {plus, 1.0f - plus};
}

/** Standard normal distribution function Φ(x) and density φ(x), each to a few ulp of itself, tails included. */
struct Normal {
  float below, density;
};
template <class T>
__device__ __forceinline__ Normal normal(float x) {
  // erfc(z) = t·P(t)·exp(−z²) with t = 1/(1 + z/2), z = |x|/√2; P is a Chebyshev interpolant on z ≤ 9.6, relative error 5e-9.
  const float z = fminf(9.6f, fabsf(x) * 0.70710678118654752f), t = quotient<T>(1.0f, fmaf(z, 0.5f, 1.0f));
  const float u = fmaf(t, 2.41666675f, -1.41666663f);
  constexpr float p[] = {4.602631631e-06f, 6.586019743e-06f,  -6.143026011e-05f, 1.078555265e-06f,
                         5.715549111e-04f, -5.748152712e-04f, -6.006350329e-03f, 5.673752980e-03f,
                         1.007472541e-01f, 3.253711275e-01f,  5.742666410e-01f};
  float polynomial = p[0];
#pragma unroll
  for (int i = 1; i < 11; ++i) polynomial = fmaf(polynomial, u, p[i]);
  // exp(−x²/2) with the rounding error of x² put back, which matters when x² is large.
  const float bounded = fminf(13.6f, fabsf(x)), square = bounded * bounded, rest = fmaf(-bounded, bounded, square);
  const float rounded = exponential<T>(-0.5f * square), gauss = fmaf(rounded, 0.5f * rest, rounded);
  const float tail = 0.5f * t * polynomial * gauss;
  return {x < 0 ? tail : 1.0f - tail, gauss * 0.39894228040143268f};
}

/** act(x) and act′(x). */
struct Slope {
  float value, slope;
};

template <class T, int kind>
__device__ __forceinline__ Slope activate(float x) {
  if constexpr (kind == silu) {
    const Sigmoid s = sizeof(T) == 2 ? quickSigmoid(x) : sigmoid<T>(x);
    return {x * s.plus, fmaf(x * s.plus, s.minus, s.plus)};
  } else if constexpr (kind == geluTanh) {
    // ½x(1 + tanh u) = x·σ(2u) with u = √(2/π)·(x + 0.044715x³): the tail keeps its relative precision.
    constexpr float twiceRoot = 1.5957691216057308f, cubic = 0.044715f;
    const Sigmoid s = sigmoid<T>(twiceRoot * x * fmaf(cubic * x, x, 1.0f));
    const float inner = twiceRoot * fmaf(3.0f * cubic * x, x, 1.0f);
    return {x * s.plus, fmaf(x * s.plus, s.minus * inner, s.plus)};
  } else if constexpr (kind == geluErf) {
    const Normal n = normal<T>(x);
    return {x * n.below, fmaf(x, n.density, n.below)};
  } else if constexpr (kind == reluSquared) {
    const float positive = x > 0 ? x : 0.0f;
    return {positive * positive, positive + positive};
  } else if constexpr (kind == relu) {
    return {x > 0 ? x : 0.0f, x > 0 ? 1.0f : 0.0f};
  } else {
    const Sigmoid s = sigmoid<T>(x);
    return {s.plus, s.plus * s.minus};
  }
}

/** Calls body(std::integral_constant<int, kind>{}). */
template <int kinds, class Body>
__host__ __device__ __forceinline__ void withKind(int kind, Body&& body) {
  if (kind == silu) body(std::integral_constant<int, silu>{});
  else if (kind == geluTanh) body(std::integral_constant<int, geluTanh>{});
  else if (kind == geluErf) body(std::integral_constant<int, geluErf>{});
  if constexpr (kinds > 3) {
    if (kind == reluSquared) body(std::integral_constant<int, reluSquared>{});
    else if (kind == relu) body(std::integral_constant<int, relu>{});
    else if (kind == logistic) body(std::integral_constant<int, logistic>{});
  }
}

}  // namespace unsloth::cuda
