#include "server/fake_engine.h"

#include <utility>

#include "api/engine_parts.h"
#include "backend/fake/fake_backend.h"

namespace jewel {

Result<std::unique_ptr<Engine>> make_fake_engine(const FakeEngineOptions& wanted) {
  EngineOptions options;
  options.n_threads = 1;
  options.max_num_seqs = wanted.max_num_seqs;
  options.max_model_len = 2048;
  options.max_num_batched_tokens = 8192;
  options.prefix_cache_gib = 0.01;
  JEWEL_ASSIGN(EngineParts parts, open_parts(JEWEL_SOURCE_DIR "/models/jewel-demo", options));
  JEWEL_ASSIGN(const auto words,
               parts.prompts->tokenizer().encode(
                   "the quick brown fox jumps over the lazy dog, and then some more words follow it. ",
                   SpecialTokens::kAsText));
  FakeOptions fake;
  fake.max_slots = wanted.max_num_seqs;
  fake.max_step_tokens = options.max_num_batched_tokens;
  fake.sliding_window = parts.config.text.sliding_window;
  fake.vocab_size = parts.config.text.vocab_size;
  fake.check = false;
  fake.script = [words](std::span<const TokenId> /*prompt*/, int index) {
    return words[static_cast<size_t>(index) % words.size()];
  };
  if (wanted.step_ms > 0) {
    fake.time = FakeOptions::Time::kSleep;
    fake.step_cost = [seconds = wanted.step_ms / 1000](const StepWork&) { return seconds; };
  }
  parts.backend = std::make_unique<FakeBackend>(std::move(fake));
  parts.one_ahead = true;
  parts.kv_memory_bytes = size_t{4} << 30;
  return make_engine(std::move(parts), options);
}

}  // namespace jewel
