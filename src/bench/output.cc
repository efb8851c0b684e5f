#include "bench/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>

#include "bench/figures_list.h"

namespace jewel {

namespace json = boost::json;

namespace {

bool server_says_energy(const BenchResult& result) {
  for (const BenchPoint& point : result.points) {
    for (const auto& runs : point.runs) {
      for (const RunFigures& run : runs) {
        if (run.server_energy) return true;
      }
    }
  }
  return false;
}

std::string server_method(const BenchResult& result) {
  for (const BenchPoint& point : result.points) {
    for (const auto& runs : point.runs) {
      for (const RunFigures& run : runs) {
        if (run.server_energy) return run.server_energy->method;
      }
    }
  }
  return "none";
}

int64_t measurements(const std::vector<RunFigures>& runs) {
  int64_t n = 0;
  for (const RunFigures& run : runs) n += run.in_window;
  return n;
}

void add_figures(ResultFile& file, const BenchResult& result, const BenchPoint& point, size_t target) {
  const std::string letter = letter_of(result, target);
  const std::string prefix =
      fmt::format("{}, {}{}: ", point.set, point.load.text(), letter.empty() ? "" : ", " + letter);
  for (const NamedFigure& named : bench_figures()) {
    const auto value = over_runs(point.runs[target], named.figure);
    if (!value) continue;
    Figure figure{.name = prefix + named.name,
                  .value = value->median,
                  .unit = named.unit,
                  .ceiling = {},
                  .n = measurements(point.runs[target]),
                  .spread = spread_of(value),
                  .note = {}};
    if (named.name == "output" && point.least_output_tok_per_s[target] > 0)
      figure.ceiling = point.least_output_tok_per_s[target];
    file.figures.push_back(std::move(figure));
  }
}

json::object run_json(const RunFigures& run) {
  json::object object = {{"requests", run.requests},
                         {"in_window", run.in_window},
                         {"failed", run.failed},
                         {"steady_window", run.steady},
                         {"window_s", run.window_s}};
  for (const NamedFigure& named : bench_figures()) {
    if (const auto value = named.figure(run)) object[named.name + " [" + named.unit + "]"] = *value;
  }
  return object;
}

json::array points_json(const BenchResult& result) {
  json::array points;
  for (const BenchPoint& point : result.points) {
    for (size_t t = 0; t < result.targets.size(); ++t) {
      json::array runs;
      for (const RunFigures& run : point.runs[t]) runs.push_back(run_json(run));
      points.push_back(json::object{{"set", point.set},
                                    {"load", point.load.text()},
                                    {"target", result.targets[t].name},
                                    {"requests_of_a_run", point.requests},
                                    {"runs", std::move(runs)}});
    }
  }
  return points;
}

json::object settings_json(const BenchResult& result) {
  json::array targets, sets, loads;
  for (const TargetInfo& target : result.targets) {
    json::object about = target.settings;
    about["name"] = target.name;
    about["in_process"] = target.in_process;
    targets.push_back(std::move(about));
  }
  for (const RequestSet& set : result.sets) sets.push_back(set.describe());
  for (const Load& load : result.plan.loads) loads.push_back(json::string(load.text()));
  return {{"targets", std::move(targets)},
          {"sets", std::move(sets)},
          {"loads", std::move(loads)},
          {"runs", result.plan.runs},
          {"requests_of_a_run", result.plan.requests > 0 ? json::value(result.plan.requests)
                                                         : json::value("by the seconds of a run")},
          {"seconds_of_a_run", result.plan.seconds},
          {"order", result.targets.size() > 1 ? "A B B A" : "one after the other"},
          {"seed", result.plan.seed}};
}

json::object ceilings_json(const BenchResult& result) {
  json::object ceilings;
  for (size_t t = 0; t < result.targets.size(); ++t) {
    const Rates rates = result.rates(t);
    if (!rates.known()) continue;
    json::object about = {{"read_gb_per_s", rates.bytes_per_s * 1e-9},
                          {"matrix_gflop_per_s", rates.flop_per_s * 1e-9},
                          {"how", rates.how},
                          {"read_gb_per_s_before", result.rates_before[t].bytes_per_s * 1e-9},
                          {"read_gb_per_s_after", result.rates_after[t].bytes_per_s * 1e-9}};
    if (rates.prompt_flop_per_s > 0) about["prompt_matrix_gflop_per_s"] = rates.prompt_flop_per_s * 1e-9;
    const ModelWork& work = result.targets[t].work;
    if (work.known()) {
      about["decode_step_gb"] = work.decode_bytes * 1e-9;
      about["decode_token_gflop"] = work.decode_flop * 1e-9;
      about["prompt_token_gflop"] = work.prefill_flop * 1e-9;
    }
    const std::string letter = letter_of(result, t);
    ceilings[letter.empty() ? "device" : letter] = std::move(about);
  }
  if (result.idle_watts) ceilings["idle_w"] = *result.idle_watts;
  return ceilings;
}

}  // namespace

std::string letter_of(const BenchResult& result, size_t target) {
  return result.targets.size() < 2 ? "" : std::string(1, static_cast<char>('A' + target));
}

std::optional<Repeated> over_runs(const std::vector<RunFigures>& runs, const FigureOf& figure) {
  std::vector<double> values;
  for (const RunFigures& run : runs) {
    if (const auto value = figure(run)) values.push_back(*value);
  }
  return repeated(values);
}

std::vector<Comparison> compare(const BenchResult& result) {
  std::vector<Comparison> all;
  if (result.targets.size() != 2) return all;
  for (const BenchPoint& point : result.points) {
    for (const NamedFigure& named : bench_figures()) {
      if (!named.compared) continue;
      std::vector<double> ratios;
      for (size_t run = 0; run < std::min(point.runs[0].size(), point.runs[1].size()); ++run) {
        const auto a = named.figure(point.runs[0][run]);
        const auto b = named.figure(point.runs[1][run]);
        if (a && b && *a > 0) ratios.push_back(*b / *a);
      }
      const auto ratio = repeated(ratios);
      if (!ratio) continue;
      all.push_back({.what = fmt::format("{}, {}: {}", point.set, point.load.text(), named.name),
                     .ratio = *ratio,
                     .more_is_better = named.more_is_better});
    }
  }
  return all;
}

ResultFile result_file(const BenchResult& result) {
  std::string what = "jewel bench: " + result.targets.front().name;
  if (result.targets.size() > 1) what += " (A) against " + result.targets[1].name + " (B)";
  ResultFile file = begin_result(what);
  file.settings = settings_json(result);
  file.ceilings = ceilings_json(result);
  file.energy_method = result.energy_method;
  if (file.energy_method == "none" && server_says_energy(result))
    file.energy_method = "as the server says: " + server_method(result);
  for (const BenchPoint& point : result.points) {
    for (size_t t = 0; t < result.targets.size(); ++t) add_figures(file, result, point, t);
  }
  for (const Comparison& comparison : compare(result)) {
    file.figures.push_back({.name = comparison.what + ", B / A",
                            .value = comparison.ratio.median,
                            .unit = "ratio",
                            .ceiling = {},
                            .n = comparison.ratio.runs,
                            .spread = spread_of(comparison.ratio),
                            .note = {}});
  }
  file.notes = result.notes;
  if (file.energy_method == "none" && !result.why_no_energy.empty())
    file.notes.push_back("no joules: " + result.why_no_energy);
  file.details = {{"points", points_json(result)}};
  return file;
}

}  // namespace jewel
