// ServeOptions: what `jewel serve` was asked to do, checked, and the report of --check-config.
//
// Made once at start from Settings; nothing here opens files or sockets. A field that is nullopt was not
// given and takes the default that flags.cc names (some depend on the model or on the machine).
#pragma once

#include <boost/json/object.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "server/settings.h"

namespace jewel {

// max_soft_tokens of a request or of --mm-processor-kwargs: a budget, or the image's own resolution decides.
struct ImageBudget {
  bool automatic = false;
  int max_soft_tokens = 0;  // 70, 140, 280, 560 or 1120
};

struct TlsOptions {
  std::string keyfile;
  std::string certfile;
  std::string ca_certs;
  int cert_reqs = 0;

  bool on() const { return !certfile.empty(); }
};

struct CorsOptions {
  std::vector<std::string> origins;  // empty: no CORS headers at all
  std::vector<std::string> methods{"*"};
  std::vector<std::string> headers{"*"};
  bool credentials = false;
};

struct ServeOptions {
  // The model.
  std::string model;
  std::optional<std::string> tokenizer;
  std::optional<std::string> revision;
  std::optional<std::string> download_dir;
  std::vector<std::string> served_model_names;  // at least one
  std::string dtype = "auto";                   // auto, bfloat16, float32
  std::string device = "auto";                  // auto, cuda, cuda:N, cpu
  std::string kv_cache_dtype = "auto";          // auto, bfloat16, fp8
  std::string lm_head_dtype = "auto";           // auto, fp8
  std::string ple = "auto";                     // auto, device, host
  std::string prefill_activations = "auto";     // auto, bf16, fp8
  std::optional<int> threads;
  std::optional<uint64_t> seed;

  // Memory and scheduling.
  std::optional<int> max_model_len;  // nullopt: the model's, as far as memory goes
  double gpu_memory_utilization = 0.92;
  std::optional<int64_t> kv_cache_memory_bytes;
  std::optional<int> max_num_seqs;
  int max_num_batched_tokens = 2048;
  bool enable_prefix_caching = true;
  double prefix_cache_gib = 4;
  bool exact_prefix = false;
  int max_num_queued_reqs = 1024;

  // Requests.
  std::optional<int> max_images;  // nullopt: no limit
  std::optional<ImageBudget> image_budget;
  std::string generation_config = "auto";  // auto, vllm or a directory
  boost::json::object override_generation_config;
  std::optional<std::string> chat_template;  // a file or the template itself
  boost::json::object default_chat_template_kwargs;
  int max_logprobs = 20;
  bool force_include_usage = false;
  bool tokens_as_token_ids = false;
  std::optional<std::string> allowed_local_media_path;
  std::optional<std::vector<std::string>> allowed_media_domains;  // nullopt: every public host; empty: none

  // The server.
  std::string host;  // empty: all interfaces
  int port = 8000;
  std::optional<std::string> uds;
  std::string root_path;
  std::vector<std::string> api_keys;
  bool protect_all = false;
  TlsOptions tls;
  CorsOptions cors;
  int max_connections = 4096;
  int max_requests_per_client = 0;  // under way at once; 0: no limit
  int64_t max_body_bytes = int64_t{64} << 20;
  double request_timeout_s = 0;  // 0: none
  double drain_timeout_s = 30;
  std::optional<double> idle_release_s;  // 0: never; none: what pays on the device
  std::string meter = "auto";            // auto, none, nvml, rapl

  // Logs.
  bool log_requests = false;
  bool log_json = false;
  std::string log_level = "info";
  bool log_stats = true;

  // Settings that are accepted with a word to the user, one line each.
  std::vector<std::string> warnings;
};

// Every mistake is in the Error, one line each: unknown keys with what was probably meant, values of the
// wrong kind or range, flags that ask for what Jewel does not do.
Result<ServeOptions> serve_options(const Settings& settings);

// One line for each setting: where, what, and whether it is used, mapped, ignored, unknown or wrong.
struct ConfigReport {
  std::string text;
  bool good = true;
};
ConfigReport check_config(const Settings& settings);

}  // namespace jewel
