#include "gemmIsa.inc"
const unsloth::cpu::GemmKernels* const unsloth::cpu::gemmAmx = nullptr;
