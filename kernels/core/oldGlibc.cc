// Keeps the addon loadable on systems with glibc 2.28 (RHEL 8, Debian 10), whatever it is compiled on.
//
// A library that is linked against a newer glibc asks for the newest version of each symbol. Here the symbols that got a new
// version after 2.28 are defined once more, hidden, in terms of the version that every x86-64 glibc has; the linker then binds
// this module's own calls, and those of the static libstdc++ and libgcc in it, to these. A test reads what the result asks for.
//
// | Symbol | New in | Why | Instead |
// |---|---|---|---|
// | exp, log, pow, exp2 | 2.29 | without the error hook of SVID | the version of 2.2.5: the same value |
// | pthread_* | 2.34 | libpthread became part of libc | the version of 2.2.5 |
// | __libc_single_threaded | 2.32 | lets shared_ptr do without atomics | 0: always with them |
// | _dl_find_object | 2.35 | finds the unwind table of an exception | dl_iterate_phdr, as before 2.35 |
// | arc4random | 2.36 | std::random_device | getrandom |
#include <cstdint>  // Says whether this is glibc.

#if defined(__linux__) && defined(__x86_64__) && defined(__GLIBC__)

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>

#define HIDDEN extern "C" __attribute__((visibility("hidden"), used))
#define OLD(name, version) __asm__(".symver old_" #name ", " #name "@GLIBC_" version)

extern "C" {
double old_exp(double);
double old_log(double);
double old_pow(double, double);
double old_exp2(double);
int old_pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
int old_pthread_join(pthread_t, void**);
int old_pthread_detach(pthread_t);
int old_pthread_once(pthread_once_t*, void (*)());
int old_pthread_key_create(pthread_key_t*, void (*)(void*));
int old_pthread_key_delete(pthread_key_t);
void* old_pthread_getspecific(pthread_key_t);
int old_pthread_setspecific(pthread_key_t, const void*);
}

OLD(exp, "2.2.5");
OLD(log, "2.2.5");
OLD(pow, "2.2.5");
OLD(exp2, "2.2.5");
OLD(pthread_create, "2.2.5");
OLD(pthread_join, "2.2.5");
OLD(pthread_detach, "2.2.5");
OLD(pthread_once, "2.2.5");
OLD(pthread_key_create, "2.2.5");
OLD(pthread_key_delete, "2.2.5");
OLD(pthread_getspecific, "2.2.5");
OLD(pthread_setspecific, "2.2.5");

HIDDEN double exp(double x) noexcept { return old_exp(x); }
HIDDEN double log(double x) noexcept { return old_log(x); }
HIDDEN double pow(double x, double y) noexcept { return old_pow(x, y); }
HIDDEN double exp2(double x) noexcept { return old_exp2(x); }
HIDDEN int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) noexcept {
  return old_pthread_create(thread, attributes, start, argument);
}
HIDDEN int pthread_join(pthread_t thread, void** result) { return old_pthread_join(thread, result); }
HIDDEN int pthread_detach(pthread_t thread) noexcept { return old_pthread_detach(thread); }
HIDDEN int pthread_once(pthread_once_t* control, void (*routine)()) { return old_pthread_once(control, routine); }
HIDDEN int pthread_key_create(pthread_key_t* key, void (*destroy)(void*)) noexcept {
  return old_pthread_key_create(key, destroy);
}
// libgcc's name for it.
HIDDEN int __pthread_key_create(pthread_key_t* key, void (*destroy)(void*)) { return old_pthread_key_create(key, destroy); }
HIDDEN int pthread_key_delete(pthread_key_t key) noexcept { return old_pthread_key_delete(key); }
HIDDEN void* pthread_getspecific(pthread_key_t key) noexcept { return old_pthread_getspecific(key); }
HIDDEN int pthread_setspecific(pthread_key_t key, const void* value) noexcept { return old_pthread_setspecific(key, value); }

extern "C" {
__attribute__((visibility("hidden"), used)) char __libc_single_threaded = 0;
}
#if __GLIBC_PREREQ(2, 35)
namespace {

struct Search {
  uintptr_t pc;
  dl_find_object* found;
};

// Ends the iteration at the object whose segments contain the address.
int matchObject(dl_phdr_info* object, size_t, void* data) {
  auto* search = static_cast<Search*>(data);
  uintptr_t start = 0, end = 0, unwindTable = 0;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const auto& header = object->dlpi_phdr[i];
    const uintptr_t address = object->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_GNU_EH_FRAME) unwindTable = address;
    if (header.p_type == PT_LOAD && search->pc - address < header.p_memsz) {
      start = address;
      end = address + header.p_memsz;
    }
  }
  if (end == 0) return 0;
  if (unwindTable == 0) return -1;
  *search->found = {};
  search->found->dlfo_map_start = reinterpret_cast<void*>(start);
  search->found->dlfo_map_end = reinterpret_cast<void*>(end);
  search->found->dlfo_eh_frame = reinterpret_cast<void*>(unwindTable);
  return 1;
}

}  // namespace

HIDDEN int _dl_find_object(void* pc, dl_find_object* found) noexcept {
  Search search{reinterpret_cast<uintptr_t>(pc), found};
  return dl_iterate_phdr(matchObject, &search) == 1 ? 0 : -1;
}
#endif
HIDDEN uint32_t arc4random() {
  uint32_t value;
  if (getrandom(&value, sizeof value, 0) != sizeof value) abort();
  return value;
}

#endif
