// The same answer, bit by bit, whatever happens around a sequence: the demo model on the CPU backend. Every
// request is answered alone first, its prompt in one chunk, without a cache, in pages for everything; then
// among others, in other chunks, out of the prefix cache, preempted and brought back. Token ids, their
// log-probabilities and those of the alternatives must be equal as bits.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "backend/cpu/cpu_backend.h"
#include "checkpoint/checkpoint.h"
#include "engine/prefix_keys.h"
#include "engine/scheduler.h"

namespace jewel {
namespace {

constexpr int kRequests = 32;
constexpr int kShared = 150;  // tokens of the system turn, longer than the demo model's window of 128

struct Answer : SequenceSink {
  Continue on_token(const TokenEvent& event) override {
    tokens.push_back(event.token);
    return Continue::kYes;
  }
  void on_prompt_logprobs(SequenceId, PromptLogprobs logprobs) override { prompt = std::move(logprobs); }
  void on_finished(const Finished& end) override { finished = end; }
  std::vector<SampledToken> tokens;
  PromptLogprobs prompt;
  std::optional<Finished> finished;
};
using Answers = std::vector<std::shared_ptr<Answer>>;

struct Load {
  int n_requests = kRequests;
  int answer = 20;  // tokens
  auto operator<=>(const Load&) const = default;
};

bool same_bits(const TokenLogprob& a, const TokenLogprob& b) {
  return a.id == b.id && a.rank == b.rank && std::memcmp(&a.logprob, &b.logprob, sizeof a.logprob) == 0;
}
bool same_bits(const std::vector<TokenLogprob>& a, const std::vector<TokenLogprob>& b) {
  return std::ranges::equal(a, b, [](const auto& x, const auto& y) { return same_bits(x, y); });
}

void expect_same(const Answer& expected, const Answer& found, int request) {
  ASSERT_TRUE(found.finished) << "request " << request;
  EXPECT_EQ(found.finished->reason, expected.finished->reason) << "request " << request;
  ASSERT_EQ(found.tokens.size(), expected.tokens.size()) << "request " << request;
  for (size_t i = 0; i < found.tokens.size(); ++i) {
    const SampledToken &a = expected.tokens[i], &b = found.tokens[i];
    ASSERT_TRUE(a.id == b.id && same_bits(a.logprob, b.logprob) && same_bits(a.top, b.top))
        << "request " << request << ", token " << i << ": " << b.id << " at " << b.logprob.logprob
        << ", alone " << a.id << " at " << a.logprob.logprob;
  }
  ASSERT_TRUE(same_bits(expected.prompt.token, found.prompt.token)) << "request " << request;
  ASSERT_TRUE(std::ranges::equal(expected.prompt.top, found.prompt.top,
                                 [](const auto& a, const auto& b) { return same_bits(a, b); }))
      << "request " << request;
}

class DemoInvariance : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    auto opened = Checkpoint::open(JEWEL_SOURCE_DIR "/models/jewel-demo");
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    checkpoint_ = std::move(*opened);
    CpuOptions options;
    options.kv_dtype = GetParam();
    options.max_slots = kRequests;
    options.max_step_tokens = 1024;
    auto made = make_cpu_backend(checkpoint_->config(), checkpoint_->weights(), options);
    ASSERT_TRUE(made.ok()) << made.error().message;
    backend_ = std::move(*made);
  }

  // Every request by itself; computed once for a load and a KV format.
  const Answers& alone(const Load& load) {
    static std::map<std::pair<DType, Load>, Answers> all;
    Answers& answers = all[{GetParam(), load}];
    if (answers.empty()) {
      answers = run({.kv = roomy(), .max_num_seqs = 1, .max_num_batched_tokens = 1024, .prefix_cache = false},
                    load);
    }
    return answers;
  }

  // Everything at once.
  static KvSizes roomy() { return {.n_full_pages = 2000, .n_sliding_pages = 2000}; }

  SequenceRequest request(int n, int answer) const {
    std::mt19937 random(static_cast<unsigned>(n));
    const auto below = [&](int limit) { return static_cast<int>(random() % static_cast<unsigned>(limit)); };
    SequenceRequest request;
    std::mt19937 system(7);
    for (int i = 0; i < kShared; ++i) request.prompt.push_back(static_cast<TokenId>(20 + system() % 1200));
    if (n % 4 == 1) {  // two pictures, each in several prompts
      auto patches = std::make_shared<ImagePatches>();
      patches->grid_h = 12;
      patches->grid_w = 18;
      std::mt19937 picture(static_cast<unsigned>(n % 8));
      patches->pixels.resize(static_cast<size_t>(12 * 18) * 16 * 16 * 3);
      for (uint8_t& pixel : patches->pixels) pixel = static_cast<uint8_t>(picture());
      const int count = 12 * 18 / 9;
      request.images.push_back({.content = sha256(std::as_bytes(std::span(patches->pixels))),
                                .budget = 70,
                                .patches = patches,
                                .position = static_cast<int>(request.prompt.size()),
                                .count = count});
      request.prompt.insert(request.prompt.end(), static_cast<size_t>(count),
                            *checkpoint_->config().image_token_id);
    }
    request.resume_points = {kShared, static_cast<int>(request.prompt.size())};
    for (int i = 1 + below(150); i > 0; --i) request.prompt.push_back(20 + below(1200));
    request.max_tokens = answer;
    request.sampling.temperature = n % 3 == 0 ? 0 : 0.9;
    request.sampling.top_p = n % 5 == 0 ? 0.8 : 1;
    request.sampling.repetition_penalty = n % 6 == 0 ? 1.2 : 1;
    request.sampling.frequency_penalty = n % 7 == 0 ? 0.3 : 0;
    request.sampling.seed = static_cast<uint64_t>(n);
    request.sampling.n_logprobs = 2;
    request.n_prompt_logprobs = n % 11 == 2 ? 1 : -1;
    return request;
  }

  Answers run(SchedulerOptions options, const Load& load, int rounds = 1) {
    options.check_books = true;
    auto made = Scheduler::make(*backend_, checkpoint_->config(), std::move(options));
    EXPECT_TRUE(made.ok());
    Scheduler& scheduler = **made;
    Answers answers;
    for (int round = 0; round < rounds; ++round) {
      answers.clear();
      for (int n = 0; n < load.n_requests; ++n) {
        answers.push_back(std::make_shared<Answer>());
        EXPECT_TRUE(scheduler.add(request(n, load.answer), answers.back()).ok());
      }
      while (scheduler.has_work()) scheduler.step();
    }
    stats_ = scheduler.stats();
    return answers;
  }

  void expect_as_alone(const SchedulerOptions& options, const Load& load = {}, int rounds = 1) {
    const Answers& expected = alone(load);
    const Answers answers = run(options, load, rounds);
    for (int n = 0; n < load.n_requests && !HasFatalFailure(); ++n) {
      const auto at = static_cast<size_t>(n);
      expect_same(*expected[at], *answers[at], n);
    }
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Backend> backend_;
  SchedulerStats stats_;
};

TEST_P(DemoInvariance, BatchSizes) {
  for (const int batch : {2, 5, 32}) {
    SCOPED_TRACE(batch);
    expect_as_alone(
        {.kv = roomy(), .max_num_seqs = batch, .max_num_batched_tokens = 1024, .prefix_cache = false});
  }
}

TEST_P(DemoInvariance, ChunksAndSteps) {
  for (const int tokens : {33, 200}) {
    for (const bool one_ahead : {false, true}) {
      SCOPED_TRACE(tokens);
      expect_as_alone({.kv = roomy(),
                       .max_num_seqs = 8,
                       .max_num_batched_tokens = tokens,
                       .one_ahead = one_ahead,
                       .prefix_cache = false});
    }
  }
}

TEST_P(DemoInvariance, PrefixCache) {
  // The first round waits for, and shares, the system turn; the second finds nearly all of every prompt.
  expect_as_alone({.kv = roomy(), .max_num_seqs = 8, .max_num_batched_tokens = 256});
  const uint64_t first = stats_.prefix_hits;
  EXPECT_GT(first, uint64_t{kRequests / 2} * (kShared - kPageTokens));
  expect_as_alone({.kv = roomy(), .max_num_seqs = 8, .max_num_batched_tokens = 256}, {}, 2);
  EXPECT_GT(stats_.prefix_hits, 2 * first);
  EXPECT_GT(stats_.image_hits, 0u);
}

TEST_P(DemoInvariance, Preemption) {
  // Pages for about three of them, which then grow by five pages each.
  const KvSizes tight = {.n_full_pages = 60, .n_sliding_pages = 48};
  const Load load = {.n_requests = 12, .answer = 80};
  for (const bool cache : {false, true}) {
    for (const size_t swap : {size_t{0}, size_t{1} << 30}) {
      SCOPED_TRACE(fmt::format("prefix cache {}, swap {} bytes", cache, swap));
      expect_as_alone({.kv = tight,
                       .max_num_seqs = 16,
                       .max_num_batched_tokens = 64,
                       .prefix_cache = cache,
                       .swap_bytes = swap},
                      load);
      EXPECT_GT(stats_.preemptions, 0u);
      EXPECT_EQ(stats_.preemptions_swapped > 0, swap > 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kv, DemoInvariance, testing::Values(DType::kBF16, DType::kF8E4M3),
                         [](const auto& info) { return info.param == DType::kBF16 ? "bf16" : "fp8"; });

}  // namespace
}  // namespace jewel
