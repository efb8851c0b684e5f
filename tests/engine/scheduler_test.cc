// The scheduler's rules one by one, over the fake backend, which checks every step it gets. Random schedules
// against an oracle are in property_test.cc.
#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "backend/fake/fake_backend.h"

namespace jewel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kVocabulary = 64;

struct Sink : SequenceSink {
  Continue on_token(const TokenEvent& event) override {
    EXPECT_FALSE(finished) << "a token after the end";
    EXPECT_EQ(event.index, static_cast<int>(tokens.size()));
    tokens.push_back(event.token.id);
    return static_cast<int>(tokens.size()) == stop_after ? Continue::kNo : Continue::kYes;
  }
  void on_prompt_logprobs(SequenceId, PromptLogprobs logprobs) override { prompt = std::move(logprobs); }
  void on_finished(const Finished& end) override {
    EXPECT_FALSE(finished) << "finished twice";
    finished = end;
  }
  FinishReason reason() const { return finished.value().reason; }

  int stop_after = -1;
  std::vector<TokenId> tokens;
  PromptLogprobs prompt;
  std::optional<Finished> finished;
};

class SchedulerTest : public testing::Test {
 protected:
  SchedulerTest() {
    config.text.vocab_size = kVocabulary;
    config.text.sliding_window = 32;
    config.text.max_position_embeddings = 4096;
    options.kv = {.n_full_pages = 200, .n_sliding_pages = 200};
    options.check_books = true;
    options.now = [this] { return now; };
    fake.max_slots = 4;
    fake.max_step_tokens = 64;
  }
  ~SchedulerTest() override {
    if (!scheduler) return;
    scheduler->cancel_all();
    finish_all();
    scheduler->clear_cache();
    EXPECT_EQ(scheduler->stats().full_pages.free, scheduler->stats().full_pages.all);
    EXPECT_EQ(scheduler->stats().sliding_pages.free, scheduler->stats().sliding_pages.all);
    EXPECT_EQ(backend->n_live_slots(), 0);
    EXPECT_EQ(backend->n_live_features(), 0);
  }

  void start(FakeFaults faults = {}) {
    backend = std::make_unique<FakeBackend>(fake, std::move(faults));
    auto made = Scheduler::make(*backend, config, options);
    ASSERT_TRUE(made.ok()) << made.error().message;
    scheduler = std::move(*made);
  }
  void script(std::vector<TokenId> tokens) {
    fake.script = [tokens](std::span<const TokenId>, int index) {
      return tokens[std::min(tokens.size() - 1, static_cast<size_t>(index))];
    };
  }
  static SequenceRequest request(int n_prompt, int max_tokens, int seed = 0) {
    SequenceRequest r;
    for (int i = 0; i < n_prompt; ++i) r.prompt.push_back((i * 7 + seed * 13 + i / 16) % 60);
    r.max_tokens = max_tokens;
    return r;
  }
  std::shared_ptr<Sink> add(SequenceRequest r) {
    auto sink = std::make_shared<Sink>();
    auto added = scheduler->add(std::move(r), sink);
    EXPECT_TRUE(added.ok()) << added.error().message;
    if (added.ok()) last_id = *added;
    return sink;
  }
  void finish_all() {
    while (scheduler->has_work()) scheduler->step();
  }
  // The answer of a request in a scheduler of its own.
  std::vector<TokenId> alone(const std::function<SequenceRequest()>& make) {
    FakeBackend other(fake);
    SchedulerOptions plain{.kv = {.n_full_pages = 300, .n_sliding_pages = 300}, .one_ahead = false};
    plain.prefix_cache = false;
    auto made = Scheduler::make(other, config, plain);
    auto sink = std::make_shared<Sink>();
    EXPECT_TRUE((*made)->add(make(), sink).ok());
    while ((*made)->has_work()) (*made)->step();
    return sink->tokens;
  }

  ModelConfig config;
  SchedulerOptions options;
  FakeOptions fake;
  std::unique_ptr<FakeBackend> backend;
  std::unique_ptr<Scheduler> scheduler;
  EngineTime now{};
  SequenceId last_id = 0;
};

TEST_F(SchedulerTest, StopIdEndsTheAnswerAndTheTokenBeyondIsDropped) {
  script({10, 11, 1, 12, 13});
  start();
  auto r = request(20, 10);
  r.stop_token_ids = {1};
  const auto sink = add(std::move(r));
  finish_all();
  EXPECT_THAT(sink->tokens, ElementsAre(10, 11, 1));
  EXPECT_EQ(sink->reason(), FinishReason::kStop);
  EXPECT_EQ(sink->finished->stop_token, 1);
  EXPECT_EQ(backend->counters().decode_tokens, 3) << "one row was on its way when the stop was seen";
}

TEST_F(SchedulerTest, LengthIsKnownAhead) {
  script({10});
  start();
  const auto sink = add(request(20, 5));
  finish_all();
  EXPECT_EQ(sink->tokens.size(), 5u);
  EXPECT_EQ(sink->reason(), FinishReason::kLength);
  EXPECT_EQ(backend->counters().decode_tokens, 4) << "no row beyond max_tokens";
}

TEST_F(SchedulerTest, OneStepIsInFlightBetweenCalls) {
  start();
  add(request(20, 5));
  scheduler->step();
  EXPECT_EQ(backend->n_steps_in_flight(), 1);
  scheduler->step();
  EXPECT_EQ(backend->n_steps_in_flight(), 1);
  finish_all();
  EXPECT_EQ(backend->n_steps_in_flight(), 0);
}

TEST_F(SchedulerTest, InStepEveryResultIsThereBeforeTheNextPlan) {
  options.one_ahead = false;
  script({10, 1, 12});
  start();
  auto r = request(20, 10);
  r.stop_token_ids = {1};
  const auto sink = add(std::move(r));
  scheduler->step();
  EXPECT_EQ(sink->tokens.size(), 1u);
  finish_all();
  EXPECT_EQ(backend->counters().decode_tokens, 1);
}

TEST_F(SchedulerTest, SinkMayStopIt) {
  start();
  auto sink = std::make_shared<Sink>();
  sink->stop_after = 2;
  ASSERT_TRUE(scheduler->add(request(20, 10), sink).ok());
  finish_all();
  EXPECT_EQ(sink->tokens.size(), 2u);
  EXPECT_EQ(sink->reason(), FinishReason::kStop);
  EXPECT_EQ(sink->finished->stop_token, -1);
}

TEST_F(SchedulerTest, CancelIsHeardAtOnceAndPagesFollowTheStep) {
  start();
  const auto sink = add(request(40, 10));
  scheduler->step();
  scheduler->cancel(last_id);
  EXPECT_EQ(sink->reason(), FinishReason::kCancelled);
  EXPECT_GT(scheduler->stats().full_pages.held, 0) << "a step in flight writes to them";
  EXPECT_TRUE(scheduler->has_work());
  finish_all();
  EXPECT_EQ(scheduler->stats().full_pages.held, 0);
  scheduler->cancel(last_id);  // long gone
}

TEST_F(SchedulerTest, Deadline) {
  start();
  auto r = request(20, 1000);
  r.deadline = std::chrono::seconds(5);
  const auto sink = add(std::move(r));
  EXPECT_EQ(scheduler->next_deadline(), EngineTime(std::chrono::seconds(5)));
  for (int i = 0; i < 5; ++i) scheduler->step();
  EXPECT_FALSE(sink->finished);
  now = std::chrono::seconds(5);
  scheduler->step();
  EXPECT_EQ(sink->reason(), FinishReason::kDeadline);
  EXPECT_EQ(scheduler->next_deadline(), std::nullopt);
}

TEST_F(SchedulerTest, PriorityOvertakesWithinItsTimeOnly) {
  fake.max_slots = 1;
  start();
  const auto running = add(request(20, 3, 1));
  scheduler->step();
  auto late = request(20, 3, 2);
  late.priority = -1;
  const auto patient = add(request(20, 3, 3));
  now = std::chrono::seconds(9);
  const auto urgent = add(std::move(late));
  now = std::chrono::seconds(11);  // a better priority of ten seconds' worth comes too late
  late = request(20, 3, 4);
  late.priority = -1;
  const auto too_late = add(std::move(late));
  std::vector<const Sink*> order;
  while (scheduler->has_work()) {
    scheduler->step();
    for (const auto& sink : {running, patient, urgent, too_late}) {
      if (sink->finished && std::ranges::find(order, sink.get()) == order.end()) order.push_back(sink.get());
    }
  }
  EXPECT_THAT(order, ElementsAre(running.get(), urgent.get(), patient.get(), too_late.get()));
}

TEST_F(SchedulerTest, DecodeRowsComeFirstAndPromptsShareTheRest) {
  fake.max_step_tokens = 16;
  start();
  add(request(16, 50, 1));
  while (scheduler->stats().tokens_generated == 0) scheduler->step();
  add(request(100, 2, 2));
  const StepReport report = scheduler->step();
  EXPECT_EQ(report.decode_rows, 1);
  EXPECT_EQ(report.prefill_tokens, 15);
}

TEST_F(SchedulerTest, LongPromptsLeaveRoomForShortOnes) {
  options.long_prefill_chunk = 32;
  start();
  add(request(1000, 2, 1));
  const auto quick = add(request(30, 1, 2));
  scheduler->step();
  scheduler->step();
  EXPECT_TRUE(quick->finished);
}

TEST_F(SchedulerTest, ConcurrentIdenticalPromptsAreComputedOnce) {
  start();
  std::vector<std::shared_ptr<Sink>> sinks;
  for (int i = 0; i < 4; ++i) sinks.push_back(add(request(500, 4)));
  finish_all();
  for (const auto& sink : sinks) EXPECT_EQ(sink->tokens, sinks[0]->tokens);
  // All but the last page, which each computes to sample from it.
  EXPECT_LE(backend->counters().prefill_tokens, 500 + 3 * kPageTokens);
  EXPECT_EQ(sinks[3]->finished->stats.cached_tokens, 496);
}

TEST_F(SchedulerTest, WaitersGoOnWhenTheOneTheyWaitForLeaves) {
  start();
  add(request(500, 4));
  const SequenceId first = last_id;
  const auto second = add(request(500, 4));
  scheduler->step();
  scheduler->step();
  EXPECT_EQ(scheduler->stats().waiting, 1);
  scheduler->cancel(first);
  finish_all();
  EXPECT_EQ(second->tokens, alone([] { return request(500, 4); }));
}

TEST_F(SchedulerTest, TheNextTurnGoesOnFromTheAnswer) {
  start();
  const auto first = add(request(100, 40));
  finish_all();
  auto r = request(100, 5);
  r.prompt.insert(r.prompt.end(), first->tokens.begin(), first->tokens.end());
  r.prompt.insert(r.prompt.end(), {5, 6, 7});
  const auto again = r.prompt;
  const auto second = add(std::move(r));
  finish_all();
  EXPECT_EQ(second->finished->stats.cached_tokens, 128);
  EXPECT_EQ(second->tokens, alone([&] {
              auto plain = request(1, 5);
              plain.prompt = again;
              return plain;
            }));
}

TEST_F(SchedulerTest, ExactPrefixHitsOnlyWhatPrefillWrote) {
  options.exact_prefix = true;
  fake.exact_phases = true;
  start();
  const auto first = add(request(100, 40));
  finish_all();
  auto r = request(100, 5);
  r.prompt.insert(r.prompt.end(), first->tokens.begin(), first->tokens.end());
  const auto second = add(std::move(r));
  finish_all();
  EXPECT_EQ(second->finished->stats.cached_tokens, 96);
}

TEST_F(SchedulerTest, SaltsAndImagesDoNotMix) {
  start();
  const auto with_salt = [&](const char* salt) {
    auto r = request(200, 2);
    r.cache_salt = salt;
    const auto sink = add(std::move(r));
    finish_all();
    return sink->finished->stats.cached_tokens;
  };
  EXPECT_EQ(with_salt("a"), 0);
  EXPECT_EQ(with_salt("b"), 0);
  EXPECT_EQ(with_salt("a"), 192);
}

SequenceRequest with_image(int content, int n_prompt = 100) {
  SequenceRequest r;
  for (int i = 0; i < n_prompt; ++i) r.prompt.push_back(i % 50);
  auto patches = std::make_shared<ImagePatches>();
  patches->grid_h = 12;
  patches->grid_w = 12;
  patches->pixels.assign(144, static_cast<uint8_t>(content));
  r.images = {{.patches = patches, .position = 10, .count = 16}};
  r.images[0].content[0] = static_cast<uint8_t>(content);
  r.max_tokens = 3;
  return r;
}

TEST_F(SchedulerTest, AnImageIsEncodedOnce) {
  start();
  const auto first = add(with_image(1));
  finish_all();
  EXPECT_EQ(first->finished->stats.images_encoded, 1);
  EXPECT_EQ(first->finished->stats.image_tokens, 16);
  const auto inside_hit = add(with_image(1));
  finish_all();
  EXPECT_EQ(inside_hit->finished->stats.images_encoded, 0);
  auto no_hit = with_image(1);
  no_hit.cache_salt = "other";  // other pages, same picture
  const auto by_content = add(std::move(no_hit));
  finish_all();
  EXPECT_EQ(by_content->finished->stats.cached_tokens, 0);
  EXPECT_EQ(backend->counters().images, 1);
  add(with_image(2));
  finish_all();
  EXPECT_EQ(backend->counters().images, 2);
}

TEST_F(SchedulerTest, AnImageThatCannotBeEncodedEndsItsRequestOnly) {
  start({.encode_image = {0}});
  const auto bad = add(with_image(1));
  const auto good = add(request(50, 3));
  finish_all();
  EXPECT_EQ(bad->reason(), FinishReason::kError);
  EXPECT_EQ(good->reason(), FinishReason::kLength);
}

TEST_F(SchedulerTest, ADeviceErrorEndsTheSequencesOfThatStep) {
  start({.steps = {3}});
  const auto hit = add(request(20, 20, 1));
  for (int i = 0; i < 5; ++i) scheduler->step();
  const auto later = add(request(20, 20, 2));
  finish_all();
  EXPECT_EQ(hit->reason(), FinishReason::kError);
  EXPECT_THAT(hit->finished->error->message, HasSubstr("device failed"));
  EXPECT_EQ(later->reason(), FinishReason::kLength);
}

TEST_F(SchedulerTest, AfterADeviceErrorImagesAreEncodedAnew) {
  start({.steps = {20}});
  add(with_image(1));
  finish_all();
  ASSERT_LT(backend->counters().steps, 20);
  const auto hit = add(request(20, 40));
  finish_all();
  EXPECT_EQ(hit->reason(), FinishReason::kError);
  const auto again = [] {
    auto r = with_image(1);
    r.cache_salt = "other";
    return r;
  };
  add(again());
  finish_all();
  EXPECT_EQ(backend->counters().images, 2);
  add(again());
  finish_all();
  EXPECT_EQ(backend->counters().images, 2);
}

TEST_F(SchedulerTest, ADeviceThatFailsAgainAndAgainIsSeen) {
  start({.steps = {0, 1, 2, 3, 4, 5}});
  int most = 0;
  for (int i = 0; i < 10; ++i) {
    const auto one = add(request(20, 5, i));
    finish_all();
    most = std::max(most, scheduler->stats().steps_failed_in_a_row);
    EXPECT_EQ(one->reason() == FinishReason::kError, scheduler->stats().steps_failed_in_a_row > 0);
  }
  EXPECT_EQ(most, 6);
  EXPECT_EQ(scheduler->stats().steps_failed_in_a_row, 0);
}

class Preempted : public SchedulerTest, public testing::WithParamInterface<size_t> {};

TEST_P(Preempted, ComesBackWithTheSameAnswer) {
  options.swap_bytes = GetParam();
  options.kv = {.n_full_pages = 24, .n_sliding_pages = 24};
  start();
  std::vector<std::shared_ptr<Sink>> sinks;
  for (int i = 0; i < 4; ++i) sinks.push_back(add(request(80 + i, 150, i + 1)));
  finish_all();
  EXPECT_GT(scheduler->stats().preemptions, 0u);
  EXPECT_EQ(scheduler->stats().preemptions_swapped > 0, GetParam() > 0);
  EXPECT_EQ(sinks[0]->finished->stats.preemptions, 0) << "the first in line is never thrown out";
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(sinks[static_cast<size_t>(i)]->tokens, alone([&] { return request(80 + i, 150, i + 1); })) << i;
  }
}
INSTANTIATE_TEST_SUITE_P(SwapOrReplay, Preempted, testing::Values(size_t{0}, size_t{1} << 20));

// Allows the ids of one parity, changing with each token.
struct Alternating : TokenMask {
  Result<std::span<const uint32_t>> allowed() override {
    words.assign(kVocabulary / 32, n_accepted % 2 == 0 ? 0x55555555u : 0xaaaaaaaau);
    if (n_accepted == nothing_at) words.assign(kVocabulary / 32, 0);
    return std::span<const uint32_t>(words);
  }
  Result<void> accept(TokenId id) override {
    EXPECT_EQ(id % 2, n_accepted % 2);
    ++n_accepted;
    return {};
  }
  int n_accepted = 0;
  int nothing_at = -1;
  std::vector<uint32_t> words;
};

TEST_F(SchedulerTest, MaskedRowsGoStepByStepBesideTheOthers) {
  start();
  auto r = request(20, 9, 1);
  r.mask = std::make_unique<Alternating>();
  const auto masked = add(std::move(r));
  const auto free = add(request(20, 30, 2));
  finish_all();
  ASSERT_EQ(masked->tokens.size(), 9u);
  for (size_t i = 0; i < 9; ++i) EXPECT_EQ(masked->tokens[i] % 2, static_cast<int>(i % 2));
  EXPECT_EQ(free->tokens.size(), 30u);
  EXPECT_LE(backend->counters().steps, 32) << "the other one is not slowed down";
}

TEST_F(SchedulerTest, AMaskThatAllowsNothingIsAnError) {
  start();
  auto r = request(20, 9);
  auto mask = std::make_unique<Alternating>();
  mask->nothing_at = 2;
  r.mask = std::move(mask);
  const auto sink = add(std::move(r));
  finish_all();
  EXPECT_EQ(sink->tokens.size(), 2u);
  EXPECT_EQ(sink->reason(), FinishReason::kError);
}

TEST_F(SchedulerTest, ThinkingEndsWhenItsBudgetIsSpent) {
  start();
  auto r = request(20, 30);
  r.thinking_budget = {.start = 61, .end = 62, .forced = {7, 62}, .max_tokens = 5, .open = true};
  const auto thinker = add(std::move(r));
  finish_all();
  ASSERT_EQ(thinker->tokens.size(), 30u);
  const auto end = std::ranges::find(thinker->tokens, 62) - thinker->tokens.begin();
  ASSERT_LE(end, 6);
  if (end == 6) EXPECT_EQ(thinker->tokens[5], 7);
  // Once spent, no other thought begins.
  if (end == 6) EXPECT_EQ(std::ranges::count(thinker->tokens, 61), 0);
}

TEST_F(SchedulerTest, AThinkingBudgetOfNothingForbidsToThink) {
  start();
  for (int seed = 0; seed < 20; ++seed) {
    auto r = request(20, 40, seed);
    r.thinking_budget = {.start = 61, .end = 62, .forced = {62}, .max_tokens = 0};
    const auto sink = add(std::move(r));
    finish_all();
    EXPECT_EQ(std::ranges::count(sink->tokens, 61), 0);
  }
}

TEST_F(SchedulerTest, RepetitionGuard) {
  script({1, 2, 3, 4, 5, 6, 5, 6, 5, 6, 5, 6, 5, 6, 5});
  start();
  auto r = request(20, 100);
  r.repetition_guard = {.max_period = 8, .repeats = 4, .min_tokens = 8};
  const auto sink = add(std::move(r));
  finish_all();
  EXPECT_EQ(sink->reason(), FinishReason::kRepetition);
  EXPECT_EQ(sink->tokens.size(), 12u);  // 5 6 four times
}

TEST_F(SchedulerTest, MinTokensHoldsStopIdsBack) {
  start();
  for (int seed = 0; seed < 20; ++seed) {
    auto r = request(20, 60, seed);
    for (TokenId id = 0; id < 30; ++id) r.stop_token_ids.push_back(id);
    r.min_tokens = 7;
    const auto sink = add(std::move(r));
    finish_all();
    EXPECT_GE(sink->tokens.size(), 8u);
  }
}

TEST_F(SchedulerTest, PromptLogprobsAreWholeWhateverTheChunks) {
  fake.max_step_tokens = 10;
  start();
  auto r = request(47, 2);
  r.n_prompt_logprobs = 1;
  const auto sink = add(std::move(r));
  finish_all();
  EXPECT_EQ(sink->prompt.token.size(), 46u);
  EXPECT_EQ(sink->prompt.top.size(), 47u);
}

TEST_F(SchedulerTest, RefusesWhatCanNeverRun) {
  options.max_waiting = 2;
  options.max_model_len = 300;
  options.kv = {.n_full_pages = 10, .n_sliding_pages = 10};
  start();
  const auto refused = [&](const SequenceRequest& r) { return scheduler->check(r).error(); };
  EXPECT_EQ(refused(request(290, 11)).code, ErrorCode::kTooLarge);
  EXPECT_THAT(refused(request(200, 20)).message, HasSubstr("14 full"));
  EXPECT_THAT(refused(request(0, 20)).message, HasSubstr("no tokens"));
  EXPECT_THAT(refused(request(5, 0)).message, HasSubstr("max_tokens: found 0"));
  auto r = request(20, 5);
  r.prompt[3] = kVocabulary;
  EXPECT_THAT(refused(r).message, HasSubstr("token id 64 is outside"));
  r = with_image(1);
  r.images[0].position = 90;
  EXPECT_THAT(refused(r).message, HasSubstr("soft tokens at 90 + 16"));
  add(request(20, 5));
  add(request(20, 5));
  EXPECT_EQ(scheduler->add(request(20, 5), std::make_shared<Sink>()).error().code, ErrorCode::kUnavailable);
}

TEST_F(SchedulerTest, TimesAreTheClocks) {
  fake.max_slots = 1;
  start();
  add(request(20, 2, 1));
  const auto second = add(request(20, 3, 2));
  while (scheduler->has_work()) {
    now += std::chrono::milliseconds(1);
    scheduler->step();
  }
  const SequenceStats& stats = second->finished->stats;
  EXPECT_GE(stats.queue, std::chrono::milliseconds(2));
  EXPECT_GE(stats.prefill, std::chrono::milliseconds(1));
  EXPECT_EQ(stats.decode, std::chrono::milliseconds(2));
  EXPECT_EQ(stats.output_tokens, 3);
}

struct Watch : StepWatch {
  void work_begins() override {}
  void work_ends() override {}
  void step_done(std::span<const RowWork> rows) override {
    ++steps;
    for (const RowWork& row : rows) {
      RowWork& sum = by_sequence[row.sequence];
      sum.prefill_tokens += row.prefill_tokens;
      sum.decode_tokens += row.decode_tokens;
      sum.image_patches += row.image_patches;
      thought[row.sequence] += row.reasoning ? row.decode_tokens : 0;
    }
  }
  int64_t steps = 0;
  std::map<SequenceId, RowWork> by_sequence;
  std::map<SequenceId, int> thought;
};

TEST_F(SchedulerTest, AWatchIsToldWhatEveryStepHadForWhom) {
  Watch watch;
  options.watch = &watch;
  script({10, 11, 1, 12});
  start({.steps = {4}});
  const auto first = add(with_image(1));
  const SequenceId picture = last_id;
  const auto second = add(with_image(1, 90));  // the same picture: encoded once
  const SequenceId again = last_id;
  for (int i = 0; i < 3; ++i) scheduler->step();
  add(request(150, 20, 3));  // some of it fails
  finish_all();
  EXPECT_EQ(watch.steps, backend->counters().steps) << "failed ones, too";
  int64_t prefill = 0, decode = 0;
  for (const auto& [id, work] : watch.by_sequence) {
    prefill += work.prefill_tokens;
    decode += work.decode_tokens;
  }
  EXPECT_EQ(prefill, backend->counters().prefill_tokens);
  EXPECT_EQ(decode, backend->counters().decode_tokens);
  EXPECT_EQ(watch.by_sequence[picture].image_patches + watch.by_sequence[again].image_patches, 144);
}

TEST_F(SchedulerTest, AWatchIsToldOfThoughts) {
  Watch watch;
  options.watch = &watch;
  script({50, 10, 11, 51, 12, 13, 14, 15});
  start();
  auto r = request(20, 8);
  r.thought = {.open = 50, .close = 51, .call_open = 52};
  add(std::move(r));
  const SequenceId thinks = last_id;
  finish_all();
  // Of eight tokens the first comes with the prompt; 10, 11 and the end are the thought's rows.
  EXPECT_EQ(watch.by_sequence[thinks].decode_tokens, 7);
  EXPECT_EQ(watch.thought[thinks], 3);
  auto open = request(20, 4, 5);
  open.thought = {.open = 50, .close = 51, .call_open = 11, .inside = true};
  add(std::move(open));
  finish_all();
  EXPECT_EQ(watch.thought[last_id], 2) << "until a call opens";
}

TEST_F(SchedulerTest, AnEndSaysHowManyRowsAreOnTheirWay) {
  script({10, 11, 1, 12, 13});
  start();
  auto r = request(20, 10);
  r.stop_token_ids = {1};
  const auto stopped = add(std::move(r));
  finish_all();
  EXPECT_EQ(stopped->finished->stats.rows_in_flight, 1);
  const auto full = add(request(20, 2, 9));
  finish_all();
  EXPECT_EQ(full->finished->stats.rows_in_flight, 0);
}

}  // namespace
}  // namespace jewel
