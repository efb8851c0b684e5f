#include "mask_walk.h"

#include <algorithm>
#include <random>

namespace jewel {

std::vector<int32_t> demo_stops() {
  const SpecialIds& special = demo_prompts().special();
  return {special.eos, special.turn_close, special.tool_response_open};
}

bool is_set(std::span<const uint32_t> words, int32_t id) {
  return (words[static_cast<size_t>(id) / 32] >> (id % 32) & 1) != 0;
}

Walk random_walk(GrammarMatcher& matcher, unsigned seed, int max_steps) {
  std::mt19937 random(seed);
  const Tokenizer& tokenizer = demo_prompts().tokenizer();
  const std::vector<int32_t> stops = demo_stops();
  std::vector<uint32_t> words((kDemoVocabulary + 31) / 32);
  Walk walk;
  for (int step = 0; step < max_steps; ++step) {
    const auto masked = matcher.mask(words);
    JEWEL_CHECK(masked.ok(), "{}", masked.error().message);
    std::vector<int32_t> allowed, closing;
    bool may_end = false;
    for (int32_t id = 0; id < kDemoVocabulary; ++id) {
      if (!is_set(words, id)) continue;
      if (std::ranges::find(stops, id) != stops.end()) {
        may_end = true;
        continue;
      }
      allowed.push_back(id);
      const std::string_view bytes = tokenizer.token_bytes(id);
      if (tokenizer.is_special(id) || bytes.find_first_of("\"}]") != std::string_view::npos)
        closing.push_back(id);
    }
    JEWEL_CHECK(may_end == matcher.accepts(), "a stop id is allowed just where the answer may end");
    JEWEL_CHECK(may_end || !allowed.empty(), "the mask leaves nothing after '{}'", walk.text);
    if (may_end && (allowed.empty() || random() % 3 == 0)) {
      walk.ended = true;
      break;
    }
    const std::vector<int32_t>& from = !closing.empty() && random() % 3 == 0 ? closing : allowed;
    const int32_t id = from[random() % from.size()];
    const auto pushed = matcher.push(id);
    JEWEL_CHECK(pushed.ok(), "allowed, but not taken: {}", pushed.error().message);
    walk.ids.push_back(id);
  }
  for (const int32_t id : walk.ids) walk.text += tokenizer.token_bytes(id);
  return walk;
}

bool takes(GrammarMatcher matcher, std::string_view text, bool parse_special) {
  const auto ids =
      demo_prompts().tokenizer().encode(text, parse_special ? SpecialTokens::kParse : SpecialTokens::kAsText);
  JEWEL_CHECK(ids.ok(), "{}", ids.error().message);
  std::vector<uint32_t> words((kDemoVocabulary + 31) / 32);
  for (const int32_t id : *ids) {
    if (!matcher.mask(words).ok() || !is_set(words, id)) return false;
    if (!matcher.push(id).ok()) return false;
  }
  return matcher.accepts();
}

}  // namespace jewel
