#include "gemmMma.cuh"

namespace unsloth::cuda::mma {

template void multiply<bf16>(const MmaArgs& args, int mode, const Context& context);

}  // namespace unsloth::cuda::mma
