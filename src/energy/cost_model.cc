#include "energy/cost_model.h"

#include <algorithm>
#include <cmath>

namespace jewel {
namespace {

// By arithmetic, for E4B at batch 1: a step reads 4.7 GB of weights, 0.7 J at the 146 pJ/B of an H200; a
// token of a prompt is 4.6 GFLOP, near 0.01 J with the traffic of its activations; a row more in a step about
// twice that, for it reads its own K and V; an image of 2,520 patches is 1.1 TFLOP, about 1.3 J.
constexpr std::array<double, 4> kRatios = {1, 0.015, 0.03, 0.0007};
// A stretch counts half after 140 others: 14 s of work, with ticks of 100 ms.
constexpr double kForgetting = 0.995;
// Pull towards the ratios, beside what the price's own data weigh.
constexpr double kPull = 0.01;
constexpr int kSweeps = 60;

std::array<double, 4> in_ratios(const StepLoad& load) {
  return {load.steps * kRatios[0], load.prefill_tokens * kRatios[1], load.decode_tokens * kRatios[2],
          load.image_patches * kRatios[3]};
}

}  // namespace

void CostModel::add(const StepLoad& load, double joules, double weight) {
  const std::array<double, kPrices> x = in_ratios(load);
  double all = 0;
  for (const double part : x) all += part;
  if (!(all > 0) || !(weight > 0) || !std::isfinite(joules)) return;
  const double kept = std::pow(kForgetting, weight);
  for (size_t i = 0; i < kPrices; ++i) {
    products_[i] = products_[i] * kept + weight * x[i] * joules;
    for (size_t k = 0; k < kPrices; ++k) squares_[i][k] = squares_[i][k] * kept + weight * x[i] * x[k];
  }
  sum_products_ = sum_products_ * kept + weight * all * joules;
  sum_squares_ = sum_squares_ * kept + weight * all * all;
  weight_ = weight_ * kept + weight;
  scale_ = sum_products_ / sum_squares_;
  if (scale_ > 0) solve();
}

// Coordinate descent: each price in turn is the best there is for the others, or zero.
void CostModel::solve() {
  const double least = 1e-9 * sum_squares_;  // a price without data is its ratio
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (size_t i = 0; i < kPrices; ++i) {
      const double pull = kPull * squares_[i][i] + least;
      double rest = products_[i] + pull * scale_;
      for (size_t k = 0; k < kPrices; ++k) {
        if (k != i) rest -= squares_[i][k] * price_[k];
      }
      price_[i] = std::max(0.0, rest / (squares_[i][i] + pull));
    }
  }
}

StepLoad CostModel::prices() const {
  return {price_[0] * kRatios[0], price_[1] * kRatios[1], price_[2] * kRatios[2], price_[3] * kRatios[3]};
}

double CostModel::cost(const StepLoad& load) const {
  const std::array<double, kPrices> x = in_ratios(load);
  double sum = 0;
  for (size_t i = 0; i < kPrices; ++i) sum += x[i] * price_[i];
  return sum;
}

}  // namespace jewel
