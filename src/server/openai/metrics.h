// Metrics: what /metrics shows, under vLLM's names so that dashboards and gateways read them as they are, and
// jewel_* for what vLLM does not have. Times are taken where updates leave the engine.
//
// Any thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "jewel/engine.h"

namespace jewel {

// Counts of values up to each of some bounds, as Prometheus wants them.
class Histogram {
 public:
  explicit Histogram(std::span<const double> bounds) : bounds_(bounds), counts_(bounds.size() + 1) {}
  void add(double value, uint64_t times = 1);
  void write(std::string& out, std::string_view name, std::string_view what, std::string_view labels) const;

 private:
  const std::span<const double> bounds_;
  std::vector<uint64_t> counts_;  // each for itself; the last one: above all bounds
  double sum_ = 0;
};

class Metrics {
 public:
  Metrics();

  void first_token(double seconds);
  void next_tokens(double seconds, int tokens);  // since the last, for all of them
  void finished(const Finish& finish, double seconds);

  // In the text format of Prometheus, version 0.0.4.
  std::string page(const Stats& stats, const ModelInfo& info, std::string_view model_name) const;

 private:
  mutable std::mutex mutex_;
  Histogram ttft_s_;
  Histogram inter_token_s_;
  Histogram e2e_s_;
  Histogram queue_s_;
  Histogram prefill_s_;
  Histogram decode_s_;
  Histogram prompt_tokens_;
  Histogram generation_tokens_;
  Histogram joules_;
  std::array<uint64_t, 8> by_reason_{};  // by EndReason
};

// One request's clock. Its calls come one at a time.
class RequestWatch {
 public:
  explicit RequestWatch(std::shared_ptr<Metrics> metrics) : metrics_(std::move(metrics)) {}
  void see(const Update& update);

 private:
  using Clock = std::chrono::steady_clock;
  const std::shared_ptr<Metrics> metrics_;  // the engine may speak after the server is gone
  const Clock::time_point start_ = Clock::now();
  Clock::time_point last_{};
  bool began_ = false;
};

}  // namespace jewel
