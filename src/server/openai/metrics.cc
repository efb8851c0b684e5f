#include "server/openai/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace jewel {
namespace {

// vLLM's bounds, so that quantiles in old and new dashboards compare.
constexpr double kFirstTokenBounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                        1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
constexpr double kInterTokenBounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
                                        0.4,   0.5,    0.75,  1,    2.5,   5,    7.5,   10,  20,   40,  80};
constexpr double kRequestBounds[] = {0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1,   1.5, 2,   2.5, 5,    10,
                                     15,   20,   30,  40,  50,  60,  120, 240, 480, 960, 1920, 7680};
constexpr double kTokenBounds[] = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                                   1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};

// Joules of a request: a few tokens on a GPU up to a long answer on a CPU.
constexpr double kJouleBounds[] = {0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000};

void write_help(std::string& out, std::string_view name, std::string_view what, std::string_view type) {
  fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n", name, what, name, type);
}

template <typename T>
void write_one(std::string& out, std::string_view type, std::string_view name, std::string_view what,
               std::string_view labels, T value) {
  write_help(out, name, what, type);
  fmt::format_to(std::back_inserter(out), "{}{{{}}} {}\n", name, labels, value);
}

// Quotes, backslashes and line ends have to be escaped inside a label's value.
std::string label_value(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

// Only where a meter is: a zero would be read as a measurement.
void write_energy_metrics(std::string& out, const Stats& stats, const ModelInfo& info,
                          const std::string& labels) {
  const EnergyStats& energy = *stats.energy;
  constexpr std::string_view kByPhase = "jewel_energy_joules_total";
  write_help(out, kByPhase, "What the device drew, by what it did.", "counter");
  const double work = energy.image_joules + energy.prefill_joules + energy.decode_joules;
  for (const auto& [phase, joules] :
       {std::pair{"image", energy.image_joules}, std::pair{"prefill", energy.prefill_joules},
        std::pair{"decode", energy.decode_joules}, std::pair{"idle", energy.idle_joules}}) {
    fmt::format_to(std::back_inserter(out), "{}{{{},phase=\"{}\"}} {}\n", kByPhase, labels, phase, joules);
  }
  write_one(out, "counter", "jewel_energy_unattributed_joules_total",
            "What it drew while its counter could not be read.", labels, energy.unattributed_joules);
  write_one(out, "gauge", "jewel_power_watts", "What it draws now.", labels, energy.watts);
  if (stats.generated_tokens > 0) {
    write_one(out, "gauge", "jewel_joules_per_output_token", "Since the start; image, prefill and decode.",
              labels, work / static_cast<double>(stats.generated_tokens));
  }
  if (energy.tick_s > 0) {
    write_one(out, "gauge", "jewel_energy_counter_tick_seconds", "How often the device's counter moves.",
              labels, energy.tick_s);
  }
  // OpenTelemetry's hw.energy, as its exporters to Prometheus spell it.
  const std::string_view type = info.energy_method == "nvml" ? "gpu" : "cpu";
  write_one(out, "counter", "hw_energy_joules_total", "The device's counter, since the start.",
            fmt::format("hw_id=\"{}\",hw_type=\"{}\"", label_value(info.energy_device), type),
            energy.counter_joules);
}

}  // namespace

void Histogram::add(double value, uint64_t times) {
  const auto bound = std::ranges::lower_bound(bounds_, value);
  counts_[static_cast<size_t>(bound - bounds_.begin())] += times;
  sum_ += value * static_cast<double>(times);
}

void Histogram::write(std::string& out, std::string_view name, std::string_view what,
                      std::string_view labels) const {
  write_help(out, name, what, "histogram");
  uint64_t count = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    count += counts_[i];
    const std::string bound = i < bounds_.size() ? fmt::format("{}", bounds_[i]) : "+Inf";
    fmt::format_to(std::back_inserter(out), "{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, bound, count);
  }
  fmt::format_to(std::back_inserter(out), "{}_sum{{{}}} {}\n{}_count{{{}}} {}\n", name, labels, sum_, name,
                 labels, count);
}

Metrics::Metrics()
    : ttft_s_(kFirstTokenBounds),
      inter_token_s_(kInterTokenBounds),
      e2e_s_(kRequestBounds),
      queue_s_(kRequestBounds),
      prefill_s_(kRequestBounds),
      decode_s_(kRequestBounds),
      prompt_tokens_(kTokenBounds),
      generation_tokens_(kTokenBounds),
      joules_(kJouleBounds) {}

void Metrics::first_token(double seconds) {
  const std::scoped_lock lock(mutex_);
  ttft_s_.add(seconds);
}

void Metrics::next_tokens(double seconds, int tokens) {
  const std::scoped_lock lock(mutex_);
  inter_token_s_.add(seconds / tokens, static_cast<uint64_t>(tokens));
}

void Metrics::finished(const Finish& finish, double seconds) {
  const std::scoped_lock lock(mutex_);
  ++by_reason_[static_cast<size_t>(finish.reason)];
  if (finish.error) return;
  e2e_s_.add(seconds);
  queue_s_.add(finish.timings.queue_s);
  prefill_s_.add(finish.timings.prefill_s);
  decode_s_.add(finish.timings.decode_s);
  prompt_tokens_.add(finish.usage.prompt_tokens);
  generation_tokens_.add(finish.usage.completion_tokens);
  if (finish.energy) joules_.add(finish.energy->joules);
}

std::string Metrics::page(const Stats& stats, const ModelInfo& info, std::string_view model_name) const {
  std::string out;
  const std::string labels = fmt::format("engine=\"0\",model_name=\"{}\"", label_value(model_name));
  const auto gauge = [&](std::string_view name, std::string_view what, auto value) {
    write_one(out, "gauge", name, what, labels, value);
  };
  const auto counter = [&](std::string_view name, std::string_view what, uint64_t value) {
    write_one(out, "counter", name, what, labels, value);
  };
  gauge("vllm:num_requests_running", "Requests in the running batch.", stats.running);
  gauge("vllm:num_requests_waiting", "Requests that wait to be begun.", stats.waiting + stats.preparing);
  gauge("vllm:kv_cache_usage_perc", "KV pages that requests hold; 1 is all.", stats.kv_usage);
  counter("vllm:prompt_tokens_total", "Tokens of prompts.", stats.prompt_tokens);
  counter("vllm:prompt_tokens_cached_total", "Tokens of prompts that were not computed again.",
          stats.cached_prompt_tokens);
  counter("vllm:generation_tokens_total", "Tokens of answers.", stats.generated_tokens);
  counter("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache.", stats.prefix_queries);
  counter("vllm:prefix_cache_hits_total", "Tokens found there.", stats.prefix_hits);
  counter("vllm:mm_cache_queries_total", "Images looked up in the cache of encoded images.",
          stats.image_queries);
  counter("vllm:mm_cache_hits_total", "Images found there.", stats.image_hits);
  counter("vllm:num_preemptions_total", "Requests that were stopped for others and begun again.",
          stats.preemptions);
  write_one(out, "gauge", "vllm:cache_config_info", "How KV memory is laid out.",
            fmt::format("{},block_size=\"{}\",cache_dtype=\"{}\",num_gpu_blocks=\"{}\"", labels,
                        info.page_tokens, label_value(info.kv_cache_dtype), info.n_full_pages),
            1);

  const std::scoped_lock lock(mutex_);
  write_help(out, "vllm:request_success_total", "Requests that ended, by their reason.", "counter");
  for (const EndReason reason : {EndReason::kStop, EndReason::kLength, EndReason::kToolCalls,
                                 EndReason::kRepetition, EndReason::kCancelled, EndReason::kError}) {
    const char* name = reason == EndReason::kCancelled ? "abort" : name_of(reason);
    fmt::format_to(std::back_inserter(out), "vllm:request_success_total{{{},finished_reason=\"{}\"}} {}\n",
                   labels, name, by_reason_[static_cast<size_t>(reason)]);
  }
  ttft_s_.write(out, "vllm:time_to_first_token_seconds", "From arrival to the first token.", labels);
  inter_token_s_.write(out, "vllm:inter_token_latency_seconds", "Between a token and the next.", labels);
  e2e_s_.write(out, "vllm:e2e_request_latency_seconds", "From arrival to the last token.", labels);
  queue_s_.write(out, "vllm:request_queue_time_seconds", "From arrival to the first step.", labels);
  prefill_s_.write(out, "vllm:request_prefill_time_seconds", "First step to first token.", labels);
  decode_s_.write(out, "vllm:request_decode_time_seconds", "First token to last.", labels);
  prompt_tokens_.write(out, "vllm:request_prompt_tokens", "Tokens of a prompt.", labels);
  generation_tokens_.write(out, "vllm:request_generation_tokens", "Tokens of an answer.", labels);
  counter("jewel_steps_total", "Steps of the engine.", stats.steps);
  gauge("jewel_requests_preparing", "Requests whose prompts and pictures are being read.", stats.preparing);
  counter("jewel_requests_cancelled_total", "Requests whose clients went away.", stats.cancelled);
  counter("jewel_requests_failed_total", "Requests that ended with an error.", stats.failed);
  counter("jewel_idle_releases_total", "Times that the device was given back, since nothing was asked for.",
          stats.idle_releases);
  gauge("jewel_idle_released", "1 while the device is given back.", stats.idle_released ? 1 : 0);
  write_one(out, "counter", "jewel_idle_released_seconds_total", "Time that the device was given back.",
            labels, stats.idle_released_s);
  write_help(out, "jewel_idle_wake_seconds", "What requests waited for the device to be had again.",
             "summary");
  fmt::format_to(std::back_inserter(out),
                 "jewel_idle_wake_seconds_sum{{{0}}} {1}\njewel_idle_wake_seconds_count{{{0}}} {2}\n", labels,
                 stats.idle_wake_s, stats.idle_wakes);
  counter("jewel_idle_wakes_failed_total", "Times that the device could not be had again.",
          stats.idle_wakes_failed);
  if (!stats.energy) return out;
  write_energy_metrics(out, stats, info, labels);
  joules_.write(out, "jewel_request_energy_joules", "Joules of a request, rest not among them.", labels);
  return out;
}

void RequestWatch::see(const Update& update) {
  const auto now = Clock::now();
  const auto seconds = [&](Clock::time_point since) {
    return std::chrono::duration<double>(now - since).count();
  };
  if (!update.tokens.empty()) {
    const int tokens = static_cast<int>(update.tokens.size());
    if (!began_) metrics_->first_token(seconds(start_));
    if (began_ || tokens > 1)
      metrics_->next_tokens(began_ ? seconds(last_) : 0.0, began_ ? tokens : tokens - 1);
    began_ = true;
    last_ = now;
  }
  if (update.finish) metrics_->finished(*update.finish, seconds(start_));
}

}  // namespace jewel
