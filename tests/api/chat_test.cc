// The library on the demo model, whose answers a person can check.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>

#include "answers.h"

namespace jewel {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr const char* kWeather =
    R"([{"type":"function","function":{"name":"get_weather","description":"Get the weather",
    "parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}])";

TEST(Chat, Text) {
  const WholeAnswer answer = ask(demo_engine(), question("Who are you?"));
  EXPECT_THAT(answer.content, HasSubstr("Jewel"));
  EXPECT_EQ(answer.finish.reason, EndReason::kStop);
  EXPECT_EQ(answer.finish.stop_token_id, answer.ids().back());
  EXPECT_EQ(answer.finish.usage.completion_tokens, static_cast<int>(answer.tokens.size()));
  EXPECT_EQ(answer.finish.usage.prompt_tokens, answer.prompt->prompt_tokens);
  EXPECT_GT(answer.finish.timings.ttft_s, 0);
  EXPECT_GE(answer.finish.timings.ttft_s, answer.finish.timings.prefill_s);
}

TEST(Chat, Image) {
  const WholeAnswer answer =
      ask(demo_engine(), about_image("models/examples/word.png", "What word is in the picture?"));
  EXPECT_EQ(answer.content, "The word is \"violin\".");
  EXPECT_GT(answer.finish.usage.image_tokens, 0);
  EXPECT_LT(answer.finish.usage.image_tokens, answer.finish.usage.prompt_tokens);
}

// A picture once more: its pages come from the prefix cache, and the answer is the same.
TEST(Chat, ASecondQuestionAboutAPictureHitsTheCache) {
  const Request request = about_image("models/examples/number.png", "What number is this?");
  const WholeAnswer first = ask(demo_engine(), request);
  const WholeAnswer second = ask(demo_engine(), request);
  EXPECT_EQ(first.content, "The number is 70425.");
  EXPECT_EQ(second.ids(), first.ids());
  EXPECT_GT(second.finish.usage.cached_tokens, second.finish.usage.image_tokens / 2);
  Request salted = request;
  salted.cache_salt = "another tenant";
  EXPECT_EQ(ask(demo_engine(), salted).finish.usage.cached_tokens, 0);
}

TEST(Chat, Thinking) {
  Request request = question("What is 2 + 3?", 200);
  request.thinking = true;
  const WholeAnswer answer = ask(demo_engine(), request);
  EXPECT_NE(answer.reasoning, "");
  EXPECT_GT(answer.finish.usage.reasoning_tokens, 0);
  EXPECT_LT(answer.finish.usage.reasoning_tokens, answer.finish.usage.completion_tokens);
  request.thinking_budget = 2;
  const WholeAnswer shorter = ask(demo_engine(), request);
  EXPECT_NE(shorter.reasoning, "");
  EXPECT_LT(shorter.reasoning.size(), answer.reasoning.size());
  EXPECT_TRUE(answer.reasoning.starts_with(shorter.reasoning)) << shorter.reasoning;
  EXPECT_NE(shorter.content, "") << "what comes behind is the answer";
  request.thinking_budget = 0;
  EXPECT_EQ(ask(demo_engine(), request).reasoning, "");
}

TEST(Chat, ToolCallAndItsResult) {
  Request request = question("What is the weather in Paris?");
  request.tools = kWeather;
  const WholeAnswer answer = ask(demo_engine(), request);
  ASSERT_THAT(answer.calls, SizeIs(1));
  EXPECT_EQ(answer.calls[0].name, "get_weather");
  EXPECT_EQ(answer.calls[0].arguments, R"({"city":"Paris"})");
  EXPECT_EQ(answer.calls[0].streamed, answer.calls[0].arguments);
  EXPECT_TRUE(answer.calls[0].complete);
  EXPECT_EQ(answer.finish.reason, EndReason::kToolCalls);
  Message call{.role = "assistant"};
  call.tool_calls.push_back({"1", "get_weather", answer.calls[0].arguments});
  request.messages.push_back(call);
  Message result = text_message("tool", "sunny, 21 degrees");
  result.tool_call_id = "1";
  request.messages.push_back(result);
  const WholeAnswer final_answer = ask(demo_engine(), request);
  EXPECT_THAT(final_answer.content, HasSubstr("21"));
  EXPECT_EQ(final_answer.finish.reason, EndReason::kStop);
}

TEST(Chat, ToolsThatMayNotBeCalled) {
  Request request = question("What is the weather in Paris?");
  request.tools = kWeather;
  request.tool_choice = ToolChoice::kNone;
  EXPECT_THAT(ask(demo_engine(), request).calls, SizeIs(0));
}

TEST(Chat, MessagesAsJsonArePromptsLikeTypedOnes) {
  Request typed = about_image("models/examples/word.png", "Hi");
  typed.messages.insert(typed.messages.begin(), text_message("system", " Be terse. "));
  typed.return_prompt_ids = true;
  Request json;
  json.messages_json =
      R"([{"role":"system","content":" Be terse. "},{"role":"user","content":[{"type":"image_url"},{"type":"text","text":"Hi"}]}])";
  json.images = {typed.messages[1].content[0].image};
  const auto a = demo_engine().prompt_of(typed);
  const auto b = demo_engine().prompt_of(json);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->ids, b->ids);
  EXPECT_EQ(ask(demo_engine(), typed).prompt->ids, a->ids);
}

TEST(Chat, ContinuesTheLastMessage) {
  Request request = question("Who are you?");
  request.messages.push_back(text_message("assistant", "I am Jewel's"));
  request.add_generation_prompt = false;
  request.continue_final_message = true;
  const WholeAnswer answer = ask(demo_engine(), request);
  EXPECT_TRUE(answer.content.starts_with(" demo model")) << answer.content;
}

TEST(Chat, PromptsAsTextAndAsIds) {
  Request text;
  text.prompt = "<|turn>user\nWho are you?<turn|>\n<|turn>model\n";
  text.max_tokens = 40;
  text.sampling.temperature = 0;
  const WholeAnswer chat = ask(demo_engine(), question("Who are you?", 40));
  EXPECT_EQ(ask(demo_engine(), text).ids(), chat.ids());
  Request ids = text;
  ids.prompt.reset();
  const auto tokens = demo_engine().tokenize("<bos>" + *text.prompt, true);
  ASSERT_TRUE(tokens.ok());
  ids.prompt_ids = *tokens;
  EXPECT_EQ(ask(demo_engine(), ids).ids(), chat.ids());
  ids.parse_output = false;
  EXPECT_EQ(ask(demo_engine(), ids).content, chat.content);
  ids.skip_special_tokens = false;
  EXPECT_EQ(ask(demo_engine(), ids).content, chat.content + "<turn|>");
  EXPECT_EQ(demo_engine().detokenize(chat.ids()).value(), chat.content + "<turn|>");
}

TEST(Chat, Logprobs) {
  Request request = question("Who are you?", 8);
  request.logprobs = 3;
  request.prompt_logprobs = 1;
  request.return_prompt_ids = true;
  const WholeAnswer answer = ask(demo_engine(), request);
  for (const OutputToken& token : answer.tokens) {
    ASSERT_TRUE(token.chance.has_value());
    EXPECT_LE(token.chance->logprob, 0);
    EXPECT_EQ(token.chance->rank, 1) << "greedy";
    ASSERT_THAT(token.top, SizeIs(3));
    EXPECT_EQ(token.top[0].id, token.id);
    EXPECT_GE(token.top[0].logprob, token.top[1].logprob);
  }
  ASSERT_EQ(answer.prompt_logprobs.size(), answer.prompt->ids.size());
  EXPECT_FALSE(answer.prompt_logprobs[0].chance.has_value());
  for (size_t i = 1; i < answer.prompt_logprobs.size(); ++i) {
    EXPECT_EQ(answer.prompt_logprobs[i].id, answer.prompt->ids[i]);
    EXPECT_EQ(answer.prompt_logprobs[i].chance->id, answer.prompt->ids[i]);
  }
  Request plain = question("Who are you?", 8);
  EXPECT_FALSE(ask(demo_engine(), plain).tokens[0].chance.has_value());
}

TEST(Chat, BiasForcesAndForbids) {
  Request request = question("Who are you?", 4);
  const int32_t usual = ask(demo_engine(), request).ids()[0];
  request.sampling.logit_bias[usual] = -100;
  EXPECT_NE(ask(demo_engine(), request).ids()[0], usual);
}

TEST(Chat, SeedsDecideAndNeighboursDoNot) {
  Request request = question("Tell me something", 24);
  request.sampling = {.temperature = 1.5, .top_k = 0, .top_p = 1, .seed = 7};
  const WholeAnswer alone = ask(demo_engine(), request);
  std::vector<Stream> streams;
  for (int i = 0; i < 8; ++i) {
    Request neighbour = request;
    neighbour.sampling.seed = i % 2 == 0 ? 7 : 100 + i;
    auto stream = demo_engine().submit(neighbour);
    ASSERT_TRUE(stream.ok());
    streams.push_back(std::move(*stream));
  }
  int different = 0;
  for (size_t i = 0; i < streams.size(); ++i) {
    const WholeAnswer answer = read_all(streams[i]);
    if (i % 2 == 0) {
      EXPECT_EQ(answer.ids(), alone.ids());
    } else {
      different += answer.ids() != alone.ids() ? 1 : 0;
    }
  }
  EXPECT_GT(different, 0);
}

TEST(Chat, StopTexts) {
  const std::string whole = ask(demo_engine(), question("Who are you?")).content;
  ASSERT_GT(whole.size(), 20u);
  for (size_t at = 5; at + 4 < whole.size(); at += 3) {
    Request request = question("Who are you?");
    request.stop = {whole.substr(at, 4)};
    const WholeAnswer answer = ask(demo_engine(), request);
    const size_t first = whole.find(request.stop[0]);
    EXPECT_EQ(answer.content, whole.substr(0, first));
    EXPECT_EQ(answer.finish.reason, EndReason::kStop);
    EXPECT_EQ(answer.finish.stop_text, request.stop[0]);
    EXPECT_EQ(answer.finish.stop_token_id, -1);
    request.include_stop_in_output = true;
    EXPECT_EQ(ask(demo_engine(), request).content, whole.substr(0, first + 4));
    request.ignore_eos = true;
    request.max_tokens = request.min_tokens = 30;
    EXPECT_EQ(ask(demo_engine(), request).finish.usage.completion_tokens, 30)
        << "min_tokens before stop texts";
  }
}

TEST(Chat, StopTokensAndLengths) {
  const std::vector<int32_t> whole = ask(demo_engine(), question("Who are you?")).ids();
  Request request = question("Who are you?");
  request.stop_token_ids = {whole[3]};
  const WholeAnswer stopped = ask(demo_engine(), request);
  EXPECT_EQ(stopped.finish.stop_token_id, whole[3]);
  EXPECT_LE(stopped.tokens.size(), 4u);
  EXPECT_EQ(ask(demo_engine(), question("Who are you?", 5)).finish.reason, EndReason::kLength);
  Request endless = question("Who are you?", 100);
  endless.ignore_eos = true;
  EXPECT_EQ(ask(demo_engine(), endless).tokens.size(), 100u);
  Request all = question("Who are you?", 0);
  all.ignore_eos = true;
  const WholeAnswer filled = ask(demo_engine(), all);
  EXPECT_EQ(filled.finish.usage.prompt_tokens + filled.finish.usage.completion_tokens,
            demo_engine().info().max_model_len);
}

TEST(Chat, AutoSoftTokensFollowTheImage) {
  Request request = about_image("models/examples/word.png", "What word is in the picture?");
  request.max_soft_tokens = kAutoSoftTokens;
  const auto by_size = demo_engine().prompt_of(request);
  request.max_soft_tokens = 1120;
  const auto most = demo_engine().prompt_of(request);
  ASSERT_TRUE(by_size.ok() && most.ok());
  EXPECT_GT(by_size->image_tokens, 0);
  EXPECT_LT(by_size->image_tokens, most->image_tokens) << "a small picture needs no thousand soft tokens";
}

}  // namespace
}  // namespace jewel
