// What many measurements say together. Pure functions, any thread.
//
// Percentiles interpolate between the two nearest values (the rule of NumPy's default): of n values in order,
// the share p lies at place p · (n − 1).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "report/result_file.h"

namespace jewel {

// Of at least one value; `share` from 0 to 1.
double percentile(std::vector<double> values, double share);
double median(std::vector<double> values);
double mean(std::span<const double> values);

struct Distribution {
  int64_t n = 0;
  double mean = 0;
  double p50 = 0, p90 = 0, p99 = 0;
  double min = 0, max = 0;
};
// nullopt for no values.
std::optional<Distribution> distribution(std::vector<double> values);

// One figure measured in each of several runs.
struct Repeated {
  double median = 0;
  double low = 0, high = 0;  // of all runs
  int runs = 0;

  // (high − low) / median: 0.03 is "repeats within 3 %"; 0 when the median is.
  double relative_spread() const { return median == 0 ? 0 : (high - low) / median; }
};
std::optional<Repeated> repeated(const std::vector<double>& per_run);
std::optional<Spread> spread_of(const std::optional<Repeated>& figure);  // nullopt for fewer than two runs

}  // namespace jewel
