#include "engine/engine_loop.h"

#include <fmt/format.h>

#include <atomic>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

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

double seconds(EngineTime time) {
  return std::chrono::duration<double>(time).count();
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

  mutable std::mutex stats_mutex;
  EngineStats published;

  std::mutex join_mutex;
  std::thread thread;

  void run();
  void open_mail(std::vector<Mail>& mail);
  void sleep_until_mail();
  void publish(const EngineStats& stats);
};

// The lock is taken only when something has been put in.
void EngineLoop::Impl::open_mail(std::vector<Mail>& mail) {
  mail.clear();
  if (!has_mail.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex);
  mail.swap(mailbox);
  has_mail.store(false, std::memory_order_relaxed);
}

void EngineLoop::Impl::sleep_until_mail() {
  std::unique_lock lock(mutex);
  wake.wait(lock, [&] { return !mailbox.empty() || stop.has_value(); });
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
  std::optional<Clock::time_point> last_step;  // while busy
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
      last_step.reset();
      if (ending) break;
      sleep_until_mail();
      continue;
    }
    scheduler->step();
    const Clock::time_point now = Clock::now();
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
                                                      SchedulerOptions options) {
  // Brings OpenSSL up on this thread, before there are others. What it takes down at exit, it then takes down
  // after whoever owns this loop, be that a static object: threads that end later than OpenSSL's exit handler
  // would leave their state behind, and might hash with an algorithm that is gone.
  sha256({});
  auto impl = std::make_unique<Impl>();
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
  return impl_->published;
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
