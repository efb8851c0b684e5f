// The device given back and had again: what is kept where not all fits, and the engine loop with clients that
// come while it goes, while it is away and while it cannot be had.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "backend/releasable_backend.h"
#include "base/comes_true.h"
#include "engine/engine_loop.h"
#include "schedule.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

constexpr int kPages = 40;  // of each pool

class Ear : public SequenceSink {
 public:
  Continue on_token(const TokenEvent& event) override {
    tokens_.push_back(event.token.id);
    return Continue::kYes;
  }
  void on_finished(const Finished& finished) override { end_.set_value(finished); }
  // Once.
  Finished wait() { return end_.get_future().get(); }
  const std::vector<TokenId>& tokens() const { return tokens_; }  // after wait()

 private:
  std::vector<TokenId> tokens_;
  std::promise<Finished> end_;
};

PlannedRequest plain_request(uint64_t seed) {
  PlannedRequest request = random_schedule(seed).requests.front();
  request.sink_stops_after = request.mask_fails_after = request.deadline_after = -1;
  return request;
}

class DeepIdle : public testing::Test {
 protected:
  DeepIdle() {
    options_.kv = {.n_full_pages = kPages, .n_sliding_pages = kPages};
    options_.check_books = true;
    make_backend();
  }

  void make_backend() {
    auto make = [this]() -> Result<std::unique_ptr<Backend>> {
      if (refuse_ > 0) {
        --refuse_;
        return unavailable("fake: no device");
      }
      ++made_;
      return std::unique_ptr<Backend>(std::make_unique<FakeBackend>(FakeOptions()));
    };
    backend_ =
        std::make_unique<ReleasableBackend>(std::make_unique<FakeBackend>(FakeOptions()), make, [this] {
          if (on_give_back_) on_give_back_();
        });
  }

  void start(double idle_release_s) {
    auto loop = EngineLoop::start(*backend_, config_, options_, idle_release_s);
    ASSERT_TRUE(loop.ok());
    loop_ = std::move(*loop);
  }
  bool released() const { return loop_->stats().idle.released; }

  std::shared_ptr<Ear> submit(const PlannedRequest& planned) {
    auto ear = std::make_shared<Ear>();
    const auto id = loop_->submit(to_request(planned, {}, {}), ear);
    EXPECT_TRUE(id.ok()) << id.error().message;
    return ear;
  }
  void expect_answer(const PlannedRequest& planned) {
    const auto ear = submit(planned);
    EXPECT_FALSE(ear->wait().error);
    EXPECT_EQ(ear->tokens(), expected_answer(planned).tokens);
  }

  const ModelConfig config_ = fake_config(32, 4096);
  SchedulerOptions options_;
  std::atomic<int> refuse_{0}, made_{0};
  std::function<void()> on_give_back_;
  std::unique_ptr<ReleasableBackend> backend_;
  std::unique_ptr<EngineLoop> loop_;
};

// Two prompts of which host memory holds one: the one that was used last stays.
TEST_F(DeepIdle, KeepsWhatIsWorthMost) {
  const auto prompt_of = [](TokenId word) {
    PlannedRequest request;
    request.prompt.assign(100, word);
    request.max_tokens = 1;
    return request;
  };
  const auto cached = [](Scheduler& scheduler, const PlannedRequest& request) {
    const auto ear = std::make_shared<Ear>();
    EXPECT_TRUE(scheduler.add(to_request(request, {}, {}), ear).ok());
    while (scheduler.has_work()) scheduler.step();
    return ear->wait().stats.cached_tokens;
  };
  const PlannedRequest first = prompt_of(20), second = prompt_of(21);
  for (const int pages : {0, 10, 100}) {
    // Each prompt: 6 whole pages, the window's last 2 or 3 of them in the sliding pool too.
    options_.swap_bytes = static_cast<size_t>(pages) * backend_->info().full_page_bytes;
    auto made = Scheduler::make(*backend_, config_, options_);
    ASSERT_TRUE(made.ok());
    Scheduler& scheduler = **made;
    EXPECT_EQ(cached(scheduler, first), 0);
    EXPECT_EQ(cached(scheduler, second), 0);
    const ReleaseReport report = scheduler.release_device();
    EXPECT_LE(report.bytes_kept, options_.swap_bytes);
    EXPECT_EQ(report.checkpoints_dropped, pages == 0 ? 2 : pages == 10 ? 1 : 0);
    ASSERT_TRUE(scheduler.restore_device().ok());
    EXPECT_EQ(cached(scheduler, second), pages == 0 ? 0 : 96);
    EXPECT_EQ(cached(scheduler, first), pages == 100 ? 96 : 0);
  }
}

TEST_F(DeepIdle, AClearedCacheStaysCleared) {
  auto made = Scheduler::make(*backend_, config_, options_);
  ASSERT_TRUE(made.ok());
  Scheduler& scheduler = **made;
  PlannedRequest request = plain_request(1);
  request.prompt.assign(50, 20);
  request.images.clear();
  const auto run = [&] {
    const auto ear = std::make_shared<Ear>();
    EXPECT_TRUE(scheduler.add(to_request(request, {}, {}), ear).ok());
    while (scheduler.has_work()) scheduler.step();
    EXPECT_EQ(ear->wait().stats.cached_tokens, 0);
    EXPECT_EQ(ear->tokens(), expected_answer(request).tokens);
  };
  run();
  scheduler.release_device();
  scheduler.clear_cache();
  scheduler.check_books();
  EXPECT_EQ(scheduler.stats().full_pages.free, kPages);
  ASSERT_TRUE(scheduler.restore_device().ok());
  run();
}

TEST_F(DeepIdle, GoesAndComesBackForEveryRequest) {
  start(0.001);
  for (uint64_t i = 0; i < 20; ++i) {
    ASSERT_TRUE(comes_true([&] { return released(); }));
    expect_answer(plain_request(i));
  }
  ASSERT_TRUE(comes_true([&] { return released(); }));
  const IdleStats idle = loop_->stats().idle;
  EXPECT_EQ(idle.wakes, 20u);
  EXPECT_EQ(idle.releases, 21u);
  EXPECT_EQ(made_, 20);
  EXPECT_GT(idle.wake_s, 0);
  std::this_thread::sleep_for(2ms);
  loop_->cancel(12345);  // nobody's
  std::this_thread::sleep_for(2ms);
  EXPECT_TRUE(released());
  EXPECT_GE(loop_->stats().idle.released_s, idle.released_s + 0.004);
  EXPECT_EQ(made_, 20);
}

TEST_F(DeepIdle, NeverUnlessAsked) {
  start(0);
  expect_answer(plain_request(1));
  std::this_thread::sleep_for(20ms);
  EXPECT_FALSE(released());
  expect_answer(plain_request(2));
  EXPECT_EQ(loop_->stats().idle.releases, 0u);
}

TEST_F(DeepIdle, SaysWhenTheDeviceCannotBeHadAndTriesAgain) {
  start(0.001);
  ASSERT_TRUE(comes_true([&] { return released(); }));
  refuse_ = 2;
  for (int i = 1; i <= 2; ++i) {
    const Finished end = submit(plain_request(3))->wait();
    ASSERT_TRUE(end.error);
    EXPECT_EQ(end.reason, FinishReason::kError);
    EXPECT_EQ(end.error->code, ErrorCode::kUnavailable);
    EXPECT_THAT(end.error->message, HasSubstr("cannot be had again: fake: no device"));
    EXPECT_EQ(loop_->stats().idle.wakes_failed_in_a_row, i);
    EXPECT_TRUE(released());
  }
  expect_answer(plain_request(3));
  const IdleStats idle = loop_->stats().idle;
  EXPECT_EQ(idle.wakes_failed, 2u);
  EXPECT_EQ(idle.wakes_failed_in_a_row, 0);
}

TEST_F(DeepIdle, ARequestThatComesWhileItGoesIsAnswered) {
  std::atomic<bool> going{false};
  std::promise<void> go;
  on_give_back_ = [&, future = go.get_future().share()] {
    going = true;
    future.wait();
  };
  start(0.001);
  ASSERT_TRUE(comes_true([&] { return going.load(); }));
  const PlannedRequest planned = plain_request(4);
  const auto ear = submit(planned);
  EXPECT_FALSE(released());  // nor is it there
  go.set_value();
  EXPECT_FALSE(ear->wait().error);
  EXPECT_EQ(ear->tokens(), expected_answer(planned).tokens);
  loop_.reset();
}

TEST_F(DeepIdle, EndsWhileReleased) {
  for (const Shutdown how : {Shutdown::kNow, Shutdown::kDrain}) {
    const int before = made_;
    make_backend();
    start(0.001);
    expect_answer(plain_request(5));
    ASSERT_TRUE(comes_true([&] { return released(); }));
    const bool again = how == Shutdown::kDrain;
    const auto ear = again ? submit(plain_request(6)) : nullptr;  // accepted, so it is answered
    loop_->shutdown(how);
    if (again) EXPECT_FALSE(ear->wait().error);
    EXPECT_LE(made_ - before, again ? 2 : 1);
    loop_.reset();
  }
}

// Clients that come and go at any moment, and a device that is refused now and then.
TEST_F(DeepIdle, Storm) {
  constexpr int kClients = 8, kRounds = 40;
  start(0.002);
  std::atomic<int> answered{0}, refused{0};
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      Dice dice(static_cast<uint64_t>(client));
      for (int round = 0; round < kRounds; ++round) {
        std::this_thread::sleep_for(std::chrono::microseconds(dice.below(8000)));
        if (dice.one_in(16)) refuse_ = 1;
        const PlannedRequest planned = plain_request(static_cast<uint64_t>(client * kRounds + round));
        const auto ear = std::make_shared<Ear>();
        const auto id = loop_->submit(to_request(planned, {}, {}), ear);
        ASSERT_TRUE(id.ok());
        const Finished end = ear->wait();
        if (end.error) {
          EXPECT_THAT(end.error->message, HasSubstr("cannot be had again"));
          ++refused;
        } else {
          EXPECT_EQ(ear->tokens(), expected_answer(planned).tokens);
          ++answered;
        }
        EXPECT_LE(loop_->stats().scheduler.full_pages.held, kPages);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ASSERT_TRUE(comes_true([&] { return released(); }));
  refuse_ = 0;
  expect_answer(plain_request(1));  // on a busy machine it may be the first that finds the device away
  ASSERT_TRUE(comes_true([&] { return released(); }));
  const EngineStats stats = loop_->stats();
  EXPECT_EQ(answered + refused, kClients * kRounds);
  EXPECT_GT(answered, refused);
  EXPECT_GT(stats.idle.wakes, 0u);
  EXPECT_EQ(stats.idle.releases, stats.idle.wakes + 1);
  EXPECT_EQ(stats.scheduler.full_pages.held, 0);
  EXPECT_EQ(stats.scheduler.full_pages.free + stats.scheduler.full_pages.cached, kPages);
  EXPECT_EQ(stats.scheduler.sliding_pages.free + stats.scheduler.sliding_pages.cached, kPages);
}

}  // namespace
}  // namespace jewel
