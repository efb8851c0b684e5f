#include "engine/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/pages.h"

namespace jewel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Checks what it is given and replays the tokens that the test chose.
class ScriptedBackend : public Backend {
 public:
  explicit ScriptedBackend(std::vector<TokenId> script) : script_(std::move(script)) {
    info_.max_step_tokens = 8;
  }

  const BackendInfo& info() const override { return info_; }
  Result<void> allocate_kv(const KvSizes&) override { return {}; }
  Result<FeatureId> encode_image(const ImagePatches&) override { return FeatureId{0}; }
  void release_feature(FeatureId) override {}
  void begin_sequence(SlotId, const SamplingParams&, std::span<const TokenId>,
                      std::span<const TokenId>) override {
    ++live;
  }
  void end_sequence(SlotId) override { --live; }

  void submit(std::span<const StepChunk> chunks) override {
    ASSERT_EQ(chunks.size(), 1u);
    const StepChunk& chunk = chunks[0];
    EXPECT_EQ(chunk.position, position_) << "steps leave a gap";
    EXPECT_LE(chunk.n_tokens(), info_.max_step_tokens);
    EXPECT_GE(chunk.full_pages.size() * kPageTokens, static_cast<size_t>(chunk.position + chunk.n_tokens()));
    for (const TokenId id : chunk.tokens) seen.push_back(id);
    for (const SoftTokenRun& run : chunk.soft_tokens) {
      EXPECT_LE(run.offset + run.count, chunk.n_tokens());
      for (int i = 0; i < run.count; ++i) soft_rows[chunk.position + run.offset + i] = run.row + i;
    }
    position_ += chunk.n_tokens();
    sample_ = chunk.sample;
  }
  Result<StepResult> collect() override {
    if (fail) return unavailable("the device fell off the bus");
    StepResult result;
    if (sample_) result.sampled.push_back({.slot = 0, .id = script_.at(next_++)});
    return result;
  }
  Result<void> read_pages(LayerType, std::span<const PageId>, std::span<std::byte>) override { return {}; }
  Result<void> write_pages(LayerType, std::span<const PageId>, std::span<const std::byte>) override {
    return {};
  }
  void observe_stages(StageObserver) override {}

  int live = 0;
  bool fail = false;
  std::vector<TokenId> seen;
  std::map<int, int> soft_rows;

 private:
  BackendInfo info_;
  std::vector<TokenId> script_;
  size_t next_ = 0;
  int position_ = 0;
  bool sample_ = false;
};

class Generate : public testing::Test {
 protected:
  Generate() {
    config.text.vocab_size = 100;
    config.text.sliding_window = 16;
    request.prompt = {2, 3, 4};
    request.max_tokens = 5;
    request.stop_token_ids = {1};
  }
  Result<GenerateResult> run(ScriptedBackend& backend, Continue answer = Continue::kYes) {
    auto result = generate(backend, config, SequencePages::needed(64, 8, 16), request, 64,
                           [&](const SampledToken&) { return answer; });
    EXPECT_EQ(backend.live, 0);
    return result;
  }
  ModelConfig config;
  GenerateRequest request;
};

TEST_F(Generate, StopsAtAStopIdWhichBelongsToTheAnswer) {
  ScriptedBackend backend({10, 11, 1, 12});
  const auto result = run(backend);
  ASSERT_TRUE(result.ok());
  EXPECT_THAT(result->token_ids, ElementsAre(10, 11, 1));
  EXPECT_EQ(result->finish_reason, FinishReason::kStop);
}

TEST_F(Generate, StopsAtMaxTokens) {
  ScriptedBackend backend({10, 11, 12, 13, 14, 15});
  const auto result = run(backend);
  EXPECT_EQ(result->token_ids.size(), 5u);
  EXPECT_EQ(result->finish_reason, FinishReason::kLength);
}

TEST_F(Generate, CallerMayEndIt) {
  ScriptedBackend backend({10, 11});
  const auto result = run(backend, Continue::kNo);
  EXPECT_THAT(result->token_ids, ElementsAre(10));
  EXPECT_EQ(result->finish_reason, FinishReason::kCancelled);
}

TEST_F(Generate, ChunksCoverThePromptAndItsImages) {
  for (int chunk = 0; chunk <= 8; ++chunk) {
    request.prompt.clear();
    for (TokenId id = 0; id < 30; ++id) request.prompt.push_back(id);
    request.images = {{.feature = 5, .position = 3, .count = 10}, {.feature = 6, .position = 20, .count = 4}};
    request.chunk_tokens = chunk;
    ScriptedBackend backend({1});
    ASSERT_TRUE(run(backend).ok());
    EXPECT_EQ(backend.seen, request.prompt);
    ASSERT_EQ(backend.soft_rows.size(), 14u);
    for (int i = 0; i < 10; ++i) EXPECT_EQ(backend.soft_rows[3 + i], i);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(backend.soft_rows[20 + i], i);
  }
}

TEST_F(Generate, Errors) {
  ScriptedBackend backend({1});
  request.prompt = {100};
  EXPECT_THAT(run(backend).error().message,
              HasSubstr("token id 100 is outside the model's vocabulary of 100"));
  request.prompt.assign(60, 2);
  EXPECT_EQ(run(backend).error().code, ErrorCode::kTooLarge);
  request.prompt.clear();
  EXPECT_THAT(run(backend).error().message, HasSubstr("no tokens"));
  request.prompt = {2};
  backend.fail = true;
  EXPECT_THAT(run(backend).error().message, HasSubstr("fell off the bus"));
}

}  // namespace
}  // namespace jewel
