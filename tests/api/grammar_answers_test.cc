// Structured outputs of the demo model, hot and cold: whatever it would rather say, the answer is an instance
// of what was asked for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <regex>
#include <set>

#include "answers.h"

namespace jewel {
namespace {

namespace json = boost::json;

// Answers to one question with many seeds, computed side by side.
std::vector<WholeAnswer> samples(Request request, int n) {
  std::vector<Stream> streams;
  for (int seed = 0; seed < n; ++seed) {
    request.sampling = {
        .temperature = seed == 0 ? 0 : 1.5, .top_k = 0, .top_p = 1, .seed = static_cast<uint64_t>(seed)};
    auto stream = demo_engine().submit(request);
    EXPECT_TRUE(stream.ok());
    if (stream.ok()) streams.push_back(std::move(*stream));
  }
  std::vector<WholeAnswer> answers;
  for (Stream& stream : streams) answers.push_back(read_all(stream));
  return answers;
}

TEST(GrammarAnswers, JsonSchema) {
  Request request = question("Describe a red circle", 200);
  request.grammar = {.kind = Grammar::Kind::kJsonSchema, .text = R"({"type":"object","properties":{
      "shape":{"enum":["circle","square","triangle"]},"count":{"type":"integer","minimum":0,"maximum":9},
      "note":{"type":"string","maxLength":12}},"required":["shape","count"],"additionalProperties":false})"};
  int finished = 0;
  for (const WholeAnswer& answer : samples(request, 24)) {
    EXPECT_FALSE(answer.finish.error) << answer.finish.error->message;
    if (answer.finish.reason != EndReason::kStop) continue;
    ++finished;
    boost::system::error_code broken;
    const json::value value = json::parse(answer.content, broken);
    ASSERT_FALSE(broken) << answer.content;
    const json::object& object = value.as_object();
    EXPECT_THAT((std::set<std::string>{"circle", "square", "triangle"}),
                testing::Contains(std::string(object.at("shape").as_string())));
    EXPECT_GE(object.at("count").as_int64(), 0);
    EXPECT_LE(object.at("count").as_int64(), 9);
    for (const auto& property : object)
      EXPECT_TRUE(property.key() == "shape" || property.key() == "count" || property.key() == "note");
  }
  EXPECT_GE(finished, 20);
}

TEST(GrammarAnswers, RegexAndChoice) {
  Request request = question("When?", 60);
  request.grammar = {.kind = Grammar::Kind::kRegex, .text = "(19|20)[0-9]{2}-[01][0-9]"};
  const std::regex judge(request.grammar.text);
  for (const WholeAnswer& answer : samples(request, 12)) {
    EXPECT_EQ(answer.finish.reason, EndReason::kStop);
    EXPECT_TRUE(std::regex_match(answer.content, judge)) << answer.content;
  }
  request.grammar = {.kind = Grammar::Kind::kChoice, .choices = {"yes", "no", "perhaps \"so\""}};
  for (const WholeAnswer& answer : samples(request, 12)) {
    EXPECT_EQ(answer.finish.reason, EndReason::kStop);
    EXPECT_THAT(request.grammar.choices, testing::Contains(answer.content));
  }
  request.grammar = {.kind = Grammar::Kind::kLark, .text = "start: \"a\" (\"b\" | \"c\")+ \"d\""};
  request.max_tokens = 400;
  for (const WholeAnswer& answer : samples(request, 6)) {
    if (answer.finish.reason == EndReason::kStop)
      EXPECT_TRUE(std::regex_match(answer.content, std::regex("a[bc]+d"))) << answer.content;
  }
}

TEST(GrammarAnswers, TheGrammarBeginsBehindTheThought) {
  Request request = question("What is 2 + 3?", 300);
  request.thinking = true;
  request.grammar = {.kind = Grammar::Kind::kRegex, .text = "The sum is [0-9]+\\."};
  const WholeAnswer answer = ask(demo_engine(), request);
  EXPECT_NE(answer.reasoning, "") << "the thought itself is free";
  EXPECT_TRUE(std::regex_match(answer.content, std::regex(request.grammar.text))) << answer.content;
  request.thinking_budget = 3;
  const WholeAnswer cut = ask(demo_engine(), request);
  EXPECT_LT(cut.reasoning.size(), answer.reasoning.size());
  EXPECT_TRUE(std::regex_match(cut.content, std::regex(request.grammar.text))) << cut.content;
}

constexpr const char* kTools = R"([
  {"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":
     {"city":{"type":"string","maxLength":12},"days":{"type":"integer","minimum":1,"maximum":7}},"required":["city","days"]}}},
  {"type":"function","function":{"name":"set_alarm","strict":true,"parameters":{"type":"object","properties":
     {"hour":{"type":"integer","minimum":0,"maximum":23},"loud":{"type":"boolean"}},"required":["hour","loud"]}}}])";

TEST(GrammarAnswers, RequiredAndNamedCalls) {
  Request request = question("Hello, who are you?", 200);
  request.tools = kTools;
  request.tool_choice = ToolChoice::kRequired;
  const auto check_call = [](const WholeAnswer::Call& call) {
    const json::value arguments = json::parse(call.arguments);
    EXPECT_EQ(call.streamed, call.arguments);
    if (call.name == "get_weather") {
      EXPECT_TRUE(arguments.at("city").is_string());
      EXPECT_GE(arguments.at("days").as_int64(), 1);
      EXPECT_LE(arguments.at("days").as_int64(), 7);
    } else {
      EXPECT_EQ(call.name, "set_alarm");
      EXPECT_LE(arguments.at("hour").as_int64(), 23);
      EXPECT_TRUE(arguments.at("loud").is_bool());
    }
  };
  for (const WholeAnswer& answer : samples(request, 12)) {
    EXPECT_EQ(answer.content, "");
    if (answer.finish.reason == EndReason::kLength) continue;
    EXPECT_EQ(answer.finish.reason, EndReason::kToolCalls);
    ASSERT_FALSE(answer.calls.empty());
    for (const WholeAnswer::Call& call : answer.calls) check_call(call);
  }
  request.tool_choice = ToolChoice::kNamed;
  request.tool_name = "set_alarm";
  request.parallel_tool_calls = false;
  for (const WholeAnswer& answer : samples(request, 12)) {
    EXPECT_EQ(answer.finish.reason, EndReason::kToolCalls);
    ASSERT_EQ(answer.calls.size(), 1u);
    EXPECT_EQ(answer.calls[0].name, "set_alarm");
    check_call(answer.calls[0]);
  }
}

TEST(GrammarAnswers, StrictToolsAreHeldToTheirSchemasWhenTheModelCalls) {
  Request request = question("What is the weather in Paris?", 100);
  request.tools = kTools;
  const WholeAnswer answer = ask(demo_engine(), request);
  ASSERT_EQ(answer.calls.size(), 1u);
  EXPECT_EQ(answer.calls[0].name, "get_weather");
  request.messages = {text_message("user", "Who are you?")};
  EXPECT_EQ(ask(demo_engine(), request).content, ask(demo_engine(),
                                                     [] {
                                                       Request same = question("Who are you?", 100);
                                                       same.tools = kTools;
                                                       same.tool_choice = ToolChoice::kAuto;
                                                       return same;
                                                     }())
                                                     .content);
}

TEST(GrammarAnswers, AFormatBesideTools) {
  Request request = question("What is the weather in Paris?", 100);
  request.tools = kTools;
  request.grammar = {.kind = Grammar::Kind::kChoice, .choices = {"yes", "no"}};
  for (const WholeAnswer& answer : samples(request, 8)) {
    const bool call = !answer.calls.empty();
    if (answer.finish.reason == EndReason::kLength) continue;
    EXPECT_TRUE(call || answer.content == "yes" || answer.content == "no") << answer.content;
  }
}

}  // namespace
}  // namespace jewel
