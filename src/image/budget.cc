#include "image/budget.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace jewel {
namespace {

// Far above every published config, and small enough that max_patches · patch_size² stays exact in a double
// and all products below stay inside int64.
constexpr int kMaxPatchSize = 1024;
constexpr int kMaxPooling = 64;

// The largest multiple of `step` that is at most `side`.
int64_t round_down(double side, int64_t step) {
  return static_cast<int64_t>(std::floor(side / static_cast<double>(step))) * step;
}

// The long side when the short one rounds to nothing: whole multiples of the aspect ratio, at most one row of
// tokens.
int64_t strip_length(int long_side, int short_side, int64_t step, int max_soft_tokens) {
  const double aspect = static_cast<double>(long_side) / static_cast<double>(short_side);
  return std::min(static_cast<int64_t>(std::floor(aspect)) * step, max_soft_tokens * step);
}

}  // namespace

Result<void> check_budget(const SoftTokenBudget& budget) {
  if (std::ranges::find(kSoftTokenBudgets, budget.max_soft_tokens) == std::end(kSoftTokenBudgets)) {
    return invalid(fmt::format("max_soft_tokens is {}, expected one of {}", budget.max_soft_tokens,
                               fmt::join(kSoftTokenBudgets, ", ")),
                   "max_soft_tokens");
  }
  if (budget.patch_size < 1 || budget.patch_size > kMaxPatchSize) {
    return invalid(fmt::format("patch_size is {}, expected 1 to {}", budget.patch_size, kMaxPatchSize),
                   "patch_size");
  }
  if (budget.pooling_kernel_size < 1 || budget.pooling_kernel_size > kMaxPooling) {
    return invalid(
        fmt::format("pooling_kernel_size is {}, expected 1 to {}", budget.pooling_kernel_size, kMaxPooling),
        "pooling_kernel_size");
  }
  return {};
}

int auto_budget(int height, int width, int patch_size, int pooling_kernel_size) {
  const int64_t step = int64_t{patch_size} * pooling_kernel_size;
  for (const int budget : kSoftTokenBudgets) {
    if (int64_t{height} * width <= budget * step * step) return budget;
  }
  return kSoftTokenBudgets[std::size(kSoftTokenBudgets) - 1];
}

Result<TargetSize> target_size(int height, int width, const SoftTokenBudget& budget) {
  JEWEL_TRY(check_budget(budget));
  if (height < 1 || width < 1) {
    return invalid(
        fmt::format("the image is {} pixels wide and {} high, expected at least 1 × 1", width, height));
  }
  const int64_t step = int64_t{budget.patch_size} * budget.pooling_kernel_size;
  const int64_t target_pixels = int64_t{budget.max_soft_tokens} * step * step;
  const double pixels = static_cast<double>(int64_t{height} * width);
  const double factor = std::sqrt(static_cast<double>(target_pixels) / pixels);
  int64_t target_height = round_down(factor * height, step);
  int64_t target_width = round_down(factor * width, step);
  // Only one side can vanish: the other is at least step · √max_soft_tokens then, so both at 0 is not
  // reachable here.
  if (target_height == 0) {
    target_height = step;
    target_width = strip_length(width, height, step, budget.max_soft_tokens);
  } else if (target_width == 0) {
    target_width = step;
    target_height = strip_length(height, width, step, budget.max_soft_tokens);
  }
  const int64_t soft_tokens = (target_height / step) * (target_width / step);
  JEWEL_CHECK(soft_tokens >= 1 && soft_tokens <= budget.max_soft_tokens, "{} x {} gives {} soft tokens",
              height, width, soft_tokens);
  return TargetSize{static_cast<int>(target_height), static_cast<int>(target_width),
                    static_cast<int>(soft_tokens)};
}

}  // namespace jewel
