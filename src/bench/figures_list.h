// The figures that a benchmark has, once: table, result file and page name them and take them the same way.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/output.h"

namespace jewel {

struct NamedFigure {
  std::string name;
  std::string unit;
  FigureOf figure;
  bool more_is_better = false;
  bool compared = false;  // stands in the comparison of two targets
  bool energy = false;    // needs a meter
};

const std::vector<NamedFigure>& bench_figures();

}  // namespace jewel
