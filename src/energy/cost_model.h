// CostModel: joules of a step, per prompt token, answer token and image patch, fitted to what the counter
// said.
//
// A step costs something whatever is in it (reading the weights), and something more for each token and
// patch. The four prices are a least-squares fit with forgetting over stretches of time with measured joules,
// none of them below zero. Traffic often cannot tell two prices apart (every step had 8 rows), or has never
// shown one (no picture yet): each is held, weakly, to the ratio that the prices have by arithmetic, at the
// scale that was measured. Before the first measurement there are only those ratios: enough to share joules
// that were measured, not to say any. Plain arithmetic, one thread.
#pragma once

#include <array>
#include <cstddef>

namespace jewel {

struct StepLoad {
  double steps = 0;
  double prefill_tokens = 0;
  double decode_tokens = 0;
  double image_patches = 0;

  StepLoad& operator+=(const StepLoad& more) {
    steps += more.steps;
    prefill_tokens += more.prefill_tokens;
    decode_tokens += more.decode_tokens;
    image_patches += more.image_patches;
    return *this;
  }
  StepLoad scaled(double by) const {
    return {steps * by, prefill_tokens * by, decode_tokens * by, image_patches * by};
  }
};

class CostModel {
 public:
  // A stretch of time in which this was computed, for so many joules (noise may make them negative).
  // `weight`: how sure they are, 1 for a stretch of work alone.
  void add(const StepLoad& load, double joules, double weight = 1);

  // Prices are joules; before, they are only good for shares.
  bool fitted() const { return weight_ >= kLeastWeight && scale_ > 0; }
  StepLoad prices() const;  // of a step, a prompt token, an answer token, a patch
  double cost(const StepLoad& load) const;

 private:
  static constexpr size_t kPrices = 4;
  static constexpr double kLeastWeight = 0.3;
  void solve();

  // In units of the ratios: load times ratio, price over ratio.
  std::array<std::array<double, kPrices>, kPrices> squares_{};
  std::array<double, kPrices> products_{};
  std::array<double, kPrices> price_{1, 1, 1, 1};
  double sum_squares_ = 0, sum_products_ = 0;  // of the one scale for all
  double scale_ = 0;
  double weight_ = 0;
};

}  // namespace jewel
