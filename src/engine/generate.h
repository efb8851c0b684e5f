// One request at a time over a backend: chunked prefill, then one token a step, until something ends it.
//
//   JEWEL_ASSIGN(GenerateResult result, generate(*backend, checkpoint.config(), request, [&](TokenId id) {
//     print(parser.push(id));
//     return Continue::kYes;
//   }));
//
// Continuous batching of many requests replaces this loop; the steps it submits are the same. The calling
// thread is the backend's one thread.
#pragma once

#include <functional>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"
#include "engine/request.h"
#include "model/config.h"

namespace jewel {

struct ImageInPrompt {
  FeatureId feature = 0;
  int position = 0;  // of its first soft token in the prompt
  int count = 0;     // soft tokens
};

struct GenerateRequest {
  std::vector<TokenId> prompt;
  std::vector<ImageInPrompt> images;  // in order of position
  SamplingParams sampling;
  std::vector<TokenId> stop_token_ids;  // end the answer; the stop id itself is part of token_ids
  int max_tokens = 0;                   // >= 1
  int chunk_tokens = 0;                 // prompt tokens per step, 0 = the backend's max_step_tokens
};

struct GenerateResult {
  std::vector<TokenId> token_ids;
  std::vector<SampledToken> sampled;  // the same ids with their log-probabilities, where asked for
  FinishReason finish_reason = FinishReason::kStop;
  double prefill_s = 0;  // first step to first token
  double decode_s = 0;   // first token to last
};

// `on_token` sees each id as it is sampled, stop ids too, and may end the answer.
// Errors: kTooLarge when prompt and max_tokens pass `max_model_len`; kInvalid for ids outside the vocabulary.
// The backend's KV must have pages for one sequence of prompt + max_tokens (SequencePages::needed).
Result<GenerateResult> generate(Backend& backend, const ModelConfig& config, const KvSizes& kv,
                                const GenerateRequest& request, int max_model_len,
                                const std::function<Continue(const SampledToken&)>& on_token);

// The Error for a prompt that does not fit, the same words everywhere.
Result<void> check_length(size_t prompt_tokens, int max_tokens, int max_model_len);

}  // namespace jewel
