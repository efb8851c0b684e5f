#include "engine/engine_loop.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "base/log.h"
#include "engine/prefix_keys.h"

namespace jewel {
namespace {

struct Submit {
  SequenceRequest request;
  std::shared_ptr<SequenceSink> sink;
};
struct Cancel {
  SequenceId id = 0;
  FinishReason reason = FinishReason::kCancelled;
};
using Mail = std::variant<Submit, Cancel>;
using Clock = std::chrono::steady_clock;

constexpr double kLongestIdleSeconds = 1e8;  // three years: what a clock can be asked to wait for

double seconds(EngineTime time) {
  return std::chrono::duration<double>(time).count();
}

double seconds_since(Clock::time_point start) {
  return seconds(Clock::now() - start);
}

}  // namespace

struct EngineLoop::Impl {
  std::unique_ptr<Scheduler> scheduler;  // the thread's own, but for check() and options()
  int max_waiting = 0;                   // kept here, so that whoever was accepted is not refused later
  size_t n_opened = 0;                   // submits opened since the last publish(); the thread's own

  std::mutex mutex;  // guards what follows
  std::condition_variable wake;
  std::vector<Mail> mailbox;
  // Submits that no published count of waiting sequences has in it yet: with it, never less than the line.
  size_t n_unpublished = 0;
  bool closed = false;  // no submit from now on
  std::optional<Shutdown> stop;

  std::atomic<bool> has_mail = false;
  std::atomic<SequenceId> next_id = 1;

  Clock::duration idle_release{};  // 0: never
  std::string device;              // for the log

  mutable std::mutex stats_mutex;
  EngineStats published;
  Clock::time_point released_at;  // while published.idle.released

  std::mutex join_mutex;
  std::thread thread;

  void run();
  void open_mail(std::vector<Mail>& mail);
  bool sleep_until_mail(std::optional<Clock::time_point> limit);
  void publish(const EngineStats& stats);
  void rest(EngineStats& stats, Clock::time_point idle_since);
  void release_device(EngineStats& stats);
  bool wake_up(EngineStats& stats);
  Result<void> restore_device(EngineStats& stats);
};

// The lock is taken only when something has been put in.
void EngineLoop::Impl::open_mail(std::vector<Mail>& mail) {
  mail.clear();
  if (!has_mail.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex);
  mail.swap(mailbox);
  has_mail.store(false, std::memory_order_relaxed);
}

// False: the limit came first.
bool EngineLoop::Impl::sleep_until_mail(std::optional<Clock::time_point> limit) {
  std::unique_lock lock(mutex);
  const auto called = [&] { return !mailbox.empty() || stop.has_value(); };
  if (limit) return wake.wait_until(lock, *limit, called);
  wake.wait(lock, called);
  return true;
}

// Nothing to compute: sleeps until there is mail, and gives the device back on the way when that takes long.
void EngineLoop::Impl::rest(EngineStats& stats, Clock::time_point idle_since) {
  if (idle_release.count() == 0 || scheduler->device_released()) {
    sleep_until_mail(std::nullopt);
  } else if (!sleep_until_mail(idle_since + idle_release)) {
    release_device(stats);
  }
}

void EngineLoop::Impl::release_device(EngineStats& stats) {
  const Clock::time_point start = Clock::now();
  const ReleaseReport report = scheduler->release_device();
  ++stats.idle.releases;
  stats.idle.released = true;
  stats.scheduler = scheduler->stats();
  {
    const std::lock_guard lock(stats_mutex);
    released_at = Clock::now();
  }
  publish(stats);
  const std::string dropped = report.checkpoints_dropped > 0
                                  ? fmt::format(", {} prefixes were dropped", report.checkpoints_dropped)
                                  : "";
  log().info(
      "deep idle: {} given back after {:.3g} s without requests, in {:.2f} s; {} cached pages ({:.1f} MiB) "
      "are in host memory{}",
      device, seconds(idle_release), seconds_since(start), report.pages_kept,
      static_cast<double>(report.bytes_kept) / (1 << 20), dropped);
}

// False: the device is away and cannot be had; whoever is here has been told so.
bool EngineLoop::Impl::wake_up(EngineStats& stats) {
  if (!scheduler->device_released()) return true;
  stats.scheduler = scheduler->stats();
  publish(stats);  // they are seen to wait
  const auto restored = restore_device(stats);
  if (restored.ok()) return true;
  scheduler->fail_all(unavailable(
      fmt::format("the device was given back while nothing was asked for, and cannot be had again: {}; the "
                  "next request tries again",
                  restored.error().message)));
  return false;
}

Result<void> EngineLoop::Impl::restore_device(EngineStats& stats) {
  const Clock::time_point start = Clock::now();
  auto restored = scheduler->restore_device();
  if (!restored.ok()) {
    ++stats.idle.wakes_failed;
    ++stats.idle.wakes_failed_in_a_row;
    log().warn("deep idle: {} cannot be had again: {}", device, restored.error().message);
    publish(stats);
    return restored;
  }
  const double wake_s = seconds_since(start);
  const double away_s = seconds_since(released_at);  // this thread alone writes it
  stats.idle.released = false;
  stats.idle.released_s += away_s;
  ++stats.idle.wakes;
  stats.idle.wake_s += wake_s;
  stats.idle.wakes_failed_in_a_row = 0;
  publish(stats);
  log().info("deep idle: {} is back after {:.1f} s, in {:.2f} s", device, away_s, wake_s);
  return {};
}

void EngineLoop::Impl::publish(const EngineStats& stats) {
  {
    const std::lock_guard lock(stats_mutex);
    published = stats;
  }
  if (n_opened == 0) return;
  const std::lock_guard lock(mutex);
  n_unpublished -= n_opened;
  n_opened = 0;
}

void EngineLoop::Impl::run() {
  std::vector<Mail> mail;
  EngineStats stats;
  StepWatch* const watch = scheduler->options().watch;
  std::optional<Clock::time_point> last_step;  // while busy
  Clock::time_point idle_since = Clock::now();
  while (true) {
    open_mail(mail);
    for (Mail& letter : mail) {
      if (auto* cancelled = std::get_if<Cancel>(&letter)) {
        scheduler->cancel(cancelled->id, cancelled->reason);
        continue;
      }
      ++n_opened;
      auto& [request, sink] = std::get<Submit>(letter);
      const SequenceId id = request.id;
      auto added = scheduler->add(std::move(request), sink);
      if (!added.ok()) {
        sink->on_finished(
            {.sequence = id, .reason = FinishReason::kError, .error = std::move(added).error(), .stats = {}});
      }
    }
    mail.clear();  // sinks may be the last to know their clients
    std::optional<Shutdown> ending;
    {
      const std::lock_guard lock(mutex);
      ending = stop;
      if (ending && !mailbox.empty()) continue;
    }
    if (ending == Shutdown::kNow) scheduler->cancel_all();
    if (!scheduler->has_work()) {
      stats.scheduler = scheduler->stats();
      publish(stats);
      if (watch != nullptr && last_step) watch->work_ends();
      last_step.reset();
      if (ending) break;
      rest(stats, idle_since);
      continue;
    }
    if (!wake_up(stats)) continue;
    if (watch != nullptr && !last_step) watch->work_begins();
    scheduler->step();
    const Clock::time_point now = idle_since = Clock::now();
    if (last_step) {
      stats.step_s_last = seconds(now - *last_step);
      stats.busy_s += stats.step_s_last;
      stats.step_s_mean +=
          (stats.step_s_mean == 0 ? 1.0 : 1.0 / 64) * (stats.step_s_last - stats.step_s_mean);
    }
    last_step = now;
    stats.scheduler = scheduler->stats();
    publish(stats);
  }
}

EngineLoop::EngineLoop(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

EngineLoop::~EngineLoop() {
  shutdown(Shutdown::kNow);
}

Result<std::unique_ptr<EngineLoop>> EngineLoop::start(Backend& backend, const ModelConfig& config,
                                                      SchedulerOptions options, double idle_release_s) {
  JEWEL_CHECK(idle_release_s >= 0 && (idle_release_s == 0 || backend.can_release()),
              "{} s to the release of a backend that {}", idle_release_s,
              backend.can_release() ? "can" : "cannot");
  // Brings OpenSSL up on this thread, before there are others. What it takes down at exit, it then takes down
  // after whoever owns this loop, be that a static object: threads that end later than OpenSSL's exit handler
  // would leave their state behind, and might hash with an algorithm that is gone.
  sha256({});
  auto impl = std::make_unique<Impl>();
  impl->idle_release = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(std::min(idle_release_s, kLongestIdleSeconds)));
  impl->device = backend.info().name;
  impl->max_waiting = std::exchange(options.max_waiting, std::numeric_limits<int>::max());
  JEWEL_ASSIGN(impl->scheduler, Scheduler::make(backend, config, std::move(options)));
  impl->published.scheduler = impl->scheduler->stats();
  Impl* inside = impl.get();
  impl->thread = std::thread([inside] { inside->run(); });
  return std::unique_ptr<EngineLoop>(new EngineLoop(std::move(impl)));
}

Result<SequenceId> EngineLoop::submit(SequenceRequest request, std::shared_ptr<SequenceSink> sink) {
  JEWEL_TRY(impl_->scheduler->check(request));
  const SchedulerOptions& options = impl_->scheduler->options();
  if (options.prefix_cache && request.use_prefix_cache && request.page_keys.empty()) {
    request.page_keys = prefix_keys(request.cache_salt, request.prompt, request.images);
  }
  const SequenceId id = impl_->next_id.fetch_add(1);
  request.id = id;
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->closed) return unavailable("the engine is shutting down and takes no new requests");
    // Read while no count can leave n_unpublished: what is published a moment later is counted twice, never
    // not at all.
    const size_t waiting = impl_->n_unpublished + static_cast<size_t>(stats().scheduler.waiting);
    if (waiting >= static_cast<size_t>(impl_->max_waiting)) {
      return unavailable(fmt::format("{} requests are waiting already, the limit is {}; try again later",
                                     waiting, impl_->max_waiting));
    }
    impl_->mailbox.emplace_back(Submit{std::move(request), std::move(sink)});
    ++impl_->n_unpublished;
    impl_->has_mail.store(true, std::memory_order_release);
  }
  impl_->wake.notify_one();
  return id;
}

void EngineLoop::cancel(SequenceId id, FinishReason reason) {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->mailbox.emplace_back(Cancel{id, reason});
    impl_->has_mail.store(true, std::memory_order_release);
  }
  impl_->wake.notify_one();
}

EngineStats EngineLoop::stats() const {
  const std::lock_guard lock(impl_->stats_mutex);
  EngineStats stats = impl_->published;
  if (stats.idle.released) stats.idle.released_s += seconds_since(impl_->released_at);
  return stats;
}

void EngineLoop::shutdown(Shutdown how) {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->closed = true;
    if (!impl_->stop || how == Shutdown::kNow) impl_->stop = how;
  }
  impl_->wake.notify_one();
  const std::lock_guard lock(impl_->join_mutex);
  if (impl_->thread.joinable()) impl_->thread.join();
}

}  // namespace jewel
