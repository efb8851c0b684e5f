#include "text/output_parser.h"

#include <gtest/gtest.h>

#include "random_text.h"
#include "text_fixtures.h"
#include "whole_parse.h"

namespace jewel {
namespace {

std::vector<int32_t> ids_of(std::string_view text) {
  return demo_tokenizer().encode(text, SpecialTokens::kParse).value();
}

struct Streamed {
  ParsedOutput output;
  std::vector<OutputEvent> events;
};

Streamed run(const std::vector<int32_t>& ids, const std::vector<int32_t>& prompt = {}) {
  Streamed result;
  OutputParser parser(demo_tokenizer(), demo_prompts().special(), prompt);
  const auto take = [&](const std::vector<OutputEvent>& events) {
    for (const OutputEvent& event : events) {
      result.output.add(event);
      result.events.push_back(event);
    }
  };
  for (const int32_t id : ids) take(parser.push(id));
  take(parser.finish());
  return result;
}

std::string show(const ParsedOutput& output) {
  std::string text = "[" + output.reasoning + "][" + output.content + "]";
  for (const ToolCall& call : output.tool_calls)
    text += "{" + call.name + " " + call.arguments + (call.complete ? "}" : " ...}");
  return text;
}

TEST(OutputParser, Shapes) {
  const struct {
    const char* output;
    const char* expected;
  } cases[] = {
      {"Hello.<turn|>", "[][Hello.]"},
      {"Hello.<eos>more", "[][Hello.]"},
      {"", "[][]"},
      {"<|channel>thought\nhm\n<channel|>Hello.<turn|>", "[hm][Hello.]"},
      {"<|channel>thought\na\n\nb\n\n<channel|>\nHi", "[a\n\nb\n][\nHi]"},
      {"<|channel>thought\n<channel|>Hi", "[][Hi]"},
      {"<|channel>thought<channel|>Hi", "[][Hi]"},
      {"<|channel><channel|>Hi", "[][Hi]"},
      {"<|channel>thoughtful<channel|>Hi", "[thoughtful][Hi]"},
      {"<|channel>plan\nx<channel|>Hi", "[plan\nx][Hi]"},
      {"<|channel>thought\nnever closed\n", "[never closed\n][]"},
      {"<|channel>thou", "[thou][]"},
      {"<|channel>thought\na<|tool_call>call:f{}<tool_call|><|tool_response>", "[a][]{f {}}"},
      {"<|channel>thought\na\n<channel|>b<|channel>thought\nc\n<channel|>d", "[ac][bd]"},
      {"Look: \n<|tool_call>call:f{a:1}<tool_call|>\n<|tool_call>call:g{}<tool_call|> "
       "\n<|tool_response>never",
       "[][Look:]{f {\"a\":1}}{g {}}"},
      {"<|tool_call>call:f{a:<|\"|>x<|\"|>}<tool_call|>  then text <turn|>",
       "[][then text ]{f {\"a\":\"x\"}}"},
      {"<|tool_call>call:f{a:<|\"|>x}, <", "[][]{f {\"a\":\"x}, <\"} ...}"},
      {"<|tool_call>call:f{a:1<|tool_call>call:g{}<tool_call|>", "[][]{f {\"a\":1} ...}{g {}}"},
      {"<|tool_call>call:f{a:1<turn|>", "[][]{f {\"a\":1} ...}"},
      {"<|tool_call>no call at all<tool_call|>text", "[][no call at alltext]"},
      {"a<channel|>b<tool_call|>c<|\"|>d<|image|><|think|><pad>e", "[][abcde]"},
      {"trailing space \n<turn|>", "[][trailing space \n]"},
  };
  for (const auto& [output, expected] : cases)
    EXPECT_EQ(show(run(ids_of(output)).output), expected) << output;
}

TEST(OutputParser, StartsWhereThePromptEnded) {
  const auto open = ids_of("<|turn>model\n<|tool_response>response:f{}<tool_response|><|channel>thought\n");
  EXPECT_EQ(show(run(ids_of("hm\n<channel|>Hi"), open).output), "[hm][Hi]");
  EXPECT_EQ(show(run(ids_of("ught\nhm\n<channel|>Hi"), ids_of("<|turn>model\n<|channel>tho")).output),
            "[hm][Hi]");
  EXPECT_EQ(show(run(ids_of("Hi"), ids_of("<|channel>thought\nx\n<channel|>")).output), "[][Hi]");
  EXPECT_EQ(show(run(ids_of("Hi"), ids_of("<|channel>thought\nx<turn|>\n<|turn>model\n")).output), "[][Hi]");
  EXPECT_EQ(show(run(ids_of("Hi"), {}).output), "[][Hi]");
}

TEST(OutputParser, ReasoningStreamsAsItComes) {
  OutputParser parser(demo_tokenizer(), demo_prompts().special());
  std::string text;
  for (const int32_t id : ids_of("<|channel>thought\na b")) {
    for (const auto& event : parser.push(id)) text += event.text;
  }
  EXPECT_EQ(text, "a b");
  EXPECT_TRUE(parser.in_reasoning());
}

TEST(OutputParser, CallEventsCarryTheWhole) {
  const auto events =
      run(ids_of("<|tool_call>call:f{a:<|\"|>one two three<|\"|>,b:[1,2]}<tool_call|>")).events;
  ASSERT_GE(events.size(), 4u);
  EXPECT_EQ(events.front().kind, OutputEvent::Kind::kCallStart);
  EXPECT_EQ(events.front().text, "f");
  EXPECT_EQ(events.back().kind, OutputEvent::Kind::kCallEnd);
  EXPECT_EQ(events.back().text, R"({"a":"one two three","b":[1,2]})");
  std::string streamed;
  for (const auto& event : events)
    if (event.kind == OutputEvent::Kind::kCallArguments) streamed += event.text;
  EXPECT_EQ(streamed, events.back().text);
  EXPECT_GT(events.size(), 5u) << "arguments come in pieces";
}

// Random token sequences, control tokens in any order: the stream equals the second, whole reading, and no
// control token shows as text.
TEST(OutputParser, StreamEqualsTheWholeParse) {
  const Tokenizer& t = demo_tokenizer();
  const SpecialIds& s = demo_prompts().special();
  const std::vector<std::string> pieces = {"<|channel>",
                                           "<channel|>",
                                           "<|tool_call>",
                                           "<tool_call|>",
                                           "<|\"|>",
                                           "<|channel>thought\n",
                                           "thought\n",
                                           "thou",
                                           "call:f{",
                                           "call:g{a:1}",
                                           "}",
                                           "a:",
                                           ",",
                                           "text",
                                           " ",
                                           "\n",
                                           "\n\n",
                                           "你",
                                           "👋",
                                           "<turn|>",
                                           "<|image|>",
                                           "<|tool_call>call:f{",
                                           "{",
                                           "[",
                                           "x y"};
  TestRandom random(17);
  for (int round = 0; round < 20000; ++round) {
    std::vector<int32_t> ids;
    for (uint64_t n = random.below(20); n > 0; --n) {
      if (random.below(12) == 0) {
        ids.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(t.vocab_size()))));
      } else {
        const auto more = ids_of(pieces[random.below(pieces.size())]);
        ids.insert(ids.end(), more.begin(), more.end());
      }
    }
    const bool reasoning = random.below(4) == 0;
    const auto prompt = reasoning ? ids_of("<|channel>thought\n") : std::vector<int32_t>();
    const Streamed streamed = run(ids, prompt);
    ASSERT_EQ(show(streamed.output), show(whole_output(t, s, ids, reasoning))) << t.decode(ids).value();
    for (const std::string& special : t.special_tokens()) {
      ASSERT_EQ(streamed.output.content.find(special), std::string::npos) << t.decode(ids).value();
      ASSERT_EQ(streamed.output.reasoning.find(special), std::string::npos) << t.decode(ids).value();
    }
  }
}

}  // namespace
}  // namespace jewel
