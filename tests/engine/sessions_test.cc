// Conversations under a page budget: does the prefix cache hold what they will ask for again?
//
// 200 conversations of 6 turns share a system prompt and a picture. The pool has pages for 60 of them. In the
// first test 60 are going on at any moment and the finished ones must make room: an unlimited cache is the
// measure. In the second all 200 go on at once, in turns: the least recently used is then always the next to
// come back, and a cache that evicts it falls to nothing. 60 have to keep their hits, and all what they
// share.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <numeric>

#include "engine/pages.h"
#include "schedule.h"

namespace jewel {
namespace {

constexpr int kSessions = 200, kTurns = 6, kBudgetSessions = 60;
constexpr int kSystemTokens = 200, kImageTokens = 256, kUserTokens = 30, kAnswerTokens = 40;
constexpr int kShared = kSystemTokens + kImageTokens;
constexpr int kWindow = 512;
constexpr int kLongest = kShared + kTurns * (kUserTokens + kAnswerTokens);

int pages_of(int tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

// What 60 conversations hold at their longest: the shared part once in the full pool, and a window of sliding
// pages for each of them.
KvSizes budget() {
  const int own = pages_of(kLongest) - kShared / kPageTokens;
  return {.n_full_pages = kShared / kPageTokens + kBudgetSessions * own,
          .n_sliding_pages = kBudgetSessions * (pages_of(kWindow) + 1)};
}

struct Totals {
  int64_t prompt = 0;
  int64_t cached = 0;
  int64_t turns = 0;
  int64_t turns_without_shared = 0;  // that computed what all have in common again
  int64_t images_encoded = 0;
  std::vector<double> session_hit_rates;  // largest first
  double best_hit_rate(int n) const {
    return std::accumulate(session_hit_rates.begin(), session_hit_rates.begin() + n, 0.0) / n;
  }
  double hit_rate() const { return static_cast<double>(cached) / static_cast<double>(prompt); }
};

class Session : public SequenceSink {
 public:
  Session(int number, Totals& totals) : dice_(static_cast<uint64_t>(number) + 1000), totals_(totals) {
    Dice common(7);
    for (int i = 0; i < kSystemTokens; ++i) history_.push_back(common.between(3, 62));
    history_.insert(history_.end(), kImageTokens, kFakeImageToken);
  }

  SequenceRequest next_turn() {
    for (int i = 0; i < kUserTokens; ++i) history_.push_back(dice_.between(3, 62));
    SequenceRequest request;
    request.prompt = history_;
    PromptImage& image = request.images.emplace_back();
    image.content[0] = 1;
    image.budget = kImageTokens;
    image.patches = fake_picture(0, kImageTokens);
    image.position = kSystemTokens;
    image.count = kImageTokens;
    request.sampling.temperature = 0;
    request.sampling.never = {kFakeImageToken};
    request.max_tokens = kAnswerTokens;
    request.resume_points = {kSystemTokens, kShared};
    ++turn;
    busy = true;
    return request;
  }
  Continue on_token(const TokenEvent& event) override {
    history_.push_back(event.token.id);
    return Continue::kYes;
  }
  void on_finished(const Finished& finished) override {
    EXPECT_EQ(finished.reason, FinishReason::kLength);
    busy = false;
    prompt_ += finished.stats.prompt_tokens;
    cached_ += finished.stats.cached_tokens;
    totals_.prompt += finished.stats.prompt_tokens;
    totals_.cached += finished.stats.cached_tokens;
    totals_.images_encoded += finished.stats.images_encoded;
    ++totals_.turns;
    totals_.turns_without_shared +=
        finished.stats.cached_tokens < kShared / kPageTokens * kPageTokens ? 1 : 0;
  }
  bool done() const { return turn == kTurns && !busy; }

  double hit_rate() const { return static_cast<double>(cached_) / static_cast<double>(prompt_); }

  int turn = 0;
  bool busy = false;
  int ready_at = 0;  // step

 private:
  Dice dice_;
  Totals& totals_;
  std::vector<TokenId> history_;
  int64_t prompt_ = 0, cached_ = 0;
};

// `at_once` conversations go on at any moment; between two turns a person thinks for 20 to 200 steps.
Totals converse(int at_once, const KvSizes& kv) {
  FakeOptions backend_options;
  backend_options.max_slots = 16;
  backend_options.max_step_tokens = 1024;
  backend_options.sliding_window = kWindow;
  FakeBackend backend(backend_options);
  const ModelConfig config = fake_config(kWindow, 4096);
  SchedulerOptions options;
  options.kv = kv;
  EngineTime now{};
  options.now = [&] { return now; };
  auto made = Scheduler::make(backend, config, options);
  EXPECT_TRUE(made.ok());
  Scheduler& scheduler = **made;

  Totals totals;
  Dice think(1);
  std::vector<std::shared_ptr<Session>> sessions;
  for (int i = 0; i < kSessions; ++i) sessions.push_back(std::make_shared<Session>(i, totals));
  int first = 0;  // all before it are done
  for (int t = 0; first < kSessions; ++t) {
    now = t * std::chrono::milliseconds(1);
    int going_on = 0;
    for (int i = first; i < kSessions && going_on < at_once; ++i) {
      Session& session = *sessions[static_cast<size_t>(i)];
      if (session.done()) continue;
      ++going_on;
      if (session.busy || t < session.ready_at) continue;
      session.ready_at = t + think.between(20, 200);
      EXPECT_TRUE(scheduler.add(session.next_turn(), sessions[static_cast<size_t>(i)]).ok());
    }
    while (first < kSessions && sessions[static_cast<size_t>(first)]->done()) ++first;
    if (scheduler.has_work()) scheduler.step();
    if (t % 64 == 0) scheduler.check_books();
    if (t > 200'000) {
      ADD_FAILURE() << "the conversations do not come to an end";
      break;
    }
  }
  EXPECT_EQ(totals.turns, kSessions * kTurns);
  for (const auto& session : sessions) totals.session_hit_rates.push_back(session->hit_rate());
  std::ranges::sort(totals.session_hit_rates, std::greater<>());
  scheduler.cancel_all();
  return totals;
}

KvSizes unlimited() {
  return {.n_full_pages = kSessions * pages_of(kLongest), .n_sliding_pages = kSessions * kTurns * 40};
}

TEST(Sessions, ThoseThatFitKeepTheirHits) {
  const Totals best = converse(kBudgetSessions, unlimited());
  const Totals limited = converse(kBudgetSessions, budget());
  fmt::print("60 conversations at a time, {} full and {} sliding pages: hit rate {:.4f}, unlimited {:.4f}\n",
             budget().n_full_pages, budget().n_sliding_pages, limited.hit_rate(), best.hit_rate());
  EXPECT_GE(limited.hit_rate(), 0.9 * best.hit_rate());
  EXPECT_GE(best.hit_rate(), 0.85);  // 6 turns: all but the new words, and up to a page at each end
  EXPECT_EQ(limited.images_encoded, 1);
}

TEST(Sessions, WhatAllShareStaysWhenTheRestDoesNotFit) {
  const Totals best = converse(kSessions, unlimited());
  const Totals limited = converse(kSessions, budget());
  fmt::print(
      "200 conversations at a time: hit rate {:.4f}, unlimited {:.4f}; {} of {} turns computed the shared "
      "part again\n",
      limited.hit_rate(), best.hit_rate(), limited.turns_without_shared, limited.turns);
  fmt::print("the {} of them that keep most: hit rate {:.4f}, unlimited {:.4f}\n", kBudgetSessions,
             limited.best_hit_rate(kBudgetSessions), best.best_hit_rate(kBudgetSessions));
  EXPECT_GE(limited.best_hit_rate(kBudgetSessions), 0.9 * best.best_hit_rate(kBudgetSessions));
  // The shared part is 456 of 486 to 836 prompt tokens: more than half of all.
  EXPECT_GE(limited.hit_rate(), 0.55);
  // The first turns come before there is anything to hit.
  EXPECT_LE(limited.turns_without_shared, 16);
}

}  // namespace
}  // namespace jewel
