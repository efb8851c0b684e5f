#include "text/tool_call.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "random_text.h"
#include "text_fixtures.h"
#include "whole_parse.h"

namespace jewel {
namespace {

namespace json = boost::json;

struct Case {
  const char* body;
  const char* name;  // null: no call
  const char* arguments;
  bool complete = true;
};

TEST(ToolCall, GrammarAndTolerances) {
  const Case cases[] = {
      {"call:f{}", "f", "{}"},
      {"call:get_weather{days:3,flag:true,location:<|\"|>Tokyo<|\"|>,opts:{a:null,b:[1,<|\"|>x<|\"|>]}}",
       "get_weather", R"({"days":3,"flag":true,"location":"Tokyo","opts":{"a":null,"b":[1,"x"]}})"},
      {"call:a-b.c_1{k:-1.5e+20,l:[],m:{}}", "a-b.c_1", R"({"k":-1.5e+20,"l":[],"m":{}})"},
      {"call:f{t:<|\"|>a}b,c{d]\n\"q\"\\\t\x01<|\"|>}", "f", R"({"t":"a}b,c{d]\n\"q\"\\\t\u0001"})"},
      {"call:f{t:<|\"|><|\"|>}", "f", R"({"t":""})"},
      {"call:f{t:<|\"|>你好 👋<|\"|>}", "f", R"({"t":"你好 👋"})"},
      // unquoted strings and odd values
      {"call:f{city:New York,zip:00123,n:+5,d:1.,b:True,z:None,y:nil}", "f",
       R"({"city":"New York","zip":"00123","n":"+5","d":"1.","b":true,"z":null,"y":null})"},
      {"call:f{a:1e999,b:-0.0e6666666666,c:0e-12345,d:1E0009}", "f",
       R"({"a":"1e999","b":"-0.0e6666666666","c":"0e-12345","d":1E0009})"},
      {"call:f{a: 1 , b : <|\"|>x<|\"|> , c:[ 1 , 2 ]}", "f", R"({"a":1,"b":"x","c":[1,2]})"},
      {"call:f{a:,b:}", "f", R"({"a":null,"b":null})"},
      {"call:f{\"a\":\"x, \\\"y\\\" }\",<|\"|>b:c<|\"|>:2}", "f", R"({"a":"x, \"y\" }","b:c":2})"},
      {"call:f{a:Tokyo<|\"|>,b:1}", "f", R"({"a":"Tokyo","b":1})"},
      {"call:f{a:<|\"|>x<|\"|> junk<|\"|>,}<|\"|>,b:1}", "f", R"({"a":"x","b":1})"},
      {"call:f{a:[1,2,],}", "f", R"({"a":[1,2]})"},
      {"call:f{a,b:1}", "f", R"({"b":1})"},
      {"f{a:1}", "f", R"({"a":1})"},
      {" call: f {a:1} ", "f", R"({"a":1})"},
      {"call:f(a:1,b:{c:2})", "f", R"({"a":1,"b":{"c":2}})"},
      {"call:f{a:1}}, and more", "f", R"({"a":1})"},
      // the end is missing
      {"call:f", "f", "{}", false},
      {"call:f{", "f", "{}", false},
      {"call:f{a", "f", "{}", false},
      {"call:f{a:", "f", R"({"a":null})", false},
      {"call:f{a:tr", "f", R"({"a":"tr"})", false},
      {"call:f{a:<|\"|>To", "f", R"({"a":"To"})", false},
      {"call:f{a:[1,{b:<|\"|>x<|\"|>", "f", R"({"a":[1,{"b":"x"}]})", false},
      {"call:f{a:[", "f", R"({"a":[]})", false},
      // no call
      {"", nullptr, ""},
      {"call:{a:1}", nullptr, ""},
      {"{\"name\": \"f\"}", nullptr, ""},
      {"I would call f{a:1}", nullptr, ""},
      {"<|\"|>f{}", nullptr, ""},
  };
  for (const Case& c : cases) {
    const auto call = parse_tool_call(c.body);
    ASSERT_EQ(call.has_value(), c.name != nullptr) << c.body;
    if (!call) continue;
    EXPECT_EQ(call->name, c.name) << c.body;
    EXPECT_EQ(call->arguments, c.arguments) << c.body;
    EXPECT_EQ(call->complete, c.complete) << c.body;
  }
  EXPECT_FALSE(parse_tool_call("call:" + std::string(300, 'n') + "{}").has_value());
}

json::value random_value(TestRandom& random, const std::vector<std::string>& fragments, int depth) {
  switch (random.below(depth > 0 ? 8 : 6)) {
    case 0:
      return nullptr;
    case 1:
      return random.below(2) == 0;
    case 2:
      return static_cast<int64_t>(random.next()) >> random.below(64);
    case 3:
      return static_cast<double>(static_cast<int64_t>(random.next()) >> 24) /
             16;  // Boost.JSON reads these exactly
    case 4:
    case 5: {
      std::string text;
      for (uint64_t n = random.below(5); n > 0; --n) text += fragments[random.below(fragments.size())];
      return json::value(text);
    }
    case 6: {
      json::array items;
      for (uint64_t n = random.below(4); n > 0; --n)
        items.push_back(random_value(random, fragments, depth - 1));
      return items;
    }
    default: {
      json::object fields;
      for (uint64_t n = random.below(4); n > 0; --n)
        fields["k" + std::to_string(random.below(50))] = random_value(random, fragments, depth - 1);
      return fields;
    }
  }
}

// What the template writes, the reader reads: any arguments survive.
TEST(ToolCall, ReadsWhatTheTemplateWrites) {
  const auto fragments = read_fragments();
  TestRandom random(11);
  for (int round = 0; round < 1000; ++round) {
    json::value arguments = random_value(random, fragments, 4);
    if (!arguments.is_object()) arguments = json::object{{"value", arguments}};
    const std::string as_text = json::serialize(arguments);
    if (as_text.find("<|\\\"|>") != std::string::npos)
      continue;  // the dialect has no escape for its own mark
    const json::array messages = {json::object{
        {"role", "assistant"},
        {"tool_calls",
         json::array{json::object{{"function", json::object{{"name", "f"}, {"arguments", arguments}}}}}}}};
    std::string text = demo_prompts().render(messages, {}, {}).value();
    const std::string open = "<|tool_call>", close = "<tool_call|><|tool_response>";
    text = text.substr(text.find(open) + open.size());
    ASSERT_TRUE(text.ends_with(close)) << text;
    const auto call = parse_tool_call(text.substr(0, text.size() - close.size()));
    ASSERT_TRUE(call.has_value()) << text;
    EXPECT_TRUE(call->complete) << text;
    EXPECT_EQ(json::parse(call->arguments), arguments) << text << "\n" << call->arguments;
  }
}

// Random bodies from the characters that matter: never anything but JSON, in any pieces the same, and equal
// to the recursive reading.
TEST(ToolCall, AnyBodyGivesJsonAndEqualsTheWholeParse) {
  TestRandom random(13);
  static constexpr std::string_view kAlphabet = "{}{}[](),,::  \n\"\\ab0-1.e";
  for (int round = 0; round < 30000; ++round) {
    std::vector<CallElement> body;
    if (random.below(8) != 0)
      for (const char c : std::string_view("call:f{a:")) body.push_back({false, c});
    for (uint64_t n = random.below(30); n > 0; --n)
      body.push_back(random.below(7) == 0 ? CallElement{true, 0}
                                          : CallElement{false, kAlphabet[random.below(kAlphabet.size())]});
    std::string shown, pieces, piece;
    ToolCallReader by_character;
    for (const CallElement& e : body) {
      shown += e.is_mark ? "<|\"|>" : std::string(1, e.c);
      pieces += e.is_mark ? by_character.quote() : by_character.text(std::string(1, e.c));
    }
    pieces += by_character.finish();
    const auto whole = whole_tool_call(body);
    ASSERT_EQ(whole.has_value(), !by_character.malformed()) << shown;
    if (!whole) continue;
    ASSERT_EQ(pieces, whole->arguments) << shown;
    ASSERT_EQ(by_character.name(), whole->name) << shown;
    ASSERT_EQ(by_character.complete(), whole->complete) << shown;
    const auto in_one = parse_tool_call(shown);
    ASSERT_TRUE(in_one.has_value());
    ASSERT_EQ(in_one->arguments, pieces) << shown;
    boost::system::error_code ec;
    const json::value parsed = json::parse(pieces, ec);
    ASSERT_FALSE(ec) << shown << "\n" << pieces;
    ASSERT_TRUE(parsed.is_object());
  }
}

TEST(ToolCall, DepthIsBounded) {
  const std::string deep = "call:f{a:" + std::string(100000, '[') + "1";
  const auto call = parse_tool_call(deep);
  ASSERT_TRUE(call.has_value());
  json::parse_options options;
  options.max_depth = ToolCallReader::kMaxDepth;
  boost::system::error_code ec;
  json::parse(call->arguments, ec, {}, options);
  EXPECT_FALSE(ec) << ec.message();
}

}  // namespace
}  // namespace jewel
