#pragma once
#include "gemm.h"

namespace unsloth::cpu {

/**
 * C = A Bᵀ for at most 8 rows: B streams through once, in place, while the rows of A stay in the cache. A row's bits do not
 * depend on the other rows. Returns false, with nothing done, when g is of another mode or shape.
 */
bool gemmFewRows(const Gemm& g, ThreadPool& pool);

}  // namespace unsloth::cpu
