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
      generation_tokens_(kTokenBounds) {}

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
