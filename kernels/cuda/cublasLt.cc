#include "cublasLt.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "gemmChoices.h"

/** cuBLASLt through its C interface, declared here: https://docs.nvidia.com/cuda/cublas/ (cuBLASLt API). */
namespace unsloth::cuda {
namespace {

namespace fs = std::filesystem;

enum : int { typeF32 = 0, typeF16 = 2, typeBF16 = 14 };            // cudaDataType_t
enum : int { computeF32 = 68 };                                    // cublasComputeType_t
enum : int { asStored = 0, transposed = 1 };                       // cublasOperation_t
enum : int { transposeA = 3, transposeB = 4, epilogue = 7, biasPointer = 8, biasType = 26 };  // cublasLtMatmulDescAttributes_t
enum : int { epilogueBias = 4 };                                   // cublasLtEpilogue_t
enum : int { maxWorkspace = 1, alignmentA = 5, alignmentB = 6, alignmentC = 7, alignmentD = 8 };  // preference attributes

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspaceBytes;
  int status;
  float waves;
  int reserved[4];
};

struct Functions {
  size_t (*version)();
  int (*create)(void** handle);
  int (*descCreate)(void** desc, int computeType, int scaleType);
  int (*descSet)(void* desc, int attribute, const void* value, size_t bytes);
  int (*descDestroy)(void* desc);
  int (*layoutCreate)(void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*layoutDestroy)(void* layout);
  int (*preferenceCreate)(void** preference);
  int (*preferenceSet)(void* preference, int attribute, const void* value, size_t bytes);
  int (*preferenceDestroy)(void* preference);
  int (*heuristic)(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted, Heuristic* found,
                   int* count);
  int (*matmul)(void* handle, void* desc, const void* alpha, const void* a, void* layoutA, const void* b, void* layoutB,
                const void* beta, const void* c, void* layoutC, void* d, void* layoutD, const Algorithm* algorithm,
                void* workspace, size_t workspaceBytes, cudaStream_t stream);
};

#ifdef _WIN32
constexpr const char* const names[] = {"cublasLt64_13.dll", "cublasLt64_12.dll"};
constexpr const char* const folders[] = {"bin/x64", "bin", "lib", "."};
constexpr char separator = ';';
void* openLibrary(const std::string& path) { return reinterpret_cast<void*>(LoadLibraryA(path.c_str())); }
void* symbolOf(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(reinterpret_cast<HMODULE>(library), name));
}
std::string pathOf(void* library, const std::string& asked) {
  char path[MAX_PATH];
  const DWORD length = GetModuleFileNameA(reinterpret_cast<HMODULE>(library), path, MAX_PATH);
  return length > 0 ? std::string(path, length) : asked;
}
#else
constexpr const char* const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
constexpr const char* const folders[] = {"lib64", "lib", "."};
constexpr char separator = ':';
void* openLibrary(const std::string& path) { return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL); }
void* symbolOf(void* library, const char* name) { return dlsym(library, name); }
std::string pathOf(void* library, const std::string& asked) {
  Dl_info info{};
  void* const symbol = dlsym(library, "cublasLtCreate");
  return symbol != nullptr && dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : asked;
}
#endif

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/** Files to try, in order; a bare name leaves the search to the system. */
std::vector<std::string> candidates() {
  std::vector<std::string> found;
  std::error_code ignored;
  const auto tryFolder = [&](const fs::path& folder) {
    for (const char* name : names)
      if (fs::exists(folder / name, ignored)) found.push_back((folder / name).string());
  };
  const auto tryRoot = [&](const std::string& root) {
    if (root.empty()) return;
    for (const char* folder : folders) tryFolder(fs::path(root) / folder);
  };
  const auto tryPackages = [&](const fs::path& site) {  // wheels: nvidia/cublas/lib, nvidia/cu13/lib
    for (const auto& entry : fs::directory_iterator(site / "nvidia", ignored)) tryRoot(entry.path().string());
  };
  const std::string chosen = environment("UNSLOTH_CUBLASLT");
  if (!chosen.empty()) {
    if (fs::is_directory(chosen, ignored)) tryRoot(chosen);
    else found.push_back(chosen);
  }
  const std::string path = environment("UNSLOTH_LIBRARY_PATH");
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find(separator, begin), path.size());
    if (end > begin) tryFolder(path.substr(begin, end - begin));
    begin = end + 1;
  }
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"}) tryRoot(environment(variable));
  if (const std::string virtualEnv = environment("VIRTUAL_ENV"); !virtualEnv.empty()) {
    tryPackages(fs::path(virtualEnv) / "Lib" / "site-packages");
    for (const auto& entry : fs::directory_iterator(fs::path(virtualEnv) / "lib", ignored))
      tryPackages(entry.path() / "site-packages");
  }
  for (const char* name : names) found.push_back(name);
  tryRoot("/usr/local/cuda");
  return found;
}

/** The library, once opened, and one handle: cuBLASLt handles may be shared between threads and streams of a device. */
struct Library {
  CublasLtStatus status;
  Functions call{};
  void* handle = nullptr;

  Library() {
    for (const std::string& path : candidates()) {
      void* const library = openLibrary(path);
      if (library == nullptr) continue;
      if (const char* missing = resolve(library)) {
        status.problem = path + " has no " + missing;
        continue;
      }
      status = {true, pathOf(library, path), static_cast<int64_t>(call.version()), ""};
      return;
    }
    if (status.problem.empty()) status.problem = std::string("neither ") + names[0] + " nor " + names[1] + " was found";
  }

  /** The name of a function that is missing, or null. */
  const char* resolve(void* library) {
    const auto take = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(symbolOf(library, name));
      return function == nullptr ? name : nullptr;
    };
    for (const char* missing :
         {take(call.version, "cublasLtGetVersion"), take(call.create, "cublasLtCreate"),
          take(call.descCreate, "cublasLtMatmulDescCreate"), take(call.descSet, "cublasLtMatmulDescSetAttribute"),
          take(call.descDestroy, "cublasLtMatmulDescDestroy"), take(call.layoutCreate, "cublasLtMatrixLayoutCreate"),
          take(call.layoutDestroy, "cublasLtMatrixLayoutDestroy"), take(call.preferenceCreate, "cublasLtMatmulPreferenceCreate"),
          take(call.preferenceSet, "cublasLtMatmulPreferenceSetAttribute"),
          take(call.preferenceDestroy, "cublasLtMatmulPreferenceDestroy"), take(call.heuristic, "cublasLtMatmulAlgoGetHeuristic"),
          take(call.matmul, "cublasLtMatmul")})
      if (missing != nullptr) return missing;
    return nullptr;
  }
};

Library& library() {
  static Library* const opened = new Library;  // never closed: streams may outlive static destruction
  return *opened;
}

int typeOf(DType type) { return type == DType::F32 ? typeF32 : type == DType::F16 ? typeF16 : typeBF16; }

/** A product prepared for one shape, types, strides and alignments: the library's proposals, the best in its opinion first. */
struct Prepared {
  void *desc = nullptr, *a = nullptr, *b = nullptr, *c = nullptr, *d = nullptr;
  std::array<Heuristic, cublasLtProposals> proposals{};
  int count = 0;
};

uint32_t alignmentOf(const void* pointer) {
  const auto bits = reinterpret_cast<uintptr_t>(pointer);
  uint32_t alignment = 256;
  while (bits % alignment != 0) alignment /= 2;
  return alignment;
}

using Key = std::array<int64_t, 16>;

Key keyOf(const GemmArgs& g, const View& source, const Context& context, int64_t rows) {
  const int64_t types = static_cast<int64_t>(g.a.dtype) | static_cast<int64_t>(g.b.dtype) << 4 |
                        static_cast<int64_t>(g.c.dtype) << 8 |
                        static_cast<int64_t>(g.bias.present() ? static_cast<int>(g.bias.dtype) + 1 : 0) << 12 |
                        static_cast<int64_t>(source.present() ? 1 + (source.data == g.c.data) : 0) << 16;
  return {g.mode, g.m, g.n, g.k, g.a.ld, g.b.ld, g.c.ld, source.ld, types, alignmentOf(g.a.data), alignmentOf(g.b.data),
          alignmentOf(g.c.data), source.present() ? alignmentOf(source.data) : 0, static_cast<int64_t>(context.workspaceBytes),
          context.gpu->index, rows};
}

/** Scratch that the library may use: what NVIDIA advises for Hopper, and enough elsewhere. */
size_t workspaceFor(const Context& context) { return std::min(context.workspaceBytes, size_t{32} << 20); }

/** Four layouts, destroyed with it unless they are kept. */
struct Layouts {
  Library& lt;
  void *a = nullptr, *b = nullptr, *c = nullptr, *d = nullptr;

  bool make(const GemmArgs& g, const View& source) {
    const auto one = [&](void** target, const View& v) {
      const auto count = [](int64_t n) { return static_cast<uint64_t>(n); };
      return lt.call.layoutCreate(target, typeOf(v.dtype), count(v.cols), count(v.rows), v.ld) == 0;
    };
    return one(&a, g.a) && one(&b, g.b) && one(&d, g.c) && one(&c, source.present() ? source : g.c);
  }
  ~Layouts() {
    for (void* each : {a, b, c, d})
      if (each != nullptr) lt.call.layoutDestroy(each);
  }
};

/** The product on so many rows: of a and c, or what a weight's gradient sums over. */
void setRows(GemmArgs& g, View& source, int64_t rows) {
  g.a.rows = rows;
  if (g.mode == 2) g.b.rows = rows;
  else g.c.rows = source.rows = rows;
}

/**
 * cuBLASLt thinks in columns: cᵀ[n,m] = op(b)·op(a), where a row-major matrix is its own transpose. The bias is a column of
 * cᵀ. Proposals are those for a product of `rows`.
 */
Prepared prepare(Library& lt, const GemmArgs& g, const View& source, const Context& context, int64_t rows) {
  Prepared p;
  Layouts real{lt}, asked{lt};
  GemmArgs question = g;
  View questionSource = source;
  setRows(question, questionSource, rows);
  if (lt.call.descCreate(&p.desc, computeF32, typeF32) != 0 || !real.make(g, source) || !asked.make(question, questionSource))
    return p;
  const auto set = [&](int attribute, const auto& value) {
    return lt.call.descSet(p.desc, attribute, &value, sizeof value) == 0;
  };
  bool ready = set(transposeA, g.mode == 0 ? transposed : asStored) && set(transposeB, g.mode == 2 ? transposed : asStored);
  if (g.bias.present())
    ready = ready && set(epilogue, epilogueBias) && set(biasType, typeOf(g.bias.dtype)) && set(biasPointer, g.bias.data);
  void* preference = nullptr;
  if (!ready || lt.call.preferenceCreate(&preference) != 0) return p;
  const auto prefer = [&](int attribute, const auto& value) {
    return lt.call.preferenceSet(preference, attribute, &value, sizeof value) == 0;
  };
  int count = 0;
  const bool answered = prefer(maxWorkspace, workspaceFor(context)) && prefer(alignmentA, alignmentOf(g.b.data)) &&
                        prefer(alignmentB, alignmentOf(g.a.data)) &&
                        prefer(alignmentC, alignmentOf(source.present() ? source.data : g.c.data)) &&
                        prefer(alignmentD, alignmentOf(g.c.data)) &&
                        lt.call.heuristic(lt.handle, p.desc, asked.b, asked.a, asked.c, asked.d, preference, cublasLtProposals,
                                          p.proposals.data(), &count) == 0;
  lt.call.preferenceDestroy(preference);
  while (answered && p.count < count && p.proposals[static_cast<size_t>(p.count)].status == 0) ++p.count;
  p.a = std::exchange(real.a, nullptr), p.b = std::exchange(real.b, nullptr);
  p.c = std::exchange(real.c, nullptr), p.d = std::exchange(real.d, nullptr);
  return p;
}

bool multiply(const GemmArgs& args, const Context& context, int index, int64_t rows) {
  if (!args.terms.empty() || (args.accumulate && args.add.present()) || args.m == 0 || args.n == 0 || args.k == 0) return false;
  if (args.add.present() && args.add.dtype != args.c.dtype) return false;
  if (args.bias.present() && args.bias.rows != 1 && args.bias.ld != 1) return false;
  if (args.a.dtype != args.b.dtype) return false;
  Library& lt = library();
  if (!lt.status.found) return false;

  static std::mutex mutex;
  static std::map<Key, Prepared> prepared;
  const std::lock_guard lock(mutex);
  if (lt.handle == nullptr && lt.call.create(&lt.handle) != 0) {
    lt.status.found = false;
    lt.status.problem = lt.status.path + " does not work with this GPU and driver";
    return false;
  }
  const View source = args.accumulate ? args.c : args.add;
  auto [at, fresh] = prepared.try_emplace(keyOf(args, source, context, rows));
  Prepared& p = at->second;
  if (fresh) p = prepare(lt, args, source, context, rows);
  if (index >= p.count) return false;
  if (args.bias.present()) lt.call.descSet(p.desc, biasPointer, &args.bias.data, sizeof args.bias.data);
  const float beta = source.present() ? 1.0f : 0.0f;
  return lt.call.matmul(lt.handle, p.desc, &args.alpha, args.b.data, p.b, args.a.data, p.a, &beta,
                        source.present() ? source.data : args.c.data, p.c, args.c.data, p.d,
                        &p.proposals[static_cast<size_t>(index)].algorithm, context.workspace,
                        workspaceFor(context), context.stream) == 0;
}

}  // namespace

const CublasLtStatus& cublasLtStatus() { return library().status; }

bool gemmCublasLt(const GemmArgs& args, const Context& context) {
  return multiply(args, context, 0, args.mode == 2 ? args.k : args.m);
}

bool gemmCublasLtProposal(const GemmArgs& args, const Context& context, int index) {
  return multiply(args, context, index, classOfRows(args.mode == 2 ? args.k : args.m));
}

}  // namespace unsloth::cuda
