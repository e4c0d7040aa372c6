#include "gemmFewRows.h"

#include <algorithm>

#include "../core/wholeNumbers.h"
#include "gemmSelect.h"
#include "quantise.h"

namespace unsloth::cpu {
namespace {

constexpr int64_t fewRows = 8;
constexpr int64_t biasBytes = 1 << 18, unpackedBytes = 1 << 20;  // of a thread's scratch: a bias, then dequantised rows

int64_t elementBytes(const View& v) { return static_cast<int64_t>(bytesPerElement(v.dtype)); }

class FewRowsGemm {
 public:
  FewRowsGemm(const Gemm& g, ThreadPool& pool) : g_(g), pool_(pool), round_(g.precision == Precision::bfloat16) {}

  bool fits() const {
    int64_t words = g_.a.cols;
    for (const LowRankTerm& term : g_.terms) words += term.a.cols;
    const int64_t bytes = 4 * words * fewRows;
    const bool unpacks = !isQuantised(g_.b.dtype) || g_.b.cols * 4 <= unpackedBytes;
    const bool fits = bytes <= static_cast<int64_t>(ThreadPool::sharedScratchBytes);
    return g_.mode == GemmMode::NT && g_.c.rows <= fewRows && fits && unpacks;
  }

  void run() {
    const int64_t n = g_.c.cols;
    std::vector<View> left{widen(g_.a)};
    for (const LowRankTerm& term : g_.terms) left.push_back(widen(term.a));
    constexpr int64_t unit = 8, most = biasBytes / 4;
    const int64_t share = divideUp(n, 8 * pool_.size());
    const int64_t perTask = std::min(roundUp(share, unit), most);
    pool_.parallelFor(divideUp(n, perTask), [&](int64_t task, int thread) {
      const int64_t column = task * perTask, columns = std::min(perTask, n - column);
      DotCall call = product(left[0], g_.b, column, columns, column, g_.alpha);
      call.accumulate = g_.accumulate;
      if (g_.bias.present()) {
        float* const bias = reinterpret_cast<float*>(pool_.scratch(thread));
        const auto* first = static_cast<const std::byte*>(g_.bias.data) + column * elementBytes(g_.bias);
        gemmSelection().widen(bias, first, g_.bias.dtype, columns, false);
        call.bias = bias;
      }
      if (g_.add.present()) {
        call.add = g_.add.f32() + column;
        call.ldAdd = g_.add.ld;
      }
      if (isQuantised(g_.b.dtype)) dotQuantised(call, column, thread);
      else gemmSelection().dot(call);
      for (size_t i = 0; i < g_.terms.size(); ++i) {
        const LowRankTerm& term = g_.terms[i];
        const int64_t first = std::max(column, term.column), last = std::min(column + columns, term.column + term.b.rows);
        if (first >= last || term.a.cols == 0) continue;
        DotCall extra = product(left[i + 1], term.b, first - term.column, last - first, first, term.alpha);
        extra.accumulate = true;
        gemmSelection().dot(extra);
      }
    });
  }

 private:
  /** The columns of `call`, from `column` on, a few rows of a quantised B at a time. */
  void dotQuantised(DotCall call, int64_t column, int thread) const {
    const DType type = dequantisedType(g_.b);
    std::byte* const rows = pool_.scratch(thread) + biasBytes;
    const int64_t atOnce = unpackedBytes / (g_.b.cols * static_cast<int64_t>(bytesPerElement(type))), end = column + call.columns;
    call.b = rows;
    call.dtypeB = type;
    call.ldb = g_.b.cols;
    for (; column < end; column += atOnce) {
      call.columns = std::min(atOnce, end - column);
      dequantise(g_.b, column, call.columns, 0, g_.b.cols, rows, type);
      gemmSelection().dot(call);
      call.c += call.columns;
      if (call.bias != nullptr) call.bias += call.columns;
      if (call.add != nullptr) call.add += call.columns;
    }
  }

  /** fp32 rows of A as the precision wants them; copied only when they differ. */
  View widen(const View& a) {
    if (a.dtype == DType::F32 && !round_) return a;
    float* const target = reinterpret_cast<float*>(pool_.sharedScratch()) + used_;
    used_ += a.rows * a.cols;
    for (int64_t r = 0; r < a.rows; ++r) {
      const auto* source = static_cast<const std::byte*>(a.data) + r * a.ld * elementBytes(a);
      gemmSelection().widen(target + r * a.cols, source, a.dtype, a.cols, round_);
    }
    return {target, DType::F32, a.rows, a.cols, a.cols};
  }

  DotCall product(const View& a, const View& b, int64_t rowOfB, int64_t columns, int64_t column, float alpha) const {
    DotCall call{};
    call.a = a.f32();
    call.lda = a.ld;
    call.b = static_cast<const std::byte*>(b.data) + rowOfB * b.ld * elementBytes(b);
    call.dtypeB = b.dtype;
    call.ldb = b.ld;
    call.round = round_;
    call.k = a.cols;
    call.rows = g_.c.rows;
    call.columns = columns;
    call.c = g_.c.f32() + column;
    call.ldc = g_.c.ld;
    call.alpha = alpha;
    return call;
  }

  const Gemm& g_;
  ThreadPool& pool_;
  const bool round_;
  int64_t used_ = 0;
};

}  // namespace

bool gemmFewRows(const Gemm& g, ThreadPool& pool) {
  FewRowsGemm few(g, pool);
  if (!few.fits()) return false;
  few.run();
  return true;
}

}  // namespace unsloth::cpu
