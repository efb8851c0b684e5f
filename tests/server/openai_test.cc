// The OpenAI API over the demo model, through real sockets.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <thread>

#include "api/answers.h"
#include "base/comes_true.h"
#include "client/data_url.h"
#include "server/served_demo.h"

namespace jewel {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;
using testing::HasSubstr;

constexpr std::string_view kWho = R"("messages":[{"role":"user","content":"Who are you?"}],"temperature":0)";

std::string chat(std::string_view more = "") {
  return fmt::format("{{{}{}{}}}", kWho, more.empty() ? "" : ",", more);
}

class OpenAi : public ServedDemo {
 protected:
  json::value ask(const std::string& body, const std::string& path = "/v1/chat/completions") {
    last_ = client_->post(path, body);
    EXPECT_EQ(last_.status, 200) << last_.body << body.substr(0, 200);
    boost::system::error_code error;
    json::value value = json::parse(last_.body, error);
    EXPECT_FALSE(error) << last_.body;
    return value;
  }
  // {"status", "message", "param"} of a refused request.
  void expect_error(const std::string& body, int status, const std::string& param, const std::string& part,
                    const std::string& path = "/v1/chat/completions") {
    if (!client_->connected() || last_.header("connection") == "close")
      client_ = std::make_unique<RawClient>(server_->port());
    last_ = client_->post(path, body);
    EXPECT_EQ(last_.status, status) << body.substr(0, 200) << "\n" << last_.body;
    boost::system::error_code error;
    const json::value value = json::parse(last_.body, error);
    ASSERT_FALSE(error) << last_.body;
    const json::object& what = value.at("error").as_object();
    EXPECT_THAT(std::string(what.at("message").as_string()), HasSubstr(part)) << body.substr(0, 200);
    EXPECT_EQ(what.at("code").as_int64(), status);
    if (param.empty())
      EXPECT_TRUE(what.at("param").is_null()) << last_.body;
    else
      EXPECT_EQ(what.at("param"), json::value(param)) << last_.body;
  }
};

TEST_F(OpenAi, AnswersAChat) {
  const json::value answer = ask(chat(R"("model":"gpt-4")"));
  EXPECT_EQ(answer.at("object"), json::value("chat.completion"));
  EXPECT_EQ(answer.at("model"), json::value("gpt-4"));
  EXPECT_EQ("chatcmpl-" + last_.header("x-request-id"), std::string(answer.at("id").as_string()));
  const json::value& choice = answer.at("choices").at(0);
  EXPECT_THAT(std::string(choice.at("message").at("content").as_string()), HasSubstr("Jewel"));
  EXPECT_EQ(choice.at("message").at("role"), json::value("assistant"));
  EXPECT_EQ(choice.at("finish_reason"), json::value("stop"));
  const json::object& usage = answer.at("usage").as_object();
  EXPECT_GT(usage.at("prompt_tokens").as_int64(), 5);
  EXPECT_GT(usage.at("completion_tokens").as_int64(), 1);
  EXPECT_EQ(usage.at("total_tokens").as_int64(),
            usage.at("prompt_tokens").as_int64() + usage.at("completion_tokens").as_int64());
  EXPECT_EQ(usage.at("prompt_tokens_details").at("image_tokens").as_int64(), 0);
  EXPECT_TRUE(answer.at("timings").as_object().contains("ttft_s"));
  EXPECT_GT(answer.at("timings").at("load_s").to_number<double>(), 0);
  EXPECT_EQ(ask(chat(), "/engines/v1/chat/completions").at("choices"), answer.at("choices"));
  EXPECT_EQ(ask(chat(), "/engines/llama.cpp/v1/chat/completions").at("choices"), answer.at("choices"));
}

TEST_F(OpenAi, StreamsTheSameAnswer) {
  const json::value whole = ask(chat());
  const RawResponse stream =
      client_->post("/v1/chat/completions", chat(R"("stream":true,"stream_options":{"include_usage":true})"));
  EXPECT_EQ(stream.status, 200);
  EXPECT_THAT(stream.header("content-type"), HasSubstr("text/event-stream"));
  const std::vector<std::string> events = stream.events();
  ASSERT_GE(events.size(), 4U) << stream.body;
  EXPECT_EQ(events.back(), "[DONE]");
  std::string content;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    const json::value chunk = json::parse(events[i]);
    EXPECT_EQ(chunk.at("object"), json::value("chat.completion.chunk"));
    if (i + 2 == events.size()) {  // usage
      EXPECT_TRUE(chunk.at("choices").as_array().empty());
      json::value expected = whole.at("usage");
      expected.as_object().erase("prompt_tokens_details");  // the second one finds pages of the first
      json::value usage = chunk.at("usage");
      usage.as_object().erase("prompt_tokens_details");
      EXPECT_EQ(usage, expected);
      continue;
    }
    EXPECT_TRUE(chunk.at("usage").is_null());
    const json::value& choice = chunk.at("choices").at(0);
    if (i == 0) EXPECT_EQ(choice.at("delta").at("role"), json::value("assistant"));
    if (i + 3 == events.size())
      EXPECT_EQ(choice.at("finish_reason"), json::value("stop"));
    else
      EXPECT_TRUE(choice.at("finish_reason").is_null());
    if (const json::value* text = choice.at("delta").as_object().if_contains("content"))
      content += text->as_string();
  }
  EXPECT_EQ(json::value(content), whole.at("choices").at(0).at("message").at("content"));
  EXPECT_EQ(client_->get("/version").status, 200);  // the connection goes on
}

TEST_F(OpenAi, GivesSeveralChoices) {
  const json::value answer = ask(chat(R"("n":3,"max_tokens":4)"));
  ASSERT_EQ(answer.at("choices").as_array().size(), 3U);
  EXPECT_EQ(answer.at("choices").at(2).at("index").as_int64(), 2);
  EXPECT_EQ(answer.at("choices").at(0).at("finish_reason"), json::value("length"));
  EXPECT_EQ(answer.at("usage").at("completion_tokens").as_int64(), 12);
  const std::vector<std::string> events =
      client_->post("/v1/chat/completions", chat(R"("n":2,"max_tokens":4,"stream":true)")).events();
  std::map<int64_t, std::string> finished;
  for (const std::string& event : events) {
    if (event == "[DONE]") continue;
    const json::value choice = json::parse(event).at("choices").at(0);
    if (choice.at("finish_reason").is_string())
      finished[choice.at("index").as_int64()] = choice.at("finish_reason").as_string();
  }
  EXPECT_EQ(finished, (std::map<int64_t, std::string>{{0, "length"}, {1, "length"}}));
}

TEST_F(OpenAi, GivesLogprobsAndIds) {
  const json::value answer = ask(
      chat(R"("logprobs":true,"top_logprobs":2,"max_tokens":3,"return_token_ids":true,"prompt_logprobs":1)"));
  const json::array& content = answer.at("choices").at(0).at("logprobs").at("content").as_array();
  ASSERT_EQ(content.size(), 3U);
  EXPECT_EQ(content[0].at("top_logprobs").as_array().size(), 2U);
  EXPECT_LE(content[0].at("logprob").to_number<double>(), 0);
  EXPECT_EQ(content[0].at("token"), content[0].at("top_logprobs").at(0).at("token"));
  EXPECT_EQ(answer.at("choices").at(0).at("token_ids").as_array().size(), 3U);
  const auto prompt = static_cast<size_t>(answer.at("usage").at("prompt_tokens").as_int64());
  EXPECT_EQ(answer.at("prompt_token_ids").as_array().size(), prompt);
  EXPECT_EQ(answer.at("prompt_logprobs").as_array().size(), prompt);
  EXPECT_TRUE(answer.at("prompt_logprobs").at(0).is_null());
}

TEST_F(OpenAi, ReadsAPictureFromADataUrl) {
  const std::string picture = base64(read_file("models/examples/word.png"));
  const auto body = [&](const std::string& url) {
    return fmt::format(R"({{"temperature":0,"messages":[{{"role":"user","content":[)"
                       R"({{"type":"image_url","image_url":{{"url":"{}"}}}},)"
                       R"({{"type":"text","text":"What word is in the picture?"}}]}}]}})",
                       url);
  };
  const json::value answer = ask(body("data:image/png;base64," + picture));
  EXPECT_THAT(std::string(answer.at("choices").at(0).at("message").at("content").as_string()),
              HasSubstr("violin"));
  EXPECT_GT(answer.at("usage").at("prompt_tokens_details").at("image_tokens").as_int64(), 0);
  const std::string url = "messages[0].content[0].image_url.url";
  expect_error(body("data:image/png;base64," + picture.substr(1)), 400, url, "not base64");
  expect_error(body("data:image/png;base64,iVBO\\n"), 400, url, "not base64");
  expect_error(body("data:image/png;base64,AB=="), 400, url, "not base64");  // bits left over
  expect_error(body("data:audio/wav;base64,AAAA"), 400, url, "audio/wav");
  expect_error(body("data:image/png,abc"), 400, url, "base64");
  expect_error(body("http://127.0.0.1/a.png"), 400, "image_url", "public internet");
  expect_error(body("file:///etc/passwd"), 400, "image_url", "--allowed-local-media-path");
  expect_error(body("data:image/png;base64,AAAA"), 400, "images[0]", "");
}

TEST_F(OpenAi, ThinksWhenAsked) {
  const json::value answer = ask(chat(R"("reasoning_effort":"low","max_tokens":200)"));
  const json::object& message = answer.at("choices").at(0).at("message").as_object();
  ASSERT_TRUE(message.contains("reasoning")) << last_.body;
  EXPECT_EQ(message.at("reasoning"), message.at("reasoning_content"));
  EXPECT_GT(answer.at("usage").at("completion_tokens_details").at("reasoning_tokens").as_int64(), 0);
  EXPECT_FALSE(ask(chat(R"("reasoning_effort":"low","include_reasoning":false,"max_tokens":200)"))
                   .at("choices")
                   .at(0)
                   .at("message")
                   .as_object()
                   .contains("reasoning"));
}

TEST_F(OpenAi, CallsTools) {
  const std::string tools =
      R"("tools":[{"type":"function","function":{"name":"get_weather","description":"w",)"
      R"("parameters":{"type":"object","properties":{"city":{"type":"string"}},)"
      R"("required":["city"]}}}],"tool_choice":"required","max_tokens":60)";
  const json::value answer = ask(chat(tools));
  const json::value& choice = answer.at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason"), json::value("tool_calls"));
  const json::value& call = choice.at("message").at("tool_calls").at(0);
  EXPECT_EQ(call.at("function").at("name"), json::value("get_weather"));
  EXPECT_TRUE(choice.at("message").at("content").is_null());
  std::string arguments;
  std::string name;
  for (const std::string& event :
       client_->post("/v1/chat/completions", chat(tools + R"(,"stream":true)")).events()) {
    if (event == "[DONE]") continue;
    const json::value chunk = json::parse(event);
    const json::object& delta = chunk.at("choices").at(0).at("delta").as_object();
    if (!delta.contains("tool_calls")) continue;
    const json::object& piece = delta.at("tool_calls").at(0).at("function").as_object();
    if (piece.contains("name")) name = piece.at("name").as_string();
    arguments += piece.at("arguments").as_string();
  }
  EXPECT_EQ(name, "get_weather");
  EXPECT_EQ(json::value(arguments), call.at("function").at("arguments"));
}

TEST_F(OpenAi, CompletesText) {
  const json::value answer =
      ask(R"({"prompt":["One","Two"],"n":2,"max_tokens":3,"temperature":0,"echo":true})", "/v1/completions");
  EXPECT_EQ(answer.at("object"), json::value("text_completion"));
  ASSERT_EQ(answer.at("choices").as_array().size(), 4U);
  EXPECT_TRUE(std::string(answer.at("choices").at(1).at("text").as_string()).starts_with("One"));
  EXPECT_TRUE(std::string(answer.at("choices").at(2).at("text").as_string()).starts_with("Two"));
  const json::value by_ids =
      ask(R"({"prompt":[2,105],"max_tokens":3,"temperature":0,"logprobs":1,"ignore_eos":true})",
          "/v1/completions");
  EXPECT_EQ(by_ids.at("choices").at(0).at("logprobs").at("tokens").as_array().size(), 3U);
  const std::vector<std::string> events =
      client_->post("/v1/completions", R"({"prompt":"One","max_tokens":3,"stream":true})").events();
  ASSERT_GE(events.size(), 2U);
  EXPECT_EQ(events.back(), "[DONE]");
}

TEST_F(OpenAi, TokenizesThereAndBack) {
  const json::value ids = ask(R"({"prompt":"Hello there","add_special_tokens":false})", "/tokenize");
  EXPECT_EQ(ids.at("count").as_int64(), static_cast<int64_t>(ids.at("tokens").as_array().size()));
  EXPECT_EQ(
      ask(fmt::format(R"({{"tokens":{}}})", json::serialize(ids.at("tokens"))), "/detokenize").at("prompt"),
      json::value("Hello there"));
  EXPECT_EQ(ask(chat(), "/tokenize").at("count").as_int64(),
            ask(chat(R"("max_tokens":1)")).at("usage").at("prompt_tokens").as_int64());
}

TEST_F(OpenAi, ShowsModelsAndMetrics) {
  const json::value models = json::parse(client_->get("/v1/models").body);
  EXPECT_EQ(models.at("data").at(0).at("id"), json::value("demo"));
  EXPECT_EQ(models.at("data").at(0).at("max_model_len").as_int64(), demo_engine().info().max_model_len);
  ask(chat());
  const std::string page = client_->get("/metrics").body;
  for (const char* line :
       {"vllm:num_requests_running{", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc{",
        "vllm:generation_tokens_total{", "vllm:time_to_first_token_seconds_bucket{",
        "vllm:cache_config_info{", "vllm:inter_token_latency_seconds_count{"}) {
    EXPECT_THAT(page, HasSubstr(line));
  }
  EXPECT_THAT(page,
              HasSubstr("vllm:e2e_request_latency_seconds_count{engine=\"0\",model_name=\"demo\"} 1\n"));
  EXPECT_EQ(json::parse(client_->get("/load").body).at("server_load").as_int64(), 0);
  EXPECT_EQ(client_->get("/health").status, 200);
  EXPECT_EQ(client_->get("/ping").status, 200);
  api_->set_draining();
  EXPECT_EQ(client_->get("/health").status, 503);
}

TEST_F(OpenAi, AsksForKeys) {
  start({.api_keys = {"secret", "other"}});
  for (const char* path : {"/v1/models", "/nothing", "/tokenize"})
    EXPECT_EQ(client_->get(path).status, 401) << path;
  for (const char* path : {"/health", "/ping", "/version", "/load", "/metrics"})
    EXPECT_EQ(client_->get(path).status, 200) << path;
  EXPECT_EQ(client_->get("/v1/models", "Authorization: Bearer secre\r\n").status, 401);
  EXPECT_EQ(client_->get("/v1/models", "Authorization: secret\r\n").status, 401);
  EXPECT_EQ(client_->get("/v1/models", "Authorization: Bearer \r\n").status, 401);
  EXPECT_EQ(client_->get("/v1/models", "Authorization: bearer secret\r\n").status, 200);
  EXPECT_EQ(client_->get("/v1/models", "x-api-key: other\r\n").status, 200);
  start({.api_keys = {"secret"}, .protect_all = true});
  EXPECT_EQ(client_->get("/metrics").status, 401);
  EXPECT_EQ(client_->get("/health").status, 200);
}

TEST_F(OpenAi, RoutesByPathAndMethod) {
  start({.root_path = "/api/"});
  EXPECT_EQ(client_->get("/v1/models").status, 200);
  EXPECT_EQ(client_->get("/api/v1/models/").status, 200);
  EXPECT_EQ(client_->get("/apiv1/models").status, 404);
  const RawResponse wrong = client_->get("/v1/chat/completions");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.header("allow"), "POST, OPTIONS");
  ASSERT_TRUE(client_->send("OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"));
  const RawResponse options = client_->read();
  EXPECT_EQ(options.status, 204);
  EXPECT_EQ(options.header("allow"), "GET, HEAD, OPTIONS");
}

TEST_F(OpenAi, SaysWhatIsWrongWithARequest) {
  const std::string message = R"({"messages":[{"role":"user","content":"x"}],)";
  expect_error("", 400, "", "not JSON");
  expect_error("{", 400, "", "not JSON");
  expect_error("[]", 400, "", "expected an object");
  expect_error("{} x", 400, "", "extra data");
  expect_error("{\"a\":\"\xff\"}", 400, "", "not JSON");
  expect_error(std::string(200, '[') + std::string(200, ']'), 400, "", "deep");
  expect_error("{}", 400, "messages", "missing");
  expect_error(R"({"messages":[]})", 400, "messages", "empty");
  expect_error(R"({"messages":"hi"})", 400, "messages", "expected a list");
  expect_error(R"({"messages":[{"role":"king","content":"x"}]})", 400, "messages[0].role", "king");
  expect_error(R"({"messages":[{"role":"user","content":[{"type":"input_audio"}]}]})", 400,
               "messages[0].content[0].type", "not served");
  expect_error(R"({"messages":[{"role":"user","content":[{"type":"video_url"}]}]})", 400,
               "messages[0].content[0].type", "not served");
  expect_error(message + R"("model":"gpt-5"})", 404, "model", "gpt-5");
  const auto tools = [&](const std::string& tool) { return message + R"("tools":[)" + tool + "]}"; };
  expect_error(tools("7"), 400, "tools[0]", "an object");
  expect_error(tools(R"({"type":"web_search"})"), 400, "tools[0].type", "not served");
  expect_error(tools(R"({"type":"function","function":[]})"), 400, "tools[0].function", "found");
  expect_error(tools(R"({"type":"function"})"), 400, "tools[0].function", "missing");
  expect_error(tools(R"({"function":{"name":{}}})"), 400, "tools[0].function.name", "a string");
  expect_error(tools(R"({"function":{}})"), 400, "tools[0].function.name", "missing");
  expect_error(tools(R"({"function":{"name":"f","description":{}}})"), 400, "tools[0].function.description",
               "a string");
  const auto call = [](const std::string& calls) {
    return R"({"messages":[{"role":"user","content":"x"},{"role":"assistant","tool_calls":)" + calls + "}]}";
  };
  expect_error(call("7"), 400, "messages[1].tool_calls", "a list");
  expect_error(call("[7]"), 400, "messages[1].tool_calls[0]", "a call");
  expect_error(call(R"([{"id":7}])"), 400, "messages[1].tool_calls[0].id", "a string");
  expect_error(call(R"([{"type":"x","function":{"name":"f"}}])"), 400, "messages[1].tool_calls[0].type",
               "function");
  expect_error(call(R"([{"function":{"name":"f","arguments":7}}])"), 400,
               "messages[1].tool_calls[0].function.arguments", "a JSON object");
  expect_error(R"({"messages":[{"role":"tool","tool_call_id":7,"content":"x"}]})", 400,
               "messages[0].tool_call_id", "a string");
  expect_error(message + R"("temperature":"hot"})", 400, "temperature", "a number");
  expect_error(message + R"("temperature":1e999})", 400, "temperature", "Infinity");
  expect_error(message + R"("temperature":-1})", 400, "temperature", "");
  expect_error(message + R"("max_tokens":0})", 400, "max_tokens", "at least 1");
  expect_error(message + R"("max_tokens":99999999999999999999})", 400, "max_tokens", "at least 1");
  expect_error(message + R"("n":0})", 400, "n", "1 to 128");
  expect_error(message + R"("n":1000000})", 400, "n", "1 to 128");
  expect_error(message + R"("stop":[1]})", 400, "stop[0]", "a string");
  expect_error(message + R"("logit_bias":{"x":1}})", 400, "logit_bias", "token id");
  expect_error(message + R"("top_logprobs":3})", 400, "top_logprobs", "logprobs: true");
  expect_error(message + R"("response_format":{"type":"json_schema"}})", 400,
               "response_format.json_schema.schema", "missing");
  expect_error(message + R"("response_format":{"type":"xml"}})", 400, "response_format.type", "xml");
  expect_error(message + R"("tool_choice":"maybe"})", 400, "tool_choice", "expected auto");
  expect_error(message + R"("stream_options":{}})", 400, "stream_options", "stream: true");
  expect_error(message + R"("stream":true,"max_tokens":9999999})", 400, "max_tokens", "");
  expect_error(R"({"prompt":{}})", 400, "prompt", "", "/v1/completions");
  expect_error(R"({"prompt":[1,"x"]})", 400, "prompt[1]", "token id", "/v1/completions");
  expect_error(R"({"prompt":[99999999]})", 400, "prompt", "vocabulary", "/v1/completions");
  expect_error(R"({"tokens":[-1]})", 400, "tokens[0]", "token id", "/detokenize");
  expect_error("{\"a\":[" + std::string(4'000'000, ',') + "]}", 400, "", "not JSON");
  std::string zeros = "{\"a\":[0";
  for (int i = 0; i < 3'500'000; ++i) zeros += ",0";
  expect_error(zeros + "]}", 400, "", "too many values");
  // A long prompt, seen only while it is prepared: still a status, also for a stream.
  std::string text;
  for (int i = 0; i < 20'000; ++i) text += "word ";
  for (const char* stream : {"false", "true"}) {
    expect_error(
        fmt::format(R"({{"messages":[{{"role":"user","content":"{}"}}],"stream":{}}})", text, stream), 400,
        "max_tokens", "the limit is");
  }
  EXPECT_EQ(demo_engine().stats().under_way, 0);
}

TEST_F(OpenAi, NamesFieldsThatItIgnores) {
  ask(chat(R"("max_tokens":1,"guided_json":{},"user":"me","frobnicate":1)"));
  EXPECT_EQ(last_.header("x-ignored-fields"), "guided_json, frobnicate");
}

TEST_F(OpenAi, CancelsWhenTheClientIsGone) {
  for (const bool stream : {true, false}) {
    std::vector<std::unique_ptr<RawClient>> clients;
    for (int i = 0; i < 12; ++i) {
      clients.push_back(std::make_unique<RawClient>(server_->port()));
      ASSERT_TRUE(clients.back()->send(
          post_bytes("/v1/chat/completions",
                     chat(fmt::format(R"("ignore_eos":true,"max_tokens":2000,"n":2,"stream":{})", stream)))));
    }
    EXPECT_TRUE(comes_true([] { return demo_engine().stats().under_way == 24; }, 2s));
    const auto left = std::chrono::steady_clock::now();
    for (const auto& client : clients) client->reset();
    EXPECT_TRUE(comes_true([] { return demo_engine().stats().under_way == 0; }, 2s));
    EXPECT_LT(std::chrono::steady_clock::now() - left, 1500ms);
    EXPECT_TRUE(comes_true([] { return demo_engine().stats().kv_usage == 0; }, 2s));
  }
}

TEST_F(OpenAi, EndsStreamsCleanlyWhenToldToStop) {
  RawClient streaming(server_->port());
  RawClient waiting(server_->port());
  const std::string endless = R"("ignore_eos":true,"max_tokens":2000)";
  ASSERT_TRUE(streaming.send(post_bytes("/v1/chat/completions", chat(endless + R"(,"stream":true)"))));
  ASSERT_TRUE(waiting.send(post_bytes("/v1/chat/completions", chat(endless))));
  EXPECT_TRUE(comes_true([] { return demo_engine().stats().running == 2; }, 2s));
  EXPECT_FALSE(server_->drain(200ms));
  const RawResponse stream = streaming.read();
  EXPECT_TRUE(stream.whole);
  const std::vector<std::string> events = stream.events();
  ASSERT_GE(events.size(), 2U);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_THAT(events[events.size() - 2], HasSubstr("shutting down"));
  EXPECT_EQ(waiting.read().status, 503);
  EXPECT_TRUE(comes_true([] { return demo_engine().stats().under_way == 0; }, 2s));
}

TEST_F(OpenAi, HoldsRequestsToADeadline) {
  ApiOptions options;
  options.defaults.request_timeout_s = 0.3;
  start(options);
  expect_error(chat(R"("ignore_eos":true,"max_tokens":2000)"), 504, "", "");
}

}  // namespace
}  // namespace jewel
