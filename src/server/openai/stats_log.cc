#include "server/openai/stats_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace jewel {
namespace {

void log_figures(const StatsLine::Figures& figures) {
  if (!log_is_json()) {
    log().info("{}", figures.text());
    return;
  }
  log_event("stats", {{"prompt_tok_s", figures.prompt_tok_s},
                      {"generation_tok_s", figures.generation_tok_s},
                      {"running", int64_t{figures.running}},
                      {"waiting", int64_t{figures.waiting}},
                      {"kv_cache_usage", figures.kv_usage},
                      {"prefix_cache_hit_rate", figures.prefix_hit_rate},
                      {"image_cache_hit_rate", figures.image_hit_rate}});
}

}  // namespace

std::string StatsLine::Figures::text() const {
  return fmt::format(
      "Engine 000: Avg prompt throughput: {:.1f} tokens/s, Avg generation throughput: {:.1f} tokens/s, "
      "Running: {} reqs, Waiting: {} reqs, GPU KV cache usage: {:.1f}%, Prefix cache hit rate: {:.1f}%, "
      "MM cache hit rate: {:.1f}%",
      prompt_tok_s, generation_tok_s, running, waiting, 100 * kv_usage, 100 * prefix_hit_rate,
      100 * image_hit_rate);
}

std::optional<StatsLine::Figures> StatsLine::look(const Stats& now, double seconds) {
  const auto rate = [&](uint64_t Stats::* counter) {
    return static_cast<double>(now.*counter - before_.*counter) / std::max(seconds, 1e-9);
  };
  const auto share = [&](uint64_t Stats::* hits, uint64_t Stats::* queries, double otherwise) {
    const uint64_t asked = now.*queries - before_.*queries;
    return asked == 0 ? otherwise
                      : static_cast<double>(now.*hits - before_.*hits) / static_cast<double>(asked);
  };
  Figures figures{.prompt_tok_s = rate(&Stats::prompt_tokens),
                  .generation_tok_s = rate(&Stats::generated_tokens),
                  .running = now.running,
                  .waiting = now.waiting + now.preparing,
                  .kv_usage = now.kv_usage};
  figures.prefix_hit_rate = share(&Stats::prefix_hits, &Stats::prefix_queries, last_.prefix_hit_rate);
  figures.image_hit_rate = share(&Stats::image_hits, &Stats::image_queries, last_.image_hit_rate);
  const bool quiet = now.under_way == 0 && now.prompt_tokens == before_.prompt_tokens &&
                     now.generated_tokens == before_.generated_tokens;
  before_ = now;
  last_ = figures;
  if (quiet && std::exchange(was_quiet_, quiet)) return std::nullopt;
  was_quiet_ = quiet;
  return figures;
}

StatsLog::StatsLog(std::function<Stats()> stats, std::chrono::milliseconds interval)
    : stats_(std::move(stats)), interval_(interval), thread_([this] { run(); }) {}

StatsLog::~StatsLog() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void StatsLog::run() {
  using Clock = std::chrono::steady_clock;
  StatsLine line;
  line.look(stats_(), 1);
  auto before = Clock::now();
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, interval_, [this] { return stopping_; })) {
    const auto now = Clock::now();
    const auto figures = line.look(stats_(), std::chrono::duration<double>(now - before).count());
    before = now;
    if (figures) log_figures(*figures);
  }
}

}  // namespace jewel
