// Schemas, regular expressions, grammars and tool declarations as a client may send them: compiled or
// refused, and what compiles gives masks, within the bounds of rust/textkit/src/grammar.rs. The first byte
// says which.
#include <boost/json/parse.hpp>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "text/grammar.h"
#include "text/grammar_tools.h"
#include "text/prompt.h"

namespace {

using namespace jewel;

struct Demo {
  PromptBuilder prompts;
  std::unique_ptr<GrammarCompiler> grammars;
};

const Demo& demo() {
  static const Demo loaded = [] {
    auto prompts = PromptBuilder::load(JEWEL_SOURCE_DIR "/models/jewel-demo");
    JEWEL_CHECK(prompts.ok(), "{}", prompts.error().message);
    const SpecialIds special = prompts->special();
    const std::vector<int32_t> stops = {special.eos, special.turn_close};
    auto grammars = GrammarCompiler::make(prompts->tokenizer(), prompts->tokenizer().vocab_size(), stops);
    JEWEL_CHECK(grammars.ok(), "{}", grammars.error().message);
    return Demo{std::move(prompts.value()), std::move(grammars.value())};
  }();
  return loaded;
}

// A few steps: by turns the lowest allowed id, which control tokens have, and another one.
void walk(GrammarMatcher matcher) {
  std::vector<uint32_t> words(demo().grammars->mask_words());
  std::vector<int32_t> allowed;
  for (size_t step = 0; step < 8; ++step) {
    if (!matcher.mask(words).ok()) return;
    allowed.clear();
    for (size_t id = 0; id < words.size() * 32; ++id) {
      if (words[id / 32] >> (id % 32) & 1) allowed.push_back(static_cast<int32_t>(id));
    }
    JEWEL_CHECK(!allowed.empty() || matcher.accepts(), "the mask leaves nothing");
    if (allowed.empty()) return;
    const size_t other = (step * 0x9E3779B9u) % allowed.size();
    JEWEL_CHECK(matcher.push(allowed[step % 2 == 0 ? 0 : other]).ok(), "allowed, but not taken");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const int kind = data[0] % 4;
  std::string tools_grammar;
  if (kind == 3) {
    boost::system::error_code broken;
    const boost::json::value tools = boost::json::parse(text, broken);
    if (broken || !tools.is_array()) return 0;
    auto grammar = tool_call_grammar(tools.get_array(), {}, demo().prompts.special());
    if (!grammar.ok()) return 0;
    tools_grammar = std::move(*grammar);
    text = tools_grammar;
  }
  constexpr GrammarKind kKinds[] = {GrammarKind::kJsonSchema, GrammarKind::kRegex, GrammarKind::kLark,
                                    GrammarKind::kLark};
  auto matcher = demo().grammars->compile(kKinds[kind], text);
  if (matcher.ok()) walk(std::move(*matcher));
  return 0;
}
