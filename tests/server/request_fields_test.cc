// Every field that a chat or completion request may carry, over a socket: what it changes in the answer, or
// why it is refused. What is wrong with values is openai_test.cc's.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "api/answers.h"
#include "server/http/http_server.h"
#include "server/openai/api_server.h"
#include "server/raw_client.h"

namespace jewel {
namespace {

namespace json = boost::json;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Not;
using testing::StartsWith;

constexpr std::string_view kTool =
    R"({"type":"function","function":{"name":"get_weather","parameters":{"type":"object",)"
    R"("properties":{"city":{"type":"string"}},"required":["city"]}}})";

class Fields : public testing::Test {
 protected:
  void SetUp() override {
    api_ = std::make_unique<ApiServer>(demo_engine(), ApiOptions{.defaults = {.model_names = {"demo"}}});
    auto server = HttpServer::start({.host = "127.0.0.1", .port = 0}, *api_);
    ASSERT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
    client_ = std::make_unique<RawClient>(server_->port());
  }

  json::value post(const std::string& path, const std::string& body) {
    last_ = client_->post(path, body);
    boost::system::error_code error;
    json::value value = json::parse(last_.body, error);
    EXPECT_FALSE(error) << last_.body;
    return value;
  }
  json::value chat(std::string_view fields, std::string_view text = "Who are you?") {
    json::value answer =
        post("/v1/chat/completions",
             fmt::format(R"({{"messages":[{{"role":"user","content":"{}"}}],"temperature":0,)"
                         R"("max_tokens":40,{}}})",
                         text, fields));
    EXPECT_EQ(last_.status, 200) << fields << last_.body;
    return answer;
  }
  json::value complete(std::string_view fields) {
    json::value answer = post("/v1/completions", fmt::format(R"({{"temperature":0,{}}})", fields));
    EXPECT_EQ(last_.status, 200) << fields << last_.body;
    return answer;
  }
  static std::string text_of(const json::value& answer) {
    const json::value& choice = answer.at("choices").at(0);
    if (const json::value* text = choice.as_object().if_contains("text"))
      return std::string(text->as_string());
    const json::value& content = choice.at("message").at("content");
    return content.is_null() ? "" : std::string(content.as_string());
  }
  std::string say(std::string_view fields, std::string_view text = "Who are you?") {
    return text_of(chat(fields, text));
  }
  static std::string reason(const json::value& answer) {
    return std::string(answer.at("choices").at(0).at("finish_reason").as_string());
  }
  static int64_t used(const json::value& answer, std::string_view name) {
    return answer.at("usage").at(name).as_int64();
  }
  void expect_refused(std::string_view path, std::string_view fields, const std::string& param,
                      const std::string& part) {
    const std::string prompt =
        path == "/v1/completions" ? R"("prompt":"x")" : R"("messages":[{"role":"user","content":"x"}])";
    const json::value answer = post(std::string(path), fmt::format("{{{},{}}}", prompt, fields));
    EXPECT_EQ(last_.status, 400) << fields << last_.body;
    if (last_.status != 400) return;
    EXPECT_EQ(answer.at("error").at("param"), json::value(param)) << last_.body;
    EXPECT_THAT(std::string(answer.at("error").at("message").as_string()), HasSubstr(part)) << fields;
  }

  std::unique_ptr<ApiServer> api_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<RawClient> client_;
  RawResponse last_;
};

TEST_F(Fields, OfSampling) {
  const std::string greedy = say(R"("seed":1)");
  EXPECT_THAT(greedy, HasSubstr("Jewel"));
  for (const char* one : {R"("temperature":1.9,"top_k":1)", R"("temperature":1.9,"top_p":0.0001)",
                          R"("temperature":1.9,"min_p":1)"}) {
    EXPECT_EQ(say(one), greedy) << one;  // one candidate is left
  }
  const std::string wild = say(R"("temperature":2,"seed":7,"top_k":0,"top_p":1)");
  EXPECT_EQ(say(R"("temperature":2,"seed":7,"top_k":0,"top_p":1)"), wild);
  EXPECT_NE(say(R"("temperature":2,"seed":8,"top_k":0,"top_p":1)"), wild);
  EXPECT_NE(say(R"("repetition_penalty":50)"), greedy);
  EXPECT_NE(say(R"("presence_penalty":2,"frequency_penalty":2,"max_tokens":200,"ignore_eos":true)"),
            say(R"("max_tokens":200,"ignore_eos":true)"));
  const int32_t first = demo_engine().tokenize(greedy, false).value().front();
  EXPECT_NE(say(fmt::format(R"("logit_bias":{{"{}":-100}},"max_tokens":1)", first)),
            say(R"("max_tokens":1)"));
}

TEST_F(Fields, OfLengthAndStops) {
  EXPECT_EQ(used(chat(R"("max_completion_tokens":3)"), "completion_tokens"), 3);
  EXPECT_EQ(reason(chat(R"("max_tokens":3)")), "length");
  EXPECT_EQ(used(chat(R"("max_tokens":60,"ignore_eos":true)"), "completion_tokens"), 60);
  EXPECT_GE(used(chat(R"("max_tokens":60,"min_tokens":50)"), "completion_tokens"), 50);
  const json::value stopped = chat(R"("stop":" demo")");
  EXPECT_EQ(reason(stopped), "stop");
  EXPECT_EQ(stopped.at("choices").at(0).at("stop_reason"), json::value(" demo"));
  EXPECT_THAT(text_of(stopped), Not(HasSubstr("demo")));
  EXPECT_THAT(say(R"("stop":["zzz"," demo"],"include_stop_str_in_output":true)"), testing::EndsWith(" demo"));
  const auto ids = demo_engine().tokenize(say(R"("seed":1)"), false).value();
  const json::value by_id = chat(fmt::format(R"("stop_token_ids":[{}])", ids.at(2)));
  EXPECT_EQ(used(by_id, "completion_tokens"), 3);
  EXPECT_EQ(by_id.at("choices").at(0).at("stop_reason").as_int64(), ids.at(2));
}

TEST_F(Fields, OfWordsAndPrompts) {
  EXPECT_THAT(say(R"("bad_words":["Jewel"])"), Not(HasSubstr("Jewel")));
  const int32_t id = demo_engine().tokenize("a", false).value().front();
  EXPECT_EQ(say(fmt::format(R"("allowed_token_ids":[{}],"max_tokens":4)", id)), "aaaa");
  const json::value looped = chat(fmt::format(
      R"("allowed_token_ids":[{}],"repetition_detection":{{"max_pattern_size":3,"min_count":4}})", id));
  EXPECT_EQ(reason(looped), "repetition");
  EXPECT_EQ(used(looped, "completion_tokens"), 4);
  EXPECT_EQ(used(chat(R"("truncate_prompt_tokens":5)"), "prompt_tokens"), 5);
  EXPECT_EQ(
      used(complete(R"("prompt":"one two three four","truncate_prompt_tokens":3,"truncation_side":"right")"),
           "prompt_tokens"),
      3);
  EXPECT_EQ(used(complete(R"("prompt":"one","add_special_tokens":false)"), "prompt_tokens") + 1,
            used(complete(R"("prompt":"one")"), "prompt_tokens"));
}

TEST_F(Fields, OfFormats) {
  const auto outputs = [&](std::string_view what) {
    return say(fmt::format(R"("structured_outputs":{{{}}})", what));
  };
  EXPECT_THAT(outputs(R"("regex":"[0-9]{4}")"), MatchesRegex("[0-9]{4}"));
  EXPECT_THAT((std::vector<std::string>{"yes", "no"}),
              testing::Contains(outputs(R"("choice":["yes","no"])")));
  EXPECT_THAT(outputs(R"("grammar":"start: \"x\" /[0-9]/")"), MatchesRegex("x[0-9]"));
  EXPECT_THAT(outputs(R"("grammar":"root ::= \"x\" digit\ndigit ::= [0-9]")"), MatchesRegex("x[0-9]"));
  const std::string schema = R"({"type":"object","properties":{"on":{"type":"boolean"}},"required":["on"],)"
                             R"("additionalProperties":false})";
  const auto is_on = [](const std::string& text) {
    boost::system::error_code error;
    const json::value value = json::parse(text, error);
    return !error && value.is_object() && value.get_object().contains("on");
  };
  EXPECT_TRUE(is_on(outputs(R"("json":)" + schema)));
  EXPECT_TRUE(is_on(outputs(fmt::format(R"("json":{})", json::serialize(json::string(schema))))));
  EXPECT_THAT(outputs(R"("disable_any_whitespace":true,"json":)" + schema),
              MatchesRegex(R"(\{"on":(true|false)\})"));
  EXPECT_THAT(outputs(R"("whitespace_pattern":"_","json":)" + schema),
              MatchesRegex(R"(\{_?"on"_?:_?(true|false)_?\})"));
  EXPECT_TRUE(is_on(
      say(R"("response_format":{"type":"json_schema","json_schema":{"name":"s","schema":)" + schema + "}}")));
  EXPECT_THAT(say(R"("response_format":{"type":"json_object"},"max_tokens":200,"bad_words":["\n"])"),
              StartsWith("{"));
  const std::string tag =
      R"({"type":"structural_tag","format":{"type":"tag","begin":"<n>","content":{"type":"regex","pattern":"[0-9]"},"end":"</n>"}})";
  EXPECT_THAT(say(R"("response_format":)" + tag), MatchesRegex("<n>[0-9]</n>"));
  EXPECT_THAT(outputs(R"("structural_tag":)" + tag), MatchesRegex("<n>[0-9]</n>"));
  EXPECT_THAT(outputs(fmt::format(R"("structural_tag":{})", json::serialize(json::string(tag)))),
              MatchesRegex("<n>[0-9]</n>"));
  // The older form: free text until the trigger.
  EXPECT_THAT(
      say(R"("response_format":{"type":"structural_tag","structures":[{"begin":"<f>","schema":{},"end":"</f>"}],"triggers":["<f>"]})"),
      HasSubstr("Jewel"));
  chat(R"("structured_outputs":{"regex":"a","backend":"x"})");
  EXPECT_THAT(last_.header("x-ignored-fields"), HasSubstr("structured_outputs.backend"));
}

TEST_F(Fields, OfTemplatesAndThinking) {
  const auto thought = [](const json::value& answer) {
    return answer.at("choices").at(0).at("message").as_object().contains("reasoning");
  };
  EXPECT_TRUE(thought(chat(R"("chat_template_kwargs":{"enable_thinking":true},"max_tokens":200)")));
  EXPECT_TRUE(thought(chat(R"("reasoning_effort":"high","max_tokens":200)")));
  EXPECT_FALSE(thought(chat(R"("reasoning_effort":"none")")));
  EXPECT_FALSE(thought(chat(R"("reasoning_effort":"high","include_reasoning":false,"max_tokens":200)")));
  const auto reasoning = [&](std::string_view fields) {
    return chat(fields).at("usage").at("completion_tokens_details").at("reasoning_tokens").as_int64();
  };
  EXPECT_LT(reasoning(R"("reasoning_effort":"high","thinking_token_budget":4,"max_tokens":200)"),
            reasoning(R"("reasoning_effort":"high","max_tokens":200)"));
  // Control tokens can be seen where nothing is told apart.
  EXPECT_THAT(say(R"("reasoning_effort":"high","skip_special_tokens":false,"max_tokens":200)"),
              HasSubstr("<|channel>"));
  const json::value continued = post(
      "/v1/chat/completions",
      R"({"messages":[{"role":"user","content":"Who are you?"},{"role":"assistant","content":"I am Jewel's"}],)"
      R"("continue_final_message":true,"add_generation_prompt":false,"temperature":0,"max_tokens":40})");
  EXPECT_THAT(text_of(continued), StartsWith(" demo model"));
}

TEST_F(Fields, OfTools) {
  const auto with_tools = [&](std::string_view more) {
    return chat(fmt::format(R"("tools":[{}],"max_tokens":80,{})", kTool, more),
                "What is the weather in Paris?");
  };
  EXPECT_EQ(reason(with_tools(R"("tool_choice":"auto")")), "tool_calls");
  EXPECT_EQ(reason(with_tools(R"("tool_choice":"required")")), "tool_calls");
  EXPECT_EQ(reason(with_tools(R"("tool_choice":{"type":"function","function":{"name":"get_weather"}})")),
            "tool_calls");
  EXPECT_NE(reason(with_tools(R"("tool_choice":"none")")), "tool_calls");
  const json::value one = with_tools(R"("tool_choice":"required","parallel_tool_calls":false)");
  EXPECT_EQ(one.at("choices").at(0).at("message").at("tool_calls").as_array().size(), 1U);
}

TEST_F(Fields, OfWhatIsReturned) {
  EXPECT_EQ(chat(R"("n":3,"max_tokens":2)").at("choices").as_array().size(), 3U);
  const json::value answer =
      chat(R"("logprobs":true,"top_logprobs":3,"prompt_logprobs":1,"return_token_ids":true,"max_tokens":2)");
  const json::value& choice = answer.at("choices").at(0);
  EXPECT_EQ(choice.at("logprobs").at("content").at(0).at("top_logprobs").as_array().size(), 3U);
  EXPECT_EQ(choice.at("token_ids").as_array().size(), 2U);
  EXPECT_EQ(answer.at("prompt_logprobs").as_array().size(), answer.at("prompt_token_ids").as_array().size());
  const json::value named = chat(R"("logprobs":true,"return_tokens_as_token_ids":true,"max_tokens":1)");
  const int32_t first = demo_engine().tokenize(say(R"("max_tokens":1)"), false).value().front();
  EXPECT_EQ(named.at("choices").at(0).at("logprobs").at("content").at(0).at("token"),
            json::value(fmt::format("token_id:{}", first)));
  const std::vector<std::string> events =
      client_
          ->post("/v1/chat/completions",
                 R"({"messages":[{"role":"user","content":"x"}],"max_tokens":2,"stream":true,)"
                 R"("stream_options":{"include_usage":true,"continuous_usage_stats":true}})")
          .events();
  ASSERT_GE(events.size(), 3U);
  EXPECT_TRUE(json::parse(events.at(0)).at("usage").is_object());
  EXPECT_TRUE(json::parse(events.at(events.size() - 2)).at("choices").as_array().empty());
}

// What evaluation harnesses ask: the probabilities of a given text, and hardly any answer.
TEST_F(Fields, EchoWithLogprobs) {
  const std::string text = "I am Jewel's demo model";
  const json::value answer =
      complete(fmt::format(R"("prompt":"{}","echo":true,"logprobs":2,"max_tokens":1)", text));
  const json::value& choice = answer.at("choices").at(0);
  EXPECT_THAT(text_of(answer), StartsWith(text));
  const json::value& logprobs = choice.at("logprobs");
  const auto prompt = static_cast<size_t>(used(answer, "prompt_tokens"));
  for (const char* list : {"tokens", "token_logprobs", "top_logprobs", "text_offset"})
    EXPECT_EQ(logprobs.at(list).as_array().size(), prompt + 1) << list;
  EXPECT_TRUE(logprobs.at("token_logprobs").at(0).is_null());
  EXPECT_TRUE(logprobs.at("top_logprobs").at(0).is_null());
  EXPECT_LT(logprobs.at("token_logprobs").at(1).to_number<double>(), 0);
  EXPECT_EQ(logprobs.at("tokens").at(0), json::value("<bos>"));
  // Offsets point into the text; <bos> is no part of it.
  std::string joined;
  for (size_t i = 1; i <= prompt; ++i) {
    EXPECT_EQ(logprobs.at("text_offset").at(i).to_number<size_t>(), joined.size()) << i;
    joined += std::string(logprobs.at("tokens").at(i).as_string());
  }
  EXPECT_EQ(joined, text_of(answer));
  EXPECT_EQ(logprobs.at("text_offset").at(0).as_int64(), 0);

  // The same from ids, without any answer, and as a stream.
  const auto ids = demo_engine().tokenize("<bos>" + text, /*parse_special=*/true).value();
  const std::string by_ids = fmt::format(R"("prompt":{},"echo":true,"logprobs":2,"max_tokens":0)",
                                         json::serialize(json::value_from(ids)));
  const json::value alone = complete(by_ids);
  EXPECT_EQ(used(alone, "completion_tokens"), 0);
  EXPECT_EQ(reason(alone), "length");
  EXPECT_THAT(text_of(alone), HasSubstr(text));
  json::array expected = logprobs.at("token_logprobs").as_array();
  expected.pop_back();
  EXPECT_EQ(alone.at("choices").at(0).at("logprobs").at("token_logprobs"), json::value(expected));
  const std::vector<std::string> events =
      client_->post("/v1/completions", fmt::format(R"({{"stream":true,"temperature":0,{}}})", by_ids))
          .events();
  json::array streamed;
  for (const std::string& event : events) {
    if (event == "[DONE]") continue;
    const json::value chunk = json::parse(event).at("choices").at(0).at("logprobs");
    if (!chunk.is_object()) continue;
    for (const json::value& one : chunk.at("token_logprobs").as_array()) streamed.push_back(one);
  }
  EXPECT_EQ(json::value(streamed), json::value(expected));
  EXPECT_EQ(text_of(complete(R"("prompt":[2,105],"echo":true,"max_tokens":1)")).substr(0, 5), "<bos>");
}

TEST_F(Fields, OfServing) {
  EXPECT_EQ(say(R"("priority":-5,"user":"me","metadata":{},"store":false,"length_penalty":1.0)"),
            say(R"("n":1)"));
  EXPECT_EQ(last_.header("x-ignored-fields"), "");
  const auto cached = [&](std::string_view salt) {
    return chat(fmt::format(R"("cache_salt":"{}")", salt))
        .at("usage")
        .at("prompt_tokens_details")
        .at("cached_tokens")
        .as_int64();
  };
  EXPECT_EQ(cached("mine"), 0);
  EXPECT_GT(cached("mine"), 0);
  EXPECT_EQ(cached("yours"), 0);
}

TEST_F(Fields, OfPictures) {
  const std::string picture = read_file("models/examples/word.png");
  const auto tokens = [&](std::string_view budget) {
    std::string url = "data:image/png;base64,";
    static constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < picture.size(); i += 3) {
      uint32_t bits = 0;
      for (size_t k = 0; k < 3; ++k)
        bits = bits << 8 | (i + k < picture.size() ? static_cast<uint8_t>(picture[i + k]) : 0);
      for (size_t k = 0; k < 4; ++k)
        url += k <= picture.size() - i ? kAlphabet[bits >> (18 - 6 * k) & 63] : '=';
    }
    const json::value answer = post(
        "/v1/chat/completions",
        fmt::format(
            R"({{"max_tokens":1,"mm_processor_kwargs":{{"max_soft_tokens":{}}},"messages":[{{"role":"user",)"
            R"("content":[{{"type":"image_url","image_url":{{"url":"{}"}}}}]}}]}})",
            budget, url));
    EXPECT_EQ(last_.status, 200) << last_.body;
    return answer.at("usage").at("prompt_tokens_details").at("image_tokens").as_int64();
  };
  const int64_t small = tokens("70");
  EXPECT_GT(small, 0);
  EXPECT_LE(small, 70);
  EXPECT_GT(tokens("280"), small);
  EXPECT_GE(tokens("\"auto\""), small);
}

TEST_F(Fields, ThatAreRefused) {
  const char* chats = "/v1/chat/completions";
  const char* texts = "/v1/completions";
  expect_refused(chats, R"("use_beam_search":true)", "use_beam_search", "sampled");
  expect_refused(chats, R"("logprob_token_ids":[1])", "logprob_token_ids", "logprobs");
  expect_refused(chats, R"("audio":{"voice":"alloy"})", "audio", "not served");
  expect_refused(chats, R"("modalities":["text","audio"])", "modalities", "not served");
  expect_refused(chats, R"("functions":[{"name":"f"}])", "functions", "tools");
  expect_refused(chats, R"("function_call":"auto")", "function_call", "tool_choice");
  expect_refused(chats, R"("chat_template":"{{ 1 }}")", "chat_template", "--chat-template");
  expect_refused(chats, R"("documents":[{"text":"x"}])", "documents", "message");
  expect_refused(chats, R"("echo":true)", "echo", "/v1/completions");
  expect_refused(chats, R"("stream":true,"prompt_logprobs":1)", "prompt_logprobs", "stream");
  expect_refused(chats, R"("truncation_side":"middle")", "truncation_side", "left or right");
  expect_refused(chats, R"("truncate_prompt_tokens":-2)", "truncate_prompt_tokens", "at least -1");
  expect_refused(chats, R"("repetition_detection":{"max_pattern_size":5,"min_count":1})",
                 "repetition_detection", "twice");
  expect_refused(chats, R"("repetition_detection":{"max_pattern_size":-1})",
                 "repetition_detection.max_pattern_size", "");
  expect_refused(chats, R"("logprobs":true,"top_logprobs":21)", "top_logprobs", "0 to 20");
  expect_refused(chats, R"("prompt_logprobs":-1)", "prompt_logprobs", "at least 0");
  expect_refused(chats, R"("structured_outputs":{"regex":"a","choice":["b"]})", "structured_outputs",
                 "expected one");
  expect_refused(chats, R"("structured_outputs":{"grammar":"root ::= (\n"})", "structured_outputs.grammar",
                 "line 2");
  expect_refused(chats, R"("response_format":{"type":"structural_tag","format":{"type":"x"}})",
                 "structural_tag", "format.type");
  expect_refused(texts, R"("best_of":3)", "best_of", "n");
  expect_refused(texts, R"("suffix":"x")", "suffix", "middle");
  expect_refused(texts, R"("prompt_embeds":"AAAA")", "prompt_embeds", "ids");
  expect_refused(texts, R"("max_tokens":0)", "max_tokens", "echo");
  // Off is as good as absent.
  chat(R"("use_beam_search":false,"echo":false,"documents":[],"functions":[],"best_of":1)");
}

}  // namespace
}  // namespace jewel
