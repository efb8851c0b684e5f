// What a caller hands to the engine, and what comes back.
//
// A request is ids, images and wishes; it names no page, no slot and no backend. A SequenceSink receives the
// sequence's events, in order, on the engine's thread: each call stands between two steps of everybody, so it
// should take microseconds (append to a queue, wake a thread) and must not call back into the scheduler.
// Detokenizing, parsing and writing belong on other threads.
//
// Order of events of one sequence: prompt log-probabilities (when asked for), tokens, finished. `finished`
// comes exactly once, whatever happens, and nothing comes after it.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"

namespace jewel {

using SequenceId = uint64_t;
using Digest = std::array<uint8_t, 32>;  // SHA-256
// Since an epoch of the injected clock's choosing; the engine only subtracts.
using EngineTime = std::chrono::nanoseconds;

enum class FinishReason : uint8_t {
  kStop,        // a stop id was sampled, or the sink said so
  kLength,      // max_tokens, or the model's last position
  kCancelled,   // the caller went away
  kDeadline,    // deadline passed before the answer was complete
  kRepetition,  // the repetition guard saw a loop
  kError,       // the device failed, or a mask left nothing to sample
};

enum class Continue : uint8_t { kYes, kNo };

// A picture at its placeholders: prompt positions [position, position + count) hold placeholder ids whose
// embeddings are the soft tokens of `patches`.
struct PromptImage {
  Digest content{};  // SHA-256 of what determines the patches, with `budget` (file bytes, or pixels)
  int budget = 0;    // soft tokens that were asked for; part of the key, nothing else
  std::shared_ptr<const ImagePatches> patches;  // not looked at when the image lies inside a cached prefix
  int position = 0;
  int count = 0;  // soft tokens
};

// A grammar: which ids may come next. Called on the engine's thread only. A sequence with a mask takes no
// part in running one step ahead: its next step is planned when its last token is known.
class TokenMask {
 public:
  virtual ~TokenMask() = default;
  // A bit per id (word id / 32, bit id % 32), valid until accept(); empty = everything. Where the answer may
  // end, the mask allows a stop id. An Error ends the sequence with FinishReason::kError.
  virtual Result<std::span<const uint32_t>> allowed() = 0;
  // Every token of the answer in order, forced ones too.
  virtual Result<void> accept(TokenId id) = 0;
};

// At most `max_tokens` ids between `start` and `end`; then `forced` (which ends with `end`) is what the
// sequence says next. Thinking that is done by itself before is left alone.
struct ThinkingBudget {
  TokenId start = -1;
  TokenId end = -1;
  std::vector<TokenId> forced;
  int max_tokens = 0;
  bool open = false;  // the prompt ends inside a thought
};

// Ids between which the answer is a thought, so that its joules can be told apart. -1: there is no such id.
struct ThoughtMarks {
  TokenId open = -1;
  TokenId close = -1;
  TokenId call_open = -1;  // a call ends a thought, too
  bool inside = false;     // the prompt ends in one
};

// Ends an answer that says the same thing again and again: the last `period` ids, min_period to max_period of
// them, `repeats` times in a row and at least `min_tokens` ids in all.
struct RepetitionGuard {
  int min_period = 1;
  int max_period = 64;
  int repeats = 4;
  int min_tokens = 64;
};

struct SequenceRequest {
  SequenceId id = 0;  // 0: the scheduler chooses; else unique among live sequences
  std::vector<TokenId> prompt;
  std::vector<PromptImage> images;  // in order of position, not overlapping
  SamplingParams sampling;
  std::vector<TokenId> stop_token_ids;  // ignore_eos: leave them out
  int max_tokens = 0;                   // >= 1
  int min_tokens = 0;                   // stop ids are not sampled before
  int priority = 0;                     // smaller is served first, as vLLM's
  std::optional<EngineTime> deadline;
  std::string cache_salt;           // requests share cached prefixes only under the same salt
  bool use_prefix_cache = true;     // false: neither hits nor leaves anything behind
  int n_prompt_logprobs = -1;       // >= 0: of every prompt token; computes the whole prompt
  std::vector<int> resume_points;   // positions a later request may resume from: ends of the system turn, of
                                    // images, of turns; the prompt's and the answer's end come by themselves
  std::unique_ptr<TokenMask> mask;  // null: none
  std::optional<ThinkingBudget> thinking_budget;
  ThoughtMarks thought;
  std::optional<RepetitionGuard> repetition_guard;
  // The prefix cache's keys of the prompt's whole pages; left empty, add() computes them. prefix_keys() of
  // engine/prefix_keys.h may be called on the caller's thread to keep hashing off the engine's.
  std::vector<Digest> page_keys;
};

struct TokenEvent {
  SequenceId sequence = 0;
  const SampledToken& token;  // valid during the call
  int index = 0;              // 0 = the answer's first
};

struct SequenceStats {
  EngineTime queue{};    // add() to the first admission
  EngineTime prefill{};  // first admission to first token
  EngineTime decode{};   // first token to last
  int prompt_tokens = 0;
  int cached_tokens = 0;   // prompt tokens found in the prefix cache at the first admission
  int image_tokens = 0;    // prompt positions that are soft tokens
  int images_encoded = 0;  // images the backend encoded for this sequence (others were cached)
  int output_tokens = 0;
  int preemptions = 0;
  int rows_in_flight = 0;  // steps under way that still compute for it
};

struct Finished {
  SequenceId sequence = 0;
  FinishReason reason = FinishReason::kStop;
  TokenId stop_token = -1;     // the stop id, when one ended the answer; it was an on_token event too
  std::optional<Error> error;  // with kError
  SequenceStats stats;
};

class SequenceSink {
 public:
  virtual ~SequenceSink() = default;
  // kNo ends the sequence here with FinishReason::kStop: a stop string that is looked for in place. (One that
  // is looked for on another thread ends it by cancel(), and tokens after it are the caller's to drop.)
  virtual Continue on_token(const TokenEvent& event) = 0;
  // Once, for the whole prompt: token[i] is of prompt[i + 1]; top has one more entry, for the first id after.
  // By value: whoever wants them keeps them. NOLINTNEXTLINE(performance-unnecessary-value-param)
  virtual void on_prompt_logprobs(SequenceId /*sequence*/, PromptLogprobs /*logprobs*/) {}
  virtual void on_finished(const Finished& finished) = 0;
};

}  // namespace jewel
