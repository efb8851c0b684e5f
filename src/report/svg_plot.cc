#include "report/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "report/html_page.h"

namespace jewel {
namespace {

// The drawing is 420 units wide and shown 330 to 620 pixels wide, so texts of 12 units stay readable on a
// phone.
constexpr double kWidth = 420;
constexpr double kHeight = 260;
constexpr double kLeft = 52, kRight = 14, kTop = 12, kBottom = 44;
constexpr double kRowHeight = 30;
constexpr size_t kMostPoints = 400;  // of a line; more cannot be told apart at this width
constexpr size_t kColours = 6;

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void add(double value, Scale scale) {
    if (!std::isfinite(value) || (scale == Scale::kLog && value <= 0)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

// 1, 2 or 5 times a power of ten, so that about `wanted` steps fill the span.
double nice_step(double span, int wanted) {
  const double raw = span / wanted;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw * 0.999) return factor * power;
  }
  return 10 * power;
}

// "0.5", "20", "3k", "1.2G": short enough to stand side by side.
std::string tick_text(double value) {
  const double size = std::fabs(value);
  for (const auto& [unit, letter] : {std::pair(1e12, 'T'), {1e9, 'G'}, {1e6, 'M'}, {1e4, 'k'}}) {
    const double factor = unit == 1e4 ? 1e3 : unit;
    if (size >= unit * 0.9999) return fmt::format("{:.4g}{}", value / factor, letter);
  }
  return size < 1e-9 ? "0" : fmt::format("{:.4g}", value);
}

// Where values lie in the drawing, and the ticks that say so.
class AxisMap {
 public:
  AxisMap(Range range, const Axis& axis, double begin, double end)
      : scale_(axis.scale), begin_(begin), end_(end) {
    low_ = range.low;
    high_ = range.high;
    if (scale_ == Scale::kLog) {
      log_range();
    } else {
      linear_range(axis.from_zero);
    }
  }

  double at(double value) const {
    const double share = scale_ == Scale::kLog
                             ? (std::log10(value) - std::log10(low_)) / (std::log10(high_) - std::log10(low_))
                             : (value - low_) / (high_ - low_);
    return begin_ + share * (end_ - begin_);
  }
  bool shows(double value) const { return std::isfinite(value) && (scale_ == Scale::kLinear || value > 0); }
  const std::vector<double>& ticks() const { return ticks_; }
  double low() const { return low_; }
  double high() const { return high_; }

 private:
  void linear_range(bool from_zero) {
    if (from_zero) low_ = std::min(low_, 0.0);
    if (high_ - low_ < 1e-12 * std::max(std::fabs(high_), 1e-300)) {
      const double room = high_ == 0 ? 1 : std::fabs(high_) * 0.1;
      if (!from_zero || low_ != 0) low_ -= room;
      high_ += room;
    }
    const double step = nice_step(high_ - low_, 5);
    low_ = std::floor(low_ / step + 1e-9) * step;
    high_ = std::ceil(high_ / step - 1e-9) * step;
    const int n = static_cast<int>(std::lround((high_ - low_) / step));
    for (int i = 0; i <= n; ++i) ticks_.push_back(low_ + i * step);
  }
  // From a 1, 2 or 5 to a 1, 2 or 5; ticks at powers of ten, at 2 and 5 too where there are few.
  void log_range() {
    const auto below = [](double value) {
      const double power = std::pow(10.0, std::floor(std::log10(value) + 1e-9));
      for (const double factor : {5.0, 2.0}) {
        if (factor * power <= value * 1.000001) return factor * power;
      }
      return power;
    };
    const auto above = [](double value) {
      const double power = std::pow(10.0, std::floor(std::log10(value) + 1e-9));
      for (const double factor : {1.0, 2.0, 5.0}) {
        if (factor * power >= value * 0.999999) return factor * power;
      }
      return 10 * power;
    };
    low_ = below(low_);
    high_ = above(high_);
    if (high_ <= low_ * 1.000001) high_ = low_ * 10, low_ /= 2;
    const double decades = std::log10(high_ / low_);
    const int skip = std::max(1, static_cast<int>(std::ceil(decades / 6)));
    for (int power = static_cast<int>(std::floor(std::log10(low_) + 1e-9));
         std::pow(10.0, power) <= high_ * 1.000001; ++power) {
      if (power % skip != 0) continue;
      for (const double factor : {1.0, 2.0, 5.0}) {
        const double tick = factor * std::pow(10.0, power);
        if (factor != 1.0 && decades > 2.2) break;
        if (tick >= low_ * 0.999999 && tick <= high_ * 1.000001) ticks_.push_back(tick);
      }
    }
  }

  Scale scale_;
  double begin_, end_;
  double low_ = 0, high_ = 1;
  std::vector<double> ticks_;
};

class Svg {
 public:
  Svg(double height, std::string_view description) {
    out_ = fmt::format(R"(<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">)", kWidth, height,
                       html_text(description));
  }
  void line(std::string_view css, double x1, double y1, double x2, double y2) {
    out_ += fmt::format(R"(<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>)", css, x1, y1,
                        x2, y2);
  }
  void text(std::string_view css, double x, double y, std::string_view words) {
    out_ += fmt::format(R"(<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>)", css, x, y, html_text(words));
  }
  void rotated_text(double x, double y, std::string_view words) {
    out_ += fmt::format(
        R"svg(<text class="mid" transform="rotate(-90 {0:.1f} {1:.1f})" x="{0:.1f}" y="{1:.1f}">{2}</text>)svg",
        x, y, html_text(words));
  }
  // Marks carry their values as tooltips.
  void bar(std::string_view css, double x, double y, double width, double height, std::string_view tip) {
    out_ += fmt::format(
        R"(<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>)",
        css, x, y, std::max(width, 0.0), height, html_text(tip));
  }
  void dot(std::string_view css, double x, double y, double radius, std::string_view tip) {
    out_ += fmt::format(R"(<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>)",
                        css, x, y, radius, html_text(tip));
  }
  void path(std::string_view css, const std::vector<std::pair<double, double>>& points) {
    out_ += fmt::format(R"(<polyline class="{}" points=")", css);
    for (const auto& [x, y] : points) out_ += fmt::format("{:.1f},{:.1f} ", x, y);
    out_ += R"("/>)";
  }
  void axes(const AxisMap& x, const Axis& x_axis, const AxisMap& y, const Axis& y_axis) {
    const double bottom = kHeight - kBottom;
    for (const double tick : y.ticks()) {
      line("grid", kLeft, y.at(tick), kWidth - kRight, y.at(tick));
      text("end", kLeft - 6, y.at(tick) + 4, tick_text(tick));
    }
    for (const double tick : x.ticks()) {
      line("axis", x.at(tick), bottom, x.at(tick), bottom + 4);
      text("mid", x.at(tick), bottom + 17, tick_text(tick));
    }
    line("axis", kLeft, bottom, kWidth - kRight, bottom);
    text("mid", (kLeft + kWidth - kRight) / 2, kHeight - 6, x_axis.title);
    rotated_text(12, (kTop + bottom) / 2, y_axis.title);
  }
  std::string take() { return std::move(out_) + "</svg>"; }

 private:
  std::string out_;
};

std::string nothing(std::string_view title) {
  Svg svg(60, title);
  svg.text("mid", kWidth / 2, 34, "nothing was measured");
  return svg.take();
}

size_t colour(size_t i) {
  return i % kColours;
}

// Colours and dashes begin again with the seventh line; it is broad and pale then.
std::string line_style(size_t i) {
  return fmt::format("line l{}{}", colour(i), i >= kColours ? " again" : "");
}

// Spreads what is kept over the whole line, ends included.
std::vector<std::pair<double, double>> thinned(const std::vector<std::pair<double, double>>& points) {
  if (points.size() <= kMostPoints) return points;
  std::vector<std::pair<double, double>> kept;
  kept.reserve(kMostPoints);
  for (size_t i = 0; i < kMostPoints; ++i)
    kept.push_back(points[i * (points.size() - 1) / (kMostPoints - 1)]);
  return kept;
}

// Names of rows stand above their bars: on a phone there is no room beside them.
std::string shortened(std::string_view name) {
  constexpr size_t kMost = 48;
  size_t characters = 0, at = 0;
  while (at < name.size() && characters < kMost) {
    ++at;
    while (at < name.size() && (static_cast<unsigned char>(name[at]) & 0xC0) == 0x80) ++at;
    ++characters;
  }
  return at < name.size() ? std::string(name.substr(0, at)) + "…" : std::string(name);
}

double percentile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

Plot line_plot(std::string title, const Axis& x_axis, const Axis& y_axis, const std::vector<Series>& series) {
  Range xs, ys;
  for (const Series& line : series) {
    for (const auto& [x, y] : line.points) {
      if (!std::isfinite(x) || !std::isfinite(y)) continue;
      xs.add(x, x_axis.scale);
      ys.add(y, y_axis.scale);
    }
  }
  Plot plot{.title = std::move(title), .table = {{"series", x_axis.title, y_axis.title}}};
  if (xs.empty() || ys.empty()) {
    plot.svg = nothing(plot.title);
    return plot;
  }
  const AxisMap x(xs, x_axis, kLeft, kWidth - kRight);
  const AxisMap y(ys, y_axis, kHeight - kBottom, kTop);
  Svg svg(kHeight, plot.title);
  svg.axes(x, x_axis, y, y_axis);
  for (size_t i = 0; i < series.size(); ++i) {
    std::vector<std::pair<double, double>> line;
    for (const auto& [px, py] : thinned(series[i].points)) {
      if (!x.shows(px) || !y.shows(py)) continue;
      line.emplace_back(x.at(px), y.at(py));
      plot.table.push_back({series[i].name, number_text(px), number_text(py)});
    }
    svg.path(line_style(i), line);
    if (line.size() == 1)
      svg.dot(fmt::format("f{}", colour(i)), line[0].first, line[0].second, 4, series[i].name);
    plot.legend.push_back(series[i].name);
  }
  plot.svg = svg.take();
  return plot;
}

Plot distribution_plot(std::string title, const Axis& x_axis, const std::vector<Samples>& samples,
                       std::string y_title) {
  Plot plot{.title = std::move(title), .table = {{"", "n", "median", "p90", "p99", "most"}}};
  std::vector<std::vector<double>> sorted;
  Range xs;
  for (const Samples& one : samples) {
    std::vector<double>& values = sorted.emplace_back();
    for (const double value : one.values) {
      if (std::isfinite(value) && (x_axis.scale == Scale::kLinear || value > 0)) values.push_back(value);
    }
    std::ranges::sort(values);
    if (values.empty()) continue;
    xs.add(values.front(), x_axis.scale);
    xs.add(values.back(), x_axis.scale);
  }
  if (xs.empty()) {
    plot.svg = nothing(plot.title);
    return plot;
  }
  const Axis share{.title = std::move(y_title), .from_zero = true};
  const AxisMap x(xs, x_axis, kLeft, kWidth - kRight);
  const AxisMap y({0, 100}, share, kHeight - kBottom, kTop);
  Svg svg(kHeight, plot.title);
  svg.axes(x, x_axis, y, share);
  for (size_t i = 0; i < sorted.size(); ++i) {
    const std::vector<double>& values = sorted[i];
    plot.legend.push_back(samples[i].name);
    if (values.empty()) continue;
    std::vector<std::pair<double, double>> line = {{x.at(values.front()), y.at(0)}};
    const auto n = static_cast<double>(values.size());
    for (size_t k = 0; k < values.size(); ++k) {
      line.emplace_back(x.at(values[k]), line.back().second);
      line.emplace_back(x.at(values[k]), y.at(100.0 * static_cast<double>(k + 1) / n));
    }
    line.emplace_back(kWidth - kRight, y.at(100));
    svg.path(line_style(i), values.size() > kMostPoints ? thinned(line) : line);
    plot.table.push_back({samples[i].name, number_text(n), number_text(percentile(values, 0.5)),
                          number_text(percentile(values, 0.9)), number_text(percentile(values, 0.99)),
                          number_text(values.back())});
  }
  plot.svg = svg.take();
  return plot;
}

Plot stacked_bars(std::string title, std::string unit, const std::vector<std::string>& parts,
                  const std::vector<StackedBar>& bars) {
  Plot plot{.title = std::move(title), .legend = parts, .table = {{""}}};
  for (const std::string& part : parts) plot.table[0].push_back(fmt::format("{}, {}", part, unit));
  plot.table[0].push_back("sum, " + unit);
  Range range;
  const auto total = [](const StackedBar& bar) {
    double sum = 0;
    for (const double value : bar.values) sum += std::isfinite(value) ? std::max(value, 0.0) : 0;
    return sum;
  };
  for (const StackedBar& bar : bars) {
    if (std::ranges::any_of(bar.values, [](double value) { return std::isfinite(value); }))
      range.add(total(bar), Scale::kLinear);
  }
  if (range.empty()) {
    plot.legend.clear();
    plot.svg = nothing(plot.title);
    return plot;
  }
  const Axis axis{.title = std::move(unit), .from_zero = true};
  const AxisMap x(range, axis, 10, kWidth - kRight - 6);
  const double bottom = kTop + kRowHeight * 1.4 * static_cast<double>(bars.size());
  Svg svg(bottom + kBottom, plot.title);
  for (const double tick : x.ticks()) {
    svg.line("grid", x.at(tick), kTop, x.at(tick), bottom);
    svg.text("mid", x.at(tick), bottom + 16, tick_text(tick));
  }
  svg.text("mid", kWidth / 2, bottom + 36, axis.title);
  double row = kTop;
  for (const StackedBar& bar : bars) {
    svg.text("start", 10, row + 12,
             fmt::format("{}: {} {}", shortened(bar.name), number_text(total(bar)), axis.title));
    double begin = 0;
    std::vector<std::string> cells = {bar.name};
    for (size_t i = 0; i < parts.size(); ++i) {
      const bool known = i < bar.values.size() && std::isfinite(bar.values[i]);
      cells.push_back(known ? number_text(bar.values[i]) : "–");
      if (!known || bar.values[i] <= 0) continue;
      svg.bar(fmt::format("f{}", colour(i)), x.at(begin), row + 18, x.at(begin + bar.values[i]) - x.at(begin),
              16, fmt::format("{}, {}: {} {}", bar.name, parts[i], number_text(bar.values[i]), axis.title));
      begin += bar.values[i];
    }
    cells.push_back(number_text(total(bar)));
    plot.table.push_back(std::move(cells));
    row += kRowHeight * 1.4;
  }
  plot.svg = svg.take();
  return plot;
}

Plot roofline_plot(const Roofline& roofline) {
  Plot plot{.title = roofline.title, .table = {{"", "FLOP/byte", "FLOP/s", "of the roof"}}};
  const bool roof = roofline.peak_flop_per_s > 0 && roofline.bytes_per_s > 0;
  Range xs, ys;
  for (const Roofline::Point& point : roofline.points) {
    xs.add(point.flop_per_byte, Scale::kLog);
    ys.add(point.flop_per_s, Scale::kLog);
  }
  if (xs.empty() || ys.empty() || !roof) {
    plot.svg = nothing(plot.title);
    return plot;
  }
  const double ridge = roofline.peak_flop_per_s / roofline.bytes_per_s;
  const auto roof_at = [&](double intensity) {
    return std::min(roofline.peak_flop_per_s, intensity * roofline.bytes_per_s);
  };
  xs.add(ridge * 4, Scale::kLog);
  xs.add(std::min(xs.low, ridge) / 2, Scale::kLog);
  ys.add(roofline.peak_flop_per_s * 1.3, Scale::kLog);
  const Axis x_axis{.title = "arithmetic intensity, FLOP per byte", .scale = Scale::kLog};
  const Axis y_axis{.title = "FLOP/s", .scale = Scale::kLog};
  const AxisMap x(xs, x_axis, kLeft, kWidth - kRight);
  ys.add(roof_at(x.low()), Scale::kLog);
  const AxisMap y(ys, y_axis, kHeight - kBottom, kTop);
  Svg svg(kHeight, plot.title);
  svg.axes(x, x_axis, y, y_axis);
  svg.path("line roof", {{x.at(x.low()), y.at(roof_at(x.low()))},
                         {x.at(ridge), y.at(roofline.peak_flop_per_s)},
                         {x.at(x.high()), y.at(roofline.peak_flop_per_s)}});
  for (size_t i = 0; i < roofline.points.size(); ++i) {
    const Roofline::Point& point = roofline.points[i];
    plot.legend.push_back(point.name);
    if (!x.shows(point.flop_per_byte) || !y.shows(point.flop_per_s)) continue;
    const std::string share = fmt::format("{:.1f} %", 100 * point.flop_per_s / roof_at(point.flop_per_byte));
    svg.dot(fmt::format("f{}", colour(i)), x.at(point.flop_per_byte), y.at(point.flop_per_s), 5,
            point.name + ": " + share + " of the roof");
    plot.table.push_back(
        {point.name, number_text(point.flop_per_byte), number_text(point.flop_per_s), share});
  }
  plot.svg = svg.take();
  return plot;
}

Plot interval_plot(std::string title, std::string x_title, const std::vector<Interval>& intervals,
                   std::optional<double> gate) {
  Plot plot{.title = std::move(title), .table = {{"", x_title, "low", "high"}}};
  Range range;
  for (const Interval& one : intervals) {
    if (!one.value) continue;
    for (const double value : {*one.value, one.low, one.high}) range.add(value, Scale::kLinear);
  }
  if (range.empty()) {
    plot.svg = nothing(plot.title);
    return plot;
  }
  if (gate) range.add(*gate, Scale::kLinear);
  const AxisMap x(range, {.title = x_title}, 14, kWidth - kRight - 10);
  const double bottom = kTop + kRowHeight * 1.3 * static_cast<double>(intervals.size());
  Svg svg(bottom + kBottom, plot.title);
  for (const double tick : x.ticks()) {
    svg.line("grid", x.at(tick), kTop, x.at(tick), bottom);
    svg.text("mid", x.at(tick), bottom + 16, tick_text(tick));
  }
  svg.text("mid", kWidth / 2, bottom + 36, x_title);
  if (gate) svg.line("gate", x.at(*gate), kTop, x.at(*gate), bottom);
  double row = kTop;
  for (const Interval& one : intervals) {
    const double middle = row + 26;
    if (!one.value) {
      svg.text("start", 14, row + 13, shortened(one.name) + ": not judged");
      plot.table.push_back({one.name, "–", "–", "–"});
      row += kRowHeight * 1.3;
      continue;
    }
    svg.text("start", 14, row + 13, fmt::format("{}: {}", shortened(one.name), number_text(*one.value)));
    const std::string_view tone = one.passes ? "good" : "bad";
    svg.line(fmt::format("span {}", tone), x.at(one.low), middle, x.at(one.high), middle);
    svg.dot(fmt::format("mark {}", tone), x.at(*one.value), middle, 5,
            fmt::format("{}: {} ({} to {})", one.name, number_text(*one.value), number_text(one.low),
                        number_text(one.high)));
    plot.table.push_back({one.name, number_text(*one.value), number_text(one.low), number_text(one.high)});
    row += kRowHeight * 1.3;
  }
  plot.svg = svg.take();
  return plot;
}

}  // namespace jewel
