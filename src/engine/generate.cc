#include "engine/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "engine/pages.h"

namespace jewel {
namespace {

using Clock = std::chrono::steady_clock;

constexpr SlotId kSlot = 0;

double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

Result<void> check_ids(const GenerateRequest& request, const ModelConfig& config) {
  for (const TokenId id : request.prompt) {
    if (id < 0 || id >= config.text.vocab_size) {
      return invalid(fmt::format("prompt: token id {} is outside the model's vocabulary of {}", id,
                                 config.text.vocab_size),
                     "prompt");
    }
  }
  return {};
}

// The images' soft tokens that fall into prompt positions [begin, end).
std::vector<SoftTokenRun> runs_in_chunk(const std::vector<ImageInPrompt>& images, int begin, int end) {
  std::vector<SoftTokenRun> runs;
  for (const ImageInPrompt& image : images) {
    const int from = std::max(begin, image.position);
    const int to = std::min(end, image.position + image.count);
    if (from >= to) continue;
    runs.push_back(
        {.feature = image.feature, .row = from - image.position, .offset = from - begin, .count = to - from});
  }
  return runs;
}

// Ends the backend's sequence however generate() returns.
class LiveSequence {
 public:
  LiveSequence(Backend& backend, const GenerateRequest& request) : backend_(backend) {
    backend_.begin_sequence(kSlot, request.sampling, request.prompt, {});
  }
  ~LiveSequence() { backend_.end_sequence(kSlot); }
  LiveSequence(const LiveSequence&) = delete;
  LiveSequence& operator=(const LiveSequence&) = delete;

 private:
  Backend& backend_;
};

}  // namespace

Result<void> check_length(size_t prompt_tokens, int max_tokens, int max_model_len) {
  const size_t total = prompt_tokens + static_cast<size_t>(max_tokens);
  if (total <= static_cast<size_t>(max_model_len)) return {};
  return too_large(
      fmt::format(
          "the prompt has {} tokens and {} are asked for, {} in all, but the limit is {}; shorten the "
          "prompt or lower max_tokens",
          prompt_tokens, max_tokens, total, max_model_len),
      "max_tokens");
}

Result<GenerateResult> generate(Backend& backend, const ModelConfig& config, const KvSizes& kv,
                                const GenerateRequest& request, int max_model_len,
                                const std::function<Continue(const SampledToken&)>& on_token) {
  if (request.prompt.empty()) return invalid("the prompt has no tokens", "prompt");
  if (request.max_tokens < 1)
    return invalid(fmt::format("max_tokens: found {}, expected at least 1", request.max_tokens),
                   "max_tokens");
  JEWEL_TRY(check_ids(request, config));
  JEWEL_TRY(check_length(request.prompt.size(), request.max_tokens, max_model_len));

  PagePool full_pool(kv.n_full_pages);
  PagePool sliding_pool(kv.n_sliding_pages);
  SequencePages pages(full_pool, sliding_pool, config.text.sliding_window);
  const LiveSequence sequence(backend, request);

  const auto run_step = [&](StepChunk chunk) -> Result<StepResult> {
    JEWEL_TRY(pages.prepare_step(chunk.position, chunk.n_tokens()));
    chunk.slot = kSlot;
    chunk.full_pages = pages.full();
    chunk.sliding_pages = pages.sliding();
    backend.submit({&chunk, 1});
    return backend.collect();
  };

  GenerateResult result;
  const int n_prompt = static_cast<int>(request.prompt.size());
  const int max_chunk = request.chunk_tokens > 0
                            ? std::min(request.chunk_tokens, backend.info().max_step_tokens)
                            : backend.info().max_step_tokens;
  const Clock::time_point start = Clock::now();
  Clock::time_point first_token = start;
  int position = 0;
  while (true) {
    StepChunk chunk{.position = position};
    std::vector<SoftTokenRun> runs;
    if (position < n_prompt) {  // prefill
      const int count = std::min(max_chunk, n_prompt - position);
      chunk.tokens =
          std::span(request.prompt).subspan(static_cast<size_t>(position), static_cast<size_t>(count));
      runs = runs_in_chunk(request.images, position, position + count);
      chunk.soft_tokens = runs;
    } else {
      chunk.phase = Phase::kDecode;
    }
    position += chunk.n_tokens();
    chunk.sample = position >= n_prompt;
    JEWEL_ASSIGN(StepResult step, run_step(chunk));
    if (!chunk.sample) continue;

    SampledToken& token = step.sampled.at(0);
    const Clock::time_point now = Clock::now();
    if (result.token_ids.empty()) first_token = now;
    result.prefill_s = seconds(start, first_token);
    result.decode_s = seconds(first_token, now);
    result.token_ids.push_back(token.id);
    const bool go_on = on_token(token) == Continue::kYes;
    const bool stop = std::ranges::find(request.stop_token_ids, token.id) != request.stop_token_ids.end();
    result.sampled.push_back(std::move(token));
    if (stop) return result;
    if (!go_on) {
      result.finish_reason = FinishReason::kCancelled;
      return result;
    }
    if (static_cast<int>(result.token_ids.size()) == request.max_tokens) {
      result.finish_reason = FinishReason::kLength;
      return result;
    }
  }
}

}  // namespace jewel
