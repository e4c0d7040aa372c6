#include "gemmMma.cuh"

namespace unsloth::cuda::mma {

template void multiply<__half>(const MmaArgs& args, int mode, const Context& context);

}  // namespace unsloth::cuda::mma
