#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "bench/figures_list.h"
#include "bench/output.h"

namespace jewel {
namespace {

// Three digits that matter: "0.54", "7.31", "84.2", "1,204" would be "1204".
std::string short_number(double value) {
  const double size = std::abs(value);
  if (size >= 100) return fmt::format("{:.0f}", value);
  if (size >= 10) return fmt::format("{:.1f}", value);
  if (size >= 1 || size == 0) return fmt::format("{:.2f}", value);
  return fmt::format("{:.3f}", value);
}

const FigureOf& figure_named(std::string_view name) {
  const auto& all = bench_figures();
  return std::ranges::find(all, name, &NamedFigure::name)->figure;
}

struct Column {
  std::string group;  // of neighbours; may be empty
  std::string title;
  std::vector<std::string> cells;
  bool left = false;
};

class Table {
 public:
  explicit Table(const BenchResult& result) : result_(result) {}

  std::string text() {
    add_names();
    add("first token, ms", "p50", "first token, p50");
    add("first token, ms", "p90", "first token, p90");
    add("first token, ms", "p99", "first token, p99");
    add("between tokens, ms", "p50", "between tokens, p50");
    add("between tokens, ms", "p99", "between tokens, p99");
    add("request, s", "p50", "request, p50");
    add("request, s", "p99", "request, p99");
    add("output tok/s", "median", "output");
    add_spread();
    add_ceiling();
    add("tokens", "in", "prompt tokens");
    add("tokens", "out", "output tokens");
    if (result_.energy_method != "none") {
      add("energy", "J/token", "energy of an output token");
      add("energy", "J/request", "energy of a request");
      add("energy", "W", "power");
      add("device", "°C", "temperature, highest");
      add("device", "MHz", "SM clock, lowest");
    }
    return print();
  }

 private:
  template <typename Cell>
  void add_cells(Column column, Cell&& cell) {
    bool any = false;
    for (const BenchPoint& point : result_.points) {
      for (size_t t = 0; t < result_.targets.size(); ++t) {
        column.cells.push_back(cell(point, t));
        any = any || !column.cells.back().empty();
      }
    }
    if (any) columns_.push_back(std::move(column));
  }

  void add(const char* group, const char* title, const char* figure) {
    add_cells({.group = group, .title = title, .cells = {}}, [&](const BenchPoint& point, size_t t) {
      const auto value = over_runs(point.runs[t], figure_named(figure));
      return value ? short_number(value->median) : std::string();
    });
  }

  void add_names() {
    add_cells({.title = "requests", .cells = {}, .left = true},
              [](const BenchPoint& point, size_t) { return point.set; });
    add_cells({.title = "load", .cells = {}, .left = true},
              [](const BenchPoint& point, size_t) { return point.load.text(); });
    add_cells({.title = "", .cells = {}, .left = true},
              [&](const BenchPoint&, size_t t) { return letter_of(result_, t); });
    add_cells({.title = "n", .cells = {}}, [](const BenchPoint& point, size_t t) {
      int n = 0;
      for (const RunFigures& run : point.runs[t]) n += run.in_window;
      return fmt::format("{}", n);
    });
  }

  void add_spread() {
    add_cells({.group = "output tok/s", .title = "spread", .cells = {}},
              [](const BenchPoint& point, size_t t) {
                const auto output = over_runs(point.runs[t], figure_named("output"));
                if (!output || output->runs < 2) return std::string();
                return fmt::format("{:.1f} %", output->relative_spread() * 100);
              });
  }

  void add_ceiling() {
    add_cells({.group = "output tok/s", .title = "ceiling", .cells = {}},
              [](const BenchPoint& point, size_t t) {
                const double ceiling = point.least_output_tok_per_s[t];
                return ceiling > 0 ? short_number(ceiling) : std::string();
              });
  }

  static size_t width_of(const std::string& text) {  // characters, not bytes
    return static_cast<size_t>(
        std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
  }

  static std::string padded(const std::string& text, size_t width, bool left) {
    const std::string space(width - std::min(width, width_of(text)), ' ');
    return left ? text + space : space + text;
  }

  std::string print() {
    std::vector<size_t> widths;
    for (const Column& column : columns_) {
      size_t width = width_of(column.title);
      for (const std::string& cell : column.cells) width = std::max(width, width_of(cell));
      widths.push_back(width);
    }
    // A group's title stands over its columns; the first grows when they are narrower than it.
    std::string out;
    for (size_t i = 0; i < columns_.size();) {
      size_t end = i + 1;
      size_t width = widths[i];
      while (end < columns_.size() && !columns_[i].group.empty() && columns_[end].group == columns_[i].group)
        width += 2 + widths[end++];
      const size_t needed = width_of(columns_[i].group);
      if (needed > width) {
        widths[i] += needed - width;
        width = needed;
      }
      out += padded(columns_[i].group, width, false) + "  ";
      i = end;
    }
    end_line(out);
    for (size_t i = 0; i < columns_.size(); ++i)
      out += padded(columns_[i].title, widths[i], columns_[i].left) + "  ";
    end_line(out);
    for (size_t row = 0; !columns_.empty() && row < columns_.front().cells.size(); ++row) {
      for (size_t i = 0; i < columns_.size(); ++i)
        out += padded(columns_[i].cells[row], widths[i], columns_[i].left) + "  ";
      end_line(out);
    }
    return out;
  }

  static void end_line(std::string& out) {
    while (out.ends_with(' ')) out.pop_back();
    out += '\n';
  }

  const BenchResult& result_;
  std::vector<Column> columns_;
};

std::string head_text(const BenchResult& result) {
  std::string out;
  for (size_t t = 0; t < result.targets.size(); ++t) {
    const TargetInfo& target = result.targets[t];
    const std::string letter = letter_of(result, t);
    out += fmt::format("{}{}: {}\n", letter.empty() ? "" : letter + " = ", target.name,
                       target.in_process ? "in process, " + target.where : "model " + target.served);
  }
  out += fmt::format("{} runs{}; medians of the runs\n\n", result.plan.runs,
                     result.targets.size() > 1 ? ", A B B A" : "");
  return out;
}

std::string ceilings_text(const BenchResult& result) {
  std::string out;
  for (size_t t = 0; t < result.targets.size(); ++t) {
    const Rates rates = result.rates(t);
    if (!rates.known()) continue;
    const ModelWork& work = result.targets[t].work;
    const std::string letter = letter_of(result, t);
    if (!letter.empty()) out += fmt::format("Of {}:\n", letter);
    out += fmt::format("Ceiling: {:.1f} GB/s read and {:.0f} GFLOP/s, measured in the same run ({}).\n",
                       rates.bytes_per_s * 1e-9, rates.flop_per_s * 1e-9, rates.how);
    if (rates.prompt_flop_per_s > 0)
      out += fmt::format("         Prompts are multiplied in FP8: {:.0f} GFLOP/s.\n",
                         rates.prompt_flop_per_s * 1e-9);
    if (work.known()) {
      out += fmt::format(
          "         A decode step reads {:.4g} GB, a decoded token takes {:.3g} GFLOP, one of a prompt "
          "{:.3g}; "
          "pictures and attention come on top.\n",
          work.decode_bytes * 1e-9, work.decode_flop * 1e-9, work.prefill_flop * 1e-9);
    }
  }
  return out;
}

std::string energy_text(const BenchResult& result) {
  if (result.energy_method == "none") return fmt::format("Joules:  none; {}.\n", result.why_no_energy);
  std::string out =
      fmt::format("Joules:  {}, {}; the idle draw is in them", result.energy_method, result.energy_device);
  if (result.idle_watts) out += fmt::format(" ({:.1f} W before the first run)", *result.idle_watts);
  return out + ".\n";
}

}  // namespace

std::string table_text(const BenchResult& result) {
  std::string out = head_text(result) + Table(result).text() + "\n";
  const std::vector<Comparison> comparisons = compare(result);
  if (!comparisons.empty()) out += "B over A, for the same requests (lowest and highest pair of runs):\n";
  for (const Comparison& c : comparisons) {
    out += fmt::format("  {:<52} {:.3f}  ({:.3f} to {:.3f})\n", c.what, c.ratio.median, c.ratio.low,
                       c.ratio.high);
  }
  if (!comparisons.empty()) out += "\n";
  out += ceilings_text(result) + energy_text(result);
  for (const std::string& note : result.notes) out += "Note:    " + note + "\n";
  return out;
}

}  // namespace jewel
