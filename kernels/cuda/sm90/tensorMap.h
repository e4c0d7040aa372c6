#pragma once
#include <cuda.h>

#include <cstdint>

#include "../../core/tensor.h"

namespace unsloth::cuda::sm90 {

/** Whether the tensor memory accelerator can address the view: base and row stride are multiples of 16 bytes. */
bool tensorMapFits(const View& v);

/**
 * Map of a view in boxes of boxRows × boxCols, in 128-byte swizzle: boxCols elements are at most 128 bytes, boxRows at most 256.
 * What lies outside the view reads as zero and is not written. Throws where the driver has no tensor maps.
 */
CUtensorMap tensorMap(const View& v, int boxRows, int boxCols);

}  // namespace unsloth::cuda::sm90
