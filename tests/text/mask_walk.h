// Walks through a grammar by its masks, with the demo model's tokenizer.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/grammar.h"
#include "text_fixtures.h"

namespace jewel {

inline constexpr int kDemoVocabulary = 1280 + 41;  // more than the tokenizer has, as models do

std::vector<int32_t> demo_stops();  // <eos>, <turn|>, <|tool_response>

bool is_set(std::span<const uint32_t> words, int32_t id);

struct Walk {
  std::vector<int32_t> ids;  // without the stop id
  std::string text;          // special tokens by name
  bool ended = false;        // at a stop id, within the steps that were allowed
};

// Picks allowed tokens at random, with a leaning towards what closes things.
Walk random_walk(GrammarMatcher& matcher, unsigned seed, int max_steps = 400);

// Whether the grammar takes this text, tokenized as the model would, from here to its end. `parse_special`:
// names of control tokens in it are control tokens.
bool takes(GrammarMatcher matcher, std::string_view text, bool parse_special = false);

}  // namespace jewel
