// Plots as inline SVG for HtmlPage. Colours are CSS variables of the page (light and dark), so an SVG from
// here is complete only inside it; the lines of several series also differ by their dashes. Texts are
// escaped. Points that are not finite are left out; a plot without any point says so instead of drawing axes.
//
// Pure functions, any thread.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace jewel {

// One SVG with what stands around it. `description` is what a screen reader says; `table` is the data as rows
// of text behind "Data", the first row being its head.
struct Plot {
  std::string title;
  std::string svg;
  std::vector<std::string> legend;  // names of series, in the order of their colours
  std::vector<std::vector<std::string>> table;
};

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

enum class Scale : unsigned char { kLinear, kLog };

struct Axis {
  std::string title;  // with its unit
  Scale scale = Scale::kLinear;
  bool from_zero = false;  // a linear axis that begins at 0
};

// Power over time, joules per token over batch size.
Plot line_plot(std::string title, const Axis& x, const Axis& y, const std::vector<Series>& series);

// Share of values that are at most x: latencies of one or several runs. The table has their percentiles.
struct Samples {
  std::string name;
  std::vector<double> values;
};
Plot distribution_plot(std::string title, const Axis& x, const std::vector<Samples>& samples,
                       std::string y_title = "share of requests, %");

// One bar a row, in parts that add up: joules by phase. `parts` names them.
struct StackedBar {
  std::string name;
  std::vector<double> values;  // one for each part; not finite: none
};
Plot stacked_bars(std::string title, std::string unit, const std::vector<std::string>& parts,
                  const std::vector<StackedBar>& bars);

// Rates of kernels or phases under what the machine can do: min(peak, intensity × bandwidth).
struct Roofline {
  std::string title;
  double peak_flop_per_s = 0;
  double bytes_per_s = 0;
  struct Point {
    std::string name;
    double flop_per_byte = 0;
    double flop_per_s = 0;
  };
  std::vector<Point> points;
};
Plot roofline_plot(const Roofline& roofline);

// Values with intervals, one a row, and a line that they must reach: quality by category.
struct Interval {
  std::string name;
  std::optional<double> value;
  double low = 0;
  double high = 0;
  bool passes = true;
};
Plot interval_plot(std::string title, std::string x_title, const std::vector<Interval>& intervals,
                   std::optional<double> gate);

}  // namespace jewel
