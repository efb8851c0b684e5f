// The fake backend is what the engine's tests trust, so each rule it checks is broken here once.
#include "backend/fake/fake_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "backend/fake/fake_model.h"

namespace jewel {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kWindow = 32;

SamplingParams greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}

class FakeBackendTest : public ::testing::Test {
 protected:
  void start(FakeFaults faults = {}, bool exact_phases = false) {
    FakeOptions options;
    options.sliding_window = kWindow;
    options.exact_phases = exact_phases;
    options.on_violation = [](const std::string&) {};
    fake_ = std::make_unique<FakeBackend>(options, std::move(faults));
    ASSERT_TRUE(fake_->allocate_kv({.n_full_pages = 16, .n_sliding_pages = 16}).ok());
    prompt_.resize(40);
    std::iota(prompt_.begin(), prompt_.end(), 1);
  }

  StepChunk prefill(SlotId slot, int begin, int end) {
    StepChunk chunk{.slot = slot, .position = begin};
    chunk.tokens = std::span(prompt_).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    chunk.full_pages = full_;
    chunk.sliding_pages = sliding_;
    chunk.sample = end == static_cast<int>(prompt_.size());
    return chunk;
  }
  StepChunk decode(SlotId slot, int position) {
    return {.slot = slot,
            .phase = Phase::kDecode,
            .position = position,
            .full_pages = full_,
            .sliding_pages = sliding_,
            .sample = true};
  }
  void submit(const StepChunk& chunk) {
    steps_.push_back({chunk});
    fake_->submit(steps_.back());
  }
  Result<StepResult> run(const StepChunk& chunk) {
    submit(chunk);
    return fake_->collect();
  }
  TokenId run_token(const StepChunk& chunk) {
    const auto result = run(chunk);
    EXPECT_TRUE(result.ok());
    EXPECT_EQ(result->sampled.size(), 1u) << fake_->violation();
    return result->sampled.empty() ? -1 : result->sampled[0].id;
  }

  std::unique_ptr<FakeBackend> fake_;
  std::vector<TokenId> prompt_;
  std::vector<PageId> full_ = {0, 1, 2, 3};
  std::vector<PageId> sliding_ = {4, 5, 6, 7};
  std::deque<std::vector<StepChunk>> steps_;
};

TEST_F(FakeBackendTest, AnswersFollowFromThePromptAlone) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  ASSERT_TRUE(run(prefill(0, 0, 13)).ok());
  uint64_t prefix = kFakeStart;
  for (const TokenId id : prompt_) prefix = fake_extend(prefix, id);
  TokenId id = run_token(prefill(0, 13, 40));
  for (int position = 40; position < 50; ++position) {
    EXPECT_EQ(id, fake_next_token(prefix, position, fake_params_hash(greedy()), greedy(), {}, 64));
    prefix = fake_extend(prefix, id);
    id = run_token(decode(0, position));
  }
  EXPECT_THAT(fake_->violation(), IsEmpty());
}

TEST_F(FakeBackendTest, StepsMayBeSubmittedAhead) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  submit(prefill(0, 0, 40));
  submit(decode(0, 40));
  submit(decode(0, 41));
  EXPECT_EQ(fake_->n_steps_in_flight(), 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(fake_->collect()->sampled.size(), 1u);
  EXPECT_THAT(fake_->violation(), IsEmpty());
}

TEST_F(FakeBackendTest, SharedPagesCarryThePast) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  const TokenId first = run_token(prefill(0, 0, 40));
  fake_->begin_sequence(1, greedy(), prompt_, {});
  full_ = {0, 1, 8};
  sliding_ = {4, 5, 9};
  EXPECT_EQ(run_token(prefill(1, 32, 40)), first);
  EXPECT_THAT(fake_->violation(), IsEmpty());
}

TEST_F(FakeBackendTest, PagesOfAnotherPastAreFound) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  run_token(prefill(0, 0, 40));
  std::swap(prompt_[3], prompt_[4]);
  fake_->begin_sequence(1, greedy(), prompt_, {});
  full_ = {0, 1, 8};
  sliding_ = {4, 5, 9};
  submit(prefill(1, 32, 40));
  EXPECT_THAT(fake_->violation(), HasSubstr("full page 0 at position 3 holds token 4, expected 5"));
}

TEST_F(FakeBackendTest, ASwappedSlidingPageIsFound) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  run_token(prefill(0, 0, 40));
  fake_->begin_sequence(1, greedy(), prompt_, {});
  full_ = {0, 1, 8};
  sliding_ = {5, 4, 9};
  submit(prefill(1, 32, 40));
  EXPECT_THAT(fake_->violation(), HasSubstr("sliding page 5 at position 1 holds token 18"));
}

TEST_F(FakeBackendTest, AMissingPageInTheWindowIsFound) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  run_token(prefill(0, 0, 40));
  sliding_[0] = kNoPage;  // position 40 sees 9 to 40
  submit(decode(0, 40));
  EXPECT_THAT(fake_->violation(), HasSubstr("sliding page 0 of the table is -1"));
}

TEST_F(FakeBackendTest, APageBehindTheWindowMayGo) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  run_token(prefill(0, 0, 40));
  for (int position = 40; position < 47; ++position) run_token(decode(0, position));
  sliding_[0] = kNoPage;  // position 47 sees 16 to 47
  run_token(decode(0, 47));
  EXPECT_THAT(fake_->violation(), IsEmpty());
}

TEST_F(FakeBackendTest, WritingIntoASharedPageIsFound) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  run_token(prefill(0, 0, 40));
  fake_->begin_sequence(1, greedy(), prompt_, {});
  full_ = {0, 1, 2};  // page 2 holds 32 to 39 of slot 0
  sliding_ = {4, 5, 9};
  submit(prefill(1, 32, 40));
  EXPECT_THAT(fake_->violation(), HasSubstr("full page 2 is written by slot 1"));
}

TEST_F(FakeBackendTest, ReadingWhatTheSameStepWritesIsFound) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  fake_->begin_sequence(1, greedy(), prompt_, {});
  const std::vector<PageId> full = {0, 1, 8}, sliding = {4, 5, 9};
  StepChunk second = prefill(1, 32, 40);
  second.full_pages = full;
  second.sliding_pages = sliding;
  const std::vector<StepChunk> step = {prefill(0, 0, 40), second};
  fake_->submit(step);
  EXPECT_THAT(fake_->violation(),
              HasSubstr("full page 0 is written by slot 0 at positions 0.. and held by slot 1"));
}

TEST_F(FakeBackendTest, AGapIsFound) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  ASSERT_TRUE(run(prefill(0, 0, 16)).ok());
  submit(prefill(0, 17, 40));
  EXPECT_THAT(fake_->violation(), HasSubstr("position 17, expected 16"));
}

TEST_F(FakeBackendTest, WrongTokensAreFound) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  prompt_[7] = 50;
  submit(prefill(0, 0, 40));
  EXPECT_THAT(fake_->violation(), HasSubstr("token 50 at position 7, expected 8"));
}

TEST_F(FakeBackendTest, ARowWithoutTokensNeedsASampledOne) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  ASSERT_TRUE(run(prefill(0, 0, 39)).ok());
  submit(decode(0, 39));
  EXPECT_THAT(fake_->violation(), HasSubstr("no token was sampled there"));
}

TEST_F(FakeBackendTest, SamplingAKnownTokenIsFound) {
  start();
  const std::vector<TokenId> output = {1, 2, 3};
  fake_->begin_sequence(0, greedy(), prompt_, output);
  submit(prefill(0, 0, 40));
  EXPECT_THAT(fake_->violation(), HasSubstr("known already"));
}

TEST_F(FakeBackendTest, ReplayIsInThePhaseThatWas) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  const std::vector<TokenId> output = {run_token(prefill(0, 0, 40)), run_token(decode(0, 40))};
  const TokenId third = run_token(decode(0, 41));
  fake_->end_sequence(0);

  fake_->begin_sequence(0, greedy(), prompt_, output);
  StepChunk all = prefill(0, 0, 40);
  all.sample = false;
  ASSERT_TRUE(run(all).ok());
  StepChunk replay = decode(0, 40);
  replay.tokens = std::span(output).first(1);
  replay.sample = false;
  ASSERT_TRUE(run(replay).ok());
  EXPECT_EQ(run_token(decode(0, 41)), third);
  EXPECT_THAT(fake_->violation(), IsEmpty());
  fake_->end_sequence(0);

  fake_->begin_sequence(0, greedy(), prompt_, output);
  ASSERT_TRUE(run(all).ok());
  replay.phase = Phase::kPrefill;
  submit(replay);
  EXPECT_THAT(fake_->violation(), HasSubstr("in phase prefill"));
}

TEST_F(FakeBackendTest, ExactPhasesRefuseDecodedPagesUnderAPrompt) {
  start({}, true);
  fake_->begin_sequence(0, greedy(), prompt_, {});
  std::vector<TokenId> longer = prompt_;
  longer.push_back(run_token(prefill(0, 0, 40)));
  for (int position = 40; position < 50; ++position) longer.push_back(run_token(decode(0, position)));
  EXPECT_THAT(fake_->violation(), IsEmpty());
  prompt_ = longer;
  fake_->begin_sequence(1, greedy(), prompt_, {});
  full_ = {0, 1, 2, 8};
  sliding_ = {4, 5, 6, 9};
  submit(prefill(1, 48, 51));
  EXPECT_THAT(fake_->violation(), HasSubstr("position 40 was computed in decode"));
}

TEST_F(FakeBackendTest, ArgumentsMustStay) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  submit(prefill(0, 0, 40));
  full_[1] = 9;
  EXPECT_TRUE(fake_->collect().ok());
  EXPECT_THAT(fake_->violation(), HasSubstr("arguments of step 0 changed"));
}

TEST_F(FakeBackendTest, ImagesCountByContent) {
  start();
  ImagePatches image{.grid_h = 6, .grid_w = 6, .pixels = {1, 2, 3}};
  const auto ask = [&](SlotId slot, PageId first_page) {
    const FeatureId feature = *fake_->encode_image(image);
    const std::vector<SoftTokenRun> runs = {{.feature = feature, .row = 0, .offset = 10, .count = 4}};
    full_ = sliding_ = {first_page, first_page + 1, first_page + 2};
    fake_->begin_sequence(slot, greedy(), prompt_, {});
    StepChunk chunk = prefill(slot, 0, 40);
    chunk.soft_tokens = runs;
    const TokenId id = run_token(chunk);
    fake_->release_feature(feature);
    return id;
  };
  const TokenId one = ask(0, 0);
  EXPECT_EQ(ask(1, 3), one);
  image.pixels[0] = 7;
  EXPECT_NE(ask(2, 6), one);
  EXPECT_EQ(fake_->n_live_features(), 0);
  EXPECT_THAT(fake_->violation(), IsEmpty());
}

TEST_F(FakeBackendTest, AFeatureInUseMustStay) {
  start();
  const FeatureId feature = *fake_->encode_image({.grid_h = 6, .grid_w = 6});
  const std::vector<SoftTokenRun> runs = {{.feature = feature, .row = 0, .offset = 10, .count = 4}};
  fake_->begin_sequence(0, greedy(), prompt_, {});
  StepChunk chunk = prefill(0, 0, 40);
  chunk.soft_tokens = runs;
  submit(chunk);
  fake_->release_feature(feature);
  EXPECT_THAT(fake_->violation(), HasSubstr("is released while step 0 reads it"));
}

TEST_F(FakeBackendTest, ASequenceInUseMustStay) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  submit(prefill(0, 0, 40));
  fake_->end_sequence(0);
  EXPECT_THAT(fake_->violation(), HasSubstr("slot 0 ends while step 0 computes for it"));
}

TEST_F(FakeBackendTest, PagesInUseAreNotCopied) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  submit(prefill(0, 0, 40));
  std::vector<std::byte> bytes(fake_->info().full_page_bytes);
  ASSERT_TRUE(fake_->read_pages(LayerType::kFull, std::span(full_).first(1), bytes).ok());
  EXPECT_THAT(fake_->violation(), HasSubstr("while a step writes it"));
}

TEST_F(FakeBackendTest, MasksAreHonoured) {
  start();
  std::vector<uint32_t> mask(2);
  mask[1] = 1U << 5;  // id 37 alone
  fake_->begin_sequence(0, greedy(), prompt_, {});
  StepChunk chunk = prefill(0, 0, 40);
  chunk.allowed_tokens = mask;
  EXPECT_EQ(run_token(chunk), 37);
  mask[1] = 0;
  StepChunk none = decode(0, 40);
  none.allowed_tokens = mask;
  submit(none);
  EXPECT_THAT(fake_->violation(), HasSubstr("no token is allowed"));
}

TEST_F(FakeBackendTest, PagesGoToTheHostAndBack) {
  start();
  fake_->begin_sequence(0, greedy(), prompt_, {});
  const TokenId first = run_token(prefill(0, 0, 40));
  const size_t bytes = fake_->info().full_page_bytes;
  std::vector<std::byte> full(bytes * 3), sliding(bytes * 3);
  ASSERT_TRUE(fake_->read_pages(LayerType::kFull, std::span(full_).first(3), full).ok());
  ASSERT_TRUE(fake_->read_pages(LayerType::kSliding, std::span(sliding_).first(3), sliding).ok());
  const TokenId second = run_token(decode(0, 40));
  fake_->end_sequence(0);

  full_ = {9, 10, 11};
  sliding_ = {12, 13, 14};
  ASSERT_TRUE(fake_->write_pages(LayerType::kFull, full_, full).ok());
  ASSERT_TRUE(fake_->write_pages(LayerType::kSliding, sliding_, sliding).ok());
  fake_->begin_sequence(0, greedy(), prompt_, std::vector{first});
  EXPECT_EQ(run_token(decode(0, 40)), second);
  EXPECT_THAT(fake_->violation(), IsEmpty());
}

TEST_F(FakeBackendTest, WhatAFailedStepWroteIsLost) {
  start({.steps = {0}});
  fake_->begin_sequence(0, greedy(), prompt_, {});
  EXPECT_THAT(run(prefill(0, 0, 40)).error().message, HasSubstr("failed in step 0"));
  fake_->end_sequence(0);
  fake_->begin_sequence(1, greedy(), prompt_, {});
  full_ = {0, 1, 8};
  sliding_ = {4, 5, 9};
  submit(prefill(1, 32, 40));
  EXPECT_THAT(fake_->violation(), HasSubstr("lost with a failed step"));
}

TEST_F(FakeBackendTest, VirtualTimeIsTheDevices) {
  FakeOptions options;
  options.time = FakeOptions::Time::kVirtual;
  options.step_cost = [](const StepWork& work) { return 0.5 + 0.25 * work.prefill_tokens; };
  fake_ = std::make_unique<FakeBackend>(options);
  ASSERT_TRUE(fake_->allocate_kv({.n_full_pages = 16, .n_sliding_pages = 16}).ok());
  prompt_ = {1, 2};
  fake_->begin_sequence(0, greedy(), prompt_, {});
  submit(prefill(0, 0, 2));
  submit(decode(0, 2));
  EXPECT_DOUBLE_EQ(fake_->now_seconds(), 0);
  ASSERT_TRUE(fake_->collect().ok());
  EXPECT_DOUBLE_EQ(fake_->now_seconds(), 1);
  ASSERT_TRUE(fake_->collect().ok());
  EXPECT_DOUBLE_EQ(fake_->now_seconds(), 1.5);
  fake_->advance_to(4);
  run_token(decode(0, 3));
  EXPECT_DOUBLE_EQ(fake_->now_seconds(), 4.5);
}

}  // namespace
}  // namespace jewel
