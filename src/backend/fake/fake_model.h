// The fake model: a language model that is one hash function.
//
// Its "K and V" of a position is a 64-bit hash of everything up to and including that position: token ids
// and, where soft tokens replace an embedding, the image's content and the row. Its next token is a pure
// function of that hash and of the sampling parameters. So whoever knows a prompt knows the whole answer
// without running anything (the oracle of the engine's tests), and a single wrong, stale or foreign page
// anywhere in a sequence's past changes the answer. No state; any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace jewel {

// The hash before the first token.
inline constexpr uint64_t kFakeStart = 0x6a09e667f3bcc908;

uint64_t fake_mix(uint64_t a, uint64_t b);
inline uint64_t fake_extend(uint64_t prefix, TokenId token) {
  return fake_mix(prefix, static_cast<uint64_t>(static_cast<uint32_t>(token)) + 1);
}
inline uint64_t fake_extend_soft(uint64_t prefix, uint64_t image, int row) {
  return fake_mix(prefix, fake_mix(image, static_cast<uint64_t>(row)) | (uint64_t{1} << 63));
}
uint64_t fake_image_hash(const ImagePatches& patches);

// What of the parameters changes the answer. Lists of ids that are only left out (never, not_before) are not
// in it: they change the answer only when they forbid the token that would have come.
uint64_t fake_params_hash(const SamplingParams& params);

// The token at `position`, after a prefix that hashes to `prefix`; -1 when mask, never and not_before forbid
// every id. `allowed`: as StepChunk::allowed_tokens.
TokenId fake_next_token(uint64_t prefix, int position, uint64_t params_hash, const SamplingParams& params,
                        std::span<const uint32_t> allowed, int vocab_size);

// Log-probability of `id` after `prefix`, and the n best. Not normalized, only reproducible.
TokenLogprob fake_logprob(uint64_t prefix, TokenId id);
std::vector<TokenLogprob> fake_top(uint64_t prefix, int n, int vocab_size);

}  // namespace jewel
