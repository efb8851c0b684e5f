// Many client threads against one EngineLoop: for ThreadSanitizer, and for leaks.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "engine/engine_loop.h"
#include "schedule.h"

namespace jewel {
namespace {

constexpr int kClients = 64;
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr int kRequestsPerClient = 40;
#else
constexpr int kRequestsPerClient = 100;
#endif
#endif

// Events arrive on the engine's thread; a client waits on its own.
class Stream : public SequenceSink {
 public:
  Continue on_token(const TokenEvent& event) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(finished_) << "a token after the end";
    tokens_.push_back(event.token.id);
    changed_.notify_all();
    return Continue::kYes;
  }
  void on_finished(const Finished& finished) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(finished_) << "finished twice";
    finished_ = finished.reason;
    changed_.notify_all();
  }
  // Until there are n tokens, or the end.
  void wait_tokens(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return finished_ || tokens_.size() >= n; });
  }
  FinishReason wait_finished() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return finished_.has_value(); });
    return *finished_;
  }
  bool finished() const {
    const std::lock_guard lock(mutex_);
    return finished_.has_value();
  }
  std::vector<TokenId> tokens() const {
    const std::lock_guard lock(mutex_);
    return tokens_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<TokenId> tokens_;
  std::optional<FinishReason> finished_;
};

PlannedRequest some_request(uint64_t seed) {
  PlannedRequest request = random_schedule(seed).requests.front();
  request.sink_stops_after = request.mask_fails_after = -1;
  request.deadline_after = -1;
  return request;
}

class Storm : public ::testing::Test {
 protected:
  // Pages for about four sequences at once, so that storms meet preemption.
  void start(int max_waiting = 4096) {
    FakeOptions options;
    options.max_slots = 12;
    backend_ = std::make_unique<FakeBackend>(options);
    SchedulerOptions scheduler;
    scheduler.kv = {.n_full_pages = 40, .n_sliding_pages = 40};
    scheduler.max_waiting = max_waiting;
    scheduler.check_books = true;
    auto loop = EngineLoop::start(*backend_, config_, scheduler);
    ASSERT_TRUE(loop.ok());
    loop_ = std::move(*loop);
  }

  template <typename Body>
  static void on_all_clients(const Body& body) {
    std::vector<std::thread> threads;
    for (int client = 0; client < kClients; ++client) threads.emplace_back([&body, client] { body(client); });
    for (std::thread& thread : threads) thread.join();
  }

  void expect_nothing_left() {
    const SchedulerStats stats = loop_->stats().scheduler;
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.waiting, 0);
    EXPECT_EQ(stats.full_pages.held, 0);
    EXPECT_EQ(stats.sliding_pages.held, 0);
    EXPECT_EQ(stats.full_pages.free + stats.full_pages.cached, 40);
    EXPECT_EQ(stats.sliding_pages.free + stats.sliding_pages.cached, 40);
    loop_.reset();
    EXPECT_EQ(backend_->n_live_slots(), 0);
    EXPECT_EQ(backend_->n_live_features(), 0);
    EXPECT_EQ(backend_->n_steps_in_flight(), 0);
  }

  ModelConfig config_ = fake_config(32, 4096);
  std::unique_ptr<FakeBackend> backend_;
  std::unique_ptr<EngineLoop> loop_;
};

TEST_F(Storm, EveryClientStreamsItsOwnAnswer) {
  start();
  on_all_clients([&](int client) {
    for (int i = 0; i < kRequestsPerClient; ++i) {
      const PlannedRequest planned = some_request(static_cast<uint64_t>(client * 1000 + i));
      const auto stream = std::make_shared<Stream>();
      const auto id = loop_->submit(to_request(planned, {}, {}), stream);
      ASSERT_TRUE(id.ok()) << id.error().message;
      stream->wait_finished();
      EXPECT_EQ(stream->tokens(), expected_answer(planned).tokens);
    }
  });
  loop_->shutdown(Shutdown::kDrain);
  expect_nothing_left();
}

TEST_F(Storm, CancelsLeakNothing) {
  start();
  std::atomic<int> cancelled = 0;
  on_all_clients([&](int client) {
    Dice dice(static_cast<uint64_t>(client));
    for (int i = 0; i < kRequestsPerClient; ++i) {
      PlannedRequest planned = some_request(static_cast<uint64_t>(client * 1000 + i));
      planned.max_tokens = 40;
      const auto stream = std::make_shared<Stream>();
      const auto id = loop_->submit(to_request(planned, {}, {}), stream);
      ASSERT_TRUE(id.ok()) << id.error().message;
      if (!dice.one_in(3)) stream->wait_tokens(static_cast<size_t>(dice.below(20)));
      if (dice.one_in(4)) (void)loop_->stats();
      loop_->cancel(*id);
      if (dice.one_in(4)) loop_->cancel(*id);      // twice
      if (dice.one_in(4)) loop_->cancel(*id + 1);  // a neighbour's, or nobody's
      stream->wait_finished();
      cancelled += stream->wait_finished() == FinishReason::kCancelled ? 1 : 0;
      const std::vector<TokenId> tokens = stream->tokens();
      const std::vector<TokenId> answer = expected_answer(planned).tokens;
      ASSERT_LE(tokens.size(), answer.size());
      EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), answer.begin()));
    }
  });
  EXPECT_GT(cancelled.load(), kClients * kRequestsPerClient / 4);
  loop_->shutdown(Shutdown::kDrain);
  expect_nothing_left();
}

// Clients keep submitting while the engine goes down: whoever was accepted hears the end of it.
void shut_down_under_load(EngineLoop& loop, Shutdown how, const auto& on_all_clients) {
  std::atomic<int> accepted = 0, ended = 0, refused = 0;
  std::atomic<bool> down = false;
  std::thread closer([&] {
    while (accepted < kClients * 2) std::this_thread::yield();
    loop.shutdown(how);
    down = true;
  });
  on_all_clients([&](int client) {
    for (int i = 0; !down; ++i) {
      const auto stream = std::make_shared<Stream>();
      const auto id =
          loop.submit(to_request(some_request(static_cast<uint64_t>(client * 1000 + i)), {}, {}), stream);
      if (!id.ok()) {
        EXPECT_EQ(id.error().code, ErrorCode::kUnavailable);
        EXPECT_FALSE(stream->finished());
        ++refused;
        return;
      }
      ++accepted;
      const FinishReason reason = stream->wait_finished();
      if (how == Shutdown::kDrain) EXPECT_NE(reason, FinishReason::kCancelled);
      ++ended;
    }
  });
  closer.join();
  EXPECT_EQ(accepted, ended);
  EXPECT_GT(refused, 0);
}

TEST_F(Storm, ShutdownNowEndsEverybody) {
  start();
  shut_down_under_load(*loop_, Shutdown::kNow, [](const auto& body) { on_all_clients(body); });
  expect_nothing_left();
}

TEST_F(Storm, ShutdownDrainLetsEverybodyFinish) {
  start();
  shut_down_under_load(*loop_, Shutdown::kDrain, [](const auto& body) { on_all_clients(body); });
  expect_nothing_left();
}

TEST_F(Storm, AFullLineRefuses) {
  start(/*max_waiting=*/4);
  std::atomic<int> refused = 0;
  on_all_clients([&](int client) {
    for (int i = 0; i < 20; ++i) {
      const PlannedRequest planned = some_request(static_cast<uint64_t>(client * 1000 + i));
      const auto stream = std::make_shared<Stream>();
      const auto id = loop_->submit(to_request(planned, {}, {}), stream);
      if (id.ok()) {
        stream->wait_finished();
        EXPECT_EQ(stream->tokens(), expected_answer(planned).tokens);
      } else {
        EXPECT_EQ(id.error().code, ErrorCode::kUnavailable);
        ++refused;
      }
    }
  });
  EXPECT_GT(refused.load(), 0);
  loop_->shutdown(Shutdown::kDrain);
  expect_nothing_left();
}

TEST_F(Storm, DestroyingALoopEndsIt) {
  start();
  std::vector<std::shared_ptr<Stream>> streams;
  for (int i = 0; i < 50; ++i) {
    streams.push_back(std::make_shared<Stream>());
    PlannedRequest planned = some_request(static_cast<uint64_t>(i));
    planned.max_tokens = 60;
    ASSERT_TRUE(loop_->submit(to_request(planned, {}, {}), streams.back()).ok());
  }
  loop_.reset();
  for (const auto& stream : streams) EXPECT_TRUE(stream->finished());
  EXPECT_EQ(backend_->n_live_slots(), 0);
  EXPECT_EQ(backend_->n_live_features(), 0);
}

}  // namespace
}  // namespace jewel
