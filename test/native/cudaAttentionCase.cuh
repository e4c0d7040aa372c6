#pragma once
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "../../kernels/cuda/attention.h"
#include "cudaTest.h"

/** Problems of attention and a reference that keeps the whole score matrix in double precision. */
namespace unsloth::cuda::test {

struct AttentionProblem {
  std::string name;
  DType dtype = DType::BF16;
  int heads = 4, kvHeads = 4, headDim = 64;
  std::vector<int> queries, keys;  // of each sequence; keys empty: the same as queries
  int window = 0;
  float softcap = 0;
  bool cache = false;  // keys of all sequences stand in a cache with gaps, in another order
  int64_t gap = 8;     // columns between rows
};

/** Every byte 0xff: NaN in all types, so that what a kernel does not write shows. */
inline void poison(const View& v) {
  check(cudaMemset(v.data, 0xff, static_cast<size_t>(v.rows * v.ld) * bytesPerElement(v.dtype)), "clearing");
}

inline View columns(const View& v, int64_t first, int64_t count) {
  return {static_cast<std::byte*>(v.data) + static_cast<size_t>(first) * bytesPerElement(v.dtype), v.dtype, v.rows, count, v.ld};
}

/** All operands of a problem on the device: q, k and v are columns of one matrix unless keys stand in a cache. */
struct AttentionCase {
  AttentionProblem p;
  int64_t n = 0, kvRows = 0;
  std::vector<int32_t> qStart{0}, kvStart, kvLength;
  View qkv, kv, grads, kvGrads, lists;
  AttentionArgs args;
  int64_t pairs = 0;  // visible pairs of a query and a key

  explicit AttentionCase(const AttentionProblem& problem) : p(problem) {
    const size_t count = p.queries.size();
    if (p.keys.empty()) p.keys = p.queries;
    kvStart.resize(count), kvLength = {p.keys.begin(), p.keys.end()};
    for (int length : p.queries) n += length, qStart.push_back(static_cast<int32_t>(n));
    for (size_t i = 0; i < count; ++i) {
      const size_t j = p.cache ? count - 1 - i : i;
      kvStart[j] = static_cast<int32_t>(kvRows + (p.cache ? 3 : 0));
      kvRows = kvStart[j] + kvLength[j] + (p.cache ? 5 : 0);
      for (int64_t query = 0; query < p.queries[j]; ++query) {
        const int64_t seen = p.keys[j] - p.queries[j] + query + 1;
        pairs += p.window > 0 ? std::min<int64_t>(seen, p.window) : seen;
      }
    }
    const int64_t wide = static_cast<int64_t>(p.heads) * p.headDim, slim = static_cast<int64_t>(p.kvHeads) * p.headDim;
    const float size = p.softcap > 0 ? 2.0f : 1.0f;
    const auto matrix = [&](int64_t rows, int64_t cols, int64_t gap, float deviation) {
      return randomMatrix(p.dtype, rows, cols, cols + gap, deviation);
    };
    qkv = matrix(n, wide + 2 * slim, p.gap, size), grads = matrix(n, wide + 2 * slim, p.gap, 1);
    if (p.cache) kv = matrix(kvRows, 2 * slim, p.gap, size), kvGrads = matrix(kvRows, 2 * slim, p.gap, 1);
    const View& keys = p.cache ? kv : qkv;
    const View& keyGrads = p.cache ? kvGrads : grads;
    const int64_t first = p.cache ? 0 : wide;
    AttentionArgs& a = args;
    a.q = columns(qkv, 0, wide), a.dq = columns(grads, 0, wide);
    a.k = columns(keys, first, slim), a.v = columns(keys, first + slim, slim);
    a.dk = columns(keyGrads, first, slim), a.dv = columns(keyGrads, first + slim, slim);
    a.o = matrix(n, wide, p.gap, 1), a.dO = matrix(n, wide, 0, 1);
    a.lse = randomMatrix(DType::F32, n, p.heads, p.heads + p.gap % 8),
    a.delta = randomMatrix(DType::F32, n, p.heads, p.heads + 1);
    std::vector<int32_t> numbers = qStart;
    numbers.insert(numbers.end(), kvStart.begin(), kvStart.end());
    numbers.insert(numbers.end(), kvLength.begin(), kvLength.end());
    lists = {allocate(numbers.size() * 4), DType::I32, static_cast<int64_t>(numbers.size()), 1, 1};
    check(cudaMemcpy(lists.data, numbers.data(), numbers.size() * 4, cudaMemcpyHostToDevice), "writing sequences");
    a.qStart = lists.i32(), a.kvStart = a.qStart + qStart.size(), a.kvLength = a.kvStart + count;
    a.sequences = static_cast<int>(count);
    a.heads = p.heads, a.kvHeads = p.kvHeads, a.group = p.heads / p.kvHeads, a.headDim = p.headDim;
    a.window = p.window, a.softcap = p.softcap, a.scale = 1 / std::sqrt(static_cast<float>(p.headDim));
  }
  ~AttentionCase() {
    for (const View& v : {qkv, kv, grads, kvGrads, lists, args.o, args.dO, args.lse, args.delta}) release(v);
  }
  AttentionCase(const AttentionCase&) = delete;

  double forwardFlops() const { return 4.0 * p.headDim * p.heads * static_cast<double>(pairs); }
};

/** score and dScore [heads, n, keys], lse and delta [n, heads], o and dq [n, heads·d], dk and dv [kvRows, kvHeads·d]. */
struct AttentionReference {
  double *score, *dScore, *lse, *delta, *o, *dq, *dk, *dv;
  int64_t n, kvRows, keys;
};

__device__ inline double valueAt(const View& v, int64_t r, int64_t c) { return readAs(v.data, v.dtype, r * v.ld + c); }
__device__ inline int sequenceOf(const AttentionArgs& a, int64_t row) {
  int j = 0;
  while (a.qStart[j + 1] <= row) ++j;
  return j;
}
/** The elements of a grid of blocks of 256. */
#define EACH(index, count) for (int64_t index = blockIdx.x * 256ll + threadIdx.x; index < (count); index += gridDim.x * 256ll)

static __global__ void referenceScores(AttentionArgs a, AttentionReference r, bool gradient) {
  EACH(i, a.heads * r.n * r.keys) {
    const int64_t h = i / (r.n * r.keys), row = i / r.keys % r.n, t = i % r.keys;
    const int j = sequenceOf(a, row);
    const int64_t position = a.kvLength[j] - (a.qStart[j + 1] - a.qStart[j]) + row - a.qStart[j];
    const bool seen = t <= position && (a.window == 0 || position - t < a.window);
    double s = 0, dp = 0, slope = 1;
    if (seen)
      for (int c = 0; c < a.headDim; ++c) {
        s += valueAt(a.q, row, h * a.headDim + c) * valueAt(a.k, a.kvStart[j] + t, h / a.group * a.headDim + c);
        if (gradient) dp += valueAt(a.dO, row, h * a.headDim + c) * valueAt(a.v, a.kvStart[j] + t, h / a.group * a.headDim + c);
      }
    s *= a.scale;
    if (a.softcap > 0) {
      const double bent = tanh(s / a.softcap);
      slope = 1 - bent * bent, s = a.softcap * bent;
    }
    if (!gradient) {
      r.score[i] = seen ? s : -INFINITY;
      continue;
    }
    const double probability = seen ? exp(s - r.lse[row * a.heads + h]) : 0;
    r.score[i] = probability;
    r.dScore[i] = probability * (dp - r.delta[row * a.heads + h]) * slope * a.scale;
  }
}
static __global__ void referenceLse(AttentionArgs a, AttentionReference r) {
  EACH(i, a.heads * r.n) {
    const int64_t row = i / a.heads, h = i % a.heads;
    const double* s = r.score + (h * r.n + row) * r.keys;
    double most = -INFINITY, total = 0;
    for (int64_t t = 0; t < r.keys; ++t) most = fmax(most, s[t]);
    for (int64_t t = 0; t < r.keys; ++t) total += exp(s[t] - most);
    r.lse[i] = most + log(total);
  }
}
static __global__ void referenceOut(AttentionArgs a, AttentionReference r) {
  EACH(i, r.n * a.q.cols) {
    const int64_t row = i / a.q.cols, column = i % a.q.cols, h = column / a.headDim, from = a.kvStart[sequenceOf(a, row)];
    double sum = 0;
    for (int64_t t = 0; t < r.keys; ++t) {
      const double s = r.score[(h * r.n + row) * r.keys + t];
      if (s > -1e300)
        sum += exp(s - r.lse[row * a.heads + h]) * valueAt(a.v, from + t, h / a.group * a.headDim + column % a.headDim);
    }
    r.o[i] = sum;
  }
}
static __global__ void referenceDelta(AttentionArgs a, AttentionReference r) {
  EACH(i, a.heads * r.n) {
    double sum = 0;
    for (int c = 0; c < a.headDim; ++c) sum += valueAt(a.dO, i / a.heads, i % a.heads * a.headDim + c) * r.o[i * a.headDim + c];
    r.delta[i] = sum;
  }
}
static __global__ void referenceGradients(AttentionArgs a, AttentionReference r) {
  EACH(i, r.n * a.q.cols) {
    const int64_t row = i / a.q.cols, column = i % a.q.cols, h = column / a.headDim, from = a.kvStart[sequenceOf(a, row)];
    double sum = 0;
    for (int64_t t = 0; t < r.keys; ++t) {
      const double ds = r.dScore[(h * r.n + row) * r.keys + t];
      if (ds != 0) sum += ds * valueAt(a.k, from + t, h / a.group * a.headDim + column % a.headDim);
    }
    r.dq[i] = sum;
  }
  EACH(i, r.kvRows * a.k.cols) {
    const int64_t at = i / a.k.cols, column = i % a.k.cols, c = column % a.headDim;
    double dk = 0, dv = 0;
    for (int j = 0; j < a.sequences; ++j) {
      const int64_t t = at - a.kvStart[j];
      if (t < 0 || t >= a.kvLength[j]) continue;
      for (int64_t row = a.qStart[j]; row < a.qStart[j + 1]; ++row)
        for (int64_t h = column / a.headDim * a.group; h < (column / a.headDim + 1) * a.group; ++h) {
          const int64_t s = (h * r.n + row) * r.keys + t;
          dk += r.dScore[s] * valueAt(a.q, row, h * a.headDim + c), dv += r.score[s] * valueAt(a.dO, row, h * a.headDim + c);
        }
    }
    r.dk[i] = dk, r.dv[i] = dv;
  }
}
#undef EACH

/** Computes all of it; what `score` points to is to be freed. */
inline AttentionReference referenceOf(const AttentionCase& c) {
  const AttentionArgs& a = c.args;
  AttentionReference r{};
  r.n = c.n, r.kvRows = c.kvRows, r.keys = 1;
  for (int32_t length : c.kvLength) r.keys = std::max<int64_t>(r.keys, length);
  const int64_t scores = a.heads * r.n * r.keys, wide = r.n * a.q.cols, slim = r.kvRows * a.k.cols, heads = r.n * a.heads;
  double* next = static_cast<double*>(allocate(static_cast<size_t>(2 * (scores + wide + slim + heads)) * sizeof(double)));
  const auto take = [&](int64_t count) {
    double* const taken = next;
    next += count;
    return taken;
  };
  r.score = take(scores), r.dScore = take(scores), r.lse = take(heads), r.delta = take(heads);
  r.o = take(wide), r.dq = take(wide), r.dk = take(slim), r.dv = take(slim);
  referenceScores<<<2048, 256>>>(a, r, false);
  referenceLse<<<256, 256>>>(a, r);
  referenceOut<<<1024, 256>>>(a, r);
  referenceDelta<<<256, 256>>>(a, r);
  referenceScores<<<2048, 256>>>(a, r, true);
  referenceGradients<<<2048, 256>>>(a, r);
  check(cudaDeviceSynchronize(), "computing the reference");
  return r;
}

inline std::vector<float> toHost(const double* device, size_t count) {
  std::vector<double> values(count);
  check(cudaMemcpy(values.data(), device, count * sizeof(double), cudaMemcpyDeviceToHost), "reading the reference");
  return {values.begin(), values.end()};
}

}  // namespace unsloth::cuda::test
