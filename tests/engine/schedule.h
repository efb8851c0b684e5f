// A random schedule for the engine, as data: requests with the moment they come and go, page budgets, faults.
// Made from one seed; printable; made smaller by leaving things out (property_test.cc).
//
// The answer that every request must get is known beforehand (expected_answer): the fake model's next token
// is a pure function of the past, so the oracle runs each request alone, in order, without pages.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/fake/fake_backend.h"
#include "engine/scheduler.h"

namespace jewel {

// SplitMix64: the same numbers on every platform, unlike the distributions of <random>.
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t next();
  int below(int n) { return static_cast<int>(next() % static_cast<uint64_t>(n)); }  // [0, n)
  int between(int low, int high) { return low + below(high - low + 1); }
  bool one_in(int n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

struct PlannedImage {
  int content = 0;  // which picture
  int position = 0;
  int count = 0;
};

struct PlannedRequest {
  int arrives = 0;           // steps since the start
  int cancelled_after = -1;  // steps since the arrival
  int deadline_after = -1;
  int sink_stops_after = -1;  // tokens
  std::vector<TokenId> prompt;
  std::vector<PlannedImage> images;
  SamplingParams sampling;
  std::vector<TokenId> stop_token_ids;
  int max_tokens = 1;
  int min_tokens = 0;
  int priority = 0;
  std::string salt;
  bool use_prefix_cache = true;
  int n_prompt_logprobs = -1;
  std::vector<int> resume_points;
  uint64_t mask_seed = 0;     // 0: no mask
  int mask_fails_after = -1;  // tokens
  std::optional<ThinkingBudget> thinking;
  std::optional<RepetitionGuard> guard;
};

struct Schedule {
  uint64_t seed = 0;
  int window = 32;
  FakeOptions backend;  // its shape only
  FakeFaults faults;
  SchedulerOptions options;
  std::vector<PlannedRequest> requests;
  int release_one_in = 0;        // moments without work, of which one gives the device back; 0: never
  int restore_fails_one_in = 0;  // attempts; 0: never
};

struct ExpectedAnswer {
  std::vector<TokenId> tokens;
  std::vector<TokenLogprob> logprobs;
  FinishReason reason = FinishReason::kLength;
  bool either_stop_or_length = false;  // both ended it at the same token
};

inline constexpr int kFakeVocabulary = 64;
inline constexpr TokenId kFakeImageToken = 63;

Schedule random_schedule(uint64_t seed);
ExpectedAnswer expected_answer(const PlannedRequest& request);
PromptLogprobs expected_prompt_logprobs(const PlannedRequest& request);
ModelConfig fake_config(int window, int max_positions);
std::shared_ptr<const ImagePatches> fake_picture(int content, int count);
SequenceRequest to_request(const PlannedRequest& planned, EngineTime now, EngineTime step_time);
std::string describe(const Schedule& schedule);

}  // namespace jewel
