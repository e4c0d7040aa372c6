#include "pages.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <sys/mman.h>
#endif

namespace unsloth::cpu {

#ifdef _WIN32
void* allocatePages(size_t bytes) { return VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE); }
void freePages(void* data, size_t) { VirtualFree(data, 0, MEM_RELEASE); }
#else
void* allocatePages(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  constexpr size_t worthHugePages = size_t{8} << 20;
  if (bytes >= worthHugePages) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}
void freePages(void* data, size_t bytes) { munmap(data, bytes); }
#endif

}  // namespace unsloth::cpu
