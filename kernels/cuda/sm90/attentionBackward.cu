#include "../attention.h"

namespace unsloth::cuda {
bool attentionGradWgmma(const AttentionArgs&, const Context&) { return false; }
}  // namespace unsloth::cuda
