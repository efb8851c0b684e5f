// What is refused, and that the refusal names the field.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "answers.h"

namespace jewel {
namespace {

// The error of a request, whether it comes from submit() or as the first update.
Error error_of(Request request) {
  auto stream = demo_engine().submit(std::move(request));
  if (!stream.ok()) return stream.error();
  const WholeAnswer answer = read_all(*stream);
  if (!answer.finish.error) {
    ADD_FAILURE() << "no error";
    return {};
  }
  EXPECT_EQ(answer.finish.reason, EndReason::kError);
  EXPECT_TRUE(answer.tokens.empty());
  return *answer.finish.error;
}

struct Wrong {
  const char* field;
  void (*break_it)(Request&);
};

TEST(Requests, WrongValuesNameTheirField) {
  for (const Wrong& wrong : std::vector<Wrong>{
           {"messages", [](Request& r) { r.messages.clear(); }},
           {"prompt", [](Request& r) { r.prompt = "x"; }},
           {"prompt", [](Request& r) { r.messages.clear(), r.prompt_ids.emplace(); }},
           {"prompt", [](Request& r) { r.messages.clear(), r.prompt_ids = {{1 << 30}}; }},
           {"messages", [](Request& r) { r.messages.clear(), r.messages_json = "{"; }},
           {"messages", [](Request& r) { r.messages.clear(), r.messages_json = "[],\"x\":[]"; }},
           {"messages[0].role",
            [](Request& r) { r.messages.clear(), r.messages_json = "[{\"content\":\"x\"}]"; }},
           {"temperature", [](Request& r) { r.sampling.temperature = -1; }},
           {"temperature", [](Request& r) { r.sampling.temperature = std::nan(""); }},
           {"top_k", [](Request& r) { r.sampling.top_k = -2; }},
           {"top_p", [](Request& r) { r.sampling.top_p = 0; }},
           {"min_p", [](Request& r) { r.sampling.min_p = 1.5; }},
           {"repetition_penalty", [](Request& r) { r.sampling.repetition_penalty = 0; }},
           {"presence_penalty", [](Request& r) { r.sampling.presence_penalty = 3; }},
           {"frequency_penalty", [](Request& r) { r.sampling.frequency_penalty = -3; }},
           {"logit_bias", [](Request& r) { r.sampling.logit_bias[-1] = 0; }},
           {"logit_bias", [](Request& r) { r.sampling.logit_bias[5] = 101; }},
           {"stop_token_ids", [](Request& r) { r.stop_token_ids = {1 << 30}; }},
           {"stop", [](Request& r) { r.stop = {""}; }},
           {"stop", [](Request& r) { r.stop.assign(17, "x"); }},
           {"max_tokens", [](Request& r) { r.max_tokens = -1; }},
           {"max_tokens", [](Request& r) { r.max_tokens = 1 << 30; }},
           {"max_tokens", [](Request& r) { r.max_tokens = 2048; }},
           {"min_tokens", [](Request& r) { r.max_tokens = 4, r.min_tokens = 5; }},
           {"logprobs", [](Request& r) { r.logprobs = 1 << 20; }},  // more than there are tokens
           {"prompt_logprobs", [](Request& r) { r.prompt_logprobs = -1; }},
           {"thinking_token_budget", [](Request& r) { r.thinking_budget = -1; }},
           {"max_soft_tokens", [](Request& r) { r.max_soft_tokens = 100; }},
           {"images", [](Request& r) { r.images = {std::make_shared<std::string>("x")}; }},
           {"images[0]", [](Request& r) { r.messages = {image_message({"no picture"}, "x")}; }},
           {"images",
            [](Request& r) { r.messages = {image_message(std::vector<std::string>(17, "x"), "x")}; }},
           {"tools", [](Request& r) { r.tools = "[1"; }},
           {"tools", [](Request& r) { r.tools = "7"; }},
           {"tool_choice", [](Request& r) { r.tool_choice = ToolChoice::kRequired; }},
           {"chat_template_kwargs", [](Request& r) { r.template_kwargs = "[]"; }},
           {"continue_final_message", [](Request& r) { r.continue_final_message = true; }},
           {"response_format",
            [](Request& r) { r.grammar = {.kind = Grammar::Kind::kJsonSchema, .text = "{"}; }},
           {"structured_outputs.regex",
            [](Request& r) { r.grammar = {.kind = Grammar::Kind::kRegex, .text = "("}; }},
           {"structured_outputs.grammar",
            [](Request& r) { r.grammar = {.kind = Grammar::Kind::kLark, .text = "x"}; }},
           {"structured_outputs.choice", [](Request& r) { r.grammar = {.kind = Grammar::Kind::kChoice}; }},
           {"min_tokens", [](Request& r) { r.grammar.kind = Grammar::Kind::kJsonObject, r.min_tokens = 3; }},
           {"ignore_eos",
            [](Request& r) { r.grammar.kind = Grammar::Kind::kJsonObject, r.ignore_eos = true; }},
       }) {
    Request request = question("Hi", 0);
    wrong.break_it(request);
    const Error error = error_of(request);
    EXPECT_EQ(error.param, wrong.field) << error.message;
    EXPECT_FALSE(error.message.empty());
  }
}

TEST(Requests, ToolsWithoutTheNamedFunction) {
  Request request = question("Hi");
  request.tools = R"([{"type":"function","function":{"name":"ping"}}])";
  request.tool_choice = ToolChoice::kNamed;
  request.tool_name = "pong";
  EXPECT_EQ(error_of(request).param, "tool_choice");
  request.tool_name = "ping";
  request.grammar.kind = Grammar::Kind::kJsonObject;
  EXPECT_EQ(error_of(request).param, "response_format");
}

TEST(Requests, APromptThatIsTooLongSaysHowLong) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "word ";
  const Error error = error_of(question(text, 1));
  EXPECT_EQ(error.code, ErrorCode::kTooLarge);
  EXPECT_THAT(error.message, testing::HasSubstr("limit is 2048"));
}

TEST(Requests, ModelsThatCannotBeLoaded) {
  EXPECT_EQ(Engine::load("/nonexistent").error().code, ErrorCode::kNotFound);
  EngineOptions options = demo_options();
  options.dtype = "int3";
  EXPECT_EQ(Engine::load(kDemo, options).error().param, "dtype");
  options = demo_options();
  options.device = "tpu";
  EXPECT_EQ(Engine::load(kDemo, options).error().param, "device");
  options = demo_options();
  options.max_model_len = 1 << 30;
  EXPECT_EQ(Engine::load(kDemo, options).error().param, "max_model_len");
}

}  // namespace
}  // namespace jewel
