#pragma once
#include <cstdint>
#include <string>

namespace unsloth::cuda {

/** Where cuBLASLt was found: the library's path, or what was looked for in vain. It is opened at the first call. */
struct CublasLtStatus {
  bool found = false;
  std::string path;     // of the library
  int64_t version = 0;  // as cublasLtGetVersion says, 130100 for 13.1
  std::string problem;  // why it is not used, in one sentence
};

/**
 * Looks in this order: the file or folder that UNSLOTH_CUBLASLT names; the folders of UNSLOTH_LIBRARY_PATH; $CUDA_HOME and
 * $CUDA_PATH; $CONDA_PREFIX; the packages of $VIRTUAL_ENV; the system's own search; /usr/local/cuda.
 */
const CublasLtStatus& cublasLtStatus();

}  // namespace unsloth::cuda
