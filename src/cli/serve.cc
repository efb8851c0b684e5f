// jewel serve MODEL: the OpenAI API over HTTP, with vLLM's flags and files.

#include <fmt/format.h>
#include <semaphore.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <thread>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/model_directory.h"
#include "hub/http.h"
#include "hub/hub.h"
#include "model/json_reader.h"
#include "server/flags.h"
#include "server/http/http_server.h"
#include "server/openai/api_server.h"
#include "server/openai/field_reader.h"
#include "server/openai/stats_log.h"
#include "server/serve_options.h"
#include "server/settings.h"
#include "text/text_file.h"

namespace jewel {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kUsage =
    "Usage: jewel serve MODEL [--config FILE.yaml] [FLAGS]\n"
    "\n"
    "Serves MODEL (a directory or a name such as google/gemma-4-E4B-it) through the OpenAI API.\n"
    "Flags and files are vLLM's: --flag value, --flag=value, --no-flag, - and _ alike; the command line wins "
    "over\n"
    "the file. --check-config says for each setting what it does here, and stops.\n"
    "\n";

constexpr size_t kMaxTemplateBytes = size_t{4} << 20;
constexpr int kImagesWithoutLimit = 128;  // where no limit was asked for, memory still has one

// Signals. Before the server is up one ends the process, afterwards the first drains and the second stops.
sem_t something_happened;
std::atomic<int> signals_seen{0};
std::atomic<bool> is_serving{false};

extern "C" void on_signal(int number) {
  if (!is_serving) ::_exit(128 + number);
  ++signals_seen;
  ::sem_post(&something_happened);
}

void wait_for_something() {
  while (::sem_wait(&something_happened) != 0) {  // interrupted: by a signal that posted, or by another
  }
}

void catch_signals() {
  ::sem_init(&something_happened, 0, 0);
  struct sigaction action{};
  action.sa_handler = on_signal;
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGINT, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // NOLINT(cert-err33-c): it cannot fail
}

// What the options name, found on disk or brought from the hub.
struct ModelFiles {
  std::string directory;
  std::string tokenizer;      // a directory; empty: the model's
  std::string chat_template;  // its text; empty: the tokenizer's
};

// A file, or the template itself: no file's name has braces or lines.
Result<std::string> template_text(const std::string& path_or_text) {
  std::error_code error;
  if (std::filesystem::is_regular_file(path_or_text, error))
    return read_text_file(path_or_text, kMaxTemplateBytes);
  if (path_or_text.find_first_of("{}\n") != std::string::npos) return path_or_text;
  return not_found(
      fmt::format("--chat-template: found '{}', expected a file, or the text of a template", path_or_text));
}

Result<ModelFiles> find_files(const ServeOptions& options) {
  HubOptions hub = HubOptions::from_environment();
  if (options.revision) hub.revision = *options.revision;
  if (options.download_dir) hub.cache_root = *options.download_dir;
  ModelFiles files;
  if (options.chat_template) {
    JEWEL_ASSIGN(files.chat_template, template_text(*options.chat_template));
  }
  JEWEL_ASSIGN(files.directory, model_directory(options.model, hub));
  if (options.tokenizer && *options.tokenizer != options.model) {
    hub.revision = "main";
    auto found = model_directory(*options.tokenizer, hub, ModelPart::kWithoutWeights);
    if (!found.ok()) {
      Error error = std::move(found).error();
      error.message = "--tokenizer: " + error.message;
      return error;
    }
    files.tokenizer = *std::move(found);
  }
  return files;
}

EngineOptions engine_options(const ServeOptions& options, const ModelFiles& files) {
  EngineOptions engine;
  engine.tokenizer = files.tokenizer;
  engine.chat_template = files.chat_template;
  engine.generation_config = options.generation_config;
  engine.lm_head_dtype = options.lm_head_dtype;
  engine.ple = options.ple;
  engine.prefill_activations = options.prefill_activations;
  engine.device = options.device;
  engine.dtype = options.dtype;
  engine.kv_cache_dtype = options.kv_cache_dtype;
  engine.n_threads = options.threads.value_or(0);
  engine.max_num_seqs = options.max_num_seqs.value_or(0);
  engine.max_num_batched_tokens = options.max_num_batched_tokens;
  engine.max_model_len = options.max_model_len.value_or(0);
  engine.gpu_memory_utilization = options.gpu_memory_utilization;
  if (options.kv_cache_memory_bytes)
    engine.kv_cache_gib = static_cast<double>(*options.kv_cache_memory_bytes) / (int64_t{1} << 30);
  engine.prefix_caching = options.enable_prefix_caching;
  engine.exact_prefix = options.exact_prefix;
  engine.prefix_cache_gib = options.prefix_cache_gib;
  engine.max_waiting = options.max_num_queued_reqs;
  engine.meter = options.meter;
  engine.max_images = options.max_images.value_or(kImagesWithoutLimit);
  engine.idle_release_s = options.idle_release_s.value_or(kIdleReleaseAuto);
  return engine;
}

Result<AskDefaults> ask_defaults(const ServeOptions& options) {
  AskDefaults defaults{.model_names = options.served_model_names,
                       .seed = options.seed,
                       .template_kwargs = options.default_chat_template_kwargs,
                       .max_logprobs = options.max_logprobs,
                       .force_include_usage = options.force_include_usage,
                       .tokens_as_ids = options.tokens_as_token_ids,
                       .request_timeout_s = options.request_timeout_s};
  if (options.image_budget)
    defaults.max_soft_tokens =
        options.image_budget->automatic ? kAutoSoftTokens : options.image_budget->max_soft_tokens;
  FieldReader fields(options.override_generation_config, "override-generation-config");
  read_sampling(fields, defaults.sampling);
  defaults.max_tokens = fields.count("max_new_tokens", 1);
  if (fields.failed()) return fields.error();
  for (const std::string& name : fields.unknown()) log().warn("{}: unknown, ignored", name);
  return defaults;
}

bool is_zero(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && (std::string_view(value) == "0" || std::string_view(value) == "false");
}

// Where pictures may come from. vLLM's two variables of the environment are obeyed.
Result<ImageRules> image_rules(const ServeOptions& options) {
  ImageRules rules;
  rules.hosts = options.allowed_media_domains;
  rules.max_images = options.max_images.value_or(kImagesWithoutLimit);
  rules.can_fetch = http_works();
  if (is_zero("VLLM_MEDIA_URL_ALLOW_REDIRECTS")) rules.max_redirects = 0;
  if (const char* seconds = std::getenv("VLLM_IMAGE_FETCH_TIMEOUT")) {
    const std::string_view text(seconds);
    const auto read = std::from_chars(text.data(), text.data() + text.size(), rules.timeout_s);
    if (read.ec != std::errc() || read.ptr != text.data() + text.size() || rules.timeout_s < 1) {
      return invalid(fmt::format("VLLM_IMAGE_FETCH_TIMEOUT: found '{}', expected seconds, 1 or more", text));
    }
    rules.connect_timeout_s = std::min(rules.connect_timeout_s, rules.timeout_s);
  }
  if (options.allowed_local_media_path) {
    std::error_code error;
    const auto directory = std::filesystem::canonical(*options.allowed_local_media_path, error);
    if (error || !std::filesystem::is_directory(directory, error)) {
      return invalid(fmt::format("--allowed-local-media-path {}: not a directory that can be read",
                                 *options.allowed_local_media_path));
    }
    rules.local_directory = directory.string();
  }
  return rules;
}

HttpOptions http_options(const ServeOptions& options) {
  HttpOptions http;
  http.host = options.host;
  http.port = options.port;
  http.uds = options.uds;
  http.tls = {.keyfile = options.tls.keyfile,
              .certfile = options.tls.certfile,
              .ca_certs = options.tls.ca_certs,
              .cert_reqs = options.tls.cert_reqs};
  http.max_connections = options.max_connections;
  return http;
}

// Returns when the server has stopped; the first signal lets requests finish, the second does not.
void run_until_signalled(HttpServer& server, ApiServer& api, double drain_timeout_s) {
  while (signals_seen == 0) wait_for_something();
  log().info("shutting down: requests under way get {} s", drain_timeout_s);
  api.set_draining();
  std::atomic<bool> drained{false};
  std::thread drain([&] {
    const std::chrono::milliseconds limit(static_cast<int64_t>(drain_timeout_s * 1000));
    if (!server.drain(limit)) log().warn("some requests did not end in time and were ended");
    drained = true;
    ::sem_post(&something_happened);
  });
  while (!drained) {
    wait_for_something();
    if (signals_seen > 1) server.stop_now();
  }
  drain.join();
}

// vLLM's variable of the environment.
Result<std::chrono::milliseconds> stats_interval() {
  double seconds = 10;
  if (const char* text = std::getenv("VLLM_LOG_STATS_INTERVAL")) {
    char* end = nullptr;
    seconds = std::strtod(text, &end);
    if (end == text || *end != '\0' || !(seconds >= 0.1 && seconds <= 86400)) {
      return invalid(
          fmt::format("VLLM_LOG_STATS_INTERVAL: found '{}', expected seconds, 0.1 to 86400", text));
    }
  }
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

void say_ready(const std::string& model, const std::string& address, double seconds, const ModelInfo& info) {
  if (log_is_json()) {
    log_event("serving", {{"model", model},
                          {"address", address},
                          {"ready_after_s", seconds},
                          {"backend", info.backend},
                          {"energy_method", info.energy_method},
                          {"energy_device", info.energy_device},
                          {"why_no_energy", info.why_no_energy}});
    return;
  }
  const std::string joules = info.energy_method == "none"
                                 ? fmt::format("not measured; {}", info.why_no_energy)
                                 : fmt::format("{}, {}", info.energy_method, info.energy_device);
  fmt::print(stderr, "jewel: serving {} at {}, ready after {:.2f} s on {}; joules: {}\n", model, address,
             seconds, info.backend, joules);
}

int wrong_usage(const Error& error) {
  report(error);
  return kExitUsage;
}

int serve_model(const ServeOptions& options, Clock::time_point start) {
  catch_signals();
  if (!set_log_level(options.log_level)) log().warn("--log-level {}: unknown", options.log_level);
  for (const std::string& warning : options.warnings) log().warn("{}", warning);
  auto defaults = ask_defaults(options);
  if (!defaults.ok()) return wrong_usage(defaults.error());
  auto images = image_rules(options);
  if (!images.ok()) return wrong_usage(images.error());
  const auto interval = stats_interval();
  if (!interval.ok()) return wrong_usage(interval.error());

  const auto files = find_files(options);
  if (!files.ok()) return report(files.error());
  EngineOptions how = engine_options(options, *files);
  how.max_new_tokens = defaults->max_tokens.value_or(0);
  how.progress = loading_progress(options.model);
  auto engine = Engine::load(files->directory, how);
  if (!engine.ok()) return report(engine.error());
  const ModelInfo& info = (*engine)->info();
  for (const std::string& note : info.notes) log().info("{}", note);
  if (options.max_logprobs > info.max_logprobs) {
    log().warn("--max-logprobs {}: {} is what {} can give", options.max_logprobs, info.max_logprobs,
               info.backend);
    defaults->max_logprobs = info.max_logprobs;
  }

  ApiServer api(**engine, {.defaults = *std::move(defaults),
                           .model_root = options.model,
                           .api_keys = options.api_keys,
                           .protect_all = options.protect_all,
                           .root_path = options.root_path,
                           .max_body_bytes = static_cast<size_t>(options.max_body_bytes),
                           .log_requests = options.log_requests,
                           .images = *std::move(images),
                           .cors = {.origins = options.cors.origins,
                                    .methods = options.cors.methods,
                                    .headers = options.cors.headers,
                                    .credentials = options.cors.credentials},
                           .max_requests_per_client = options.max_requests_per_client});
  auto server = HttpServer::start(http_options(options), api);
  if (!server.ok()) return report(server.error());
  is_serving = true;
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  say_ready(options.served_model_names.front(), (*server)->address(), seconds, (*engine)->info());
  // A GPU needs some milliseconds for them; the first deep check of a CPU takes them itself.
  if (!(*engine)->info().backend.starts_with("cpu")) api.take_golden_answers();
  std::optional<StatsLog> stats;
  if (options.log_stats) stats.emplace([&] { return (*engine)->stats(); }, *interval);
  run_until_signalled(**server, api, options.drain_timeout_s);
  return kExitDone;
}

}  // namespace

void add_serve_command(CLI::App& app) {
  app.add_subcommand("serve", "Serve a model through the OpenAI API (vLLM's flags and files)");
}

int serve(const std::vector<std::string>& arguments) {
  const auto start = Clock::now();
  const auto settings = Settings::read(arguments);
  if (!settings.ok()) return wrong_usage(settings.error());
  set_log_json(settings->text("log-format") == "json");  // for mistakes in other settings too
  if (settings->help) {
    fmt::print("{}{}", kUsage, flags_help());
    return kExitDone;
  }
  if (settings->check_config) {
    const ConfigReport checked = check_config(*settings);
    fmt::print("{}", checked.text);
    return checked.good ? kExitDone : kExitUsage;
  }
  const auto options = serve_options(*settings);
  if (!options.ok()) return wrong_usage(options.error());
  return serve_model(*options, start);
}

}  // namespace jewel
