#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "gemm.h"

namespace unsloth::cuda {

/** A way to compute a product. */
struct GemmChoice {
  enum class Way : int32_t { usual = 0, wgmma = 1, mma = 2, cublasLt = 3 };  // usual: what is taken where nothing was timed
  Way way = Way::usual;
  std::array<int32_t, 4> numbers{};  // wgmma: a WgmmaTiling; cublasLt: the number of the proposal

  bool operator==(const GemmChoice&) const = default;
};

/** Row counts differ from step to step: multiples of 128 up to 1024, then four classes between a power of two and the next. */
int64_t classOfRows(int64_t rows);

/** Whether `args` was enqueued in the given way; low-rank pairs follow where the way does not take them. */
bool multiplyBy(const GemmChoice& choice, const GemmArgs& args, const Context& context);

/** Ways worth timing for a product, the usual one first. */
std::vector<GemmChoice> waysOf(const GemmArgs& args, const Context& context);

/**
 * The fastest way for a product of this kind, timed on its own operands when the first of its kind is met outside of a graph's
 * recording. That writes c, which the product is about to overwrite; one that adds to c is timed into the scratch. The usual way
 * wins unless another is clearly faster.
 */
GemmChoice fastestWay(const GemmArgs& args, const Context& context);

/** Numbers of a choice that is kept: cuBLASLt's version (0: none), the kind of product, the way. */
constexpr size_t gemmRecordNumbers = 15;

/** Adopts records of an earlier process with this GPU and this build; those made beside another cuBLASLt are passed over. */
void adoptGemmChoices(int gpu, const int32_t* numbers, size_t count);

/** Records of what was timed on a GPU since the last call. */
std::vector<int32_t> takeGemmChoices(int gpu);

}  // namespace unsloth::cuda
