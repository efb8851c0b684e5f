#include "backend/fake/fake_model.h"

#include <algorithm>
#include <bit>

namespace jewel {
namespace {

bool contains(std::span<const TokenId> ids, TokenId id) {
  return std::ranges::find(ids, id) != ids.end();
}

bool permitted(TokenId id, int position, const SamplingParams& params, std::span<const uint32_t> allowed) {
  const auto bit = static_cast<size_t>(id);
  if (!allowed.empty() && (bit / 32 >= allowed.size() || ((allowed[bit / 32] >> (bit % 32)) & 1) == 0))
    return false;
  if (!params.never.empty() && contains(params.never, id)) return false;
  return position >= params.not_before_position || !contains(params.not_before, id);
}

}  // namespace

uint64_t fake_mix(uint64_t a, uint64_t b) {
  // The finalizer of SplitMix64 over a combination in which neither argument is lost.
  uint64_t x = std::rotl(a, 23) * 0x9fb21c651e98df25 + b * 0x9e3779b97f4a7c15 + 0x2545f4914f6cdd1d;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t fake_image_hash(const ImagePatches& patches) {
  uint64_t hash = fake_mix(static_cast<uint64_t>(patches.grid_h), static_cast<uint64_t>(patches.grid_w));
  for (const uint8_t value : patches.pixels) hash = fake_mix(hash, value);
  return hash;
}

uint64_t fake_params_hash(const SamplingParams& params) {
  uint64_t hash = 0;
  const auto add = [&](double value) { hash = fake_mix(hash, std::bit_cast<uint64_t>(value)); };
  add(params.temperature);
  if (params.temperature > 0) {  // greedy is greedy whatever the rest
    add(params.top_k);
    add(params.top_p);
    add(params.min_p);
    hash = fake_mix(hash, params.seed);
  }
  add(params.repetition_penalty);
  add(params.presence_penalty);
  add(params.frequency_penalty);
  for (const auto& [id, bias] : params.logit_bias) {
    add(id);
    add(bias);
  }
  return hash;
}

TokenId fake_next_token(uint64_t prefix, int position, uint64_t params_hash, const SamplingParams& params,
                        std::span<const uint32_t> allowed, int vocab_size) {
  const uint64_t draw = fake_mix(fake_mix(prefix, params_hash), static_cast<uint64_t>(position));
  const auto first = static_cast<TokenId>(draw % static_cast<uint64_t>(vocab_size));
  for (int i = 0; i < vocab_size; ++i) {
    const TokenId id = first + i < vocab_size ? first + i : first + i - vocab_size;
    if (permitted(id, position, params, allowed)) return id;
  }
  return -1;
}

TokenLogprob fake_logprob(uint64_t prefix, TokenId id) {
  const uint64_t draw = fake_extend(prefix, id);
  return {.id = id,
          .logprob = -static_cast<float>(draw >> 48) / 4096.0F,
          .rank = 1 + static_cast<int>(draw & 31)};
}

std::vector<TokenLogprob> fake_top(uint64_t prefix, int n, int vocab_size) {
  std::vector<TokenLogprob> top;
  const auto first = static_cast<TokenId>(fake_mix(prefix, 77) % static_cast<uint64_t>(vocab_size));
  const int n_top = std::min(n, vocab_size);
  top.reserve(static_cast<size_t>(std::max(0, n_top)));
  for (int i = 0; i < n_top; ++i) {
    top.push_back(
        {.id = (first + i) % vocab_size, .logprob = -0.125F * static_cast<float>(i), .rank = i + 1});
  }
  return top;
}

}  // namespace jewel
