#include "bench/statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace jewel {
namespace {

double at_share(const std::vector<double>& sorted, double share) {
  JEWEL_CHECK(!sorted.empty() && share >= 0 && share <= 1, "share {} of {} values", share, sorted.size());
  const double place = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(std::floor(place));
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], place - static_cast<double>(below));
}

}  // namespace

double percentile(std::vector<double> values, double share) {
  std::ranges::sort(values);
  return at_share(values, share);
}

double median(std::vector<double> values) {
  return percentile(std::move(values), 0.5);
}

double mean(std::span<const double> values) {
  JEWEL_CHECK(!values.empty());
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::optional<Distribution> distribution(std::vector<double> values) {
  if (values.empty()) return std::nullopt;
  std::ranges::sort(values);
  return Distribution{.n = static_cast<int64_t>(values.size()),
                      .mean = mean(values),
                      .p50 = at_share(values, 0.5),
                      .p90 = at_share(values, 0.9),
                      .p99 = at_share(values, 0.99),
                      .min = values.front(),
                      .max = values.back()};
}

std::optional<Repeated> repeated(const std::vector<double>& per_run) {
  if (per_run.empty()) return std::nullopt;
  const auto [low, high] = std::ranges::minmax(per_run);
  return Repeated{
      .median = median(per_run), .low = low, .high = high, .runs = static_cast<int>(per_run.size())};
}

std::optional<Spread> spread_of(const std::optional<Repeated>& figure) {
  if (!figure || figure->runs < 2) return std::nullopt;
  return Spread{
      .low = figure->low, .high = figure->high, .what = fmt::format("min to max of {} runs", figure->runs)};
}

}  // namespace jewel
