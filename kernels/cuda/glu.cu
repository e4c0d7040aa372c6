// Gated and plain activations with their gradients. Elements of T moved for each: glu 3, gluGrad 5 (6 with h), activation 2,
// activationGrad 3.
#include "activation.cuh"
#include "map.cuh"
#include "operands.h"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

template <class T, int kind>
struct Glu : MapFunction {
  template <int width>
  __device__ __forceinline__ void operator()(int64_t, int64_t, const float (&in)[2][width], float (&out)[1][width]) const {
#pragma unroll
    for (int i = 0; i < width; ++i) out[0][i] = activate<T, kind>(in[0][i]).value * in[1][i];
  }
};

/** in: dH, gate, up; out: dGate, dUp [, h]. */
template <class T, int kind, int outs>
struct GluGrad : MapFunction {
  template <int width>
  __device__ __forceinline__ void operator()(int64_t, int64_t, const float (&in)[3][width], float (&out)[outs][width]) const {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const Slope s = activate<T, kind>(in[1][i]);
      out[0][i] = in[0][i] * in[2][i] * s.slope;
      out[1][i] = in[0][i] * s.value;
      if constexpr (outs == 3) out[2][i] = s.value * in[2][i];
    }
  }
};

template <class T>
struct Activate : MapFunction {
  int kind;
  template <int width>
  __device__ __forceinline__ void operator()(int64_t, int64_t, const float (&in)[1][width], float (&out)[1][width]) const {
    withKind<6>(kind, [&](auto k) {
#pragma unroll
      for (int i = 0; i < width; ++i) out[0][i] = activate<T, decltype(k)::value>(in[0][i]).value;
    });
  }
};

/** in: dy, x. */
template <class T>
struct ActivateGrad : MapFunction {
  int kind;
  template <int width>
  __device__ __forceinline__ void operator()(int64_t, int64_t, const float (&in)[2][width], float (&out)[1][width]) const {
    withKind<6>(kind, [&](auto k) {
#pragma unroll
      for (int i = 0; i < width; ++i) out[0][i] = in[0][i] * activate<T, decltype(k)::value>(in[1][i]).slope;
    });
  }
};

int kindOf(const Operands& args, int32_t kind, int kinds) {
  if (kind < 0 || kind >= kinds) args.refuse("unknown activation kind " + std::to_string(kind));
  return kind;
}

}  // namespace

void glu(const Call& call, const Context& context) {
  const Operands args(call, "glu", 3, 1, 0);
  const View& h = args.matrix(0, "h");
  const View& gate = args.typed(1, "gate", h.dtype, h.rows, h.cols);
  const View& up = args.typed(2, "up", h.dtype, h.rows, h.cols);
  withType(h.dtype, "glu", [&](auto tag) {
    using T = typename decltype(tag)::type;
    withKind<3>(kindOf(args, call.i(0), 3),
                [&](auto kind) { mapElements<T, 2, 1>(context, "glu", {h}, {gate, up}, Glu<T, decltype(kind)::value>{}); });
  });
}

void gluGrad(const Call& call, const Context& context) {
  const Operands args(call, "gluGrad", 6, 1, 0);
  const View& dH = args.matrix(3, "dH");
  const View& dGate = args.typed(0, "dGate", dH.dtype, dH.rows, dH.cols);
  const View& dUp = args.typed(1, "dUp", dH.dtype, dH.rows, dH.cols);
  const View& gate = args.typed(4, "gate", dH.dtype, dH.rows, dH.cols);
  const View& up = args.typed(5, "up", dH.dtype, dH.rows, dH.cols);
  withType(dH.dtype, "gluGrad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    withKind<3>(kindOf(args, call.i(0), 3), [&](auto kind) {
      constexpr int activation = decltype(kind)::value;
      if (args.has(2)) {
        const View& h = args.typed(2, "h", dH.dtype, dH.rows, dH.cols);
        mapElements<T, 3, 3>(context, "gluGrad", {dGate, dUp, h}, {dH, gate, up}, GluGrad<T, activation, 3>{});
      } else {
        mapElements<T, 3, 2>(context, "gluGrad", {dGate, dUp}, {dH, gate, up}, GluGrad<T, activation, 2>{});
      }
    });
  });
}

void activation(const Call& call, const Context& context) {
  const Operands args(call, "activation", 2, 1, 0);
  const View& y = args.matrix(0, "y");
  const View& x = args.typed(1, "x", y.dtype, y.rows, y.cols);
  const int kind = kindOf(args, call.i(0), 6);
  withType(y.dtype, "activation", [&](auto tag) {
    using T = typename decltype(tag)::type;
    mapElements<T, 1, 1>(context, "activation", {y}, {x}, Activate<T>{{}, kind});
  });
}

void activationGrad(const Call& call, const Context& context) {
  const Operands args(call, "activationGrad", 3, 1, 0);
  const View& dx = args.matrix(0, "dx");
  const View& dy = args.typed(1, "dy", dx.dtype, dx.rows, dx.cols);
  const View& x = args.typed(2, "x", dx.dtype, dx.rows, dx.cols);
  const int kind = kindOf(args, call.i(0), 6);
  withType(dx.dtype, "activationGrad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    mapElements<T, 2, 1>(context, "activationGrad", {dx}, {dy, x}, ActivateGrad<T>{{}, kind});
  });
}

}  // namespace unsloth::cuda::ops
