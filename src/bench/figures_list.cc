#include "bench/figures_list.h"

#include <utility>

namespace jewel {
namespace {

using Part = std::optional<Distribution> RunFigures::*;

FigureOf of(Part part, double Distribution::* which, double scale) {
  return [=](const RunFigures& run) -> std::optional<double> {
    const std::optional<Distribution>& d = run.*part;
    if (!d) return std::nullopt;
    return (*d).*which * scale;
  };
}

void add_distribution(std::vector<NamedFigure>& list, const std::string& name, const std::string& unit,
                      double scale, Part part) {
  const std::pair<const char*, double Distribution::*> kinds[] = {{"p50", &Distribution::p50},
                                                                  {"p90", &Distribution::p90},
                                                                  {"p99", &Distribution::p99},
                                                                  {"mean", &Distribution::mean},
                                                                  {"max", &Distribution::max}};
  for (const auto& [kind, which] : kinds) {
    list.push_back({.name = name + ", " + kind,
                    .unit = unit,
                    .figure = of(part, which, scale),
                    .compared = std::string_view(kind) == "p50"});
  }
}

FigureOf value(double RunFigures::* which) {
  return [=](const RunFigures& run) { return std::optional<double>(run.*which); };
}

FigureOf maybe(std::optional<double> RunFigures::* which) {
  return [=](const RunFigures& run) { return run.*which; };
}

FigureOf server(double ServerEnergy::* which) {
  return [=](const RunFigures& run) -> std::optional<double> {
    if (!run.server_energy) return std::nullopt;
    return (*run.server_energy).*which;
  };
}

std::vector<NamedFigure> make_list() {
  std::vector<NamedFigure> list;
  add_distribution(list, "first token", "ms", 1e3, &RunFigures::first_token_s);
  add_distribution(list, "between tokens", "ms", 1e3, &RunFigures::between_tokens_s);
  add_distribution(list, "request", "s", 1, &RunFigures::request_s);
  list.push_back({.name = "output",
                  .unit = "tok/s",
                  .figure = value(&RunFigures::output_tokens_per_s),
                  .more_is_better = true,
                  .compared = true});
  list.push_back({.name = "prompt",
                  .unit = "tok/s",
                  .figure = value(&RunFigures::prompt_tokens_per_s),
                  .more_is_better = true});
  list.push_back({.name = "requests",
                  .unit = "requests/s",
                  .figure = value(&RunFigures::requests_per_s),
                  .more_is_better = true});
  list.push_back({.name = "prompt tokens", .unit = "tokens", .figure = value(&RunFigures::prompt_tokens)});
  list.push_back(
      {.name = "cached prompt tokens", .unit = "tokens", .figure = maybe(&RunFigures::cached_tokens)});
  list.push_back({.name = "image tokens", .unit = "tokens", .figure = maybe(&RunFigures::image_tokens)});
  list.push_back({.name = "output tokens",
                  .unit = "tokens",
                  .figure = value(&RunFigures::output_tokens),
                  .compared = true});
  list.push_back(
      {.name = "reasoning tokens", .unit = "tokens", .figure = maybe(&RunFigures::reasoning_tokens)});
  const auto energy = [&](const char* name, const char* unit, FigureOf figure, bool compared = false) {
    list.push_back(
        {.name = name, .unit = unit, .figure = std::move(figure), .compared = compared, .energy = true});
  };
  energy("energy of an output token", "J", maybe(&RunFigures::joules_per_token), true);
  energy("energy of a request", "J", maybe(&RunFigures::joules_per_request), true);
  energy("power", "W", maybe(&RunFigures::watts));
  energy("temperature, highest", "°C", maybe(&RunFigures::celsius_max));
  energy("SM clock, lowest", "MHz", maybe(&RunFigures::sm_mhz_min));
  energy("memory clock, lowest", "MHz", maybe(&RunFigures::memory_mhz_min));
  energy("energy of a request, by the server", "J", server(&ServerEnergy::joules));
  energy("… its images", "J", server(&ServerEnergy::image_joules));
  energy("… its prompt", "J", server(&ServerEnergy::prefill_joules));
  energy("… its answer", "J", server(&ServerEnergy::decode_joules));
  energy("… its answer, reasoning", "J", server(&ServerEnergy::reasoning_joules));
  energy("… its share of idle draw", "J", server(&ServerEnergy::idle_share_joules));
  return list;
}

}  // namespace

const std::vector<NamedFigure>& bench_figures() {
  static const std::vector<NamedFigure> list = make_list();
  return list;
}

}  // namespace jewel
