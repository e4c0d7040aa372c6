#include "element.cuh"
#include "operands.h"
#include "ops.h"

namespace unsloth::cuda {
namespace {

constexpr int dotThreads = 1024;

/** out (+)= Σ a_i·b_i: each thread sums every 1024th product, then a tree of fixed shape. 8 bytes read per element. */
__global__ void dotKernel(double* out, const float* a, const float* b, int64_t count, bool accumulate) {
  __shared__ double sums[dotThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += dotThreads) sum += static_cast<double>(a[i]) * b[i];
  sums[threadIdx.x] = sum;
  for (int half = dotThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *out = accumulate ? *out + sums[0] : sums[0];
}

__global__ void clipScaleKernel(double* scalars, const double* squares, const double* loss, double most) {
  const double scale = most > 0 ? fmin(1.0, most / (sqrt(*squares) + 1e-6)) : 1.0;
  *scalars = isfinite(*squares) && isfinite(*loss) ? scale : nan("");
}

}  // namespace

namespace ops {

void dot(const Call& call, const Context& context) {
  const Operands args(call, "dot", 3, 1, 0);
  const View& a = args.shaped(1, "a", Operands::any, Operands::any);
  const int64_t count = a.rows * a.cols;
  dotKernel<<<1, dotThreads, 0, context.stream>>>(const_cast<double*>(args.list<double>(0, "out", DType::F64, 1)), args.list<float>(1, "a", DType::F32, count),
                                                  args.list<float>(2, "b", DType::F32, count), count, call.i(0) != 0);
  checkLaunch("dot");
}

void clipScale(const Call& call, const Context& context) {
  const Operands args(call, "clipScale", 3, 0, 1);
  clipScaleKernel<<<1, 1, 0, context.stream>>>(const_cast<double*>(args.list<double>(0, "scalars", DType::F64, 1)), args.list<double>(1, "squares", DType::F64, 1),
                                               args.list<double>(2, "loss", DType::F64, 1), call.f(0));
  checkLaunch("clipScale");
}

}  // namespace ops
}  // namespace unsloth::cuda
