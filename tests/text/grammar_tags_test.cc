#include "text/grammar_tags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "mask_walk.h"

namespace jewel {
namespace {

using testing::HasSubstr;

GrammarMatcher compiled(const std::string& tag) {
  static const std::unique_ptr<GrammarCompiler> compiler = [] {
    auto made = GrammarCompiler::make(demo_prompts().tokenizer(), kDemoVocabulary, demo_stops());
    JEWEL_CHECK(made.ok(), "{}", made.error().message);
    return std::move(made.value());
  }();
  const auto lark = lark_from_structural_tag(tag);
  JEWEL_CHECK(lark.ok(), "{}: {}", tag, lark.error().message);
  auto matcher = compiler->compile(GrammarKind::kLark, *lark);
  JEWEL_CHECK(matcher.ok(), "{}: {}", *lark, matcher.error().message);
  return std::move(matcher.value());
}

void expect_texts(const std::string& tag, const std::vector<std::string>& good,
                  const std::vector<std::string>& bad) {
  for (const std::string& text : good) EXPECT_TRUE(takes(compiled(tag), text)) << tag << "\n" << text;
  for (const std::string& text : bad) EXPECT_FALSE(takes(compiled(tag), text)) << tag << "\n" << text;
}

const std::string kNumber = R"({"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]})";

TEST(StructuralTag, HoldsWhatATriggerOpens) {
  const std::string tag =
      R"({"type":"structural_tag","structures":[{"begin":"<f=add>","schema":)" + kNumber +
      R"(,"end":"</f>"},{"begin":"<f=say>","schema":{"type":"string"},"end":"</f>"}],"triggers":["<f="]})";
  expect_texts(
      tag, {"", "Hello < f", R"(Look: <f=add>{"n": 3}</f>)", R"(a<f=say>"x"</f> b <f=add>{"n":1}</f> c <)"},
      {"<f=", "Hello <f=mul>", R"(<f=add>{"n": "x"}</f>)", R"(<f=add>{"n": 3})", R"(<f=say>{"n": 3}</f>)"});
}

TEST(StructuralTag, ReadsTheFormatsOfXGrammar) {
  expect_texts(R"({"format":{"type":"const_string","value":"Yes."}})", {"Yes."}, {"Yes", "No."});
  expect_texts(R"({"format":{"type":"json_schema","json_schema":)" + kNumber + "}}", {R"({"n": 1})"}, {"{}"});
  expect_texts(R"({"format":{"type":"regex","pattern":"[0-9]/[a-z]+"}})", {"1/ab"}, {"1ab"});
  expect_texts(R"({"format":{"type":"grammar","grammar":"root ::= \"a\" root \"b\" | \"c\""}})", {"aacbb"},
               {"aacb"});
  expect_texts(R"({"format":{"type":"any_text"}})", {"", "Anything\nat all"}, {});
  expect_texts(
      R"({"format":{"type":"sequence","elements":[{"type":"tag","begin":"<t>","content":{"type":"any_text"},"end":"</t>"},
         {"type":"or","elements":[{"type":"const_string","value":"A"},{"type":"const_string","value":"B"}]}]}})",
      {"<t>why not</t>A", "<t></t>B"}, {"A", "<t>why</t>C", "<t>why A"});
  const std::string tags =
      R"("tags":[{"type":"tag","begin":"<n>","content":{"type":"regex","pattern":"[0-9]+"},"end":"</n>"},
      {"type":"tag","begin":"<w>","content":{"type":"regex","pattern":"[a-z]+"},"end":["</w>",";"]}])";
  expect_texts(R"({"format":{"type":"triggered_tags","triggers":["<n>","<w>"],)" + tags + "}}",
               {"free", "x<n>12</n>y<w>ab</w>", "<w>a;"}, {"<n>a</n>", "<n>1"});
  expect_texts(R"({"format":{"type":"triggered_tags","triggers":["<"],"at_least_one":true,)" + tags + "}}",
               {"<n>1</n>", "<n>1</n> and <w>a</w>!"}, {"", "x<n>1</n>", "<n>1</n><x>"});
  expect_texts(
      R"({"format":{"type":"triggered_tags","triggers":["<"],"stop_after_first":true,)" + tags + "}}",
      {"a <n>1</n>", "none"}, {"<n>1</n> more"});
  expect_texts(
      R"({"format":{"type":"tags_with_separator","separator":", ","at_least_one":true,)" + tags + "}}",
      {"<n>1</n>", "<n>1</n>, <w>a</w>, <n>2</n>"}, {"", "<n>1</n><w>a</w>"});
  expect_texts(
      R"({"format":{"type":"tags_with_separator","separator":"","stop_after_first":true,)" + tags + "}}",
      {"", "<n>1</n>"}, {"<n>1</n><n>1</n>"});
}

TEST(StructuralTag, SaysWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"{", "not JSON"},
      {"[]", "structures"},
      {"{}", "structures"},
      {R"({"structures":[],"triggers":["<"]})", "structures"},
      {R"({"structures":[{"begin":"<a>","schema":{},"end":"</a>"}]})", "triggers"},
      {R"({"structures":[{"begin":"<a>","schema":{},"end":"</a>"}],"triggers":["["]})",
       "no tag begins with '['"},
      {R"({"structures":[{"begin":"<a>","schema":{},"end":"<"},{"begin":"[a]","schema":{},"end":"["}],"triggers":["<"]})",
       "begins with none"},
      {R"({"structures":[{"begin":1,"schema":{},"end":"</a>"}],"triggers":["<"]})", "structures[0].begin"},
      {R"({"format":{"type":"qwen_xml_parameter"}})", "format.type"},
      {R"({"format":{"type":"sequence","elements":[{"type":"const_string"}]}})", "format.elements[0].value"},
      {R"({"format":{"type":"grammar","grammar":"root ::= x"}})", "line 1"},
  };
  for (const auto& [tag, part] : wrong) {
    const auto lark = lark_from_structural_tag(tag);
    ASSERT_FALSE(lark.ok()) << tag;
    EXPECT_THAT(lark.error().message, HasSubstr(part)) << tag;
  }
  std::string deep = R"({"type":"any_text"})";
  for (int i = 0; i < 40; ++i) deep = R"({"type":"or","elements":[)" + deep + "]}";
  EXPECT_FALSE(lark_from_structural_tag(R"({"format":)" + deep + "}").ok());
}

}  // namespace
}  // namespace jewel
