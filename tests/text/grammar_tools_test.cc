// The grammar of tool calls: what it lets through is read back by ToolCallReader, the one parser of the
// dialect, and held against the schema.
#include "text/grammar_tools.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>

#include "mask_walk.h"
#include "text/output_parser.h"

namespace jewel {
namespace {

namespace json = boost::json;
using ::testing::HasSubstr;

constexpr const char* kTools = R"([
  {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object",
    "properties": {"location": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 14},
                   "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}, "required": ["location"]}}},
  {"type": "function", "function": {"name": "plot-it", "strict": true, "parameters": {"type": "object",
    "properties": {"Points": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"},
      "label": {"type": ["string", "null"]}}, "required": ["x", "label"]}, "minItems": 1, "maxItems": 3},
      "grid": {"type": "boolean"}, "odd key": {"const": "a,b}"}}, "required": ["Points", "grid", "odd key"]}}},
  {"type": "function", "function": {"name": "ping"}}
])";

GrammarCompiler& grammars() {
  static const std::unique_ptr<GrammarCompiler> compiler = [] {
    auto made = GrammarCompiler::make(demo_prompts().tokenizer(), kDemoVocabulary, demo_stops());
    JEWEL_CHECK(made.ok(), "{}", made.error().message);
    return std::move(made.value());
  }();
  return *compiler;
}

GrammarMatcher compile(const char* tools, const ToolGrammar& options) {
  const auto text = tool_call_grammar(json::parse(tools).as_array(), options, demo_prompts().special());
  JEWEL_CHECK(text.ok(), "{}", text.error().message);
  auto matcher = grammars().compile(GrammarKind::kLark, *text);
  JEWEL_CHECK(matcher.ok(), "{}\n{}", matcher.error().message, *text);
  return std::move(*matcher);
}

ParsedOutput parse(const std::vector<int32_t>& ids) {
  OutputParser parser(demo_prompts().tokenizer(), demo_prompts().special());
  ParsedOutput output;
  for (const int32_t id : ids) {
    for (const OutputEvent& event : parser.push(id)) output.add(event);
  }
  for (const OutputEvent& event : parser.finish()) output.add(event);
  return output;
}

void expect_conforms(const ToolCall& call) {
  SCOPED_TRACE(call.name + " " + call.arguments);
  EXPECT_TRUE(call.complete);
  boost::system::error_code broken;
  const json::value value = json::parse(call.arguments, broken);
  ASSERT_FALSE(broken);
  const json::object& arguments = value.as_object();
  if (call.name == "get_weather") {
    EXPECT_TRUE(arguments.at("location").is_string());
    if (const json::value* days = arguments.if_contains("days")) {
      EXPECT_GE(days->as_int64(), 1);
      EXPECT_LE(days->as_int64(), 14);
    }
    if (const json::value* unit = arguments.if_contains("unit"))
      EXPECT_TRUE(*unit == "celsius" || *unit == "fahrenheit");
  } else if (call.name == "plot-it") {
    const json::array& points = arguments.at("Points").as_array();
    EXPECT_GE(points.size(), 1u);
    EXPECT_LE(points.size(), 3u);
    for (const json::value& point : points) {
      EXPECT_TRUE(point.at("x").is_number());
      EXPECT_TRUE(point.at("label").is_string() || point.at("label").is_null());
    }
    EXPECT_TRUE(arguments.at("grid").is_bool());
    EXPECT_EQ(arguments.at("odd key"), "a,b}");
  } else {
    EXPECT_EQ(call.name, "ping");
  }
}

TEST(ToolGrammar, EveryWalkIsCallsThatConform) {
  std::map<std::string, int> seen;
  int several = 0;
  for (unsigned seed = 0; seed < 120; ++seed) {
    GrammarMatcher matcher = compile(kTools, {});
    const Walk walk = random_walk(matcher, seed, 600);
    if (!walk.ended) continue;
    const ParsedOutput output = parse(walk.ids);
    EXPECT_EQ(output.content, "");
    ASSERT_FALSE(output.tool_calls.empty()) << walk.text;
    several += output.tool_calls.size() > 1 ? 1 : 0;
    for (const ToolCall& call : output.tool_calls) {
      ++seen[call.name];
      expect_conforms(call);
    }
  }
  EXPECT_GT(seen["get_weather"], 5);
  EXPECT_GT(seen["plot-it"], 5);
  EXPECT_GT(seen["ping"], 5);
  EXPECT_GT(several, 5);
}

TEST(ToolGrammar, TheTemplatesOwnSpellingIsTaken) {
  const GrammarMatcher matcher = compile(kTools, {});
  const auto takes_call = [&](std::string_view body) {
    return takes(matcher.clone(), fmt::format("<|tool_call>{}<tool_call|>", body), true);
  };
  EXPECT_TRUE(takes_call("call:get_weather{location:<|\"|>Tokyo<|\"|>}"));
  EXPECT_TRUE(takes_call(
      "call:get_weather{days:3,location:<|\"|>São \"Paulo\", {here}\n<|\"|>,unit:<|\"|>celsius<|\"|>}"));
  EXPECT_TRUE(takes_call("call:ping{}"));
  EXPECT_FALSE(takes_call("call:get_weather{}")) << "location is required";
  EXPECT_FALSE(takes_call("call:get_weather{days:15,location:<|\"|>x<|\"|>}"));
  EXPECT_FALSE(takes_call("call:get_weather{location:<|\"|>x<|\"|>,unit:<|\"|>kelvin<|\"|>}"));
  EXPECT_FALSE(takes_call("call:get_weather{location:Tokyo}")) << "a string has its marks";
  EXPECT_FALSE(takes_call("call:get_weather{location:<|\"|>x<|\"|>,wind:1}"));
  EXPECT_FALSE(takes_call("call:fly{}"));
  EXPECT_FALSE(takes(matcher.clone(), "Hello")) << "a call is a must";
}

TEST(ToolGrammar, OneFunctionAndOneCall) {
  const GrammarMatcher matcher = compile(kTools, {.only = "ping", .parallel = false});
  EXPECT_TRUE(takes(matcher.clone(), "<|tool_call>call:ping{}<tool_call|>", true));
  EXPECT_TRUE(takes(matcher.clone(), "<|tool_call>call:ping{a:[1,<|\"|>b<|\"|>]}<tool_call|>", true));
  EXPECT_FALSE(
      takes(matcher.clone(), "<|tool_call>call:ping{}<tool_call|><|tool_call>call:ping{}<tool_call|>", true));
  EXPECT_FALSE(
      takes(matcher.clone(), "<|tool_call>call:get_weather{location:<|\"|>x<|\"|>}<tool_call|>", true));
}

TEST(ToolGrammar, TextOrCalls) {
  const GrammarMatcher matcher = compile(kTools, {.calls = ToolGrammar::Calls::kMay, .strict_only = true});
  EXPECT_TRUE(takes(matcher.clone(), "Just text, with { braces }"));
  EXPECT_TRUE(takes(matcher.clone(), "Let me see.<|tool_call>call:ping{}<tool_call|>", true));
  EXPECT_TRUE(takes(matcher.clone(), "<|tool_call>call:get_weather{anything:1}<tool_call|>", true))
      << "not strict";
  EXPECT_FALSE(takes(matcher.clone(), "<|tool_call>call:plot-it{anything:1}<tool_call|>", true)) << "strict";
  EXPECT_FALSE(takes(matcher.clone(), "<|tool_call>call:ping{}<tool_call|>And text", true));
  const GrammarMatcher schema =
      compile(kTools, {.calls = ToolGrammar::Calls::kMay,
                       .content = R"(%json {"type": "array", "items": {"type": "integer"}})"});
  EXPECT_TRUE(takes(schema.clone(), "[1, 2]"));
  EXPECT_TRUE(takes(schema.clone(), "<|tool_call>call:ping{}<tool_call|>", true));
  EXPECT_FALSE(takes(schema.clone(), "Just text"));
}

TEST(ToolGrammar, SchemasOfManyShapes) {
  const auto one = [](std::string_view parameters) {
    return fmt::format(R"([{{"type":"function","function":{{"name":"f","parameters":{}}}}}])", parameters);
  };
  struct Case {
    const char* parameters;
    const char* yes;
    const char* no;
  };
  for (
      const Case& c : {
          Case{
              R"({"type":"object","properties":{"t":{"$ref":"#/$defs/t"}},"required":["t"],"$defs":{"t":{"type":"object","properties":{"kids":{"type":"array","items":{"$ref":"#/$defs/t"}}}}}})",
              "{t:{kids:[{kids:[]},{}]}}", "{t:{kids:[1]}}"},
          Case{
              R"({"type":"object","properties":{"v":{"anyOf":[{"type":"integer"},{"type":"string"}]}},"required":["v"]})",
              "{v:7}", "{v:true}"},
          Case{
              R"({"type":"object","properties":{"v":{"type":"string","pattern":"^[a-z]+/[0-9]$"}},"required":["v"]})",
              "{v:<|\"|>ab/1<|\"|>}", "{v:<|\"|>ab/12<|\"|>}"},
          Case{
              R"({"type":"object","properties":{"v":{"type":"string","minLength":2,"maxLength":3}},"required":["v"]})",
              "{v:<|\"|>äöü<|\"|>}", "{v:<|\"|>abcd<|\"|>}"},
          Case{R"({"type":"object","additionalProperties":{"type":"integer"}})", "{a:1,b:2}", "{a:1,b:true}"},
          Case{R"({"type":"object","properties":{"v":{"type":"integer","nullable":true}},"required":["v"]})",
               "{v:null}", "{v:<|\"|>x<|\"|>}"},
          Case{
              R"({"allOf":[{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"b":{"type":"boolean"}},"required":["b"]}],"type":"object","properties":{}})",
              "{a:1,b:true}", "{a:1}"},
          Case{R"({"type":"OBJECT","properties":{"v":{"type":"NUMBER"}}})", "{v:-1.5e3}", "{v:01}"},
          Case{
              R"({"type":"object","properties":{"e":{"enum":[1,"one",null,[1,{"k":"v"}]]}},"required":["e"]})",
              "{e:[1,{k:<|\"|>v<|\"|>}]}", "{e:2}"},
      }) {
    const GrammarMatcher matcher = compile(one(c.parameters).c_str(), {});
    EXPECT_TRUE(takes(matcher.clone(), fmt::format("<|tool_call>call:f{}<tool_call|>", c.yes), true))
        << c.parameters << c.yes;
    EXPECT_FALSE(takes(matcher.clone(), fmt::format("<|tool_call>call:f{}<tool_call|>", c.no), true))
        << c.parameters << c.no;
  }
}

TEST(ToolGrammar, ErrorsNameTheField) {
  const auto error = [](std::string_view tools, const ToolGrammar& options = {}) {
    const auto text = tool_call_grammar(json::parse(tools).as_array(), options, demo_prompts().special());
    EXPECT_FALSE(text.ok()) << tools;
    return text.ok() ? std::string() : text.error().message;
  };
  EXPECT_THAT(error("[]"), HasSubstr("tools"));
  EXPECT_THAT(error("[7]"), HasSubstr("tools[0].function.name"));
  EXPECT_THAT(error(kTools, {.only = "fly"}), HasSubstr("'fly'"));
  EXPECT_THAT(
      error(
          R"([{"function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"strin"}}}}}])"),
      HasSubstr("tools[0].function.parameters.properties.a.type: found \"strin\""));
  EXPECT_THAT(error(R"([{"function":{"name":"f","parameters":{"properties":{"a":{"$ref":"other.json"}}}}}])"),
              HasSubstr("$ref"));
  EXPECT_THAT(
      error(R"([{"function":{"name":"f","parameters":{"properties":{"a":{"$ref":"#/properties/a"}}}}}])"),
      HasSubstr("refers to itself"));
  json::value nested = true;
  for (int i = 0; i < 100; ++i) nested = json::object{{"items", nested}};
  json::array tools{
      json::object{{"function", {{"name", "f"}, {"parameters", {{"properties", {{"a", nested}}}}}}}}};
  const auto text = tool_call_grammar(tools, {}, demo_prompts().special());
  ASSERT_FALSE(text.ok());
  EXPECT_THAT(text.error().message, HasSubstr("nested deeper"));
}

}  // namespace
}  // namespace jewel
