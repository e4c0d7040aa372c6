#pragma once
#include <cstddef>

namespace unsloth::cpu {

/** Zero-filled pages straight from the operating system, committed on first touch; nullptr when there are none. */
void* allocatePages(size_t bytes);
void freePages(void* data, size_t bytes);

}  // namespace unsloth::cpu
