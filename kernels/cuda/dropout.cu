// Dropout by Philox4x32-10. Bytes per element of T: 2, or 3 when it accumulates; about 20 integer operations.
#include "map.cuh"
#include "operands.h"
#include "ops.h"
#include "philox.cuh"

namespace unsloth::cuda::ops {
namespace {

/** in: x, and y when it accumulates. */
template <int ins>
struct Dropout : MapFunction {
  static constexpr bool placed = true;
  const int32_t *tokenKeys, *random;
  int64_t ldKeys;
  uint32_t site, threshold;
  float scale;

  template <int width>
  __device__ __forceinline__ void operator()(int64_t row, int64_t column, const float (&in)[ins][width],
                                             float (&out)[1][width]) const {
    constexpr int blocks = width < 4 ? 1 : width / 4;
    uint32_t words[4 * blocks];
    const int32_t* keys = tokenKeys + row * ldKeys;
    philox<blocks>(words, static_cast<uint32_t>(__ldg(keys)), static_cast<uint32_t>(__ldg(keys + 1)), site,
                   static_cast<uint32_t>(column / 4), static_cast<uint32_t>(__ldg(random)),
                   static_cast<uint32_t>(__ldg(random + 1)));
#pragma unroll
    for (int i = 0; i < width; ++i) {
      uint32_t word = words[i];
      if constexpr (width == 1) {
        const int place = static_cast<int>(column % 4);
        word = place == 0 ? words[0] : place == 1 ? words[1] : place == 2 ? words[2] : words[3];
      }
      const float value = word >= threshold ? in[0][i] * scale : 0.0f;
      out[0][i] = ins == 2 ? in[ins - 1][i] + value : value;
    }
  }
};

}  // namespace

void dropout(const Call& call, const Context& context) {
  const Operands args(call, "dropout", 4, 2, 1);
  const View& y = args.matrix(0, "y");
  const View& x = args.typed(1, "x", y.dtype, y.rows, y.cols);
  const View& tokenKeys = args.typed(2, "tokenKeys", DType::I32, y.rows, 2);
  const View& random = args.typed(3, "random", DType::I32, 1, 2);
  const double p = call.f(0);
  args.require(p >= 0 && p < 1, "p must be at least 0 and below 1");
  const auto site = static_cast<uint32_t>(call.i(0)), threshold = static_cast<uint32_t>(p * 4294967296.0);
  const auto scale = static_cast<float>(1 / (1 - p));
  withType(y.dtype, "dropout", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (call.i(1) != 0)
      mapElements<T, 2, 1>(context, "dropout", {y}, {x, y},
                           Dropout<2>{{}, tokenKeys.i32(), random.i32(), tokenKeys.ld, site, threshold, scale});
    else
      mapElements<T, 1, 1>(context, "dropout", {y}, {x},
                           Dropout<1>{{}, tokenKeys.i32(), random.i32(), tokenKeys.ld, site, threshold, scale});
  });
}

}  // namespace unsloth::cuda::ops
