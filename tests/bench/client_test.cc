// The OpenAI client: addresses, streams of several servers' dialects, and servers that misbehave.
#include "client/openai_client.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "bench/stand_in_server.h"
#include "client/chat_reader.h"
#include "client/data_url.h"
#include "client/server_url.h"
#include "client/sse.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;

const boost::json::object kHello = {
    {"messages", boost::json::array{boost::json::object{{"role", "user"}, {"content", "Hello"}}}},
    {"max_tokens", 3}};

// Events of `stream` when it comes in pieces of `size` bytes.
std::vector<std::string> events_of(const std::string& stream, size_t size) {
  SseParser parser;
  std::vector<std::string> events;
  const auto see = [&](std::string_view name, std::string_view data) -> Result<void> {
    events.push_back(std::string(name) + "|" + std::string(data));
    return {};
  };
  for (size_t i = 0; i < stream.size(); i += size)
    EXPECT_TRUE(parser.put(std::string_view(stream).substr(i, size), see).ok());
  EXPECT_TRUE(parser.end(see).ok());
  return events;
}

TEST(Sse, EventsAreTheSameHoweverTheBytesAreCut) {
  const std::string stream =
      "\xEF\xBB\xBF: ping\r\n\r\ndata: one\n\ndata:two\r\ndata: more\r\n\r\nid: 7\nretry: 5\nevent: "
      "usage\rdata: "
      "three\r\r: energy {}\n\ndata\n\ndata: [DONE]";
  for (size_t size = 1; size <= stream.size(); ++size) {
    EXPECT_THAT(events_of(stream, size), ElementsAre("|one", "|two\nmore", "usage|three", "|", "|[DONE]"))
        << "pieces of " << size;
  }
}

TEST(Sse, AnEventWithoutEndIsRefused) {
  SseParser parser(1000);
  const auto see = [](std::string_view, std::string_view) -> Result<void> { return {}; };
  EXPECT_TRUE(parser.put("data: " + std::string(900, 'x'), see).ok());
  const auto over = parser.put(std::string(200, 'x'), see);
  ASSERT_FALSE(over.ok());
  EXPECT_EQ(over.error().code, ErrorCode::kTooLarge);
}

TEST(ServerUrl, TakesWhatPeopleWrite) {
  EXPECT_EQ(parse_server_url("http://localhost:8000/v1")->text(), "http://localhost:8000/v1");
  EXPECT_EQ(parse_server_url("http://localhost:8000/")->text(), "http://localhost:8000/v1");
  EXPECT_EQ(parse_server_url("localhost:8000")->text(), "http://localhost:8000/v1");
  EXPECT_EQ(parse_server_url("https://api.example.org/openai/v1/")->text(),
            "https://api.example.org/openai/v1");
  EXPECT_EQ(parse_server_url("http://[::1]:8000")->authority(), "[::1]:8000");
  EXPECT_EQ(parse_server_url("https://example.org")->port, 443);
  EXPECT_EQ(parse_server_url("unix:/run/jewel.sock")->unix_path, "/run/jewel.sock");
  for (const char* bad : {"", "http://", "ftp://host/v1", "http://host:0", "http://host:65536",
                          "http://host:80x", "http://user:secret@host/v1", "http://[::1",
                          "http://host/v1?x=1", "unix:", "http://host\r\nX: y/v1", "http://ho st"}) {
    const auto url = parse_server_url(bad);
    ASSERT_FALSE(url.ok()) << bad;
    EXPECT_EQ(url.error().param, "url");
  }
}

TEST(Client, ReadsAVllmStreamAndTimesItsTokens) {
  StandInServer server([](const Heard& heard) -> SaidAll {
    if (heard.line.starts_with("GET")) return {{{whole_response(200, models_json("gemma"))}}};
    return vllm_stream({"Hel", "lo", "!"}, 12, 3, 40ms);
  });
  const auto client = OpenAiClient::open({.url = server.url(), .api_key = "sesame"});
  ASSERT_TRUE(client.ok()) << client.error().message;
  EXPECT_EQ((*client)->model(), "gemma");
  EXPECT_EQ((*client)->card().at("max_model_len").as_int64(), 4096);
  EXPECT_TRUE((*client)->on_this_machine());
  const auto answer = (*client)->ask(kHello);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->content, "Hello!");
  EXPECT_EQ(answer->finish_reason, "length");
  ASSERT_TRUE(answer->usage);
  EXPECT_EQ(answer->usage->prompt_tokens, 12);
  EXPECT_EQ(answer->usage->completion_tokens, 3);
  EXPECT_FALSE(answer->usage->cached_tokens);
  ASSERT_EQ(answer->pieces.size(), 3U);  // neither the role nor the usage is a piece
  EXPECT_GE(answer->pieces[0] - answer->begun, 40ms);
  EXPECT_GE(answer->pieces[2] - answer->pieces[0], 75ms);
  const auto heard = server.heard();
  ASSERT_EQ(heard.size(), 2U);
  EXPECT_THAT(heard[1].line, HasSubstr("POST /v1/chat/completions"));
  EXPECT_THAT(heard[1].head, HasSubstr("Authorization: Bearer sesame"));
  EXPECT_THAT(heard[1].body, HasSubstr("\"include_usage\":true"));
  EXPECT_THAT(heard[1].body, HasSubstr("\"model\":\"gemma\""));
  EXPECT_EQ(server.connections(), 1);  // kept
}

// llama.cpp: role with null content, reasoning_content, usage beside timings, a comment while it waits.
// Jewel: reasoning under both names, energy in usage.
TEST(Client, ReadsOtherDialects) {
  std::string said;
  StandInServer server([&](const Heard& heard) -> SaidAll {
    if (heard.line.starts_with("GET")) return {{{whole_response(200, models_json("m"))}}};
    return {{{stream_head() + chunk(said) + chunk("")}}};
  });
  const auto client = OpenAiClient::open({.url = server.url()});
  ASSERT_TRUE(client.ok()) << client.error().message;

  said =
      ": waiting\n\n"
      R"(data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"model":"llama"})"
      "\n\n"
      R"(data: {"choices":[{"finish_reason":null,"index":0,"delta":{"reasoning_content":"hm"}}]})"
      "\n\n"
      R"(data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"4"}}]})"
      "\n\n"
      R"(data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}]})"
      "\n\n"
      R"(data: {"choices":[],"usage":{"completion_tokens":2,"prompt_tokens":5,"total_tokens":7},"timings":{"predicted_ms":3.5}})"
      "\n\ndata: [DONE]\n\n";
  auto answer = (*client)->ask(kHello);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->reasoning, "hm");
  EXPECT_EQ(answer->content, "4");
  EXPECT_EQ(answer->model, "llama");
  EXPECT_EQ(answer->pieces.size(), 2U);
  EXPECT_EQ(answer->usage->completion_tokens, 2);

  said =
      R"(data: {"choices":[{"index":0,"delta":{"reasoning":"a","reasoning_content":"a"},"finish_reason":null}],"usage":null})"
      "\n\n"
      R"(data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call-1","type":"function","function":{"name":"f","arguments":""}}]}}]})"
      "\n\n"
      R"(data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"x\":1}"}}]}}]})"
      "\n\n"
      R"(data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]})"
      "\n\n"
      R"(data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":4,"image_tokens":2},"completion_tokens_details":{"reasoning_tokens":1},"energy":{"joules":2.5,"image_joules":0.5,"prefill_joules":1,"decode_joules":1,"reasoning_joules":0.25,"idle_share_joules":0.75,"method":"nvml"}}})"
      "\n\ndata: [DONE]\n\n";
  answer = (*client)->ask(kHello);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->reasoning, "a");
  ASSERT_EQ(answer->tool_calls.size(), 1U);
  EXPECT_EQ(answer->tool_calls[0].name, "f");
  EXPECT_EQ(answer->tool_calls[0].arguments, R"({"x":1})");
  EXPECT_EQ(answer->usage->cached_tokens, 4);
  EXPECT_EQ(answer->usage->image_tokens, 2);
  EXPECT_EQ(answer->usage->reasoning_tokens, 1);
  ASSERT_TRUE(answer->usage->energy);
  EXPECT_DOUBLE_EQ(answer->usage->energy->joules, 2.5);
  EXPECT_EQ(answer->usage->energy->method, "nvml");
}

TEST(Client, TakesAWholeAnswerFromAServerThatDoesNotStream) {
  StandInServer server([](const Heard& heard) -> SaidAll {
    if (heard.line.starts_with("GET")) return {{{whole_response(200, models_json("m"))}}};
    return {{{whole_response(
        200,
        R"({"choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}})")}}};
  });
  const auto client = OpenAiClient::open({.url = server.url()});
  const auto answer = (*client)->ask(kHello);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->content, "Hi");
}

TEST(Client, SaysWhatIsWrongWithAnAnswer) {
  SaidAll said;
  StandInServer server([&](const Heard& heard) -> SaidAll {
    if (heard.line.starts_with("GET")) return {{{whole_response(200, models_json("m"))}}};
    return said;
  });
  const auto client =
      OpenAiClient::open({.url = server.url(), .stall_timeout = 300ms, .max_answer_bytes = 100'000});
  ASSERT_TRUE(client.ok()) << client.error().message;
  const std::string token = event(R"({"choices":[{"index":0,"delta":{"content":"x"}}]})");
  struct Case {
    SaidAll said;
    ErrorCode code;
    std::string message;
  };
  const std::vector<Case> cases = {
      {{{{whole_response(
           404, R"({"error":{"message":"The model `y` does not exist.","type":"NotFoundError"}})")}}},
       ErrorCode::kNotFound,
       "HTTP 404 Not Found; the server says: The model `y` does not exist."},
      {{{{whole_response(401, R"({"error":"no"})")}}}, ErrorCode::kNotFound, "--api-key"},
      {{{{whole_response(503, "busy", "text/plain")}}}, ErrorCode::kUnavailable, "the server says: busy"},
      {{{{whole_response(422, R"({"detail":"bad"})")}}}, ErrorCode::kInvalid, "the server says: bad"},
      {{{{stream_head() + token}}, true}, ErrorCode::kUnavailable, "closed the connection in the middle"},
      {{{{stream_head() + token + chunk("")}}},
       ErrorCode::kUnavailable,
       "after 1 pieces without a finish_reason and without [DONE]"},
      {{{{stream_head() + event("[DONE]") + chunk("")}}}, ErrorCode::kInternal, ""},
      {{{{stream_head() + event("{\"choices\":")}}}, ErrorCode::kInvalid, "not a JSON object: {\"choices\":"},
      {{{{stream_head() + event(R"({"error":{"message":"out of pages"}})") + chunk("")}}},
       ErrorCode::kInternal,
       "the server reports: out of pages"},
      {{{{stream_head() + token}, {token, 600ms}}},
       ErrorCode::kUnavailable,
       "no byte came for 0.3 s in the middle"},
      {{{{"", 600ms}}, true}, ErrorCode::kUnavailable, "no byte came for 0.3 s"},
      {{{{"SSH-2.0-OpenSSH_9.2\r\n\r\n"}}, true}, ErrorCode::kInvalid, "is not HTTP/1.1"},
      {{{{whole_response(200, std::string(200'000, 'x'))}}},
       ErrorCode::kTooLarge,
       "longer than 100000 bytes"},
      {{{{whole_response(200, "<html>Hello</html>", "text/html")}}},
       ErrorCode::kInvalid,
       "found <html>Hello"},
      {{{{stream_head() + "zz\r\n"}}, true}, ErrorCode::kInvalid, "is not HTTP/1.1"},
  };
  for (const Case& c : cases) {
    said = c.said;
    const auto answer = (*client)->ask(kHello);
    if (c.message.empty()) {
      EXPECT_TRUE(answer.ok());  // an empty answer that ended properly
      continue;
    }
    ASSERT_FALSE(answer.ok()) << c.message;
    EXPECT_THAT(answer.error().message, HasSubstr(c.message));
    EXPECT_THAT(answer.error().message, HasSubstr(server.url() + "/chat/completions"));
    EXPECT_EQ(answer.error().code, c.code) << answer.error().message;
  }
  said = vllm_stream({"ok"}, 1, 1, 0ms);  // and after all that it still works
  const auto answer = (*client)->ask(kHello);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->content, "ok");
}

TEST(Client, SaysWhatIsWrongWithAServer) {
  const auto nobody = OpenAiClient::open({.url = "http://127.0.0.1:1/v1"});
  ASSERT_FALSE(nobody.ok());
  EXPECT_THAT(nobody.error().message, HasSubstr("http://127.0.0.1:1/v1/models: no connection"));
  EXPECT_THAT(nobody.error().message, HasSubstr("is the server up?"));
  const auto no_socket = OpenAiClient::open({.url = "unix:/nonexistent.sock"});
  ASSERT_FALSE(no_socket.ok());
  EXPECT_EQ(no_socket.error().code, ErrorCode::kUnavailable);
  StandInServer server([](const Heard& heard) -> SaidAll {
    if (heard.line.starts_with("GET /v1/")) return {{{whole_response(200, models_json("gemma"))}}};
    return {{{whole_response(200, R"({"hello":"world"})")}}};
  });
  const auto other = OpenAiClient::open({.url = server.url(), .model = "llama"});
  ASSERT_FALSE(other.ok());
  EXPECT_THAT(other.error().message, HasSubstr("'llama' is not served there; it lists: gemma"));
  const std::string elsewhere = server.url().substr(0, server.url().size() - 3) + "/api";
  const auto not_openai = OpenAiClient::open({.url = elsewhere});
  ASSERT_FALSE(not_openai.ok());
  EXPECT_THAT(not_openai.error().message, HasSubstr("is this an OpenAI server?"));
  const auto tls = OpenAiClient::open({.url = "https" + server.url().substr(4)});
  ASSERT_FALSE(tls.ok());
  EXPECT_THAT(tls.error().message, HasSubstr("TLS"));
  EXPECT_FALSE(OpenAiClient::open({.url = server.url(), .api_key = "a\r\nX: y"}).ok());
}

// Servers close idle connections; the request that finds one closed goes out again.
TEST(Client, AConnectionThatWasClosedMeanwhileIsReplaced) {
  StandInServer server([](const Heard& heard) -> SaidAll {
    if (heard.line.starts_with("GET")) return {{{whole_response(200, models_json("m"))}}, true};
    return vllm_stream({"x"}, 1, 1, 0ms);
  });
  const auto client = OpenAiClient::open({.url = server.url()});
  ASSERT_TRUE(client.ok());
  for (int i = 0; i < 3; ++i) {
    const auto answer = (*client)->ask(kHello);
    ASSERT_TRUE(answer.ok()) << answer.error().message;
  }
  EXPECT_EQ(server.connections(), 2);
}

TEST(Client, ManyStreamsAtOnceOnOneThread) {
  StandInServer server(like_vllm("m", 5ms));
  const auto client = OpenAiClient::open({.url = server.url()});
  ASSERT_TRUE(client.ok());
  constexpr int kStreams = 40;
  std::vector<std::promise<Result<ChatAnswer>>> promises(kStreams);
  std::vector<std::future<Result<ChatAnswer>>> answers;
  for (auto& promise : promises) answers.push_back(promise.get_future());
  boost::json::object request = kHello;
  request["max_tokens"] = 20;
  const auto body = std::make_shared<const std::string>((*client)->chat_body(request));
  const auto begun = ChatAnswer::Clock::now();
  for (auto& promise : promises)
    (*client)->start(body, [&](Result<ChatAnswer> answer) { promise.set_value(std::move(answer)); });
  for (auto& future : answers) {
    const auto answer = future.get();
    ASSERT_TRUE(answer.ok()) << answer.error().message;
    EXPECT_EQ(answer->pieces.size(), 20U);
    EXPECT_EQ(answer->usage->completion_tokens, 20);
  }
  EXPECT_LT(ChatAnswer::Clock::now() - begun, 3s);  // one after the other: 4 s
  EXPECT_EQ(server.connections(), kStreams);
}

TEST(Client, GoingAwayEndsWhatIsUnderWay) {
  StandInServer server(like_vllm("m", 50ms));
  std::promise<Result<ChatAnswer>> promise;
  auto ended = promise.get_future();
  {
    const auto client = OpenAiClient::open({.url = server.url()});
    ASSERT_TRUE(client.ok());
    boost::json::object request = kHello;
    request["max_tokens"] = 1000;
    (*client)->start(std::make_shared<const std::string>((*client)->chat_body(request)),
                     [&](Result<ChatAnswer> answer) { promise.set_value(std::move(answer)); });
    std::this_thread::sleep_for(120ms);
  }
  const auto answer = ended.get();
  ASSERT_FALSE(answer.ok());
  EXPECT_EQ(answer.error().code, ErrorCode::kCancelled);
}

TEST(Client, OtherRoutes) {
  StandInServer server([](const Heard& heard) -> SaidAll {
    if (heard.line.starts_with("GET")) return {{{whole_response(200, models_json("m"))}}};
    if (heard.line.starts_with("POST /v1/completions")) return {{{whole_response(200, R"({"choices":[]})")}}};
    return {{{whole_response(404, "no")}}};
  });
  const auto client = OpenAiClient::open({.url = server.url()});
  ASSERT_TRUE(client.ok());
  EXPECT_TRUE((*client)->post("/completions", {{"prompt", "x"}}).ok());
  const auto missing = (*client)->post("/responses", {});
  ASSERT_FALSE(missing.ok());
  EXPECT_THAT(missing.error().message, HasSubstr(server.url() + "/responses: HTTP 404"));
}

TEST(DataUrl, Base64) {
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("f"), "Zg==");
  EXPECT_EQ(base64("fo"), "Zm8=");
  EXPECT_EQ(base64("foo"), "Zm9v");
  EXPECT_EQ(base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(base64("\xff\xfe\xfd"), "//79");
  EXPECT_TRUE(data_url("\x89PNG\r\n\x1a\n").starts_with("data:image/png;base64,iVBORw0KGgo"));
}

}  // namespace
}  // namespace jewel
