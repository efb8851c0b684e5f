// The rows of the table: what was measured in words, what was not with its reason.

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "bench/figures_list.h"
#include "bench/output.h"
#include "card/card.h"

namespace jewel {
namespace {

constexpr const char* kNone = "not measured";

std::string size_text(size_t bytes) {
  const auto size = static_cast<double>(bytes);
  return size >= 1e9 ? fmt::format("{:.2f} GB", size * 1e-9) : fmt::format("{:.1f} MB", size * 1e-6);
}

std::string percent(double share) {
  return fmt::format("{:.1f} %", 100 * share);
}

// "-31.5 %", with the lowest and highest pair of runs where there are several.
std::string change_text(const Repeated& ratio) {
  const auto signed_percent = [](double value) { return fmt::format("{:+.1f} %", 100 * (value - 1)); };
  if (ratio.runs < 2) return signed_percent(ratio.median);
  return fmt::format("{} ({} to {})", signed_percent(ratio.median), signed_percent(ratio.low),
                     signed_percent(ratio.high));
}

std::string times_text(const Repeated& ratio) {
  if (ratio.runs < 2) return fmt::format("{:.2f} times", ratio.median);
  return fmt::format("{:.2f} times ({:.2f} to {:.2f})", ratio.median, ratio.low, ratio.high);
}

class Rows {
 public:
  Rows(const CardSettings& settings, const CardOutcome& outcome)
      : settings_(settings), outcome_(outcome), comparisons_(compare(outcome.bench)) {}

  std::vector<CardRow> all() {
    const auto before = static_cast<double>(outcome_.quantized.source_file_bytes);
    const auto after = static_cast<double>(outcome_.quantized.result_file_bytes);
    rows_.push_back({"Size of the weights on disk", size_text(outcome_.quantized.source_file_bytes),
                     size_text(outcome_.quantized.result_file_bytes),
                     fmt::format("{:+.1f} %", 100 * (after / before - 1))});
    for (const BenchPoint& point : outcome_.bench.points) {
      add(point, "Output", "output");
      add(point, "First token", "first token, p50");
    }
    add_energy();
    add_quality();
    add_divergence();
    return std::move(rows_);
  }

 private:
  // `name`: the benchmark's name of the figure. False: no run has it.
  bool add(const BenchPoint& point, const std::string& title, const std::string& name) {
    const auto figure = std::ranges::find(bench_figures(), name, &NamedFigure::name);
    const auto of = [&](size_t target) { return over_runs(point.runs[target], figure->figure); };
    const auto a = of(0), b = of(1);
    if (!a || !b) return false;
    const auto text = [&](const Repeated& value) {
      return fmt::format("{} {}", number_text(value.median), figure->unit);
    };
    const std::string where = fmt::format("{}, {}", point.set, point.load.text());
    const auto ratio = std::ranges::find(comparisons_, where + ": " + name, &Comparison::what);
    std::string change;
    if (ratio != comparisons_.end())
      change = ratio->more_is_better ? times_text(ratio->ratio) : change_text(ratio->ratio);
    rows_.push_back({fmt::format("{}, {}", title, where), text(*a), text(*b), std::move(change)});
    return true;
  }

  void add_energy() {
    if (outcome_.bench.energy_method == "none") {
      rows_.push_back({"Energy", kNone, kNone, "method: none"});
      return;
    }
    for (const BenchPoint& point : outcome_.bench.points) {
      if (!add(point, "Energy of an output token", "energy of an output token"))
        rows_.push_back({fmt::format("Energy, {}, {}", point.set, point.load.text()), kNone, kNone,
                         "the counter did not move during the runs"});
      add(point, "Energy of a request", "energy of a request");
    }
  }

  void add_quality() {
    if (!outcome_.eval || !outcome_.eval->recovery) {
      rows_.push_back({"Quality", kNone, kNone, "no suite was given"});
      return;
    }
    const RecoveryTable& table = *outcome_.eval->recovery;
    const double gate = settings_.eval.recovery.gate;
    const auto add_row = [&](const std::string& title, const CategoryRecovery& row,
                             const std::string& verdict) {
      std::string change = row.recovery ? fmt::format("keeps {}", percent(*row.recovery)) : "not judged";
      if (row.interval) {
        change += fmt::format(" ({:.1f} to {:.1f})", 100 * row.interval->low, 100 * row.interval->high);
      }
      rows_.push_back({title, percent(row.base.score), percent(row.candidate.score), change + verdict});
    };
    add_row(fmt::format("Quality, {} tasks", table.all.n), table.all,
            fmt::format("; gate {} in every category: {}", percent(gate),
                        table.all.passes ? "passed" : "failed"));
    const auto least = std::ranges::min_element(
        table.categories, {}, [](const CategoryRecovery& row) { return row.recovery.value_or(-1); });
    if (table.categories.size() > 1) add_row("Quality, least category: " + least->category, *least, "");
    const auto a = table.all.base.mean_output_tokens, b = table.all.candidate.mean_output_tokens;
    if (a && b && *a > 0) {
      rows_.push_back({"Tokens of an answer", number_text(*a), number_text(*b),
                       fmt::format("{:+.1f} %", 100 * (*b / *a - 1))});
    }
  }

  void add_divergence() {
    if (!outcome_.eval || !outcome_.eval->divergence) return;
    const Divergence& d = *outcome_.eval->divergence;
    const std::string text = std::filesystem::path(settings_.eval.text_file).filename().string();
    rows_.push_back({"Perplexity of " + text, number_text(d.base_perplexity),
                     number_text(d.candidate_perplexity),
                     fmt::format("{:+.1f} %", 100 * (d.candidate_perplexity / d.base_perplexity - 1))});
    rows_.push_back({"KL divergence from BF16, " + text, "0",
                     fmt::format("{} nats per token", number_text(d.mean_kl)),
                     fmt::format("same likeliest token {}", percent(d.agreement))});
  }

  const CardSettings& settings_;
  const CardOutcome& outcome_;
  const std::vector<Comparison> comparisons_;
  std::vector<CardRow> rows_;
};

}  // namespace

std::vector<CardRow> card_rows(const CardSettings& settings, const CardOutcome& outcome) {
  return Rows(settings, outcome).all();
}

}  // namespace jewel
