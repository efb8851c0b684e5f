// POST /v1/messages over the demo model, through real sockets.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include "api/answers.h"
#include "base/comes_true.h"
#include "server/served_demo.h"

namespace jewel {
namespace {

namespace json = boost::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kPath = "/v1/messages";
const std::string kWho =
    R"({"model":"demo","max_tokens":200,"messages":[{"role":"user","content":"Who are you?"}],"temperature":0})";
const std::string kTools =
    R"("tools":[{"name":"get_weather","description":"Get the weather in a city","input_schema":)"
    R"({"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}])";
const std::string kWeather =
    R"({"max_tokens":60,"messages":[{"role":"user","content":)"
    R"("What is the weather in Paris?"}],"temperature":0,"tool_choice":{"type":"any"},)" +
    kTools + "}";

json::value comparable(json::value message) {
  json::object& object = message.as_object();
  object.erase("timings");
  json::object& usage = object.at("usage").as_object();
  // The second one finds pages of the first.
  usage["input_tokens"] =
      usage.at("input_tokens").as_int64() + usage.at("cache_read_input_tokens").as_int64();
  usage.erase("cache_read_input_tokens");
  return message;
}

// The message as a client puts it together.
json::value message_of(const std::vector<json::value>& events) {
  json::value message;
  std::string arguments;
  for (const json::value& event : events) {
    const std::string type(event.at("type").as_string());
    if (type == "message_start") {
      message = event.at("message");
    } else if (type == "content_block_start") {
      json::array& content = message.at("content").as_array();
      EXPECT_EQ(event.at("index").to_number<size_t>(), content.size());
      content.push_back(event.at("content_block"));
      arguments.clear();
    } else if (type == "content_block_delta") {
      json::object& block = message.at("content").as_array().back().as_object();
      const json::object& delta = event.at("delta").as_object();
      const std::string kind(delta.at("type").as_string());
      if (kind == "input_json_delta") {
        arguments += delta.at("partial_json").as_string();
        continue;
      }
      const std::string name = kind.substr(0, kind.find('_'));
      block[name] = std::string(block.at(name).as_string()) + std::string(delta.at(name).as_string());
    } else if (type == "content_block_stop") {
      json::array& content = message.at("content").as_array();
      EXPECT_EQ(event.at("index").to_number<size_t>() + 1, content.size());
      if (content.back().at("type") == "tool_use")
        content.back().as_object()["input"] = json::parse(arguments);
    } else if (type == "message_delta") {
      for (const auto& [name, value] : event.at("delta").as_object()) message.as_object()[name] = value;
      message.as_object()["usage"] = event.at("usage");
    }
  }
  return message;
}

class Messages : public ServedDemo {
 protected:
  json::value send(const std::string& body) { return ask(kPath, body); }
  int64_t tokens(const std::string& body) {
    return ask("/v1/messages/count_tokens", body).at("input_tokens").as_int64();
  }
  void expect_error(const std::string& body, const std::string& part, int status = 400,
                    const std::string& type = "invalid_request_error", const std::string& path = kPath) {
    const RawResponse response = refused(path, body);
    EXPECT_EQ(response.status, status) << body;
    boost::system::error_code error;
    const json::value value = json::parse(response.body, error);
    ASSERT_FALSE(error) << response.body;
    EXPECT_EQ(value.at("type"), "error");
    EXPECT_EQ(value.at("error").at("type"), json::value(type)) << response.body;
    EXPECT_THAT(std::string(value.at("error").at("message").as_string()), HasSubstr(part)) << body;
  }
};

TEST_F(Messages, AnswersWithAMessage) {
  const json::value answer = send(kWho);
  EXPECT_EQ(answer.at("id"), "msg_test");
  EXPECT_EQ(answer.at("type"), "message");
  EXPECT_EQ(answer.at("role"), "assistant");
  EXPECT_EQ(answer.at("model"), "demo");
  EXPECT_EQ(answer.at("stop_reason"), "end_turn");
  EXPECT_TRUE(answer.at("stop_sequence").is_null());
  ASSERT_EQ(answer.at("content").as_array().size(), 1U);
  EXPECT_EQ(answer.at("content").at(0).at("type"), "text");
  const json::value chat = ask("/v1/chat/completions",
                               R"({"messages":[{"role":"user","content":"Who are you?"}],"temperature":0})");
  EXPECT_EQ(answer.at("content").at(0).at("text"), chat.at("choices").at(0).at("message").at("content"));
  const json::value& usage = answer.at("usage");
  EXPECT_EQ(usage.at("input_tokens").as_int64() + usage.at("cache_read_input_tokens").as_int64(),
            chat.at("usage").at("prompt_tokens").as_int64());
  EXPECT_EQ(usage.at("output_tokens"), chat.at("usage").at("completion_tokens"));
  EXPECT_EQ(usage.at("cache_creation_input_tokens"), 0);
  EXPECT_EQ(comparable(ask("/engines/v1/messages", kWho)), comparable(answer));
  EXPECT_EQ(tokens(kWho), chat.at("usage").at("prompt_tokens").as_int64());
}

TEST_F(Messages, StreamsTheSameMessage) {
  for (const std::string& body :
       {kWho, kWeather, with(kWho, R"("thinking":{"type":"enabled","budget_tokens":1024})"),
        with(kWho, R"("stop_sequences":["demo","zebra"])"), with(kWho, R"("max_tokens":3)"),
        with(kWeather, R"("max_tokens":5)")}) {
    SCOPED_TRACE(body);
    const json::value whole = comparable(send(body));
    const std::vector<json::value> events = stream(kPath, body);
    EXPECT_EQ(events.front().at("type"), "message_start");
    EXPECT_GT(events.front().at("message").at("usage").at("input_tokens").as_int64(), 0);
    EXPECT_EQ(events.back().at("type"), "message_stop");
    EXPECT_EQ(comparable(message_of(events)), whole);
  }
}

TEST_F(Messages, NamesItsEvents) {
  EXPECT_THAT(types_of(stream(kPath, kWho)),
              ElementsAre("message_start", "content_block_start", "content_block_delta", "content_block_stop",
                          "message_delta", "message_stop"));
}

TEST_F(Messages, SaysWhyItStopped) {
  EXPECT_EQ(send(with(kWho, R"("max_tokens":3)")).at("stop_reason"), "max_tokens");
  const json::value stopped = send(with(kWho, R"("stop_sequences":["zebra","demo"])"));
  EXPECT_EQ(stopped.at("stop_reason"), "stop_sequence");
  EXPECT_EQ(stopped.at("stop_sequence"), "demo");
  EXPECT_THAT(std::string(stopped.at("content").at(0).at("text").as_string()), Not(HasSubstr("demo")));
  EXPECT_EQ(send(kWeather).at("stop_reason"), "tool_use");
}

TEST_F(Messages, Thinks) {
  const json::value answer = send(with(kWho, R"("thinking":{"type":"enabled","budget_tokens":1024})"));
  const json::value& thoughts = answer.at("content").at(0);
  EXPECT_EQ(thoughts.at("type"), "thinking");
  EXPECT_FALSE(thoughts.at("thinking").as_string().empty());
  EXPECT_FALSE(thoughts.at("signature").as_string().empty());
  EXPECT_EQ(answer.at("content").at(1).at("type"), "text");
  EXPECT_GT(answer.at("usage").at("output_tokens_details").at("thinking_tokens").as_int64(), 0);
  const json::value brief = send(with(kWho, R"("thinking":{"type":"enabled","budget_tokens":2})"));
  EXPECT_LT(brief.at("usage").at("output_tokens_details").at("thinking_tokens").as_int64(),
            answer.at("usage").at("output_tokens_details").at("thinking_tokens").as_int64());
  const std::string silent = with(kWho, R"("thinking":{"type":"adaptive","display":"omitted"})");
  EXPECT_EQ(send(silent).at("content").at(0).at("type"), "text");
  EXPECT_EQ(comparable(message_of(stream(kPath, silent))), comparable(send(silent)));
  EXPECT_EQ(comparable(send(with(kWho, R"("thinking":{"type":"disabled"})"))), comparable(send(kWho)));
}

TEST_F(Messages, GoesThroughAToolLoop) {
  const json::value answer = send(kWeather);
  const json::value& call = answer.at("content").at(0);
  EXPECT_EQ(call.at("type"), "tool_use");
  EXPECT_EQ(call.at("name"), "get_weather");
  EXPECT_EQ(call.at("input"), (json::object{{"city", "Paris"}}));
  const json::value second = send(fmt::format(
      R"({{"max_tokens":60,"temperature":0,{},"messages":[)"
      R"({{"role":"user","content":"What is the weather in Paris?"}},{{"role":"assistant","content":{}}},)"
      R"({{"role":"user","content":[{{"type":"tool_result","tool_use_id":{},"content":"sunny, 21 degrees"}}]}}]}})",
      kTools, json::serialize(answer.at("content")), json::serialize(call.at("id"))));
  EXPECT_EQ(second.at("stop_reason"), "end_turn");
  const json::value chat = ask(
      "/v1/chat/completions",
      R"({"temperature":0,"max_tokens":60,"messages":[{"role":"user","content":"What is the weather in Paris?"},)"
      R"({"role":"assistant","tool_calls":[{"id":"c","type":"function","function":)"
      R"({"name":"get_weather","arguments":"{\"city\":\"Paris\"}"}}]},)"
      R"({"role":"tool","tool_call_id":"c","content":"sunny, 21 degrees"}],)"
      R"("tools":[{"type":"function","function":{"name":"get_weather","description":"Get the weather in a )"
      R"(city","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}]})");
  EXPECT_EQ(second.at("content").at(0).at("text"), chat.at("choices").at(0).at("message").at("content"));
  EXPECT_EQ(send(with(kWeather, R"("tool_choice":{"type":"none"})")).at("content").at(0).at("type"), "text");
  EXPECT_EQ(send(with(kWeather, R"("tool_choice":{"type":"tool","name":"get_weather"})"))
                .at("content")
                .at(0)
                .at("name"),
            "get_weather");
}

TEST_F(Messages, CallsOneToolAtATimeWhenAsked) {
  const std::string two = R"({"max_tokens":100,"temperature":0,"messages":[{"role":"user","content":)"
                          R"("What is the weather in Paris and in Rome?"}],)" +
                          kTools + R"(,"tool_choice":{"type":"any","disable_parallel_tool_use":true}})";
  const json::value answer = send(two);
  EXPECT_EQ(answer.at("content").as_array().size(), 1U) << last_.body;
}

// Blocks are put together to the messages that chat would have sent.
TEST_F(Messages, ReadsConversations) {
  const auto same = [&](const std::string& members, const std::string& messages) {
    SCOPED_TRACE(members);
    EXPECT_EQ(tokens("{" + members + "}"), chat_tokens(fmt::format(R"({{"messages":{}}})", messages)));
  };
  const std::string user = R"({"role":"user","content":"Hello"})";
  same(R"("messages":[)" + user + "]", "[" + user + "]");
  same(
      R"("messages":[{"role":"user","content":[{"type":"text","text":"Hello","cache_control":{"type":"ephemeral"}}]}])",
      "[" + user + "]");
  same(R"("system":"Be brief.","messages":[)" + user + "]",
       R"([{"role":"system","content":"Be brief."},)" + user + "]");
  same(R"("system":[{"type":"text","text":"x-anthropic-billing-header: abc"},{"type":"text","text":"A"},)"
       R"({"type":"text","text":"B"}],"messages":[)" +
           user + "]",
       R"([{"role":"system","content":"A\n\nB"},)" + user + "]");
  same(
      R"("messages":[)" + user +
          R"(,{"role":"assistant","content":[{"type":"thinking","thinking":"Hm.","signature":"x"},)"
          R"({"type":"redacted_thinking","data":"zzz"},{"type":"tool_use","id":"1","name":"f","input":{"a":1}},)"
          R"({"type":"tool_use","id":"2","name":"f","input":{}}]},)"
          R"({"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":[{"type":"text","text":"x"}]},)"
          R"({"type":"tool_result","tool_use_id":"2","is_error":true,"content":"no"},{"type":"text","text":"Go on"}]}])",
      "[" + user +
          R"(,{"role":"assistant","content":"","reasoning":"Hm.","tool_calls":[)"
          R"({"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},)"
          R"({"id":"2","type":"function","function":{"name":"f","arguments":"{}"}}]},)"
          R"({"role":"tool","tool_call_id":"1","content":"x"},{"role":"tool","tool_call_id":"2","content":"Error: no"},)"
          R"({"role":"user","content":"Go on"}])");
  same(
      R"("messages":[{"role":"user","content":[{"type":"document","source":{"type":"text","media_type":"text/plain",)"
      R"("data":"Hello"}}]}])",
      "[" + user + "]");
}

TEST_F(Messages, BeginsWhatItIsToldToBeginWith) {
  const std::string whole(send(kWho).at("content").at(0).at("text").as_string());
  ASSERT_GT(whole.size(), 12U);
  const json::value rest = send(fmt::format(
      R"({{"max_tokens":200,"temperature":0,"messages":[{{"role":"user","content":"Who are you?"}},)"
      R"({{"role":"assistant","content":{}}}]}})",
      json::serialize(json::value(whole.substr(0, whole.find(' ', 10))))));
  EXPECT_EQ(
      whole.substr(0, whole.find(' ', 10)) + std::string(rest.at("content").at(0).at("text").as_string()),
      whole);
}

TEST_F(Messages, ReadsPictures) {
  const auto body = [](const std::string& source) {
    return fmt::format(R"({{"max_tokens":50,"temperature":0,"messages":[{{"role":"user","content":[)"
                       R"({{"type":"image","source":{}}},)"
                       R"({{"type":"text","text":"What word is in the picture?"}}]}}]}})",
                       source);
  };
  const std::string picture = body(fmt::format(R"({{"type":"base64","media_type":"image/png","data":"{}"}})",
                                               example_picture("word.png")));
  EXPECT_THAT(std::string(send(picture).at("content").at(0).at("text").as_string()), HasSubstr("violin"));
  EXPECT_GT(tokens(picture), 70);
  EXPECT_THAT(std::string(send(body(fmt::format(R"({{"type":"url","url":"data:image/png;base64,{}"}})",
                                                example_picture("word.png"))))
                              .at("content")
                              .at(0)
                              .at("text")
                              .as_string()),
              HasSubstr("violin"));
  const std::string at = "messages[0].content[0].source";
  expect_error(body(R"({"type":"base64","media_type":"image/png","data":"!"})"), at + ".data");
  expect_error(body(R"({"type":"base64","media_type":"image/png","data":"AAAA"})"), at + ".data");
  expect_error(body(R"({"type":"base64","data":"AAAA"})"), at + ".media_type");
  expect_error(body(R"({"type":"file","file_id":"f"})"), at + ".type");
  expect_error(body(R"({"type":"url","url":"http://127.0.0.1:1/a.png"})"), at + ".url");
}

TEST_F(Messages, HoldsAnswersToASchema) {
  const json::value answer = send(with(
      kWho, R"("output_config":{"effort":"low","format":{"type":"json_schema","schema":{"type":"object",)"
            R"("properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false}}})"));
  const json::value said = json::parse(answer.at("content").at(0).at("text").as_string());
  EXPECT_TRUE(said.at("n").is_int64());
}

TEST_F(Messages, SaysWhatIsWrong) {
  const std::string start = R"({"max_tokens":9,"messages":[{"role":"user","content":"x"}],)";
  expect_error("", "not JSON");
  expect_error(R"({"max_tokens":9})", "messages: missing");
  expect_error(R"({"max_tokens":9,"messages":[]})", "messages: found an empty list");
  expect_error(R"({"messages":[{"role":"user","content":"x"}]})", "max_tokens: missing");
  expect_error(R"({"max_tokens":9,"messages":[{"role":"king","content":"x"}]})",
               "messages[0].role: found 'king'");
  expect_error(R"({"max_tokens":9,"messages":[{"role":"user"}]})", "messages[0].content: found nothing");
  expect_error(R"({"max_tokens":9,"messages":[{"role":"user","content":[{"type":"video"}]}]})",
               "messages[0].content[0].type: 'video'");
  expect_error(
      R"({"max_tokens":9,"messages":[{"role":"user","content":[{"type":"document","source":{"type":"base64"}}]}]})",
      "plain text");
  expect_error(
      R"({"max_tokens":9,"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"x"}]}]})",
      "messages[0].content[0].tool_use_id: no call");
  expect_error(
      R"({"max_tokens":9,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"x","name":"f","input":"y"}]}]})",
      "messages[0].content[0].input");
  expect_error(start + R"("system":[{"type":"image"}]})", "system[0].type");
  expect_error(start + R"("model":"claude"})", "claude", 404, "not_found_error");
  expect_error(start + R"("temperature":-1})", "temperature");
  expect_error(start + R"("stop_sequences":[""]})", "stop_sequences: found an empty text");
  expect_error(start + R"("stop_sequences":"x"})", "stop_sequences");
  expect_error(start + R"("thinking":{"type":"maybe"}})", "thinking.type");
  expect_error(start + R"("thinking":{"type":"enabled","budget_tokens":-1}})", "thinking.budget_tokens");
  expect_error(start + R"("tools":[{"type":"web_search_20250305","name":"web_search"}]})", "tools[0].type");
  expect_error(start + R"("tools":[{"name":"f"}]})", "tools[0].input_schema");
  expect_error(start + R"("tool_choice":{"type":"tool"}})", "tool_choice.name");
  expect_error(start + R"("tool_choice":{"type":"any"}})", "no tools");
  expect_error(start + R"("output_config":{"format":{"type":"xml"}}})", "output_config.format.type");
  expect_error(start + R"("stream":true,"max_tokens":2040})", "the limit is");
  expect_error("{}", "messages: missing", 400, "invalid_request_error", "/v1/messages/count_tokens");
  EXPECT_EQ(client_->get("/v1/messages").status, 405);
  EXPECT_EQ(json::parse(client_->get("/v1/messages").body).at("type"), "error");
  const RawResponse large =
      RawClient(server_->port()).post(kPath, R"({"x":")" + std::string(9 << 20, 'x') + "\"}");
  EXPECT_EQ(large.status, 413);
  EXPECT_EQ(json::parse(large.body).at("type"), "error");
  EXPECT_EQ(demo_engine().stats().under_way, 0);
}

TEST_F(Messages, TakesAnthropicsKeyHeader) {
  start({.api_keys = {"secret"}});
  const RawResponse closed = client_->post(kPath, kWho);
  EXPECT_EQ(closed.status, 401);
  EXPECT_EQ(json::parse(closed.body).at("error").at("type"), "authentication_error");
  const auto with_header = [&](const std::string& header) {
    return RawClient(server_->port())
        .post(kPath, kWho, header + "\r\nanthropic-version: 2023-06-01\r\n")
        .status;
  };
  EXPECT_EQ(with_header("x-api-key: secret"), 200);
  EXPECT_EQ(with_header("Authorization: Bearer secret"), 200);
  EXPECT_EQ(with_header("Authorization: Bearer other\r\nx-api-key: secret"), 200);
  EXPECT_EQ(with_header("x-api-key: secre"), 401);
}

TEST_F(Messages, NamesFieldsThatItIgnores) {
  send(with(kWho,
            R"("metadata":{"user_id":"u"},"cache_control":{"type":"ephemeral"},"top_k":5,"frobnicate":1)"));
  EXPECT_EQ(last_.header("x-ignored-fields"), "frobnicate");
}

TEST_F(Messages, EndsStreamsWithAnErrorWhenToldToStop) {
  // What the test before left behind has ended, so that what runs is ours.
  ASSERT_TRUE(comes_true([] { return demo_engine().stats().under_way == 0; }, std::chrono::seconds(2)));
  ASSERT_TRUE(
      client_->send(post_bytes(kPath, with(kWho, R"("stream":true,"ignore_eos":true,"max_tokens":1900)"))));
  ASSERT_TRUE(comes_true([] { return demo_engine().stats().under_way != 0; }, std::chrono::seconds(2)));
  EXPECT_FALSE(server_->drain(std::chrono::milliseconds(100)));
  const RawResponse response = client_->read();
  EXPECT_TRUE(response.whole);
  const std::vector<json::value> events = events_of(response.body);
  ASSERT_FALSE(events.empty());
  const json::value& last = events.back();
  EXPECT_EQ(last.at("type"), "error");
  EXPECT_EQ(last.at("error").at("type"), "overloaded_error");
  EXPECT_THAT(response.body, HasSubstr("event: error\n"));
}

}  // namespace
}  // namespace jewel
