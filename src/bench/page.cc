#include <fmt/format.h>

#include <algorithm>

#include "bench/figures_list.h"
#include "bench/model_work.h"
#include "bench/output.h"
#include "report/html_page.h"

namespace jewel {
namespace {

constexpr size_t kMostSamples = 4000;  // of a curve: the page stays small

class Parts {
 public:
  Parts(HtmlPage& page, const BenchResult& result) : result_(result), page_(page) {}

  void add_plots() {
    latency();
    throughput();
    energy();
    roofline();
  }

  void add_headlines() {
    std::vector<HtmlPage::Headline> all;
    each([&](const BenchPoint& point, size_t t) {
      if (all.size() >= 8) return;
      const auto output = over_runs(point.runs[t], [](const RunFigures& run) {
        return std::optional<double>(run.output_tokens_per_s);
      });
      if (!output) return;
      std::string detail = "output tok/s";
      if (point.least_output_tok_per_s[t] > 0)
        detail +=
            fmt::format(", {:.0f} % of the ceiling", 100 * output->median / point.least_output_tok_per_s[t]);
      all.push_back({name_of(point, t), number_text(output->median), detail});
    });
    page_.headlines(all);
  }

  void add_comparison() {
    const std::vector<Comparison> comparisons = compare(result_);
    if (comparisons.empty()) return;
    page_.section("B over A");
    std::vector<TableRow> rows;
    rows.reserve(comparisons.size());
    for (const Comparison& c : comparisons) {
      rows.push_back({c.what, fmt::format("{:.3f}", c.ratio.median),
                      fmt::format("{:.3f} to {:.3f}", c.ratio.low, c.ratio.high),
                      c.more_is_better ? "more is better" : "less is better"});
    }
    page_.table({{"figure"}, {"ratio", true}, {"pairs of runs", true}, {""}}, rows);
  }

 private:
  std::string name_of(const BenchPoint& point, size_t t) const {
    const std::string letter = letter_of(result_, t);
    return fmt::format("{}, {}{}", point.set, point.load.text(), letter.empty() ? "" : ", " + letter);
  }

  template <typename Body>
  void each(Body&& body) const {
    for (const BenchPoint& point : result_.points) {
      for (size_t t = 0; t < result_.targets.size(); ++t) body(point, t);
    }
  }

  using Values = std::vector<double> RunFigures::*;
  std::vector<Samples> samples_of(Values values, double scale) const {
    std::vector<Samples> all;
    each([&](const BenchPoint& point, size_t t) {
      Samples samples{.name = name_of(point, t), .values = {}};
      for (const RunFigures& run : point.runs[t]) {
        for (const double value : run.*values) samples.values.push_back(value * scale);
      }
      if (samples.values.empty()) return;
      // Evenly spaced ones of the sorted values have the same curve.
      if (samples.values.size() > kMostSamples) {
        std::ranges::sort(samples.values);
        std::vector<double> fewer;
        fewer.reserve(kMostSamples);
        for (size_t i = 0; i < kMostSamples; ++i)
          fewer.push_back(samples.values[i * (samples.values.size() - 1) / (kMostSamples - 1)]);
        samples.values = std::move(fewer);
      }
      all.push_back(std::move(samples));
    });
    return all;
  }

  void latency() {
    page_.section("Latency");
    page_.paragraph(
        "How many of the requests (of the gaps between tokens) took at most so long; all runs together.");
    page_.plot(
        distribution_plot("First token", {.title = "ms"}, samples_of(&RunFigures::first_tokens_s, 1e3)));
    page_.plot(distribution_plot("Between tokens", {.title = "ms"}, samples_of(&RunFigures::gaps_s, 1e3)));
    page_.plot(distribution_plot("Whole request", {.title = "s"}, samples_of(&RunFigures::requests_s, 1)));
  }

  // A curve for each set and target over the concurrency; rates have no such axis.
  std::vector<Series> over_load(const FigureOf& figure) const {
    std::vector<Series> all;
    each([&](const BenchPoint& point, size_t t) {
      if (point.load.rate > 0) return;
      const auto value = over_runs(point.runs[t], figure);
      if (!value) return;
      const std::string letter = letter_of(result_, t);
      const std::string name = point.set + (letter.empty() ? "" : ", " + letter);
      auto series = std::ranges::find(all, name, &Series::name);
      if (series == all.end()) series = all.insert(all.end(), Series{.name = name, .points = {}});
      series->points.emplace_back(point.load.concurrency, value->median);
    });
    return all;
  }

  bool several_loads() const {
    return std::ranges::count_if(result_.plan.loads, [](const Load& load) { return load.rate <= 0; }) > 1;
  }

  void throughput() {
    if (!several_loads()) return;
    page_.section("Throughput");
    const Axis at_once{.title = "requests at once", .scale = Scale::kLog};
    page_.plot(line_plot(
        "Output", at_once, {.title = "tok/s", .scale = Scale::kLog},
        over_load([](const RunFigures& run) { return std::optional<double>(run.output_tokens_per_s); })));
    page_.plot(line_plot("First token, median", at_once, {.title = "ms", .scale = Scale::kLog},
                         over_load([](const RunFigures& run) -> std::optional<double> {
                           if (!run.first_token_s) return std::nullopt;
                           return run.first_token_s->p50 * 1e3;
                         })));
  }

  void energy() {
    page_.section("Energy");
    if (result_.energy_method == "none") {
      page_.paragraph("Joules were not measured here: " + result_.why_no_energy + ".");
    } else {
      page_.paragraph(fmt::format(
          "Measured by {} ({}), the idle draw included{}.", result_.energy_method, result_.energy_device,
          result_.idle_watts ? fmt::format("; {:.1f} W before the first run", *result_.idle_watts) : ""));
      if (several_loads()) {
        page_.plot(line_plot("Energy of an output token", {.title = "requests at once", .scale = Scale::kLog},
                             {.title = "J", .scale = Scale::kLog},
                             over_load([](const RunFigures& run) { return run.joules_per_token; })));
      }
      power();
    }
    phases();
  }

  void power() {
    std::vector<Series> all;
    each([&](const BenchPoint& point, size_t t) {
      if (point.runs[t].empty() || point.runs[t].front().power.empty() || all.size() >= 6) return;
      all.push_back({.name = name_of(point, t), .points = point.runs[t].front().power});
    });
    if (!all.empty())
      page_.plot(line_plot("Power, first run", {.title = "s"}, {.title = "W", .from_zero = true}, all));
  }

  void phases() {
    std::vector<StackedBar> bars;
    each([&](const BenchPoint& point, size_t t) {
      for (const RunFigures& run : point.runs[t]) {
        if (!run.server_energy) continue;
        const ServerEnergy& e = *run.server_energy;
        bars.push_back({.name = name_of(point, t),
                        .values = {e.image_joules, e.prefill_joules, e.decode_joules - e.reasoning_joules,
                                   e.reasoning_joules, e.idle_share_joules}});
        break;
      }
    });
    if (bars.empty()) return;
    page_.plot(stacked_bars("Joules of a request, as attributed", "J",
                            {"image", "prompt", "answer", "reasoning", "share of idle"}, bars));
  }

  // A request as its products alone: each prompt one pass over the weights, each token 1/c of one.
  void roofline() {
    for (size_t t = 0; t < result_.targets.size(); ++t) {
      const Rates rates = result_.rates(t);
      const ModelWork& work = result_.targets[t].work;
      if (!rates.known() || !work.known()) continue;
      const std::string letter = letter_of(result_, t);
      Roofline roof{.title = "Roofline" + (letter.empty() ? "" : ", " + letter),
                    .peak_flop_per_s = rates.flop_per_s,
                    .bytes_per_s = rates.bytes_per_s,
                    .points = {}};
      for (const BenchPoint& point : result_.points) {
        if (point.load.rate > 0 || point.runs[t].empty()) continue;
        const RunFigures& run = point.runs[t].front();
        const double prompt = run.prompt_tokens - run.cached_tokens.value_or(0);
        const double flop = prompt * work.prefill_flop + run.output_tokens * work.decode_flop;
        const double bytes = (run.output_tokens / point.load.concurrency + 1) * work.decode_bytes;
        roof.points.push_back({.name = name_of(point, t),
                               .flop_per_byte = flop / bytes,
                               .flop_per_s = flop * run.requests_per_s});
      }
      if (roof.points.empty()) continue;
      if (t == 0) {
        page_.section("Roofline");
        page_.paragraph(
            "What the products of a request did against what the device can read and multiply, measured in "
            "the "
            "same run. Each prompt counts as one pass over the weights, each token as its share of one; "
            "attention and pictures are left out, so a point lies somewhat lower than the truth.");
      }
      page_.plot(roofline_plot(roof));
    }
  }

  const BenchResult& result_;
  HtmlPage& page_;
};

std::string subtitle(const BenchResult& result) {
  if (result.targets.size() < 2) return result.targets.front().name + " · " + result.targets.front().where;
  return "A: " + result.targets[0].name + " · B: " + result.targets[1].name;
}

}  // namespace

void add_to_page(HtmlPage& page, const BenchResult& result) {
  Parts(page, result).add_plots();
}

std::string html_text(const BenchResult& result, const ResultFile& file) {
  HtmlPage page("jewel bench", subtitle(result));
  if (result.failed() > 0)
    page.verdict(false, fmt::format("{} requests failed; the figures are of the others", result.failed()));
  Parts parts(page, result);
  parts.add_headlines();
  parts.add_comparison();
  parts.add_plots();
  page.section("All figures");
  page.figures(file);
  page.method(file);
  return page.text();
}

}  // namespace jewel
