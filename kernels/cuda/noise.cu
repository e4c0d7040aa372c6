// Uniform noise by Philox4x32-10 on the embeddings: a few microseconds of a step.
#include "element.cuh"
#include "launch.cuh"
#include "operands.h"
#include "ops.h"
#include "philox.cuh"

namespace unsloth::cuda::ops {
namespace {

struct Noise {
  const float* scale;
  const int32_t *tokenKeys, *random;
  int64_t ldScale, ldKeys, ldX, ldY;
  int64_t rows, cols;
  uint32_t site;
  float alpha;
};

/** A thread has the four columns of one counter. */
template <class T>
__global__ void noiseKernel(T* y, const T* x, const Noise p) {
  awaitPrior();
  const int64_t perRow = (p.cols + 3) / 4;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.rows * perRow; i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / perRow, block = i - row * perRow;
    uint32_t w[4];
    const int32_t* key = p.tokenKeys + row * p.ldKeys;
    philox<1>(w, static_cast<uint32_t>(key[0]), static_cast<uint32_t>(key[1]), p.site, static_cast<uint32_t>(block),
              static_cast<uint32_t>(p.random[0]), static_cast<uint32_t>(p.random[1]));
    const float size = p.alpha * p.scale[row * p.ldScale];
    for (int k = 0; k < 4 && block * 4 + k < p.cols; ++k) {
      const int64_t c = block * 4 + k;
      const float u = __fadd_rn(static_cast<float>(w[k] >> 8) * 0x1p-23f, -1.0f);
      y[row * p.ldY + c] = narrow<T>(__fadd_rn(widen(x[row * p.ldX + c]), __fmul_rn(size, u)));
    }
  }
}

}  // namespace

void noise(const Call& call, const Context& context) {
  const Operands args(call, "noise", 5, 1, 1);
  const View& y = args.matrix(0, "y");
  const View& x = args.typed(1, "x", y.dtype, y.rows, y.cols);
  const View& scale = args.typed(2, "scale", DType::F32, y.rows, 1);
  const View& tokenKeys = args.typed(3, "tokenKeys", DType::I32, y.rows, 2);
  const View& random = args.typed(4, "random", DType::I32, 1, 2);
  const Noise p{scale.f32(), tokenKeys.i32(), random.i32(), scale.ld,
                tokenKeys.ld, x.ld,           y.ld,         y.rows,
                y.cols,      static_cast<uint32_t>(call.i(0)), static_cast<float>(call.f(0))};
  const int64_t counters = y.rows * ((y.cols + 3) / 4);
  if (counters == 0) return;
  constexpr int threads = 256;
  const int64_t wanted = (counters + threads - 1) / threads;
  const auto blocks = static_cast<unsigned>(wanted < 8192 ? wanted : 8192);
  withType(y.dtype, "noise", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launchDependent(context, "noise", noiseKernel<T>, {blocks, threads}, static_cast<T*>(y.data), static_cast<const T*>(x.data),
                    p);
  });
}

}  // namespace unsloth::cuda::ops
