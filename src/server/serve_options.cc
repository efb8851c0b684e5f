#include "server/serve_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <sstream>

#include "model/json_reader.h"
#include "model/json_text.h"

namespace jewel {
namespace {

// Reads settings into fields; collects mistakes instead of stopping at the first.
class Reader {
 public:
  explicit Reader(const Settings& settings) : settings_(settings) {}

  std::vector<std::string> mistakes;

  void flag(std::string_view name, bool& out) const { out = settings_.boolean(name).value_or(out); }
  void text(std::string_view name, std::string& out) const { out = settings_.text(name).value_or(out); }
  void text(std::string_view name, std::optional<std::string>& out) const { out = settings_.text(name); }

  void choice(std::string_view name, std::string& out, std::initializer_list<std::string_view> words) {
    const std::optional<std::string> word = settings_.text(name);
    if (!word) return;
    if (std::ranges::find(words, *word) == words.end()) {
      wrong(name, fmt::format("found '{}', expected one of {}", *word, fmt::join(words, ", ")));
    } else {
      out = *word;
    }
  }

  template <typename T>
  void integer(std::string_view name, T& out, int64_t min, int64_t max) {
    if (const auto value = ranged(name, min, max)) out = static_cast<T>(*value);
  }
  template <typename T>
  void integer(std::string_view name, std::optional<T>& out, int64_t min, int64_t max) {
    if (const auto value = ranged(name, min, max)) out = static_cast<T>(*value);
  }

  void number(std::string_view name, double& out, double min, double max) {
    const std::optional<double> value = settings_.number(name);
    if (!value) return;
    if (!(*value >= min && *value <= max)) {
      wrong(name, fmt::format("found {}, expected {} to {}", *value, min, max));
    } else {
      out = *value;
    }
  }

  void object(std::string_view name, boost::json::object& out) {
    const boost::json::value* value = settings_.json(name);
    if (!value) return;
    if (value->is_object())
      out = value->get_object();
    else
      wrong(name, fmt::format("found {}, expected a map", describe(*value)));
  }

  void words(std::string_view name, std::vector<std::string>& out) {
    const boost::json::value* value = settings_.json(name);
    if (!value) return;
    const auto* array = value->if_array();
    if (!array || !std::ranges::all_of(*array, [](const auto& item) { return item.is_string(); })) {
      wrong(name, fmt::format(R"(found {}, expected a list as ["*"])", json_line(*value)));
      return;
    }
    out.clear();
    for (const boost::json::value& item : *array) out.emplace_back(item.get_string());
  }

  void wrong(std::string_view name, const std::string& what) {
    const Setting* setting = settings_.find(name);
    mistakes.push_back(setting ? fmt::format("{} ({}): {}", setting->name, setting->origin, what)
                               : fmt::format("--{}: {}", name, what));
  }

 private:
  std::optional<int64_t> ranged(std::string_view name, int64_t min, int64_t max) {
    const std::optional<int64_t> value = settings_.integer(name);
    if (!value) return std::nullopt;
    if (*value < min || *value > max) {
      wrong(name, fmt::format("found {}, expected {} to {}", *value, min, max));
      return std::nullopt;
    }
    return value;
  }

  const Settings& settings_;
};

std::string shown(const boost::json::value& value) {
  if (value.is_string()) return std::string(value.get_string());
  return value.is_null() ? "null" : json_line(value);
}

// Keys stay secret.
std::string shown(const Setting& setting) {
  return setting.flag && setting.flag->name == "api-key" ? "(hidden)" : shown(setting.value);
}

std::string unknown_key(const Setting& setting) {
  const size_t dashes = setting.name.find_first_not_of('-');
  const std::string_view guess = dashes == std::string::npos
                                     ? std::string_view()
                                     : closest_flag(std::string_view(setting.name).substr(dashes));
  return guess.empty() ? "unknown to Jewel and to vLLM" : fmt::format("unknown; did you mean {}?", guess);
}

bool asks_for_default(const Setting& setting) {
  return setting.value.is_null() || shown(setting.value) == setting.flag->only ||
         (setting.value.is_string() && setting.value.get_string().empty());
}

// What is wrong with a setting by itself; empty when nothing is.
std::string mistake(const Setting& setting) {
  if (!setting.flag) return unknown_key(setting);
  if (!setting.problem.empty()) return setting.problem;
  if (setting.flag->use == FlagUse::kOnlyDefault && !asks_for_default(setting)) {
    return fmt::format("found {}, only {} is possible: {}", shown(setting.value), setting.flag->only,
                       setting.flag->note);
  }
  return {};
}

void read_image_limits(const Settings& settings, Reader& reader, ServeOptions& options) {
  if (settings.boolean("language-model-only").value_or(false)) options.max_images = 0;
  boost::json::object limits;
  reader.object("limit-mm-per-prompt", limits);
  for (const auto& [key, value] : limits) {
    const auto* object = value.if_object();
    const boost::json::value* count = object ? object->if_contains("count") : &value;
    if (object && !count) continue;  // sizes alone set no limit
    const auto* number = count->if_int64();
    if (!number || *number < 0 || *number > std::numeric_limits<int>::max()) {
      reader.wrong("limit-mm-per-prompt", fmt::format("{}: found {}, expected a number >= 0",
                                                      std::string_view(key), json_line(*count)));
    } else if (key == "image") {
      options.max_images = static_cast<int>(*number);
    } else if (key != "audio" && key != "video") {
      reader.wrong("limit-mm-per-prompt",
                   fmt::format("found '{}', expected image, audio or video", std::string_view(key)));
    }
  }
}

void read_image_budget(Reader& reader, ServeOptions& options) {
  boost::json::object kwargs;
  reader.object("mm-processor-kwargs", kwargs);
  for (const auto& [key, value] : kwargs) {
    constexpr auto kBudgets = std::to_array<int64_t>({70, 140, 280, 560, 1120});
    const int64_t* number = value.if_int64();
    if (key != "max_soft_tokens") {
      options.warnings.push_back(fmt::format("mm-processor-kwargs: '{}' is ignored; max_soft_tokens is known",
                                             std::string_view(key)));
    } else if (value.is_string() && value.get_string() == "auto") {
      options.image_budget = ImageBudget{.automatic = true};
    } else if (number && std::ranges::find(kBudgets, *number) != kBudgets.end()) {
      options.image_budget = ImageBudget{.max_soft_tokens = static_cast<int>(*number)};
    } else {
      reader.wrong("mm-processor-kwargs", fmt::format("max_soft_tokens: found {}, expected {} or \"auto\"",
                                                      json_line(value), fmt::join(kBudgets, ", ")));
    }
  }
}

void read_model(const Settings& settings, Reader& reader, ServeOptions& options) {
  options.model = settings.model_argument.value_or(settings.text("model").value_or(""));
  if (options.model.empty()) {
    reader.mistakes.emplace_back(
        "no model: name a directory or a model, as in 'jewel serve models/jewel-demo'");
  }
  for (const std::string& extra : settings.extra_arguments) {
    reader.mistakes.push_back(
        fmt::format("'{}' (command line): one model is served, and it is '{}'", extra, options.model));
  }
  options.served_model_names = settings.texts("served-model-name");
  if (options.served_model_names.empty()) options.served_model_names = {options.model};
  reader.text("tokenizer", options.tokenizer);
  reader.text("revision", options.revision);
  reader.text("download-dir", options.download_dir);
  if (const auto dtype = settings.text("dtype"); dtype == "half" || dtype == "float16") {
    reader.wrong("dtype",
                 fmt::format("found '{}', expected auto, bfloat16 or float32: the model was trained in "
                             "bfloat16 and overflows in float16",
                             *dtype));
  } else if (dtype == "float") {
    options.dtype = "float32";
  } else {
    reader.choice("dtype", options.dtype, {"auto", "bfloat16", "float32"});
  }
  std::string kv = "auto";
  reader.choice("kv-cache-dtype", kv, {"auto", "bfloat16", "fp8", "fp8_e4m3"});
  options.kv_cache_dtype = kv == "fp8_e4m3" ? "fp8" : kv;
  if (const auto device = settings.text("device"); device && device->starts_with("cuda:")) {
    options.device = *device;
  } else {
    reader.choice("device", options.device, {"auto", "cuda", "cuda:N", "cpu"});
  }
  reader.choice("lm-head-dtype", options.lm_head_dtype, {"auto", "fp8"});
  reader.choice("ple", options.ple, {"auto", "device", "host"});
  reader.choice("meter", options.meter, {"auto", "none", "nvml", "rapl"});
  reader.choice("prefill-activations", options.prefill_activations, {"auto", "bf16", "fp8"});
  std::string confirmed;
  reader.choice("quantization", confirmed, {"fp8", "compressed-tensors", "None", ""});
  reader.choice("load-format", confirmed, {"auto", "safetensors"});
  reader.choice("scheduling-policy", confirmed, {"fcfs", "priority"});
  reader.integer("threads", options.threads, 1, 4096);
  reader.integer("seed", options.seed, 0, std::numeric_limits<int64_t>::max());
}

void read_scheduling(const Settings& settings, Reader& reader, ServeOptions& options) {
  if (settings.integer("max-model-len") != -1) {
    reader.integer("max-model-len", options.max_model_len, 1, std::numeric_limits<int>::max());
  }
  reader.number("gpu-memory-utilization", options.gpu_memory_utilization, 0.01, 1);
  reader.integer("kv-cache-memory-bytes", options.kv_cache_memory_bytes, 1 << 20, int64_t{1} << 50);
  reader.integer("max-num-seqs", options.max_num_seqs, 1, 4096);
  reader.integer("max-num-batched-tokens", options.max_num_batched_tokens, 16, 1 << 20);
  reader.flag("enable-prefix-caching", options.enable_prefix_caching);
  reader.number("prefix-cache-gib", options.prefix_cache_gib, 0, 1e6);
  reader.flag("exact-prefix", options.exact_prefix);
  reader.integer("max-num-queued-reqs", options.max_num_queued_reqs, 1, 1 << 24);
}

void read_idle_release(const Settings& settings, Reader& reader, ServeOptions& options) {
  constexpr double kMost_s = 1e6;
  const std::optional<std::string> text = settings.text("idle-release");
  if (!text) return;
  if (*text == "auto") return options.idle_release_s.reset();
  char* end = nullptr;
  const double seconds = *text == "off" ? 0 : std::strtod(text->c_str(), &end);
  const bool number = end == nullptr || (end != text->c_str() && *end == '\0');
  if (number && seconds >= 0 && seconds <= kMost_s) {
    options.idle_release_s = seconds;
  } else {
    reader.wrong("idle-release",
                 fmt::format("found '{}', expected seconds up to {}, off or auto", *text, kMost_s));
  }
}

void read_server(const Settings& settings, Reader& reader, ServeOptions& options) {
  reader.text("host", options.host);
  reader.integer("port", options.port, 0, 65535);
  reader.text("uds", options.uds);
  reader.text("root-path", options.root_path);
  if (!options.root_path.empty() && !options.root_path.starts_with('/')) {
    reader.wrong("root-path",
                 fmt::format("found '{}', expected a path that begins with /", options.root_path));
  }
  options.api_keys = settings.texts("api-key");
  if (std::ranges::any_of(options.api_keys, &std::string::empty)) reader.wrong("api-key", "a key is empty");
  reader.flag("protect-all", options.protect_all);
  reader.text("ssl-keyfile", options.tls.keyfile);
  reader.text("ssl-certfile", options.tls.certfile);
  reader.text("ssl-ca-certs", options.tls.ca_certs);
  reader.integer("ssl-cert-reqs", options.tls.cert_reqs, 0, 2);
  if (options.tls.keyfile.empty() != options.tls.certfile.empty()) {
    reader.mistakes.emplace_back(
        "TLS needs both --ssl-keyfile and --ssl-certfile, and one of them is missing");
  }
  reader.words("allowed-origins", options.cors.origins);
  reader.words("allowed-methods", options.cors.methods);
  reader.words("allowed-headers", options.cors.headers);
  reader.flag("allow-credentials", options.cors.credentials);
  reader.integer("max-connections", options.max_connections, 1, 1 << 20);
  reader.integer("max-requests-per-client", options.max_requests_per_client, 0, 1 << 20);
  int64_t body_mib = options.max_body_bytes >> 20;
  reader.integer("max-body-mib", body_mib, 1, 4096);
  options.max_body_bytes = body_mib << 20;
  reader.number("request-timeout", options.request_timeout_s, 0, 1e6);
  reader.number("drain-timeout", options.drain_timeout_s, 0, 1e6);
  read_idle_release(settings, reader, options);

  reader.flag("enable-log-requests", options.log_requests);
  std::string format = "text";
  reader.choice("log-format", format, {"text", "json"});
  options.log_json = format == "json";
  reader.choice("uvicorn-log-level", options.log_level,
                {"trace", "debug", "info", "warning", "error", "critical"});
  reader.choice("log-level", options.log_level, {"debug", "info", "warning", "error"});
  bool no_stats = false;
  reader.flag("disable-log-stats", no_stats);
  options.log_stats = !no_stats;
}

void read_requests(const Settings& settings, Reader& reader, ServeOptions& options) {
  read_image_limits(settings, reader, options);
  read_image_budget(reader, options);
  reader.text("generation-config", options.generation_config);
  reader.object("override-generation-config", options.override_generation_config);
  reader.text("chat-template", options.chat_template);
  reader.object("default-chat-template-kwargs", options.default_chat_template_kwargs);
  reader.integer("max-logprobs", options.max_logprobs, 0, 1 << 18);
  reader.flag("enable-force-include-usage", options.force_include_usage);
  reader.flag("return-tokens-as-token-ids", options.tokens_as_token_ids);
  reader.text("allowed-local-media-path", options.allowed_local_media_path);
  if (options.allowed_local_media_path == "") options.allowed_local_media_path.reset();
  if (settings.find("allowed-media-domains")) {
    options.allowed_media_domains = settings.texts("allowed-media-domains");
    if (options.allowed_media_domains == std::vector<std::string>{"none"})
      options.allowed_media_domains->clear();
  }
}

}  // namespace

Result<ServeOptions> serve_options(const Settings& settings) {
  Reader reader(settings);
  ServeOptions options;
  for (const Setting& setting : settings.all()) {
    if (const std::string what = mistake(setting); !what.empty()) {
      reader.mistakes.push_back(fmt::format("{} ({}): {}", setting.name, setting.origin, what));
    } else if (setting.flag->use == FlagUse::kRetired) {
      options.warnings.push_back(fmt::format("{} ({}) was retired and does nothing: {}", setting.name,
                                             setting.origin, setting.flag->note));
    }
  }
  if (reader.mistakes.empty()) {  // the readers below rely on values of the right kind
    read_model(settings, reader, options);
    read_scheduling(settings, reader, options);
    read_requests(settings, reader, options);
    read_server(settings, reader, options);
  }
  if (!reader.mistakes.empty()) return invalid(fmt::format("{}", fmt::join(reader.mistakes, "\n")));
  return options;
}

namespace {

// The mistakes of all settings together, to be taken out one by one.
class Mistakes {
 public:
  explicit Mistakes(const Result<ServeOptions>& options) {
    std::istringstream lines(options.ok() ? std::string() : options.error().message);
    for (std::string line; std::getline(lines, line);) left_.push_back(std::move(line));
  }

  // What is wrong with this setting; empty when nothing is.
  std::string take(const Setting& setting) {
    const std::string where = fmt::format("{} ({}): ", setting.name, setting.origin);
    const auto found = std::ranges::find_if(left_, [&](const auto& line) { return line.starts_with(where); });
    if (found == left_.end()) return {};
    std::string what = found->substr(where.size());
    left_.erase(found);
    return what;
  }
  const std::vector<std::string>& left() const { return left_; }

 private:
  std::vector<std::string> left_;
};

}  // namespace

ConfigReport check_config(const Settings& settings) {
  const auto options = serve_options(settings);
  ConfigReport report{.good = options.ok()};
  Mistakes mistakes(options);
  const auto line = [&](const Setting& setting, std::string_view verdict, std::string_view note) {
    const bool has_value = setting.flag != nullptr && setting.problem.empty();
    fmt::format_to(std::back_inserter(report.text), "{:<22} {:<34} {:<8} {}\n", setting.origin,
                   fmt::format("{}{}", setting.name, has_value ? " = " + shown(setting) : ""), verdict, note);
  };
  for (const Setting& setting : settings.all()) {
    if (std::string what = mistakes.take(setting); !what.empty()) {
      constexpr std::string_view kUnknown = "unknown";
      if (!setting.flag) what.erase(0, what.find_first_not_of("; ", kUnknown.size()));
      line(setting, setting.flag ? "wrong" : kUnknown, what);
      continue;
    }
    const bool overruled = settings.find(setting.flag->name) != &setting && !setting.value.is_null();
    switch (setting.flag->use) {
      case FlagUse::kUsed:
        line(setting, "used", overruled ? "but overruled by a later one" : setting.flag->note);
        break;
      case FlagUse::kMapped:
        line(setting, "mapped", setting.flag->note);
        break;
      case FlagUse::kOnlyDefault:
        line(setting, "used", setting.flag->note);
        break;
      case FlagUse::kIgnored:
        line(setting, "ignored", setting.flag->note);
        break;
      case FlagUse::kRetired:
        line(setting, "ignored", fmt::format("retired: {}", setting.flag->note));
        break;
    }
  }
  for (const std::string& what : mistakes.left()) report.text += what + "\n";
  return report;
}

}  // namespace jewel
