// jewel bench: how fast, and with how many joules, requests are answered: in this process or by a server, and
// two of them against each other. --simulate: the scheduler alone, without a device (bench_simulate.cc).

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "backend/create.h"
#include "bench/bench.h"
#include "bench/output.h"
#include "cli/bench_simulate.h"
#include "cli/commands.h"
#include "cli/model_directory.h"
#include "cli/output_files.h"
#include "model/json_text.h"

namespace jewel {
namespace {

struct BenchFlags {
  bool simulate = false;
  SimulateFlags simulation;

  std::string target;  // a directory, a model's name or an address
  std::string url;     // the same as an address
  std::string against;
  ClientOptions client;  // for both, but for their addresses and names
  std::string against_model;
  bool insecure = false;
  EngineOptions engine;

  std::vector<std::string> sets;
  std::vector<int> concurrency;
  std::vector<double> rates;
  BenchPlan plan;
  int requests = 0;
  double temperature = 0;
  bool warm_cache = false;
  bool no_ceilings = false;
  bool no_prefix_caching = false;
  std::string meter = "auto";
  std::vector<int> max_num_seqs;
  std::vector<int> max_num_batched_tokens;

  OutputFiles files;
  bool quiet = false;
};

int wrong_usage(const std::string& what) {
  fmt::print(stderr, "jewel: error: bench: {}\n", what);
  return kExitUsage;
}

// Where something stands: a line that is rewritten on a terminal, else one line for each part.
class Progress {
 public:
  explicit Progress(bool quiet) : quiet_(quiet), terminal_(::isatty(STDERR_FILENO) != 0) {}
  ~Progress() {
    if (!quiet_ && terminal_) fmt::print(stderr, "\r\033[K");
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void operator()(const std::string& what, int ended, int requests) const {
    if (quiet_) return;
    if (!terminal_) {
      if (ended == 0) fmt::print(stderr, "{}\n", line(what, 0, requests));
      return;
    }
    fmt::print(stderr, "\r\033[K{}", line(what, ended, requests));
    std::fflush(stderr);
  }

 private:
  static std::string line(const std::string& what, int ended, int requests) {
    if (requests == 0) return what;
    return ended == 0 ? fmt::format("{}: {} requests", what, requests)
                      : fmt::format("{}: {} of {} requests", what, ended, requests);
  }

  bool quiet_;
  bool terminal_;
};

Result<std::unique_ptr<Target>> open_target(const BenchFlags& flags, const std::string& name,
                                            const std::string& model, double memory_share) {
  if (is_server_address(name)) {
    ClientOptions client = flags.client;
    client.url = name;
    client.model = model;
    client.verify_tls = !flags.insecure;
    return make_server_target(client);
  }
  EngineOptions engine = flags.engine;
  engine.gpu_memory_utilization *= memory_share;
  if (!flags.quiet) engine.progress = loading_progress(name);
  JEWEL_ASSIGN(const std::string directory, model_directory(name, std::string()));
  return make_local_target(directory, engine);
}

Result<std::vector<std::unique_ptr<Target>>> open_targets(const BenchFlags& flags) {
  const bool two_here =
      !flags.against.empty() && !is_server_address(flags.target) && !is_server_address(flags.against);
  std::vector<std::unique_ptr<Target>> targets;
  JEWEL_ASSIGN(auto first,
               open_target(flags, flags.target, flags.client.model, two_here ? kMemoryOfTwo[0] : 1));
  targets.push_back(std::move(first));
  if (!flags.against.empty()) {
    JEWEL_ASSIGN(auto second,
                 open_target(flags, flags.against, flags.against_model, two_here ? kMemoryOfTwo[1] : 1));
    targets.push_back(std::move(second));
  }
  return targets;
}

// What to ask when nothing is said: text, and a picture where the model has eyes.
std::vector<std::string> default_sets(const std::vector<std::unique_ptr<Target>>& targets) {
  std::vector<std::string> sets = {"text:256:128"};
  const auto sees = [](const auto& target) { return target->info().in_process && target->info().has_images; };
  if (std::ranges::all_of(targets, sees)) sets.emplace_back("image:280:64:64");
  return sets;
}

Result<BenchPlan> plan_of(const BenchFlags& flags, const std::vector<std::unique_ptr<Target>>& targets) {
  BenchPlan plan = flags.plan;
  plan.requests = flags.requests;
  plan.seed = flags.simulation.traffic.seed;
  plan.ceilings = !flags.no_ceilings;
  const SetOptions options{
      .seed = plan.seed, .temperature = flags.temperature, .warm_cache = flags.warm_cache};
  for (const std::string& text : flags.sets.empty() ? default_sets(targets) : flags.sets) {
    JEWEL_ASSIGN(RequestSet set, RequestSet::parse(text, options));
    plan.sets.push_back(std::move(set));
  }
  for (const int concurrency : flags.concurrency) plan.loads.push_back({.concurrency = concurrency});
  for (const double rate : flags.rates) plan.loads.push_back({.rate = rate});
  if (plan.loads.empty()) plan.loads.push_back({.concurrency = 1});
  return plan;
}

// A server elsewhere has its own joules; a meter here would measure this machine's idling.
FoundCounter counter_of(const BenchFlags& flags, const std::vector<std::unique_ptr<Target>>& targets) {
  if (flags.meter == "auto") {
    for (const auto& target : targets) {
      if (!target->info().on_this_machine) {
        return {.counter = nullptr,
                .why = fmt::format("{} is another machine, and its meter is not ours to read",
                                   target->info().name)};
      }
    }
  }
  const auto gpu = cuda_index(flags.engine.device);
  CounterWish wish{.which = flags.meter, .on_gpu = {}, .cuda_index = gpu.ok() ? *gpu : 0};
  if (targets.front()->info().in_process) wish.on_gpu = targets.front()->info().where.starts_with("cuda");
  return find_counter(wish);
}

Result<void> write_files(const BenchFlags& flags, const BenchResult& result) {
  const ResultFile file = result_file(result);
  const std::string json = pretty_json(as_json(file));
  if (flags.files.json_to_stdout())
    fmt::print("{}", json);
  else
    fmt::print("{}", table_text(result));
  JEWEL_TRY(write_output_file("--json", flags.files.json, json));
  if (!flags.files.csv.empty()) JEWEL_TRY(write_output_file("--csv", flags.files.csv, as_csv(file)));
  if (!flags.files.html.empty())
    JEWEL_TRY(write_output_file("--html", flags.files.html, html_text(result, file)));
  return {};
}

int measure(BenchFlags& flags) {
  if (!flags.url.empty()) {
    if (flags.target.empty())
      flags.target = flags.url;
    else if (flags.against.empty())
      flags.against = flags.url;
    else
      return wrong_usage("MODEL, --against and --url are three; at most two are compared");
  }
  if (flags.target.empty())
    return wrong_usage("found no model; give a directory, a model's name, --url of a server, or --simulate");
  if (flags.max_num_seqs.size() > 1 || flags.max_num_batched_tokens.size() > 1)
    return wrong_usage("--max-num-seqs and --max-num-batched-tokens take one value without --simulate");
  for (const std::string& set : flags.sets) {  // before a model is loaded for it
    if (const auto parsed = RequestSet::parse(set, {}); !parsed.ok()) return report(parsed.error());
  }
  if (const auto files = check_output_files(flags.files); !files.ok()) return report(files.error());
  int most = 0;
  for (const int concurrency : flags.concurrency) most = std::max(most, concurrency);
  flags.engine.max_num_seqs = flags.max_num_seqs.empty() ? most : flags.max_num_seqs.front();
  if (!flags.max_num_batched_tokens.empty())
    flags.engine.max_num_batched_tokens = flags.max_num_batched_tokens.front();
  flags.engine.prefix_caching = !flags.no_prefix_caching;
  flags.engine.max_waiting = 1 << 20;
  if (flags.meter == "none") flags.engine.meter = "none";
  const auto targets = open_targets(flags);
  if (!targets.ok()) return report(targets.error());
  auto plan = plan_of(flags, *targets);
  if (!plan.ok()) return report(plan.error());
  Result<BenchResult> result = [&] {
    const Progress progress(flags.quiet);
    return run_bench(*targets, std::move(plan).value(), counter_of(flags, *targets), std::cref(progress));
  }();
  if (!result.ok()) return report(result.error());
  if (const auto written = write_files(flags, *result); !written.ok()) return report(written.error());
  return result->failed() > 0 ? kExitError : kExitDone;
}

int simulate(BenchFlags& flags) {
  SimulateFlags& simulation = flags.simulation;
  if (!flags.target.empty() || !flags.url.empty())
    return wrong_usage("--simulate measures no model; leave out the model, or --simulate");
  if (flags.rates.size() > 1 || flags.concurrency.size() > 1)
    return wrong_usage("--simulate takes one --rate or one --concurrency");
  simulation.json_file = flags.files.json;
  if (flags.requests > 0) simulation.traffic.requests = flags.requests;
  if (!flags.rates.empty()) simulation.traffic.rate = flags.rates.front();
  simulation.traffic.concurrency = flags.concurrency.empty() ? 0 : flags.concurrency.front();
  if (simulation.traffic.rate <= 0 && simulation.traffic.concurrency <= 0)
    simulation.traffic.concurrency = 32;
  if (!flags.max_num_seqs.empty()) simulation.max_num_seqs = flags.max_num_seqs;
  if (!flags.max_num_batched_tokens.empty()) simulation.max_num_batched_tokens = flags.max_num_batched_tokens;
  return simulate_bench(simulation);
}

void add_engine_options(CLI::App& app, EngineOptions& engine, BenchFlags& flags) {
  const char* group = "Engine in this process (as of jewel serve)";
  const auto add = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->capture_default_str()->group(group);
  };
  add("--device", engine.device, "auto, cpu, cuda, cuda:N");
  add("--dtype", engine.dtype, "auto, bfloat16, float32 (CPU)");
  add("--kv-cache-dtype", engine.kv_cache_dtype, "auto, bfloat16, fp8, float32 (CPU)");
  add("--threads", engine.n_threads, "Of the CPU; 0: all cores")->check(CLI::Range(0, 1024));
  add("--max-num-seqs", flags.max_num_seqs, "Computed at once; the highest --concurrency when not given")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  add("--max-num-batched-tokens", flags.max_num_batched_tokens, "Of one step (2048)")
      ->delimiter(',')
      ->check(CLI::Range(16, 1'000'000));
  add("--max-model-len", engine.max_model_len, "Prompt and answer; 0: the model's")
      ->check(CLI::Range(0, 1 << 20));
  add("--gpu-memory-utilization", engine.gpu_memory_utilization, "Share of the card")
      ->check(CLI::Range(0.05, 1.0));
  add("--lm-head-dtype", engine.lm_head_dtype, "GPU: auto, fp8");
  add("--prefill-activations", engine.prefill_activations, "GPU: auto, bf16, fp8");
  app.add_flag("--no-prefix-caching", flags.no_prefix_caching, "Compute every prompt whole")->group(group);
}

void add_measuring_options(CLI::App& app, BenchFlags& flags) {
  const char* group = "What is asked";
  app.add_option("--set", flags.sets,
                 "text:IN:OUT, image:BUDGET:IN:OUT or FILE.jsonl; several by commas "
                 "(text:256:128, and image:280:64:64 where the model sees)")
      ->delimiter(',')
      ->group(group);
  CLI::Option* rate = app.add_option("--rate", flags.rates, "Requests a second, Poisson; several by commas")
                          ->delimiter(',')
                          ->check(CLI::Range(1e-6, 1e6))
                          ->group(group);
  app.add_option("--concurrency", flags.concurrency, "Instead: requests at once (1); several by commas")
      ->delimiter(',')
      ->check(CLI::Range(1, 1'000'000))
      ->excludes(rate)
      ->group(group);
  app.add_option("--requests", flags.requests, "Of a run; when not given: as many as fill --seconds")
      ->check(CLI::Range(1, 10'000'000))
      ->group(group);
  app.add_option("--seconds", flags.plan.seconds, "About how long a run takes")
      ->capture_default_str()
      ->check(CLI::Range(0.01, 86400.0))
      ->group(group);
  app.add_option("--runs", flags.plan.runs, "Of each set and load, on each target")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000))
      ->group(group);
  app.add_option("--warmup", flags.plan.warmup,
                 "Requests before the first run (twice what is under way at once)")
      ->check(CLI::Range(1, 1'000'000))
      ->group(group);
  app.add_option("--seed", flags.simulation.traffic.seed, "Of what is made up, and of arrivals")
      ->capture_default_str()
      ->group(group);
  app.add_option("--temperature", flags.temperature, "Of requests that name none")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 2.0))
      ->group(group);
  app.add_flag("--warm-cache", flags.warm_cache,
               "A file's prompts may be found in the prefix cache by later runs")
      ->group(group);
}

}  // namespace

Command add_bench_command(CLI::App& app) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* bench =
      app.add_subcommand("bench", "Measures speed and joules: in process, of a server, A against B");
  bench->footer(
      "Examples:\n"
      "  jewel bench models/jewel-demo\n"
      "  jewel bench models/jewel-demo --set text:512:128,image:280:64:64 --concurrency 1,4 --html "
      "bench.html\n"
      "  jewel bench --url http://localhost:8000/v1 --rate 2,4,8 --set monday.jsonl --json result.json\n"
      "  jewel bench e4b-fp8 --against e4b-bf16                       two models, A B B A\n"
      "  jewel bench --url http://a:8000/v1 --against http://b:8000/v1    two servers\n"
      "  jewel bench --simulate --rate 40 --max-num-seqs 16,32,64     the scheduler alone, by a model of its "
      "cost\n"
      "\n"
      "A line of FILE.jsonl is an OpenAI chat body, or {\"prompt\": \"…\", \"image\": \"cat.jpg\", "
      "\"max_tokens\": 64}.\n"
      "docs/bench.md says what each figure means, and how --simulate takes traces and costs.");
  bench->add_option("MODEL", flags->target, kModelHelp);
  bench->add_option("--against", flags->against, "Compare with this one: a model or a server's address");
  add_output_options(*bench, flags->files);
  bench->add_flag("-q,--quiet", flags->quiet, "No progress on stderr");
  bench->add_option("--meter", flags->meter, "Of joules: auto, none, nvml, rapl")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "none", "nvml", "rapl"}));
  bench->add_flag("--no-ceilings", flags->no_ceilings,
                  "Do not measure what the device can read and multiply");
  CLI::Option* simulate_flag = bench->add_flag("--simulate", flags->simulate,
                                               "Run the scheduler over a model of a step's cost instead");
  add_measuring_options(*bench, *flags);

  const char* group = "Server";
  bench->add_option("--url", flags->url, "Address of an OpenAI server: http://host:8000/v1, unix:/path")
      ->group(group);
  bench->add_option("--model", flags->client.model, "Its name there (the first that it lists)")->group(group);
  bench->add_option("--against-model", flags->against_model, "The same for --against")->group(group);
  bench->add_option("--api-key", flags->client.api_key, "Key of the server")
      ->envname("OPENAI_API_KEY")
      ->group(group);
  bench->add_option("--ca-file", flags->client.ca_file, "PEM file of authorities for https")->group(group);
  bench->add_flag("--insecure", flags->insecure, "Do not check the server's certificate")->group(group);

  add_engine_options(*bench, flags->engine, *flags);
  CLI::Option* trace = bench->add_option("--trace", flags->simulation.trace, "Recorded trace (JSONL)");
  for (const char* made_up : {"--rate", "--concurrency", "--requests", "--seed"})
    trace->excludes(bench->get_option(made_up));
  add_simulate_options(*bench, simulate_flag, trace, flags->simulation);
  return [flags] { return flags->simulate ? simulate(*flags) : measure(*flags); };
}

}  // namespace jewel
