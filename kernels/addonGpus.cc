#include "addonGpus.h"

#include "addonErrors.h"
#ifdef UNSLOTH_CUDA
#include "cuda/cublasLt.h"
#include "cuda/gemmChoices.h"
#include "cuda/gpus.h"
#include "cuda/nvml.h"
#endif

namespace unsloth {
#ifdef UNSLOTH_CUDA
Napi::Value describeCuda(Napi::Env env) {
  const cuda::Gpus& gpus = cuda::gpus();
  auto result = Napi::Object::New(env);
  auto list = Napi::Array::New(env);
  for (const cuda::GpuInfo& gpu : gpus.usable) {
    auto item = Napi::Object::New(env);
    item.Set("index", gpu.index);
    item.Set("name", gpu.name);
    item.Set("capability", gpu.capability);
    item.Set("multiprocessors", gpu.multiprocessors);
    item.Set("totalBytes", static_cast<double>(gpu.totalBytes));
    list.Set(list.Length(), item);
  }
  result.Set("gpus", list);
  result.Set("problem", gpus.problem);
  result.Set("driver", gpus.driver);
  result.Set("runtime", gpus.runtime);
  return result;
}

namespace {

/** Where cuBLASLt was found, or why it is not used. Opens it, which takes a moment. */
Napi::Value cublasLt(const Napi::CallbackInfo& info) {
  const cuda::CublasLtStatus& library = cuda::cublasLtStatus();
  auto result = Napi::Object::New(info.Env());
  if (library.found) result.Set("path", library.path);
  result.Set("version", static_cast<double>(library.version));
  result.Set("problem", library.problem);
  return result;
}

/** What was timed on a GPU before, from `takeGemmChoices` of an earlier process. */
void adoptGemmChoices(const Napi::CallbackInfo& info) {
  const auto numbers = info[1].As<Napi::Int32Array>();
  cuda::adoptGemmChoices(info[0].ToNumber().Int32Value(), numbers.Data(), numbers.ElementLength());
}

/** What was timed since the last call: `gemmRecordNumbers` numbers for each product. */
Napi::Value takeGemmChoices(const Napi::CallbackInfo& info) {
  const std::vector<int32_t> records = cuda::takeGemmChoices(info[0].ToNumber().Int32Value());
  auto result = Napi::Int32Array::New(info.Env(), records.size());
  std::copy(records.begin(), records.end(), result.Data());
  return result;
}

/** Memory, utilisation, temperature and power of a GPU now; undefined where NVML does not tell. */
Napi::Value gpuStatus(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const auto status = cuda::gpuStatus(info[0].ToNumber().Int32Value());
    if (!status) return env.Undefined();
    auto result = Napi::Object::New(env);
    result.Set("usedBytes", static_cast<double>(status->usedBytes));
    result.Set("totalBytes", static_cast<double>(status->totalBytes));
    if (status->processBytes) result.Set("processBytes", static_cast<double>(*status->processBytes));
    auto others = Napi::Array::New(env);
    for (const cuda::GpuProcess& process : status->others) {
      auto item = Napi::Object::New(env);
      item.Set("pid", process.pid);
      item.Set("bytes", static_cast<double>(process.bytes));
      others.Set(others.Length(), item);
    }
    result.Set("others", others);
    if (status->utilisation) result.Set("utilisation", *status->utilisation);
    if (status->temperature) result.Set("temperature", *status->temperature);
    if (status->power) result.Set("power", *status->power);
    return result;
  });
}

}  // namespace
#else
Napi::Value describeCuda(Napi::Env env) { return env.Undefined(); }

namespace {

Napi::Value cublasLt(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }
void adoptGemmChoices(const Napi::CallbackInfo&) {}
Napi::Value takeGemmChoices(const Napi::CallbackInfo& info) { return Napi::Int32Array::New(info.Env(), 0); }
Napi::Value gpuStatus(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }

}  // namespace
#endif

void exportGpuFunctions(Napi::Env env, Napi::Object exports) {
  exports.Set("gpuStatus", Napi::Function::New(env, gpuStatus));
  exports.Set("cublasLt", Napi::Function::New(env, cublasLt));
  exports.Set("adoptGemmChoices", Napi::Function::New(env, adoptGemmChoices));
  exports.Set("takeGemmChoices", Napi::Function::New(env, takeGemmChoices));
}

}  // namespace unsloth
