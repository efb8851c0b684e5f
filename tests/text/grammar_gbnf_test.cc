// GBNF against judges that know nothing of it: std::regex, a JSON parser, a count of brackets.
#include "text/grammar_gbnf.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <regex>

#include "mask_walk.h"

namespace jewel {
namespace {

using testing::HasSubstr;

GrammarMatcher compiled(const std::string& gbnf) {
  static const std::unique_ptr<GrammarCompiler> compiler = [] {
    auto made = GrammarCompiler::make(demo_prompts().tokenizer(), kDemoVocabulary, demo_stops());
    JEWEL_CHECK(made.ok(), "{}", made.error().message);
    return std::move(made.value());
  }();
  const auto lark = lark_from_gbnf(gbnf);
  JEWEL_CHECK(lark.ok(), "{}: {}", gbnf, lark.error().message);
  auto matcher = compiler->compile(GrammarKind::kLark, *lark);
  JEWEL_CHECK(matcher.ok(), "{}: {}", *lark, matcher.error().message);
  return std::move(matcher.value());
}

void expect_texts(const std::string& gbnf, const std::vector<std::string>& good,
                  const std::vector<std::string>& bad) {
  for (const std::string& text : good) EXPECT_TRUE(takes(compiled(gbnf), text)) << gbnf << "\n" << text;
  for (const std::string& text : bad) EXPECT_FALSE(takes(compiled(gbnf), text)) << gbnf << "\n" << text;
}

TEST(Gbnf, IsToldFromLark) {
  EXPECT_TRUE(is_gbnf("root ::= \"a\""));
  EXPECT_TRUE(is_gbnf("# comment\n  my-rule::=[a]"));
  EXPECT_FALSE(is_gbnf("start: \"a ::= b\""));
  EXPECT_FALSE(is_gbnf("::= \"a\""));
  EXPECT_FALSE(is_gbnf(""));
}

TEST(Gbnf, EveryPartOfTheNotation) {
  expect_texts("root ::= \"yes\" | \"no\"", {"yes", "no"}, {"", "yesno", "ye"});
  expect_texts("root ::= [0-9a-f]+ \"-\"? [^x-z\\n]{2}", {"0ab", "f-qq", "1-ab"}, {"-ab", "0-ax", "0-a\n"});
  expect_texts("root ::= (\"a\" | \"b\" \"c\")* \"!\"", {"!", "abca!", "bcbc!"}, {"ab!", "c!"});
  expect_texts("root ::= \"x\"{2,3} \"y\"{2} \"z\"{1,}", {"xxyyz", "xxxyyzzz"},
               {"xyyz", "xxyz", "xxxxyyz", "xxyy"});
  expect_texts("root ::= \"\\x41\\u00e9\\n\\\"\\\\\" .", {"Aé\n\"\\q", "Aé\n\"\\\n"}, {"Aé\n\"\\"});
  expect_texts("root ::= \"Grüße \" [ä-ü]", {"Grüße ö"}, {"Grüße o"});
  expect_texts("root ::= [a\\]\\-]+", {"a]-"}, {"b"});
  expect_texts("root ::= (\"a\" |) \"b\"", {"ab", "b"}, {"a"});
  expect_texts("root ::=\n  \"a\" | # first\n  \"b\"\n  | other-rule\nother-rule ::= \"c\"", {"a", "b", "c"},
               {"d"});
}

// What Lark's words would get wrong: the longest word is not the right one.
TEST(Gbnf, MatchesCharacterByCharacter) {
  expect_texts("root ::= [a-z]+ \"x\" [0-9]", {"abx1", "xx1"}, {"x1", "ab1"});
  // The same in a grammar that contains itself.
  expect_texts("root ::= \"(\" root \")\" | word\nword ::= [a-z]+ \"x\" [0-9]", {"abx1", "((xx1))"},
               {"(x1)", "(ab1)"});
  expect_texts("root ::= \"ab\" \"c\" | [a-z] \"b\" \"d\" | \"(\" root \")\"", {"abc", "abd", "(abd)"},
               {"ab", "(abe)"});
}

TEST(Gbnf, ContainsItself) {
  expect_texts("root ::= root \"+\" term | term\nterm ::= [0-9]+ | \"(\" root \")\"", {"1+22", "(1+(2))+3"},
               {"1+", "(1", "1+2)"});
  const std::string json = R"(root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
)";
  expect_texts(json, {R"({"a": [1, -2.5e3, {"b": null}], "é\n": "x"})", "{}"},
               {R"({"a": })", "[]", R"({"a" 1})"});
  int ended = 0;
  for (unsigned seed = 0; seed < 30; ++seed) {
    GrammarMatcher matcher = compiled(json);
    const Walk walk = random_walk(matcher, seed);
    if (!walk.ended) continue;
    ++ended;
    boost::system::error_code broken;
    boost::json::parse(walk.text, broken);
    EXPECT_FALSE(broken) << walk.text;
  }
  EXPECT_GE(ended, 5);
}

TEST(Gbnf, SaysWhatIsWrongAndWhere) {
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"root ::= \"a", "line 1"},
      {"root ::= [a\n", "line 1"},
      {"root ::= \"a\"\nother ::= (\"b\"\n", "line 3"},
      {"root ::= \"a\"\n\nroot ::= \"b\"", "line 3: found ' '"},
      {"root ::= a\n", "line 1: the rule 'a' is not defined"},
      {"start ::= \"a\"", "root"},
      {"root ::= \"a\"{3,2}", "line 1"},
      {"root ::= \"a\"{100000}", "line 1: a repetition above"},
      {"root ::= \"\\q\"", "escapes"},
      {"root ::= \"\\ud800\"", "not a character"},
      {"root ::= [z-a]", "range"},
      {"root ::= []", "empty class"},
      {"root ::= *", "line 1: found '*'"},
      {"root ::= \"a\")", "line 1: found ')'"},
      {"root ::= \"\xff\"", "UTF-8"},
      {"root ::= " + std::string(5000, '('), "nested"},
      {std::string(100'000, 'a'), "bytes long"},
  };
  for (const auto& [text, part] : wrong) {
    const auto lark = lark_from_gbnf(text);
    ASSERT_FALSE(lark.ok()) << text.substr(0, 60);
    EXPECT_THAT(lark.error().message, HasSubstr(part)) << text.substr(0, 60);
  }
  std::string chain = "root ::= r0\n";  // no recursion of ours follows it
  for (int i = 0; i < 3000; ++i) chain += fmt::format("r{} ::= r{}\n", i, i + 1);
  EXPECT_TRUE(lark_from_gbnf(chain + "r3000 ::= \"a\"").ok());
}

}  // namespace
}  // namespace jewel
