#define UNSLOTH_ISA portable
#include "vectorKernels.inc"
