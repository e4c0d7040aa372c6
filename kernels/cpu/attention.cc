#include <algorithm>
#include <cmath>
#include <vector>

#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {
namespace {

/** Operands that `attention` and `attentionGrad` share, checked. */
struct Setting {
  View q, k, v;
  Vector<int32_t> qStart, kvStart, kvLength;
  int64_t sequences, heads, kvHeads, group, headDim, window;
  float scale, softcap;

  int64_t queries(int64_t s) const { return qStart[s + 1] - qStart[s]; }

  AttentionHead head(int64_t s, int64_t kvHead) const {
    const int64_t query = qStart[s], key = kvStart[s];
    return {q.row(query) + kvHead * group * headDim,
            k.row(key) + kvHead * headDim,
            v.row(key) + kvHead * headDim,
            q.ld,
            k.ld,
            v.ld,
            headDim,
            group,
            kvLength[s] - queries(s),
            window,
            scale,
            softcap};
  }
};

/** The operands from q on stand at `at`. */
Setting settingOf(const Call& call, const Operands& args, int64_t at) {
  Setting s;
  s.heads = call.i(0), s.kvHeads = call.i(1), s.window = call.i(2);
  s.scale = static_cast<float>(call.f(0)), s.softcap = static_cast<float>(call.f(1));
  args.require(s.heads > 0 && s.kvHeads > 0 && s.heads % s.kvHeads == 0, "heads must be a multiple of kvHeads");
  args.require(s.window >= 0 && s.softcap >= 0, "window and softcap must not be negative");
  s.q = args.matrix(at, "q", Operands::any, Operands::any);
  s.group = s.heads / s.kvHeads;
  s.headDim = s.q.cols / s.heads;
  if (s.q.cols % s.heads != 0 || s.headDim < 1 || s.headDim > attentionMaxHeadDim)
    args.refuse("q is " + describe(s.q) + ", expected " + std::to_string(s.heads) + " heads of 1 to " +
                std::to_string(attentionMaxHeadDim) + " columns");
  s.k = args.matrix(at + 1, "k", Operands::any, s.kvHeads * s.headDim);
  s.v = args.matrix(at + 2, "v", s.k.rows, s.k.cols);
  s.sequences = call.dims.sequences;
  s.qStart = args.numbers<int32_t>(at + 3, "qStart", s.sequences + 1);
  s.kvStart = args.numbers<int32_t>(at + 4, "kvStart", s.sequences);
  s.kvLength = args.numbers<int32_t>(at + 5, "kvLength", s.sequences);
  for (int64_t j = 0; j < s.sequences; ++j) {
    const int64_t first = s.qStart[j], last = s.qStart[j + 1], key = s.kvStart[j], keys = s.kvLength[j];
    if (first < 0 || last < first || last > s.q.rows || key < 0 || keys < last - first || key + keys > s.k.rows)
      args.refuse("sequence " + std::to_string(j) + " has query rows " + std::to_string(first) + " to " + std::to_string(last) +
                  " of " + std::to_string(s.q.rows) + " and " + std::to_string(keys) + " keys from row " + std::to_string(key) +
                  " of " + std::to_string(s.k.rows));
  }
  return s;
}

/** A piece of the forward pass and, when its keys are split over several pieces, where its partial result goes. */
struct Piece {
  int64_t sequence, kvHead, firstRow, rows, firstKey, lastKey;
  int64_t partial;  // floats into shared scratch, or −1
};

/** Few rows against many keys: split over the keys, so that decoding one token keeps all threads busy. */
constexpr int64_t splitMaxRows = 16, splitKeys = 512, splitMaxPieces = 16;

/** Pieces of one kv head of a sequence whose results must be joined. */
struct Join {
  int64_t sequence, kvHead, rows, pieces, partial;
};

void joinRow(const Setting& s, const Join& join, int64_t row, const float* partials, const View& o, const View& lse) {
  const int64_t stride = 2 + s.headDim, head = join.kvHead * s.group + row % s.group,
                query = s.qStart[join.sequence] + row / s.group;
  const auto partial = [&](int64_t i) { return partials + join.partial + (i * join.rows + row) * stride; };
  float top = partial(0)[0];
  for (int64_t i = 1; i < join.pieces; ++i) top = std::max(top, partial(i)[0]);
  double total = 0;
  for (int64_t i = 0; i < join.pieces; ++i)
    total += std::exp(static_cast<double>(partial(i)[0] - top)) * static_cast<double>(partial(i)[1]);
  float* out = o.row(query) + head * s.headDim;
  for (int64_t i = 0; i < join.pieces; ++i) {
    const float* from = partial(i);
    const float share = static_cast<float>(std::exp(static_cast<double>(from[0] - top)) / total);
    for (int64_t c = 0; c < s.headDim; ++c) out[c] = (i == 0 ? 0 : out[c]) + share * from[2 + c];
  }
  lse.row(query)[head] = static_cast<float>(static_cast<double>(top) + std::log(total));
}

}  // namespace

void attention(const Call& call, ThreadPool& pool) {
  const Operands args(call, "attention", 8, 3, 2);
  const Setting s = settingOf(call, args, 2);
  const View& o = args.matrix(0, "o", s.q.rows, s.q.cols);
  const View& lse = args.matrix(1, "lse", s.q.rows, s.heads);
  const VectorKernels& kernels = vectorKernels();
  float* partials = reinterpret_cast<float*>(pool.sharedScratch());
  constexpr int64_t partialFloats = static_cast<int64_t>(ThreadPool::sharedScratchBytes / sizeof(float));
  std::vector<Piece> pieces;
  std::vector<Join> joins;
  int64_t used = 0;

  const auto flush = [&] {
    // The longest pieces first: threads then end together.
    std::stable_sort(pieces.begin(), pieces.end(),
                     [](const Piece& a, const Piece& b) { return a.lastKey - a.firstKey > b.lastKey - b.firstKey; });
    pool.parallelFor(static_cast<int64_t>(pieces.size()), [&](int64_t i, int thread) {
      const Piece& p = pieces[static_cast<size_t>(i)];
      AttentionTile tile{};
      tile.head = s.head(p.sequence, p.kvHead);
      tile.firstRow = p.firstRow, tile.rows = p.rows, tile.firstKey = p.firstKey, tile.lastKey = p.lastKey;
      tile.o = o.row(s.qStart[p.sequence]) + p.kvHead * s.group * s.headDim, tile.ldO = o.ld;
      tile.lse = lse.row(s.qStart[p.sequence]) + p.kvHead * s.group, tile.ldLse = lse.ld;
      tile.partial = p.partial < 0 ? nullptr : partials + p.partial;
      kernels.attention(tile, pool.scratch(thread));
    });
    pool.parallelFor(static_cast<int64_t>(joins.size()), [&](int64_t i, int) {
      const Join& join = joins[static_cast<size_t>(i)];
      for (int64_t row = 0; row < join.rows; ++row) joinRow(s, join, row, partials, o, lse);
    });
    pieces.clear(), joins.clear(), used = 0;
  };

  for (int64_t j = 0; j < s.sequences; ++j) {
    const int64_t rows = s.queries(j) * s.group, keys = s.kvLength[j], offset = keys - s.queries(j);
    const int64_t oldest = s.window > 0 ? std::max<int64_t>(0, offset - s.window + 1) : 0;
    for (int64_t kvHead = 0; kvHead < s.kvHeads; ++kvHead) {
      if (rows <= splitMaxRows && keys - oldest > 2 * splitKeys) {
        const int64_t wanted = std::min(splitMaxPieces, (keys - oldest + splitKeys - 1) / splitKeys);
        const int64_t length = (keys - oldest + wanted - 1) / wanted, count = (keys - oldest + length - 1) / length;
        const int64_t floats = rows * (2 + s.headDim);
        if (used + floats * count > partialFloats) flush();
        joins.push_back({j, kvHead, rows, count, used});
        for (int64_t i = 0; i < count; ++i, used += floats)
          pieces.push_back({j, kvHead, 0, rows, oldest + i * length, std::min(keys, oldest + (i + 1) * length), used});
        continue;
      }
      for (int64_t row = 0; row < rows; row += attentionTileRows) {
        const int64_t count = std::min(attentionTileRows, rows - row), last = offset + (row + count - 1) / s.group;
        const int64_t first = s.window > 0 ? std::max<int64_t>(0, offset + row / s.group - s.window + 1) : 0;
        pieces.push_back({j, kvHead, row, count, first, last + 1, -1});
      }
    }
  }
  flush();
}

void attentionGrad(const Call& call, ThreadPool& pool) {
  const Operands args(call, "attentionGrad", 13, 3, 2);
  const Setting s = settingOf(call, args, 7);
  const int64_t n = s.q.rows;
  const View& dq = args.matrix(0, "dq", n, s.q.cols);
  const View& dk = args.matrix(1, "dk", s.k.rows, s.k.cols);
  const View& dv = args.matrix(2, "dv", s.k.rows, s.k.cols);
  const View& delta = args.matrix(3, "delta", n, s.heads);
  const View& dO = args.matrix(4, "dO", n, s.q.cols);
  const View& o = args.matrix(5, "o", n, s.q.cols);
  const View& lse = args.matrix(6, "lse", n, s.heads);
  const VectorKernels& kernels = vectorKernels();
  forRows(pool, n, 3 * s.q.cols, [&](int64_t r) {
    for (int64_t h = 0; h < s.heads; ++h)
      delta.row(r)[h] = kernels.dot(dO.row(r) + h * s.headDim, o.row(r) + h * s.headDim, s.headDim);
    std::fill_n(dq.row(r), dq.cols, 0.0f);
  });
  forRows(pool, s.k.rows, 2 * s.k.cols, [&](int64_t r) {
    std::fill_n(dk.row(r), dk.cols, 0.0f);
    std::fill_n(dv.row(r), dv.cols, 0.0f);
  });

  // Queries and keys of a sequence are cut into blocks. In phase f, key block b meets query block (b + f) mod blocks: no two
  // tasks of a phase share a gradient row, every pair meets once, and each row receives its terms in a fixed order.
  struct Block {
    int64_t sequence, kvHead, firstRow, rows, firstKey, lastKey;
  };
  std::vector<Block> tasks;
  for (int64_t phase = 0, phases = 1; phase < phases; ++phase) {
    tasks.clear();
    for (int64_t j = 0; j < s.sequences; ++j) {
      const int64_t queries = s.queries(j), keys = s.kvLength[j], offset = keys - queries,
                    size = keys <= 512 ? 64 : attentionGradKeys;
      const int64_t blocks = (keys + size - 1) / size;
      phases = std::max(phases, blocks);
      for (int64_t b = 0; b < blocks && phase < blocks; ++b) {
        const int64_t query = (b + phase) % blocks * size, lastQuery = std::min(queries, query + size);
        const int64_t key = b * size, lastKey = std::min(keys, key + size);
        if (query >= queries || key > offset + lastQuery - 1 || (s.window > 0 && offset + query - (lastKey - 1) >= s.window))
          continue;
        for (int64_t kvHead = 0; kvHead < s.kvHeads; ++kvHead)
          tasks.push_back({j, kvHead, query * s.group, (lastQuery - query) * s.group, key, lastKey});
      }
    }
    pool.parallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t i, int thread) {
      const Block& b = tasks[static_cast<size_t>(i)];
      const int64_t query = s.qStart[b.sequence], key = s.kvStart[b.sequence], column = b.kvHead * s.headDim,
                    wide = column * s.group;
      AttentionGradTile tile{};
      tile.head = s.head(b.sequence, b.kvHead);
      tile.firstRow = b.firstRow, tile.rows = b.rows, tile.firstKey = b.firstKey, tile.lastKey = b.lastKey;
      tile.dO = dO.row(query) + wide, tile.ldDO = dO.ld;
      tile.lse = lse.row(query) + b.kvHead * s.group, tile.ldLse = lse.ld;
      tile.delta = delta.row(query) + b.kvHead * s.group, tile.ldDelta = delta.ld;
      tile.dq = dq.row(query) + wide, tile.ldDq = dq.ld;
      tile.dk = dk.row(key) + column, tile.ldDk = dk.ld;
      tile.dv = dv.row(key) + column, tile.ldDv = dv.ld;
      kernels.attentionGrad(tile, pool.scratch(thread));
    });
  }
}

}  // namespace unsloth::cpu::ops
