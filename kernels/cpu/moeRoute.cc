#include <cmath>
#include <limits>
#include <vector>

#include "operands.h"
#include "ops.h"
#include "vectorKernels.h"

namespace unsloth::cpu::ops {
namespace {

/** Numbers of the k largest values, largest first, the lower number on a tie. A NaN counts as the smallest. */
void largestOf(const float* values, int64_t count, int64_t k, int32_t* chosen) {
  for (int64_t j = 0; j < k; ++j) {
    int32_t best = -1;
    float most = 0;
    for (int32_t e = 0; e < count; ++e) {
      if (std::find(chosen, chosen + j, e) != chosen + j) continue;
      const float value = std::isnan(values[e]) ? -std::numeric_limits<float>::infinity() : values[e];
      if (best < 0 || value > most) best = e, most = value;
    }
    chosen[j] = best;
  }
}

constexpr int64_t balanceRows = 64;

/** Σ_rows softmax(logits) of each expert in fp64: blocks of rows in any order, then the blocks in order. */
void addProbabilities(ThreadPool& pool, const View& logits, double* sums) {
  const int64_t blocks = (logits.rows + balanceRows - 1) / balanceRows, experts = logits.cols;
  std::vector<double> partial(static_cast<size_t>(blocks * experts), 0.0);
  const VectorKernels& kernels = vectorKernels();
  pool.parallelFor(blocks, [&](int64_t block, int) {
    double* mine = partial.data() + block * experts;
    for (int64_t r = block * balanceRows; r < std::min(logits.rows, (block + 1) * balanceRows); ++r) {
      const float* row = logits.row(r);
      const float top = kernels.largest(row, experts);
      const double total = kernels.sumExp(row, top, experts);
      for (int64_t e = 0; e < experts; ++e) mine[e] += std::exp(static_cast<double>(row[e]) - static_cast<double>(top)) / total;
    }
  });
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t e = 0; e < experts; ++e) sums[e] += partial[static_cast<size_t>(block * experts + e)];
}

}  // namespace

void route(const Call& call, ThreadPool& pool) {
  const Operands args(call, "route", 6, 1, 0);
  const View& logits = args.matrix(5, "logits", Operands::any, Operands::any);
  const int64_t rows = logits.rows, experts = logits.cols;
  const View& place = args.integers(2, "place", rows, Operands::any);
  const int64_t k = place.cols;
  args.require(k >= 1 && k <= experts, "place has more columns than there are experts");
  const View& weight = args.matrix(0, "weight", rows * k, 1);
  const View& token = args.integers(1, "token", rows * k, 1);
  const View& first = args.integers(3, "first", experts + 1, 1);
  const bool renormalise = call.i(0) != 0;
  const VectorKernels& kernels = vectorKernels();

  std::vector<int32_t> chosen(static_cast<size_t>(rows * k));
  std::vector<float> weights(chosen.size());
  forRows(pool, rows, experts * (k + 4), [&](int64_t r) {
    const float* row = logits.row(r);
    int32_t* mine = chosen.data() + r * k;
    largestOf(row, experts, k, mine);
    const float top = row[mine[0]];
    double total = 0;
    if (!renormalise) total = kernels.sumExp(row, top, experts);
    for (int64_t j = 0; renormalise && j < k; ++j)
      total += std::exp(static_cast<double>(row[mine[j]]) - static_cast<double>(top));
    for (int64_t j = 0; j < k; ++j)
      weights[static_cast<size_t>(r * k + j)] =
          static_cast<float>(std::exp(static_cast<double>(row[mine[j]]) - static_cast<double>(top)) / total);
  });

  // A counting sort by expert keeps tokens, and the choices of a token, in order.
  std::vector<int32_t> next(static_cast<size_t>(experts) + 1, 0);
  for (const int32_t e : chosen) ++next[static_cast<size_t>(e) + 1];
  if (call.has(4)) {
    const View& balance = args.shaped(4, "balance", 1, 2 * experts);
    args.require(balance.dtype == DType::F64, "balance must be f64");
    for (int64_t e = 0; e < experts; ++e) balance.f64()[e] = next[static_cast<size_t>(e) + 1], balance.f64()[experts + e] = 0;
    addProbabilities(pool, logits, balance.f64() + experts);
  }
  for (size_t e = 1; e < next.size(); ++e) next[e] += next[e - 1];
  for (int64_t e = 0; e <= experts; ++e) first.i32()[e * first.ld] = next[static_cast<size_t>(e)];
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < k; ++j) {
      const size_t choice = static_cast<size_t>(r * k + j);
      const int32_t slot = next[static_cast<size_t>(chosen[choice])]++;
      place.i32()[r * place.ld + j] = slot;
      token.i32()[slot * token.ld] = static_cast<int32_t>(r);
      *weight.row(slot) = weights[choice];
    }
}

void routeGrad(const Call& call, ThreadPool& pool) {
  const Operands args(call, "routeGrad", 5, 1, 0);
  const View& logits = args.matrix(2, "logits", Operands::any, Operands::any);
  const int64_t rows = logits.rows, experts = logits.cols;
  const View& place = args.integers(3, "place", rows, Operands::any);
  const int64_t k = place.cols, slots = rows * k;
  const View& dLogits = args.matrix(0, "dLogits", rows, experts);
  const View& dWeight = args.matrix(1, "dWeight", slots, 1);
  const Vector<int32_t> first = args.numbers<int32_t>(4, "first", experts + 1);
  const bool renormalise = call.i(0) != 0, balanced = call.has(5);
  const float* share = balanced ? args.matrix(5, "share", 1, experts).f32() : nullptr;
  const double shareWeight = balanced ? static_cast<double>(args.numbers<float>(6, "shareWeight", 1)[0]) : 0;
  args.entries(place, "place", slots);

  std::vector<int32_t> expertOf(static_cast<size_t>(slots));
  args.require(first[0] == 0 && first[experts] == slots, "first does not span the slots");
  for (int64_t e = 0; e < experts; ++e) {
    args.require(first[e] <= first[e + 1], "first does not rise");
    for (int64_t s = first[e]; s < first[e + 1]; ++s) expertOf[static_cast<size_t>(s)] = static_cast<int32_t>(e);
  }
  const VectorKernels& kernels = vectorKernels();
  forRows(pool, rows, 4 * experts, [&](int64_t r) {
    const float* row = logits.row(r);
    float* out = dLogits.row(r);
    const double top = static_cast<double>(kernels.largest(row, experts));
    const bool dense = !renormalise || balanced;
    const double total = dense ? kernels.sumExp(row, static_cast<float>(top), experts) : 1;
    const auto exponential = [&](int64_t e) { return std::exp(static_cast<double>(row[e]) - top); };
    const auto slot = [&](int64_t j) { return place.i32()[r * place.ld + j]; };
    const auto grad = [&](int64_t j) { return static_cast<double>(*dWeight.row(slot(j))); };
    const auto expert = [&](int64_t j) { return expertOf[static_cast<size_t>(slot(j))]; };
    double chosenTotal = 0, mean = 0, balanceMean = 0;
    for (int64_t j = 0; j < k; ++j) chosenTotal += exponential(expert(j)), mean += exponential(expert(j)) * grad(j);
    mean /= renormalise ? chosenTotal : total;
    for (int64_t e = 0; balanced && e < experts; ++e) balanceMean += exponential(e) / total * static_cast<double>(share[e]);
    for (int64_t e = 0; e < experts; ++e) {
      const double p = dense ? exponential(e) / total : 0;
      double d = renormalise ? 0 : -p * mean;
      if (balanced) d += shareWeight * p * (static_cast<double>(share[e]) - balanceMean);
      out[e] = static_cast<float>(d);
    }
    for (int64_t j = 0; j < k; ++j) {
      const int64_t e = expert(j);
      const double w = exponential(e) / (renormalise ? chosenTotal : total);
      out[e] = static_cast<float>(static_cast<double>(out[e]) + w * (renormalise ? grad(j) - mean : grad(j)));
    }
  });
}

void balanceLoss(const Call& call, ThreadPool&) {
  const Operands args(call, "balanceLoss", 3, 1, 0);
  const int64_t experts = args.matrix(1, "share", 1, Operands::any).cols;
  const View& loss = args.matrix(0, "loss", 1, 1);
  const View& share = call.t(1);
  args.require(call.i(0) >= 1, "choices must be positive");
  std::vector<double> counts(static_cast<size_t>(experts), 0.0), probabilities(static_cast<size_t>(experts), 0.0);
  double choices = 0;
  for (int64_t t = 2; t < call.tensorCount; ++t) {
    const View& balance = args.shaped(t, "balance", 1, 2 * experts);
    args.require(balance.dtype == DType::F64, "balance must be f64");
    for (int64_t e = 0; e < experts; ++e) {
      counts[static_cast<size_t>(e)] += balance.f64()[e];
      probabilities[static_cast<size_t>(e)] += balance.f64()[experts + e];
      choices += balance.f64()[e];
    }
  }
  const double rows = std::max(1.0, choices / call.i(0));
  double sum = 0;
  for (size_t e = 0; e < counts.size(); ++e) {
    sum += counts[e] / rows * (probabilities[e] / rows);
    share.f32()[e] = static_cast<float>(static_cast<double>(experts) * counts[e] / (rows * rows));
  }
  *loss.f32() = static_cast<float>(static_cast<double>(experts) * sum);
}

}  // namespace unsloth::cpu::ops
