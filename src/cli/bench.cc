// jewel bench --simulate: scheduling settings compared over a trace, in seconds, without a device.

#include <fmt/format.h>
#include <sys/utsname.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <ctime>
#include <fstream>

#include "base/threads.h"
#include "cli/commands.h"
#include "engine/simulator/simulator.h"
#include "model/json_text.h"

namespace jewel {

namespace json = boost::json;

namespace {

struct BenchFlags {
  bool simulate = false;
  std::string trace;
  std::string write_trace;
  std::string json_file;
  std::string cost = "h200";
  SyntheticTraffic traffic;
  std::string prompt_tokens = "lognormal:350:0.8";
  std::string output_tokens = "lognormal:128:0.6";
  std::string think_s = "exp:5";
  std::vector<int> max_num_seqs = {32};
  std::vector<int> max_num_batched_tokens = {2048};
  std::vector<int> long_prefill_chunk = {0};
  std::vector<double> kv_gib = {8};
  std::vector<std::string> prefix_cache = {"on"};
  double swap_gib = 4;
};

// Every combination of the listed settings.
std::vector<SimulationSettings> settings_of(const BenchFlags& flags) {
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

Result<Trace> trace_of(BenchFlags& flags) {
  if (!flags.trace.empty()) return read_trace(flags.trace);
  JEWEL_ASSIGN(flags.traffic.prompt_tokens, parse_lengths("--prompt-tokens", flags.prompt_tokens));
  JEWEL_ASSIGN(flags.traffic.output_tokens, parse_lengths("--output-tokens", flags.output_tokens));
  JEWEL_ASSIGN(flags.traffic.think_s, parse_lengths("--think-s", flags.think_s));
  if (flags.traffic.rate <= 0 && flags.traffic.concurrency <= 0) flags.traffic.concurrency = 32;
  return synthetic_trace(flags.traffic);
}

int bench(BenchFlags flags) {
  if (!flags.simulate) {
    fmt::print(stderr, "jewel: error: bench: found no --simulate, which is what it can do; add it\n");
    return kExitUsage;
  }
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

}  // namespace

Command add_bench_command(CLI::App& app) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* bench_app =
      app.add_subcommand("bench", "Compares scheduling settings over a trace, without a device (--simulate)");
  bench_app->footer(
      "The scheduler is the one that serves; only the arithmetic is replaced by a model of its cost, and "
      "time is\n"
      "a number. Options that take a list (--max-num-seqs 16,32) run every combination. --cost takes a "
      "preset\n"
      "(h200: budgets of E4B in FP8 on an H200; cpu-2-cores: measured on 2 Zen 4 cores), numbers, or both:\n"
      "fixed_ms, row_us, token_us, image_ms, context_ns, copy_gb_s, host_us.\n"
      "\n"
      "Trace, one JSON object a line; prompts are lists of parts:\n"
      "  {\"arrival_s\": 0.25, \"id\": \"a/1\", \"max_tokens\": 128,\n"
      "   \"prompt\": [{\"shared\": \"system\", \"tokens\": 200}, {\"image\": \"cat\", \"tokens\": 256}, "
      "{\"tokens\": 40}]}\n"
      "  {\"arrival_s\": 4.0, \"after\": \"a/1\", \"max_tokens\": 128,\n"
      "   \"prompt\": [{\"history\": \"a/1\"}, {\"tokens\": 30}]}      4 s after the end of a/1\n"
      "\n"
      "Examples:\n"
      "  jewel bench --simulate --rate 40 --max-num-seqs 16,32,64\n"
      "  jewel bench --simulate --concurrency 64 --shared-tokens 800 --turns 6 --kv-gib 1,2,4 --prefix-cache "
      "on,off\n"
      "  jewel bench --simulate --trace monday.jsonl --cost h200,row_us=20 --json result.json");
  bench_app->add_flag("--simulate", flags->simulate, "Simulate");
  CLI::Option* trace =
      bench_app->add_option("--trace", flags->trace, "Recorded trace (JSONL)")->check(CLI::ExistingFile);
  bench_app->add_option("--write-trace", flags->write_trace, "Write the trace that ran to this file");
  bench_app->add_option("--cost", flags->cost, "What a step costs")->capture_default_str();
  bench_app->add_option("--json", flags->json_file, "Write the figures to this file; - prints them instead");

  const char* group = "Made-up traffic";
  const auto made_up = [&](const char* name, auto& value, const char* help) {
    return bench_app->add_option(name, value, help)->capture_default_str()->group(group)->excludes(trace);
  };
  made_up("--requests", flags->traffic.requests, "How many")->check(CLI::Range(1, 10'000'000));
  CLI::Option* rate =
      made_up("--rate", flags->traffic.rate, "Conversations a second, Poisson")->check(CLI::Range(0.0, 1e6));
  made_up("--concurrency", flags->traffic.concurrency,
          "Instead: clients, one conversation after the other (32)")
      ->check(CLI::Range(0, 1'000'000))
      ->excludes(rate);
  made_up("--prompt-tokens", flags->prompt_tokens, "N, uniform:LOW:HIGH, exp:MEAN or lognormal:MEDIAN:SIGMA");
  made_up("--output-tokens", flags->output_tokens, "The same");
  made_up("--shared-tokens", flags->traffic.shared_tokens, "System prompt that all begin with")
      ->check(CLI::Range(0, 1'000'000));
  made_up("--image-share", flags->traffic.image_share, "Of conversations with a picture")
      ->check(CLI::Range(0.0, 1.0));
  made_up("--image-tokens", flags->traffic.image_tokens, "Soft tokens of a picture")
      ->check(CLI::Range(1, 1120));
  made_up("--images", flags->traffic.n_images, "Different pictures; 0: each is new")
      ->check(CLI::Range(0, 1'000'000));
  made_up("--turns", flags->traffic.turns, "Requests of a conversation")->check(CLI::Range(1, 1000));
  made_up("--think-s", flags->think_s, "Seconds between two turns, as --prompt-tokens");
  made_up("--seed", flags->traffic.seed, "Of the made-up traffic");

  group = "Settings to compare (lists)";
  const auto listed = [&](const char* name, auto& value, const char* help) {
    return bench_app->add_option(name, value, help)->delimiter(',')->capture_default_str()->group(group);
  };
  listed("--max-num-seqs", flags->max_num_seqs, "Sequences in a step")->check(CLI::Range(1, 4096));
  listed("--max-num-batched-tokens", flags->max_num_batched_tokens, "Tokens in a step")
      ->check(CLI::Range(16, 1'000'000));
  listed("--long-prefill-token-threshold", flags->long_prefill_chunk,
         "No prompt takes more of a step; 0: all")
      ->check(CLI::Range(0, 1'000'000));
  listed("--kv-gib", flags->kv_gib, "Memory for KV pages")->check(CLI::Range(0.01, 1e4));
  listed("--prefix-cache", flags->prefix_cache, "on, off")->check(CLI::IsMember({"on", "off"}));
  bench_app->add_option("--swap-gib", flags->swap_gib, "Host memory for preempted pages")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e4))
      ->group("Settings");
  return [flags] { return bench(*flags); };
}

}  // namespace jewel
