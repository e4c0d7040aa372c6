#include "gemm.h"

#include <algorithm>

#include "../core/wholeNumbers.h"
#include "gemmFewRows.h"
#include "gemmSelect.h"
#include "quantise.h"

/**
 * Blocked multiplication after Goto & van de Geijn (ACM TOMS 34(3), 2008): A or B is packed once for all threads, the other per
 * task; a task owns a rectangle of C and walks K in blocks. The K blocks depend on K alone and a register tile sums its block
 * front to back, so an element's bits depend neither on the number of threads nor on the count of rows and columns.
 */
namespace unsloth::cpu {
namespace {

constexpr int64_t fewColumns = 64;         // up to here B is packed once for all and A per task
constexpr int64_t maxTaskColumns = 256;    // a packed block of B stays in the second cache level
constexpr int64_t maxBlockBytes = 3 << 19; // of A, per task
constexpr int64_t goodSharedBytes = 4 << 20;  // of packed A per pass: larger ones would leave the last cache level
constexpr int64_t tasksPerThread = 6;
constexpr int64_t unpackedAt = 5 << 19;    // where a dequantised block stands in a thread's scratch, behind packed A and B

/** One operand: x is a row of A or a column of B. */
struct Operand {
  View view;
  bool kContiguous;
  const void* at(int64_t x, int64_t k) const {
    const int64_t element = kContiguous ? x * view.ld + k : k * view.ld + x;
    return static_cast<const std::byte*>(view.data) + element * static_cast<int64_t>(bytesPerElement(view.dtype));
  }
};

/** K cut into equal blocks of whole words. */
struct Blocks {
  int64_t k, perWord, align, words, count;

  Blocks(int64_t k, const GemmKernel& kernel) : k(k), perWord(kernel.perWord), align(kernel.wordsAlign) {
    const int64_t total = divideUp(k, perWord);
    count = divideUp(total, kernel.blockWords);
    words = count == 0 ? 0 : roundUp(divideUp(total, count), align);
    count = words == 0 ? 0 : divideUp(total, words);
  }
  int64_t begin(int64_t block) const { return block * words * perWord; }
  int64_t length(int64_t block) const { return std::min(words * perWord, k - begin(block)); }
  int64_t depth(int64_t block) const { return roundUp(divideUp(length(block), perWord), align); }
};

/** `count` panels in runs of at most `run`, as equal as can be. */
struct Runs {
  int64_t count, parts;
  Runs(int64_t count, int64_t run) : count(count), parts(divideUp(count, run)) {}
  int64_t begin(int64_t part) const { return part * count / parts; }
};

class PackedGemm {
 public:
  PackedGemm(const Gemm& g, ThreadPool& pool, const GemmKernel& kernel, bool round)
      : g_(g),
        pool_(pool),
        kernel_(kernel),
        round_(round),
        a_{g.a, g.mode != GemmMode::TN},
        b_{g.b, g.mode == GemmMode::NT},
        blocks_(g.mode == GemmMode::TN ? g.a.rows : g.a.cols, kernel),
        m_(g.c.rows),
        n_(g.c.cols) {
    panels_ = divideUp(m_, kernel.tileRows);
    panelRows_ = divideUp(m_, panels_);
    panels_ = divideUp(m_, panelRows_);
    shareB_ = n_ <= fewColumns && m_ > n_;
  }

  void run() {
    const int64_t columnPanels = divideUp(n_, kernel_.tileColumns);
    const int64_t blockBytes = 4 * blocks_.words * (shareB_ ? kernel_.strideB * columnPanels : kernel_.strideA * panels_);
    const int64_t perPass = blockBytes == 0 ? 1 : std::max<int64_t>(1, goodSharedBytes / blockBytes);
    firstBlock_ = 0;
    do {
      lastBlock_ = std::min(blocks_.count, firstBlock_ + perPass);
      passWords_ = 0;
      for (int64_t block = firstBlock_; block < lastBlock_; ++block) passWords_ += blocks_.depth(block);
      if (shareB_) {
        packSharedB();
        multiply(0, panels_);
      } else {
        const int64_t panelWords = std::max<int64_t>(1, kernel_.strideA * passWords_);
        const int64_t room = static_cast<int64_t>(ThreadPool::sharedScratchBytes) / 4 / panelWords;
        const Runs chunks(panels_, room);
        for (int64_t chunk = 0; chunk < chunks.parts; ++chunk) {
          packSharedA(chunks.begin(chunk), chunks.begin(chunk + 1));
          multiply(chunks.begin(chunk), chunks.begin(chunk + 1));
        }
      }
      firstBlock_ = lastBlock_;
    } while (firstBlock_ < blocks_.count);
  }

 private:
  uint32_t* shared() const { return reinterpret_cast<uint32_t*>(pool_.sharedScratch()); }
  int64_t wordsBefore(int64_t block) const { return (block - firstBlock_) * blocks_.words; }
  int64_t rowOf(int64_t panel) const { return std::min(m_, panel * panelRows_); }
  int64_t columnOf(int64_t panel) const { return std::min(n_, panel * kernel_.tileColumns); }

  void packA(const Operand& a, int64_t row, int64_t rows, int64_t k, int64_t length, uint32_t* target) const {
    kernel_.packA({target, a.at(row, k), a.view.dtype, a.view.ld, a.kContiguous, rows, length, panelRows_, round_});
  }
  /** A quantised block is dequantised into the thread's scratch first: it stays in the second cache level. */
  void packB(const Operand& b, int64_t column, int64_t columns, int64_t k, int64_t length, uint32_t* target, int thread) const {
    const int64_t panelColumns = kernel_.tileColumns;
    if (isQuantised(b.view.dtype)) {
      const DType type = dequantisedType(b.view);
      std::byte* const block = pool_.scratch(thread) + unpackedAt;
      if (b.kContiguous) dequantise(b.view, column, columns, k, length, block, type);
      else dequantise(b.view, k, length, column, columns, block, type);
      kernel_.packB(
          {target, block, type, b.kContiguous ? length : columns, b.kContiguous, columns, length, panelColumns, round_});
      return;
    }
    kernel_.packB({target, b.at(column, k), b.view.dtype, b.view.ld, b.kContiguous, columns, length, panelColumns, round_});
  }

  void packSharedA(int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    const Runs runs(count, std::clamp<int64_t>(count / (tasksPerThread * pool_.size()), 1, 8));
    uint32_t* const target = shared();
    pool_.parallelFor(runs.parts, [&](int64_t task, int) {
      const int64_t first = runs.begin(task), row = rowOf(begin + first);
      const int64_t rows = rowOf(begin + runs.begin(task + 1)) - row;
      for (int64_t block = firstBlock_; block < lastBlock_; ++block)
        packA(a_, row, rows, blocks_.begin(block), blocks_.length(block),
              target + kernel_.strideA * (wordsBefore(block) * count + first * blocks_.depth(block)));
    });
  }

  void packSharedB() {
    const int64_t count = divideUp(n_, kernel_.tileColumns);
    uint32_t* const target = shared();
    pool_.parallelFor(lastBlock_ - firstBlock_, [&](int64_t task, int thread) {
      const int64_t block = firstBlock_ + task;
      uint32_t* const to = target + kernel_.strideB * wordsBefore(block) * count;
      packB(b_, 0, n_, blocks_.begin(block), blocks_.length(block), to, thread);
    });
  }

  struct Grid {
    int64_t down, across;  // panels per task
  };

  /**
   * Rectangles of C for the tasks: the least estimated time of the busiest thread, in multiply-adds, when every task also packs
   * its part of the operand that is not shared. Several tasks per thread make up for threads that are held up.
   */
  Grid chooseGrid(int64_t rowPanels, int64_t columnPanels) const {
    const int64_t threads = pool_.size();
    const int64_t maxDown = std::clamp<int64_t>(maxBlockBytes / 4 / (kernel_.strideA * kernel_.blockWords), 1, rowPanels);
    const int64_t maxAcross = std::min(columnPanels, maxTaskColumns / kernel_.tileColumns);
    if (threads == 1) return {maxDown, maxAcross};
    constexpr double packing = 10, perTask = 2000;  // multiply-adds that packing an element, and a task's start, take
    const int64_t wanted = std::min(tasksPerThread * threads, rowPanels * columnPanels);
    Grid best{1, 1};
    double least = 0;
    for (int64_t parts = divideUp(rowPanels, maxDown);; parts = std::min(2 * parts, rowPanels)) {
      const int64_t down = divideUp(rowPanels, parts);
      for (int64_t across = maxAcross; across > 0; --across) {
        const int64_t tasks = divideUp(rowPanels, down) * divideUp(columnPanels, across);
        if (tasks < wanted && (down > 1 || across > 1)) continue;
        const auto rows = static_cast<double>(down * panelRows_);
        const auto columns = static_cast<double>(across * kernel_.tileColumns);
        const double task = rows * columns + packing * (shareB_ ? rows : columns) + perTask;
        const double time = static_cast<double>(divideUp(tasks, threads)) * task;
        if (least == 0 || time < least) {
          least = time;
          best = {down, across};
        }
      }
      if (parts == rowPanels) return best;
    }
  }

  void multiply(int64_t beginPanel, int64_t endPanel) {
    const int64_t rowPanels = endPanel - beginPanel, columnPanels = divideUp(n_, kernel_.tileColumns);
    const auto [down, across] = chooseGrid(rowPanels, columnPanels);
    const Runs rows(rowPanels, down), columns(columnPanels, across);
    pool_.parallelFor(rows.parts * columns.parts, [&](int64_t task, int thread) {
      const int64_t r = task % rows.parts, c = task / rows.parts;
      const int64_t column = columnOf(columns.begin(c)), endColumn = columnOf(columns.begin(c + 1));
      rectangle(rows.begin(r), rows.begin(r + 1), beginPanel, rowPanels, column, endColumn, thread);
    });
  }

  void rectangle(int64_t fromPanel, int64_t toPanel, int64_t beginPanel, int64_t rowPanels, int64_t column, int64_t endColumn,
                 int thread) const {
    const int64_t row = rowOf(beginPanel + fromPanel), rows = rowOf(beginPanel + toPanel) - row, columns = endColumn - column;
    uint32_t* const localB = reinterpret_cast<uint32_t*>(pool_.scratch(thread));
    uint32_t* const localA = localB + maxTaskColumns * kernel_.blockWords;
    BlockCall call{};
    call.panelRows = panelRows_;
    call.rows = rows;
    call.columns = columns;
    call.c = g_.c.row(row) + column;
    call.ldc = g_.c.ld;
    call.alpha = g_.alpha;
    call.accumulate = true;
    const int64_t columnPanels = divideUp(n_, kernel_.tileColumns);
    float bias[maxTaskColumns];
    if (firstBlock_ == 0) {
      call.accumulate = g_.accumulate;
      if (g_.bias.present()) {
        gemmSelection().widen(bias, Operand{g_.bias, false}.at(column, 0), g_.bias.dtype, columns, false);
        call.bias = bias;
      }
      if (g_.add.present()) {
        call.add = g_.add.row(row) + column;
        call.ldAdd = g_.add.ld;
      }
      if (blocks_.count == 0) kernel_.multiply(call);
    }
    for (int64_t block = firstBlock_; block < lastBlock_; ++block) {
      const int64_t k = blocks_.begin(block), length = blocks_.length(block);
      call.depth = blocks_.depth(block);
      if (shareB_) {
        packA(a_, row, rows, k, length, localA);
        call.a = localA;
        call.b = shared() + kernel_.strideB * wordsBefore(block) * columnPanels + column * call.depth;
      } else {
        packB(b_, column, columns, k, length, localB, thread);
        call.b = localB;
        call.a = shared() + kernel_.strideA * (wordsBefore(block) * rowPanels + fromPanel * call.depth);
      }
      kernel_.multiply(call);
      call.accumulate = true;
      call.bias = call.add = nullptr;
    }
    if (lastBlock_ == blocks_.count)
      for (const LowRankTerm& term : g_.terms) lowRank(term, row, rows, column, endColumn, localA, localB, thread);
  }

  /** The columns of the rectangle that the term touches, in panels of their own. */
  void lowRank(const LowRankTerm& term, int64_t row, int64_t rows, int64_t column, int64_t endColumn, uint32_t* localA,
               uint32_t* localB, int thread) const {
    const Operand a{term.a, true}, b{term.b, g_.mode == GemmMode::NT};
    const int64_t width = b.kContiguous ? term.b.rows : term.b.cols;
    const int64_t first = std::max(column, term.column), last = std::min(endColumn, term.column + width);
    if (first >= last) return;
    const Blocks blocks(term.a.cols, kernel_);
    BlockCall call{};
    call.panelRows = panelRows_;
    call.rows = rows;
    call.columns = last - first;
    call.c = g_.c.row(row) + first;
    call.ldc = g_.c.ld;
    call.alpha = term.alpha;
    call.accumulate = true;
    call.a = localA;
    call.b = localB;
    for (int64_t block = 0; block < blocks.count; ++block) {
      call.depth = blocks.depth(block);
      packA(a, row, rows, blocks.begin(block), blocks.length(block), localA);
      packB(b, first - term.column, last - first, blocks.begin(block), blocks.length(block), localB, thread);
      kernel_.multiply(call);
    }
  }

  const Gemm& g_;
  ThreadPool& pool_;
  const GemmKernel& kernel_;
  const bool round_;
  const Operand a_, b_;
  const Blocks blocks_;
  const int64_t m_, n_;
  int64_t panels_, panelRows_;  // of A
  bool shareB_;
  int64_t firstBlock_ = 0, lastBlock_ = 0, passWords_ = 0;
};

}  // namespace

void gemm(const Gemm& g, ThreadPool& pool) {
  if (g.c.rows == 0 || g.c.cols == 0) return;
  if (gemmFewRows(g, pool)) return;
  const GemmSelection& selection = gemmSelection();
  const bool bfloat16 = g.precision == Precision::bfloat16;
  PackedGemm(g, pool, bfloat16 ? *selection.bfloat16 : *selection.float32, bfloat16 && selection.bfloat16Rounds).run();
}

}  // namespace unsloth::cpu
