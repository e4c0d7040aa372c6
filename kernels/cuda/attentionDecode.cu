#include "attentionMma.cuh"
#include "launch.cuh"

namespace unsloth::cuda {
namespace {

constexpr int tileRows = 16, leastKeys = 256, joinThreads = tileRows * 32;

template <int D>
struct DecodeShape {
  static constexpr int warps = D > 128 ? 2 : 4, threads = warps * 32, keys = 16, stages = D == 64 ? 4 : 3;
  static constexpr uint32_t stageBytes = 2 * keys * D * 2, warpBytes = stages * stageBytes;
  static constexpr size_t sharedBytes = warps * warpBytes;
};

/**
 * How the work is cut: the rows of a sequence and kv head, queries × heads of the group, into tiles of 16, and the keys of each
 * tile into `splits` of about `chunk` keys, so that about as many items arise for all kv heads as blocks run at once.
 */
struct Cut {
  const AttentionArgs& a;
  int64_t chunk;

  __device__ int tiles(int j) const { return ((a.qStart[j + 1] - a.qStart[j]) * a.group + tileRows - 1) / tileRows; }
  __device__ int span(int j) const {
    const int keys = a.kvLength[j];
    return a.window > 0 ? min(keys, a.window + a.qStart[j + 1] - a.qStart[j] - 1) : keys;
  }
  __device__ int splits(int j) const { return max(1, static_cast<int>((span(j) + chunk - 1) / chunk)); }
  __device__ int items(int j) const { return tiles(j) * splits(j); }
};

/** Σ of value(j) over sequences first … last−1, in all threads of the block. */
template <int threads, class Value>
__device__ int64_t sumSequences(int first, int last, Value value) {
  __shared__ int64_t parts[threads / 32];
  int64_t sum = 0;
  for (int j = first + static_cast<int>(threadIdx.x); j < last; j += threads) sum += value(j);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int w = 0; w < threads / 32; ++w) sum += parts[w];
  return sum;
}

template <int threads>
__device__ Cut cutOf(const AttentionArgs& a, int blocks) {
  Cut cut{a, 1};
  const int64_t work =
      sumSequences<threads>(0, a.sequences, [&](int j) { return static_cast<int64_t>(cut.tiles(j)) * cut.span(j); });
  cut.chunk = max(static_cast<int64_t>(leastKeys), (work * a.kvHeads + blocks - 1) / blocks);
  return cut;
}

/** Results of the items of split tiles: o[item, 16, D], and log₂ Σ exp(score) [item, 16]. */
struct Partials {
  float *o, *lse;
};

/**
 * Attention of a few queries to many keys: an item is a tile of rows and a part of its keys; its warps take 16 keys in turn, each
 * with a ring of copies of its own, and join in the end. Bound by reading k and v once.
 */
template <class T, int D>
__global__ void __launch_bounds__(DecodeShape<D>::threads)
    decodeKernel(const __grid_constant__ AttentionArgs a, const Partials partials) {
  awaitPrior();
  using Shape = DecodeShape<D>;
  using Tile = SharedTile<D>;
  constexpr int threads = Shape::threads, warps = Shape::warps, keys = Shape::keys, stages = Shape::stages;
  if (!multiplies<T>()) return neverLaunched();
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ float tops[warps][tileRows], totals[warps][tileRows];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t ring = sharedAddress(memory) + warp * Shape::warpBytes;
  const typename Tile::Lane rowsFirst = Tile::rowsFirst(), columnsFirst = Tile::columnsFirst();
  const Cut cut = cutOf<threads>(a, gridDim.x);
  const int64_t itemsPerHead = sumSequences<threads>(0, a.sequences, [&](int j) { return static_cast<int64_t>(cut.items(j)); });

  for (int64_t item = blockIdx.x; item < itemsPerHead * a.kvHeads; item += gridDim.x) {
    const int kvHead = static_cast<int>(item / itemsPerHead);
    AttentionTile found;
    locateTile<threads>(a.sequences, 1, static_cast<int>(item % itemsPerHead), [&](int j) { return cut.items(j); }, found);
    const int j = found.sequence, splits = cut.splits(j), split = found.first % splits,
              firstRow = found.first / splits * tileRows;
    const AttentionSequence s(a, j);
    const int rows = min(tileRows, s.queries * a.group - firstRow), offset = s.offset();
    int end = offset + (firstRow + rows - 1) / a.group + 1;
    int begin = a.window > 0 ? max(0, offset + firstRow / a.group - a.window + 1) : 0;
    const int length = ((end - begin + splits - 1) / splits + keys - 1) / keys * keys;
    begin += split * length, end = min(end, begin + length);

    const T* k = element<const T>(a.k, s.kvStart, kvHead * a.headDim);
    const T* v = element<const T>(a.v, s.kvStart, kvHead * a.headDim);
    const int steps = max(0, (end - begin + keys * warps - 1) / (keys * warps));
    const auto copyStep = [&](int step) {
      const int first = begin + (step * warps + warp) * keys;
      const uint32_t stage = ring + step % stages * Shape::stageBytes;
      if (step < steps)
        for (int i = lane; i < keys * Tile::pieces; i += 32) {
          const int row = i / Tile::pieces, piece = i % Tile::pieces;
          const bool is = first + row < end && piece * 8 < a.headDim;
          const int64_t key = is ? first + row : 0;
          copyAsync16(stage + Tile::offset(row, piece), k + key * a.k.ld + piece * 8, is ? 16 : 0);
          copyAsync16(stage + keys * D * 2 + Tile::offset(row, piece), v + key * a.v.ld + piece * 8, is ? 16 : 0);
        }
      commitCopies();
    };
#pragma unroll
    for (int step = 0; step < stages - 1; ++step) copyStep(step);

    uint32_t q[D / 16][4];
    int position[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = firstRow + min(rows - 1, lane / 4 + i * 8), query = row / a.group;
      position[i] = offset + query;
      const T* from = element<const T>(a.q, s.qStart + query, (kvHead * a.group + row % a.group) * a.headDim);
#pragma unroll
      for (int c = 0; c < D / 16; ++c)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int column = c * 16 + h * 8 + lane % 4 * 2;
          q[c][h * 2 + i] = column < a.headDim ? *reinterpret_cast<const uint32_t*>(from + column) : 0;
        }
    }

    float out[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};
    const float scale = a.softcap > 0 ? log2e : a.scale * log2e;
    for (int step = 0; step < steps; ++step) {
      waitCopies<stages - 2>();
      __syncwarp();
      copyStep(step + stages - 1);
      const uint32_t kTile = ring + step % stages * Shape::stageBytes, vTile = kTile + keys * D * 2;
      const int first = begin + (step * warps + warp) * keys;
      float score[2][4] = {};
#pragma unroll
      for (int c = 0; c < D / 16; ++c) {
        uint32_t other[4];
        loadMatrices(other, columnsFirst.at(kTile, 0, c * 16));
        multiplyAddPair<T>(score[0], score[1], q[c], other);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float most = top[i];
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = score[t][i * 2 + e];
            if (a.softcap > 0) x = a.softcap * tanhFast(x * a.scale / a.softcap);
            const int key = first + t * 8 + lane % 4 * 2 + e;
            if (key >= end || key > position[i] || (a.window > 0 && position[i] - key >= a.window)) x = -INFINITY;
            most = fmaxf(most, x);
          }
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float shift = most == -INFINITY ? 0.0f : most * scale, rescale = exp2Fast(top[i] * scale - shift);
        top[i] = most, total[i] *= rescale;
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = score[t][i * 2 + e];
            x = exp2Fast(x * scale - shift);
            total[i] += x;
          }
#pragma unroll
        for (int t = 0; t < D / 8; ++t) out[t][i * 2] *= rescale, out[t][i * 2 + 1] *= rescale;
      }
      uint32_t weights[4];
      packOperand<T>(weights, score[0], score[1]);
#pragma unroll
      for (int c = 0; c < D / 8; c += 2) {
        uint32_t values[4];
        loadMatricesTransposed(values, rowsFirst.at(vTile, 0, c * 8));
        multiplyAddPair<T>(out[c], out[c + 1], weights, values);
      }
    }

    // Each warp's sums go through the start of its ring.
    waitCopies<0>();
    __syncwarp();
    const auto sums = [&](int w) { return reinterpret_cast<float*>(memory + w * Shape::warpBytes); };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane / 4 + i * 8;
      float sum = total[i];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (lane % 4 == 0) tops[warp][row] = top[i] * scale, totals[warp][row] = sum;
#pragma unroll
      for (int t = 0; t < D / 8; ++t)
        *reinterpret_cast<float2*>(sums(warp) + row * D + t * 8 + lane % 4 * 2) = make_float2(out[t][i * 2], out[t][i * 2 + 1]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < tileRows * D; i += threads) {
      const int row = i / D, c = i % D;
      if (row >= rows || c >= a.headDim) continue;
      float most = -INFINITY, sum = 0, value = 0;
#pragma unroll
      for (int w = 0; w < warps; ++w) most = fmaxf(most, tops[w][row]);
#pragma unroll
      for (int w = 0; w < warps; ++w) {
        const float share = most == -INFINITY ? 0.0f : exp2Fast(tops[w][row] - most);
        sum += share * totals[w][row], value += share * sums(w)[row * D + c];
      }
      value = sum > 0 ? value / sum : 0.0f;
      const float lse = sum > 0 ? most + log2f(sum) : -INFINITY;
      if (splits > 1) {
        partials.o[(item * tileRows + row) * D + c] = value;
        if (c == 0) partials.lse[item * tileRows + row] = lse;
        continue;
      }
      const int64_t query = s.qStart + (firstRow + row) / a.group, head = kvHead * a.group + (firstRow + row) % a.group;
      *element<T>(a.o, query, head * a.headDim + c) = narrow<T>(value);
      if (c == 0) *element<float>(a.lse, query, head) = lse * ln2;
    }
    __syncthreads();
  }
}

/** Joins the parts of each split tile, a warp for each row: o = Σ 2^(lse_i − lse)·o_i. `blocks`: those of decodeKernel. */
template <class T, int D>
__global__ void __launch_bounds__(joinThreads)
    decodeJoinKernel(const __grid_constant__ AttentionArgs a, const Partials partials, int blocks) {
  awaitPrior();
  const Cut cut = cutOf<joinThreads>(a, blocks);
  AttentionTile tile;
  if (!locateTile<joinThreads>(a.sequences, 1, blockIdx.x, [&](int j) { return cut.tiles(j); }, tile)) return;
  const int j = tile.sequence, splits = cut.splits(j), kvHead = blockIdx.y;
  if (splits == 1) return;
  const auto items = [&](int i) { return static_cast<int64_t>(cut.items(i)); };
  const int64_t before = sumSequences<joinThreads>(j + 1, a.sequences, items),
                perHead = sumSequences<joinThreads>(0, a.sequences, items);
  // Items of a sequence are numbered from its end: part p of this tile has number `last` − p.
  const int64_t last = kvHead * perHead + before + items(j) - 1 - static_cast<int64_t>(tile.first) * splits;
  const AttentionSequence s(a, j);
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32, tileRow = tile.first * tileRows + row;
  if (tileRow >= s.queries * a.group) return;
  const float* lse = partials.lse + last * tileRows + row;
  const float* parts = partials.o + (last * tileRows + row) * D;
  float most = -INFINITY, sum = 0, out[D / 32] = {};
  for (int p = lane; p < splits; p += 32) most = fmaxf(most, lse[-p * tileRows]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
#pragma unroll 16
  for (int p = 0; p < splits; ++p) {
    const float share = exp2Fast(lse[-p * tileRows] - most);
    sum += share;
#pragma unroll
    for (int i = 0; i < D / 32; ++i) out[i] += share * parts[-static_cast<int64_t>(p) * tileRows * D + i * 32 + lane];
  }
  const int64_t query = s.qStart + tileRow / a.group, head = kvHead * a.group + tileRow % a.group;
#pragma unroll
  for (int i = 0; i < D / 32; ++i)
    if (i * 32 + lane < a.headDim) *element<T>(a.o, query, head * a.headDim + i * 32 + lane) = narrow<T>(out[i] / sum);
  if (lane == 0) *element<float>(a.lse, query, head) = (most + log2f(sum)) * ln2;
}

template <class T, int D>
bool launch(const AttentionArgs& args, const Context& context) {
  using Shape = DecodeShape<D>;
  if (Shape::sharedBytes > context.gpu->sharedPerBlock) return false;
  const unsigned blocks = static_cast<unsigned>(context.gpu->multiprocessors) *
                          (2 * (Shape::sharedBytes + 1024) <= context.gpu->sharedPerBlock + 1024 ? 2 : 1);
  const int64_t tiles = args.rows() * args.group / tileRows + args.sequences, items = tiles * args.kvHeads + blocks;
  const size_t bytes = static_cast<size_t>(items) * tileRows * (D + 1) * sizeof(float);
  if (bytes > context.workspaceBytes) return false;
  Partials partials;
  partials.o = static_cast<float*>(context.workspace), partials.lse = partials.o + items * tileRows * D;
  const auto kernel = decodeKernel<T, D>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::sharedBytes), "preparing attention");
  launchDependent(context, "running attention", kernel, {blocks, Shape::threads, Shape::sharedBytes}, args, partials);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(args.kvHeads));
  launchDependent(context, "running attention", decodeJoinKernel<T, D>, {grid, joinThreads}, args, partials,
                  static_cast<int>(blocks));
  return true;
}

}  // namespace

bool attentionDecode(const AttentionArgs& args, const Context& context) {
  // Keys that are not the queries' own stand in a cache, and few rows leave most of a large tile empty.
  if (args.k.rows <= args.q.rows || (args.rows() > 128 && args.rows() > 2 * static_cast<int64_t>(args.sequences))) return false;
  if (!hasTensorCores(args.q.dtype, context.gpu->capability) || args.headDim > 256 || !(args.scale > 0)) return false;
  for (const View* v : {&args.q, &args.k, &args.v})
    if (!headsVectorised(*v, args.headDim)) return false;
  return withHeadDim(args.headDim, [&](auto width) {
    return args.q.dtype == DType::BF16 ? launch<bf16, width.value>(args, context) : launch<__half, width.value>(args, context);
  });
}

}  // namespace unsloth::cuda
