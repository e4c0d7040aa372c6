#pragma once
#include <napi.h>

namespace unsloth {

/** GPUs that can be used, driver and runtime, and what stands against GPUs; undefined in a build without CUDA. */
Napi::Value describeCuda(Napi::Env env);

/** Adds cublasLt, gpuStatus, adoptGemmChoices and takeGemmChoices; engine/native.ts describes them. */
void exportGpuFunctions(Napi::Env env, Napi::Object exports);

}  // namespace unsloth
