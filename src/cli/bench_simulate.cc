// jewel bench --simulate: scheduling settings compared over a trace, in seconds, without a device.

#include "cli/bench_simulate.h"

#include <fmt/format.h>
#include <sys/utsname.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <ctime>
#include <fstream>

#include "base/threads.h"
#include "model/json_text.h"

namespace jewel {

namespace json = boost::json;

namespace {

// Every combination of the listed settings.
std::vector<SimulationSettings> settings_of(const SimulateFlags& flags) {
  std::vector<SimulationSettings> all;
  for (const std::string& cache : flags.prefix_cache) {
    for (const double kv : flags.kv_gib) {
      for (const int seqs : flags.max_num_seqs) {
        for (const int tokens : flags.max_num_batched_tokens) {
          for (const int chunk : flags.long_prefill_chunk) {
            all.push_back({.max_num_seqs = seqs,
                           .max_num_batched_tokens = tokens,
                           .long_prefill_chunk = chunk,
                           .kv_gib = kv,
                           .swap_gib = flags.swap_gib,
                           .prefix_cache = cache == "on"});
          }
        }
      }
    }
  }
  return all;
}

std::string name_of(const SimulationSettings& s) {
  std::string name = fmt::format("{} seqs, {} tokens, {:g} GiB, cache {}", s.max_num_seqs,
                                 s.max_num_batched_tokens, s.kv_gib, s.prefix_cache ? "on" : "off");
  if (s.long_prefill_chunk > 0) name += fmt::format(", chunk {}", s.long_prefill_chunk);
  return name;
}

void print_table(const std::vector<SimulationResult>& results) {
  fmt::print("{:<44}{:>22}{:>26}{:>22}{:>7}{:>6}{:>7}{:>8}\n", "", "first token, ms", "between tokens, ms",
             "output tok/s", "hits", "busy", "rows", "preempt");
  fmt::print("{:<44}{:>8}{:>7}{:>7}{:>8}{:>6}{:>6}{:>6}{:>12}{:>10}{:>7}{:>6}{:>7}{:>8}\n", "settings", "p50",
             "p90", "p99", "p50", "p90", "p99", "max", "simulated", "ceiling", "%", "%", "", "");
  for (const SimulationResult& r : results) {
    fmt::print(
        "{:<44}{:>8.1f}{:>7.0f}{:>7.0f}{:>8.2f}{:>6.1f}{:>6.1f}{:>6.0f}{:>12.0f}{:>10.0f}{:>7.1f}{:>6.0f}{:>"
        "7."
        "1f}{:>8}\n",
        name_of(r.settings), r.ttft_s.p50 * 1e3, r.ttft_s.p90 * 1e3, r.ttft_s.p99 * 1e3,
        r.inter_token_s.p50 * 1e3, r.inter_token_s.p90 * 1e3, r.inter_token_s.p99 * 1e3,
        r.inter_token_s.max * 1e3, r.output_tokens_per_s, r.output_tokens_per_s_ceiling, r.hit_rate * 100,
        r.busy_share * 100, r.rows_per_step, r.preemptions);
  }
}

void add_percentiles(json::array& figures, const std::string& name, const Percentiles& p,
                     const json::object& settings) {
  for (const auto& [which, value] :
       {std::pair{"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}, {"max", p.max}, {"mean", p.mean}})
    figures.push_back(json::object{{"name", name + ", " + which},
                                   {"value", value * 1e3},
                                   {"unit", "ms"},
                                   {"n", p.n},
                                   {"settings", settings}});
}

json::object to_json(const Trace& trace, const CostModel& cost,
                     const std::vector<SimulationResult>& results) {
  std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  utsname host{};
  uname(&host);
  json::array figures;
  for (const SimulationResult& r : results) {
    const SimulationSettings& s = r.settings;
    const json::object settings = {{"max_num_seqs", s.max_num_seqs},
                                   {"max_num_batched_tokens", s.max_num_batched_tokens},
                                   {"long_prefill_chunk", s.long_prefill_chunk},
                                   {"kv_gib", s.kv_gib},
                                   {"swap_gib", s.swap_gib},
                                   {"prefix_cache", s.prefix_cache}};
    add_percentiles(figures, "time to first token", r.ttft_s, settings);
    add_percentiles(figures, "time between tokens", r.inter_token_s, settings);
    add_percentiles(figures, "time of a request", r.request_s, settings);
    add_percentiles(figures, "time in the queue", r.queue_s, settings);
    const auto figure = [&](const char* name, json::value value, const char* unit) -> json::object& {
      return figures
          .emplace_back(json::object{{"name", name},
                                     {"value", std::move(value)},
                                     {"unit", unit},
                                     {"n", r.requests},
                                     {"settings", settings}})
          .as_object();
    };
    figure("output", r.output_tokens_per_s, "tok/s")["ceiling"] = r.output_tokens_per_s_ceiling;
    figure("prompt", r.prompt_tokens_per_s, "tok/s");
    figure("prompt tokens from the prefix cache", r.hit_rate, "share");
    figure("device busy", r.busy_share, "share");
    figure("decode rows of a step", r.rows_per_step, "rows");
    figure("steps", r.steps, "steps");
    figure("images encoded", r.images_encoded, "images");
    figure("preemptions", r.preemptions, "sequences");
    figure("refused", r.refused, "requests");
    figure("simulated time", r.seconds, "s");
  }
  return {{"what", "jewel bench --simulate: the scheduler over a model of a step's cost"},
          {"date", fmt::format("{:04}-{:02}-{:02}", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday)},
          {"version", JEWEL_VERSION},
          {"machine", fmt::format("simulated; ran on {}, {} cores", host.machine, usable_cores())},
          {"settings",
           {{"trace", trace.name},
            {"requests", trace.requests.size()},
            {"cost", cost.name},
            {"cost_source", cost.source},
            {"fixed_ms", cost.fixed_s * 1e3},
            {"row_us", cost.decode_row_s * 1e6},
            {"token_us", cost.prefill_token_s * 1e6},
            {"image_ms", cost.image_s * 1e3},
            {"context_ns", cost.context_token_s * 1e9},
            {"copy_gb_s", cost.copy_bytes_per_s * 1e-9},
            {"host_us", cost.host_s * 1e6}}},
          {"ceilings", {{"output tok/s", "max_num_seqs rows in every step, no prefill, no context"}}},
          {"figures", std::move(figures)}};
}

Result<Trace> trace_of(SimulateFlags& flags) {
  if (!flags.trace.empty()) return read_trace(flags.trace);
  JEWEL_ASSIGN(flags.traffic.prompt_tokens, parse_lengths("--prompt-tokens", flags.prompt_tokens));
  JEWEL_ASSIGN(flags.traffic.output_tokens, parse_lengths("--output-tokens", flags.output_tokens));
  JEWEL_ASSIGN(flags.traffic.think_s, parse_lengths("--think-s", flags.think_s));
  return synthetic_trace(flags.traffic);
}

}  // namespace

int simulate_bench(SimulateFlags flags) {
  const auto trace = trace_of(flags);
  if (!trace.ok()) return report(trace.error());
  const auto cost = parse_cost_model(flags.cost);
  if (!cost.ok()) return report(cost.error());
  if (!flags.write_trace.empty()) {
    const auto written = write_trace(*trace, flags.write_trace);
    if (!written.ok()) return report(written.error());
  }
  fmt::print(stderr, "{}: {} requests; cost '{}': {}\n", trace->name, trace->requests.size(), cost->name,
             cost->source);
  std::vector<SimulationResult> results;
  for (const SimulationSettings& settings : settings_of(flags)) {
    const auto result = simulate(*trace, *cost, settings);
    if (!result.ok()) return report(result.error());
    fmt::print(stderr, "{}: {:.0f} s of traffic, {} steps, simulated in {:.2f} s{}\n", name_of(settings),
               result->seconds, result->steps, result->wall_s,
               result->refused > 0 ? fmt::format("; {} requests refused", result->refused) : "");
    results.push_back(*result);
  }
  const std::string text = pretty_json(to_json(*trace, *cost, results));
  if (flags.json_file == "-") {
    fmt::print("{}", text);
    return kExitDone;
  }
  print_table(results);
  if (!flags.json_file.empty()) {
    std::ofstream file(flags.json_file);
    file << text;
    file.close();
    if (!file) return report(unavailable(fmt::format("--json: {} cannot be written", flags.json_file)));
  }
  return kExitDone;
}

void add_simulate_options(CLI::App& app, CLI::Option* simulate, CLI::Option* trace, SimulateFlags& flags) {
  const char* group = "With --simulate";
  const auto add = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->capture_default_str()->group(group)->needs(simulate);
  };
  const auto made_up = [&](const char* name, auto& value, const char* help) {
    return add(name, value, help)->excludes(trace);
  };
  const auto listed = [&](const char* name, auto& value, const char* help) {
    return add(name, value, help)->delimiter(',');
  };
  trace->group(group)->needs(simulate)->check(CLI::ExistingFile);
  add("--write-trace", flags.write_trace, "Write the trace that ran to this file");
  add("--cost", flags.cost, "What a step costs");
  made_up("--prompt-tokens", flags.prompt_tokens, "N, uniform:LOW:HIGH, exp:MEAN or lognormal:MEDIAN:SIGMA");
  made_up("--output-tokens", flags.output_tokens, "The same");
  made_up("--shared-tokens", flags.traffic.shared_tokens, "System prompt that all begin with")
      ->check(CLI::Range(0, 1'000'000));
  made_up("--image-share", flags.traffic.image_share, "Of conversations with a picture")
      ->check(CLI::Range(0.0, 1.0));
  made_up("--image-tokens", flags.traffic.image_tokens, "Soft tokens of a picture")
      ->check(CLI::Range(1, 1120));
  made_up("--images", flags.traffic.n_images, "Different pictures; 0: each is new")
      ->check(CLI::Range(0, 1'000'000));
  made_up("--turns", flags.traffic.turns, "Requests of a conversation")->check(CLI::Range(1, 1000));
  made_up("--think-s", flags.think_s, "Seconds between two turns, as --prompt-tokens");
  listed("--long-prefill-token-threshold", flags.long_prefill_chunk, "No prompt takes more of a step; 0: all")
      ->check(CLI::Range(0, 1'000'000));
  listed("--kv-gib", flags.kv_gib, "Memory for KV pages")->check(CLI::Range(0.01, 1e4));
  listed("--prefix-cache", flags.prefix_cache, "on, off")->check(CLI::IsMember({"on", "off"}));
  add("--swap-gib", flags.swap_gib, "Host memory for preempted pages")->check(CLI::Range(0.0, 1e4));
}

}  // namespace jewel
