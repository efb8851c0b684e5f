// Masks against judges that know nothing of llguidance: a random walk under the mask must end in a text that
// std::regex, a list of choices or a plain reading of the schema accepts.
#include "text/grammar.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <functional>
#include <regex>
#include <set>

#include "mask_walk.h"

namespace jewel {
namespace {

namespace json = boost::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAreArray;

GrammarCompiler& grammars() {
  static const std::unique_ptr<GrammarCompiler> compiler = [] {
    auto made = GrammarCompiler::make(demo_prompts().tokenizer(), kDemoVocabulary, demo_stops());
    JEWEL_CHECK(made.ok(), "{}", made.error().message);
    return std::move(made.value());
  }();
  return *compiler;
}

// Walks that came to an end; every one of them must please the judge.
std::set<std::string> walks(GrammarKind kind, const std::string& grammar, int n,
                            const std::function<bool(const std::string&)>& judge) {
  std::set<std::string> texts;
  for (int seed = 0; seed < n; ++seed) {
    auto matcher = grammars().compile(kind, grammar);
    EXPECT_TRUE(matcher.ok()) << matcher.error().message;
    if (!matcher.ok()) break;
    const Walk walk = random_walk(*matcher, static_cast<unsigned>(seed));
    if (!walk.ended) continue;
    EXPECT_TRUE(judge(walk.text)) << grammar << "\n" << walk.text;
    texts.insert(walk.text);
  }
  return texts;
}

TEST(Grammar, RegularExpressions) {
  for (const std::string pattern : {"[0-9]{4}-[0-9]{2}", "(red|green|blue)( and (red|green|blue))*",
                                    "a+b?c{2,5}", "-?[0-9]+\\.[0-9]{2}"}) {
    const std::regex judge(pattern);
    const auto texts = walks(GrammarKind::kRegex, pattern, 60,
                             [&](const std::string& text) { return std::regex_match(text, judge); });
    EXPECT_GE(texts.size(), 5u) << pattern;
  }
}

TEST(Grammar, ChoicesWithEverythingThatNeedsQuoting) {
  const std::set<std::string> choices = {"yes",     "no",          "a \"quote\"", "back\\slash", "new\nline",
                                         "/slash/", "Grüße, 你好", "yes please",  "<|turn>",     "\x7f"};
  std::string grammar = "start: CHOICE\nCHOICE: ";
  for (const std::string& choice : choices)
    grammar += (grammar.back() == ' ' ? "" : " | ") + lark_string(choice);
  const auto texts = walks(GrammarKind::kLark, grammar, 200,
                           [&](const std::string& text) { return choices.contains(text); });
  EXPECT_EQ(texts, choices) << "every choice can be reached";
}

// The few keywords that the schemas below use.
bool conforms(const json::value& value, const json::object& schema) {
  if (const json::value* options = schema.if_contains("enum"))
    return std::ranges::find(options->as_array(), value) != options->as_array().end();
  const std::string type(schema.at("type").as_string());
  if (type == "string") {
    const json::string* text = value.if_string();
    const json::value* longest = schema.if_contains("maxLength");
    return text != nullptr && (longest == nullptr || text->size() <= 4 * longest->to_number<size_t>());
  }
  if (type == "integer") {
    if (!value.is_int64()) return false;
    const json::value* least = schema.if_contains("minimum");
    const json::value* most = schema.if_contains("maximum");
    return (least == nullptr || value.get_int64() >= least->as_int64()) &&
           (most == nullptr || value.get_int64() <= most->as_int64());
  }
  if (type == "number") return value.is_number();
  if (type == "boolean") return value.is_bool();
  if (type == "array") {
    if (!value.is_array() || value.get_array().size() > schema.at("maxItems").to_number<size_t>())
      return false;
    return std::ranges::all_of(value.get_array(), [&](const json::value& item) {
      return conforms(item, schema.at("items").as_object());
    });
  }
  if (!value.is_object()) return false;
  for (const json::value& name : schema.at("required").as_array()) {
    if (!value.get_object().contains(name.as_string())) return false;
  }
  for (const auto& [name, inner] : value.get_object()) {
    const json::value* property = schema.at("properties").as_object().if_contains(name);
    if (property == nullptr || !conforms(inner, property->as_object())) return false;
  }
  return true;
}

TEST(Grammar, JsonSchemas) {
  for (
      const std::string schema : {
          R"({"type":"object","properties":{"name":{"type":"string","maxLength":8},"age":{"type":"integer","minimum":0,"maximum":120}},"required":["name","age"],"additionalProperties":false})",
          R"({"type":"array","items":{"enum":["circle","square",3,null]},"maxItems":4})",
          R"({"type":"object","properties":{"on":{"type":"boolean"},"points":{"type":"array","maxItems":3,"items":{"type":"object","properties":{"x":{"type":"number"}},"required":["x"],"additionalProperties":false}}},"required":["on"],"additionalProperties":false})",
      }) {
    const json::value parsed = json::parse(schema);
    const auto texts = walks(GrammarKind::kJsonSchema, schema, 60, [&](const std::string& text) {
      boost::system::error_code broken;
      const json::value value = json::parse(text, broken);
      return !broken && conforms(value, parsed.as_object());
    });
    EXPECT_GE(texts.size(), 10u) << schema;
  }
}

// What a schema wants must be reachable, not only what is reachable be wanted.
TEST(Grammar, TakesInstances) {
  auto matcher = grammars().compile(GrammarKind::kJsonSchema,
                                    R"({"type":"object","properties":{"a":{"type":"string"}}})");
  ASSERT_TRUE(matcher.ok());
  EXPECT_TRUE(takes(matcher->clone(), R"({"a": "é\n\"", "b": [1, {}]})"));
  EXPECT_TRUE(takes(matcher->clone(), "{\n  \"a\": \"x\"\n}"));
  EXPECT_FALSE(takes(matcher->clone(), R"({"a": 1})"));
  EXPECT_FALSE(takes(matcher->clone(), R"({"a": "x")"));
  EXPECT_FALSE(takes(matcher->clone(), "[]"));
}

// The control tokens that may come next. Ids that the tokenizer does not have never may.
std::vector<int32_t> allowed_control_tokens(GrammarMatcher& matcher) {
  const Tokenizer& tokenizer = demo_prompts().tokenizer();
  std::vector<uint32_t> words(grammars().mask_words());
  EXPECT_TRUE(matcher.mask(words).ok());
  std::vector<int32_t> allowed;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.is_special(id) && is_set(words, id)) allowed.push_back(id);
  }
  for (int32_t id = tokenizer.vocab_size(); id < kDemoVocabulary; ++id) EXPECT_FALSE(is_set(words, id));
  return allowed;
}

// Not even where a grammar takes any bytes, UTF-8 or not.
TEST(Grammar, ControlTokensAreNoText) {
  auto any_text = grammars().compile(GrammarKind::kRegex, "(.|\\n)*");
  ASSERT_TRUE(any_text.ok());
  EXPECT_THAT(allowed_control_tokens(*any_text), UnorderedElementsAreArray(demo_stops()));
  for (const std::string_view any_bytes :
       {"start: ANY \"!\"\nANY: ~\"c\"",
        "%llguidance {\"allow_invalid_utf8\": true}\nstart: ANY \"!\"\nANY: /(?s:.)*c/"}) {
    auto matcher = grammars().compile(GrammarKind::kLark, any_bytes);
    ASSERT_TRUE(matcher.ok()) << matcher.error().message;
    EXPECT_THAT(allowed_control_tokens(*matcher), IsEmpty()) << any_bytes;
  }
}

// Said by name or by number, behind text that leaves something out and could go on.
TEST(Grammar, ControlTokensThatAGrammarNames) {
  const Tokenizer& tokenizer = demo_prompts().tokenizer();
  const auto named = tokenizer.id_of("<|tool_call>");
  const auto letter = tokenizer.id_of("a");
  ASSERT_TRUE(named && letter);
  for (const std::string& said : {std::string("<|tool_call>"), fmt::format("<[{}]>", *named)}) {
    auto matcher =
        grammars().compile(GrammarKind::kLark, "start: TEXT " + said + " \"b\"\nTEXT: ~/(?s:.*)c(?s:.*)/");
    ASSERT_TRUE(matcher.ok()) << matcher.error().message;
    ASSERT_TRUE(matcher->push(*letter).ok());
    EXPECT_THAT(allowed_control_tokens(*matcher), ElementsAre(*named));
    std::vector<uint32_t> words(grammars().mask_words());
    ASSERT_TRUE(matcher->mask(words).ok());
    EXPECT_TRUE(is_set(words, *letter));
    ASSERT_TRUE(matcher->push(*named).ok());
    EXPECT_FALSE(takes(matcher->clone(), "a"));
    EXPECT_TRUE(takes(matcher->clone(), "b"));
  }
}

TEST(Grammar, AWrongTokenIsAnError) {
  auto matcher = grammars().compile(GrammarKind::kRegex, "[0-9]+");
  ASSERT_TRUE(matcher.ok());
  const auto letter = demo_prompts().tokenizer().id_of("a");
  ASSERT_TRUE(letter);
  const auto pushed = matcher->push(*letter);
  ASSERT_FALSE(pushed.ok());
  EXPECT_THAT(pushed.error().message, HasSubstr("grammar"));
  EXPECT_FALSE(matcher->push(kDemoVocabulary + 5).ok());
}

TEST(Grammar, ClonesGoTheirOwnWays) {
  auto one = grammars().compile(GrammarKind::kRegex, "ab|cd");
  ASSERT_TRUE(one.ok());
  EXPECT_TRUE(takes(one->clone(), "ab"));
  EXPECT_TRUE(takes(one->clone(), "cd"));
  EXPECT_TRUE(takes(std::move(*one), "ab"));
}

// Whatever is wrong comes back as a sentence, soon, and nothing crashes.
TEST(Grammar, HostileTexts) {
  const auto repeat = [](std::string_view text, int n) {
    std::string out;
    for (int i = 0; i < n; ++i) out += text;
    return out;
  };
  std::string chain;  // rules that refer to rules, as many as fit
  for (int i = 0; i < 15000; ++i) chain += fmt::format("r{}: r{}\n", i, i + 1);
  const std::vector<std::pair<GrammarKind, std::string>> texts = {
      {GrammarKind::kRegex, ""},
      {GrammarKind::kRegex, "("},
      {GrammarKind::kRegex, "a{1,100000}"},
      {GrammarKind::kRegex, "(?=look)ahead"},
      {GrammarKind::kRegex, repeat("(", 5000) + "a" + repeat(")", 5000)},
      {GrammarKind::kRegex, std::string(1 << 20, 'a')},
      {GrammarKind::kRegex, "\xff\xfe"},
      {GrammarKind::kLark, ""},
      {GrammarKind::kLark, "begin: \"a\""},
      {GrammarKind::kLark, "start: <|no_such_token|>"},
      {GrammarKind::kLark, "start: <[99999999]>"},
      {GrammarKind::kLark, "start: @other"},
      {GrammarKind::kLark, "start: " + repeat("(", 5000) + "\"a\"" + repeat(")", 5000)},
      {GrammarKind::kLark, "start: r0\n" + chain},
      {GrammarKind::kLark, "start: \"a\"{100000}"},
      {GrammarKind::kJsonSchema, "{"},
      {GrammarKind::kJsonSchema,
       R"({"type":"array","maxItems":100000,"items":{"type":"array","maxItems":100000}})"},
      {GrammarKind::kJsonSchema, "7"},
      {GrammarKind::kJsonSchema, "false"},
      {GrammarKind::kJsonSchema, R"({"type":"strin"})"},
      {GrammarKind::kJsonSchema, R"({"$ref":"#/$defs/none"})"},
      {GrammarKind::kJsonSchema, R"({"type":"string","minLength":100000000})"},
      {GrammarKind::kJsonSchema, R"({"type":"string","pattern":"("})"},
      {GrammarKind::kJsonSchema, R"({"type":"string","unheardOf":true,"not":{}})"},
      {GrammarKind::kJsonSchema, repeat(R"({"items":)", 5000) + "{}" + repeat("}", 5000)},
  };
  for (const auto& [kind, text] : texts) {
    const auto compiled = grammars().compile(kind, text);
    ASSERT_FALSE(compiled.ok()) << text.substr(0, 60);
    EXPECT_FALSE(compiled.error().message.empty());
    EXPECT_LT(compiled.error().message.size(), 2000u) << compiled.error().message;
    EXPECT_THAT(compiled.error().message, testing::Not(HasSubstr("panic"))) << text.substr(0, 60);
  }
}

// Grammars that compile and whose masks are costly: an error in the end, or slow answers, within bounds.
TEST(Grammar, CostlyMasksAreBounded) {
  for (const char* pattern :
       {"(a{5000}){5000}", "(.*a.{0,40}b.{0,40}c.*|.*b.{50}a.*)", "(.{0,300}x.{0,300}y)*z"}) {
    auto matcher = grammars().compile(GrammarKind::kRegex, pattern);
    ASSERT_TRUE(matcher.ok()) << matcher.error().message;
    std::vector<uint32_t> words(grammars().mask_words());
    const auto a = demo_prompts().tokenizer().id_of("a");
    ASSERT_TRUE(a);
    const auto start = std::chrono::steady_clock::now();
    int steps = 0;
    while (steps < 2000 && matcher->mask(words).ok() && is_set(words, *a) && matcher->push(*a).ok()) ++steps;
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    EXPECT_LT(taken.count(), 5 * kTimeLimitSeconds) << pattern << ", " << steps << " steps";
  }
}

TEST(Grammar, RecursiveSchemas) {
  const auto tree = grammars().compile(
      GrammarKind::kJsonSchema,
      R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"next":{"$ref":"#/$defs/node"}},"additionalProperties":false}}})");
  ASSERT_TRUE(tree.ok()) << tree.error().message;
  EXPECT_TRUE(takes(tree->clone(), R"({"next": {"next": {}}})"));
  EXPECT_FALSE(takes(tree->clone(), R"({"next": {"next": 1}})"));
  const auto loop = grammars().compile(GrammarKind::kJsonSchema, R"({"$ref":"#"})");
  if (loop.ok()) EXPECT_FALSE(takes(loop->clone(), "{}"));  // nothing is an instance; refusing it is as good
}

}  // namespace
}  // namespace jewel
