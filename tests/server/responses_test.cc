// POST /v1/responses over the demo model, through real sockets.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include "api/answers.h"
#include "base/comes_true.h"
#include "server/openai/answer_writer.h"
#include "server/served_demo.h"

namespace jewel {
namespace {

namespace json = boost::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kPath = "/v1/responses";
const std::string kWho = R"({"input":"Who are you?","temperature":0})";
const std::string kTools =
    R"("tools":[{"type":"function","name":"get_weather","description":"Get the weather in a city","parameters":)"
    R"({"type":"object","properties":{"city":{"type":"string"}},"required":["city"]},"strict":true}])";
const std::string kWeather =
    R"({"input":"What is the weather in Paris?","temperature":0,"tool_choice":"required",)" + kTools + "}";

// What differs between two answers to the same request.
json::value comparable(json::value response) {
  json::object& object = response.as_object();
  object.erase("created_at");
  object.erase("timings");
  object.at("usage").as_object().erase("input_tokens_details");  // the second one finds pages of the first
  return response;
}

std::string text_of(const json::value& response) {
  std::string text;
  for (const json::value& item : response.at("output").as_array()) {
    if (item.at("type") != "message") continue;
    for (const json::value& part : item.at("content").as_array()) text += part.at("text").as_string();
  }
  return text;
}

// The output as the deltas of a stream say it, each item's last word checked against what came before.
json::array output_by_deltas(const std::vector<json::value>& events) {
  json::array output;
  json::array logprobs;
  std::string text;
  for (const json::value& event : events) {
    const std::string type(event.at("type").as_string());
    if (type == "response.output_item.added") {
      EXPECT_EQ(event.at("output_index").to_number<size_t>(), output.size());
      EXPECT_EQ(event.at("item").at("status"), "in_progress");
      output.push_back(event.at("item"));
      text.clear();
      logprobs.clear();
    } else if (type.ends_with(".delta")) {
      EXPECT_EQ(event.at("item_id"), output.back().at("id"));
      text += event.at("delta").as_string();
      if (type == "response.output_text.delta") {
        for (const json::value& token : event.at("logprobs").as_array()) logprobs.push_back(token);
      }
    } else if (type == "response.function_call_arguments.done") {
      EXPECT_EQ(event.at("arguments"), json::value(text));
      output.back().as_object()["arguments"] = text;
    } else if (type.ends_with("_text.done")) {
      EXPECT_EQ(event.at("text"), json::value(text));
    } else if (type == "response.content_part.added") {
      EXPECT_EQ(event.at("part").at("text"), "");
      output.back().at("content").as_array().push_back(event.at("part"));
    } else if (type == "response.content_part.done") {
      json::object& part = output.back().at("content").at(0).as_object();
      part["text"] = text;
      if (part.contains("logprobs")) part["logprobs"] = logprobs;
      EXPECT_EQ(event.at("part"), json::value(part));
    } else if (type == "response.output_item.done") {
      output.back().as_object()["status"] = event.at("item").at("status");
      EXPECT_EQ(event.at("item"), output.back());
    }
  }
  return output;
}

class Responses : public ServedDemo {
 protected:
  json::value respond(const std::string& body) { return ask(kPath, body); }
  void expect_error(const std::string& body, const std::string& param, const std::string& part,
                    int status = 400, const std::string& path = kPath) {
    const RawResponse response = refused(path, body);
    EXPECT_EQ(response.status, status) << body;
    boost::system::error_code error;
    const json::value value = json::parse(response.body, error);
    ASSERT_FALSE(error) << response.body;
    EXPECT_THAT(std::string(value.at("error").at("message").as_string()), HasSubstr(part)) << body;
    EXPECT_EQ(value.at("error").at("param"), param.empty() ? json::value() : json::value(param)) << body;
  }
  int64_t tokens(const std::string& body) {
    const json::value counted = ask("/v1/responses/input_tokens", body);
    EXPECT_EQ(counted.at("object"), "response.input_tokens");
    return counted.at("input_tokens").as_int64();
  }
};

TEST_F(Responses, AnswersWithAResponse) {
  const json::value answer =
      respond(with(kWho, R"("instructions":"Be brief.","metadata":{"a":"b"},"max_output_tokens":99,)"
                         R"("store":true,"user":"me","model":"demo")"));
  EXPECT_EQ(answer.at("object"), "response");
  EXPECT_EQ(answer.at("id"), "resp_test");
  EXPECT_EQ(answer.at("status"), "completed");
  EXPECT_TRUE(answer.at("error").is_null());
  EXPECT_TRUE(answer.at("incomplete_details").is_null());
  EXPECT_GT(answer.at("created_at").as_int64(), 1'700'000'000);
  // What was asked for, again.
  EXPECT_EQ(answer.at("instructions"), "Be brief.");
  EXPECT_EQ(answer.at("metadata"), (json::object{{"a", "b"}}));
  EXPECT_EQ(answer.at("max_output_tokens"), 99);
  EXPECT_EQ(answer.at("temperature"), 0);
  EXPECT_GT(answer.at("top_p").to_number<double>(), 0);  // the model's own
  EXPECT_EQ(answer.at("store"), false);
  EXPECT_EQ(answer.at("background"), false);
  EXPECT_EQ(answer.at("parallel_tool_calls"), true);
  EXPECT_EQ(answer.at("tool_choice"), "auto");
  EXPECT_EQ(answer.at("tools"), json::array());
  EXPECT_EQ(answer.at("text"), (json::object{{"format", {{"type", "text"}}}}));
  EXPECT_EQ(answer.at("truncation"), "disabled");
  EXPECT_EQ(answer.at("user"), "me");
  EXPECT_TRUE(answer.at("previous_response_id").is_null());

  const json::value whole = respond(kWho);
  ASSERT_EQ(whole.at("output").as_array().size(), 1U);
  const json::value& item = whole.at("output").at(0);
  EXPECT_EQ(item.at("type"), "message");
  EXPECT_EQ(item.at("role"), "assistant");
  EXPECT_EQ(item.at("status"), "completed");
  EXPECT_EQ(item.at("content").at(0).at("type"), "output_text");
  EXPECT_EQ(item.at("content").at(0).at("annotations"), json::array());
  EXPECT_THAT(text_of(whole), HasSubstr("Jewel"));
  const json::value& usage = whole.at("usage");
  EXPECT_GT(usage.at("output_tokens").as_int64(), 1);
  EXPECT_EQ(usage.at("total_tokens").as_int64(),
            usage.at("input_tokens").as_int64() + usage.at("output_tokens").as_int64());
  EXPECT_EQ(usage.at("output_tokens_details").at("reasoning_tokens"), 0);
  EXPECT_EQ(whole.at("model"), "demo");
}

TEST_F(Responses, SaysWhatChatSays) {
  const json::value chat = ask("/v1/chat/completions",
                               R"({"messages":[{"role":"user","content":"Who are you?"}],"temperature":0})");
  const json::value answer = respond(kWho);
  EXPECT_EQ(json::value(text_of(answer)), chat.at("choices").at(0).at("message").at("content"));
  EXPECT_EQ(answer.at("usage").at("input_tokens"), chat.at("usage").at("prompt_tokens"));
  EXPECT_EQ(answer.at("usage").at("output_tokens"), chat.at("usage").at("completion_tokens"));
  EXPECT_EQ(comparable(ask("/engines/v1/responses", kWho)), comparable(answer));
}

TEST_F(Responses, StreamsTheSameResponse) {
  for (const std::string& body :
       {kWho, with(kWho, R"("reasoning":{"effort":"low"},"max_output_tokens":200)"), kWeather,
        with(kWho, R"("max_output_tokens":3)"), with(kWho, R"("top_logprobs":2)"),
        with(kWho, R"("reasoning":{"effort":"high"},"max_output_tokens":6)"),
        with(kWeather, R"("max_output_tokens":5)"), with(kWho, R"("stop":["demo"])")}) {
    SCOPED_TRACE(body);
    const json::value whole = comparable(respond(body));
    const std::vector<json::value> events = stream(kPath, body);
    ASSERT_GE(events.size(), 3U);
    for (size_t i = 0; i < events.size(); ++i)
      EXPECT_EQ(events[i].at("sequence_number").to_number<size_t>(), i);
    EXPECT_EQ(events[0].at("type"), "response.created");
    EXPECT_EQ(events[0].at("response").at("status"), "in_progress");
    EXPECT_EQ(events[0].at("response").at("output"), json::array());
    EXPECT_TRUE(events[0].at("response").at("usage").is_null());
    EXPECT_EQ(events[1].at("type"), "response.in_progress");
    EXPECT_EQ(std::string(events.back().at("type").as_string()),
              "response." + std::string(whole.at("status").as_string()));
    EXPECT_EQ(comparable(events.back().at("response")), whole);
    EXPECT_EQ(json::value(output_by_deltas(events)), whole.at("output"));
  }
}

// All of an answer at once, as it comes where nobody read while it was made.
TEST(ResponsesWriter, BeginsWithoutUsageEvenAtTheEnd) {
  const auto writer = make_responses_writer({.id = "resp_1", .model = "demo", .repeated = R"("user":null)"});
  std::string out;
  writer->add_events(out, 0,
                     {.prompt = PromptInfo{.prompt_tokens = 3},
                      .pieces = {{.text = "Jewel"}},
                      .finish = Finish{.usage = {.prompt_tokens = 3, .completion_tokens = 1}}});
  writer->add_last_events(out);
  const std::vector<json::value> events = events_of(out);
  ASSERT_GE(events.size(), 3U);
  EXPECT_TRUE(events[0].at("response").at("usage").is_null());
  EXPECT_TRUE(events[1].at("response").at("usage").is_null());
  EXPECT_EQ(events.back().at("type"), "response.completed");
  EXPECT_EQ(events.back().at("response").at("usage").at("total_tokens"), 4);
}

TEST_F(Responses, NamesItsEvents) {
  EXPECT_THAT(
      types_of(stream(kPath, kWho)),
      ElementsAre("response.created", "response.in_progress", "response.output_item.added",
                  "response.content_part.added", "response.output_text.delta", "response.output_text.done",
                  "response.content_part.done", "response.output_item.done", "response.completed"));
  EXPECT_THAT(types_of(stream(kPath, kWeather)),
              ElementsAre("response.created", "response.in_progress", "response.output_item.added",
                          "response.function_call_arguments.delta", "response.function_call_arguments.done",
                          "response.output_item.done", "response.completed"));
  EXPECT_THAT(types_of(stream(kPath, with(kWho, R"("reasoning":{"effort":"low"},"max_output_tokens":4)"))),
              ElementsAre("response.created", "response.in_progress", "response.output_item.added",
                          "response.content_part.added", "response.reasoning_text.delta",
                          "response.reasoning_text.done", "response.content_part.done",
                          "response.output_item.done", "response.incomplete"));
}

TEST_F(Responses, SaysWhyAnAnswerIsNotComplete) {
  const json::value cut = respond(with(kWho, R"("max_output_tokens":3)"));
  EXPECT_EQ(cut.at("status"), "incomplete");
  EXPECT_EQ(cut.at("incomplete_details").at("reason"), "max_output_tokens");
  EXPECT_EQ(cut.at("output").at(0).at("status"), "incomplete");
  EXPECT_EQ(cut.at("usage").at("output_tokens"), 3);
}

TEST_F(Responses, Thinks) {
  const json::value answer = respond(with(kWho, R"("reasoning":{"effort":"medium","summary":"auto"})"));
  const json::value& thoughts = answer.at("output").at(0);
  EXPECT_EQ(thoughts.at("type"), "reasoning");
  EXPECT_EQ(thoughts.at("summary"), json::array());
  EXPECT_EQ(thoughts.at("content").at(0).at("type"), "reasoning_text");
  EXPECT_FALSE(thoughts.at("content").at(0).at("text").as_string().empty());
  EXPECT_EQ(answer.at("output").at(1).at("type"), "message");
  EXPECT_GT(answer.at("usage").at("output_tokens_details").at("reasoning_tokens").as_int64(), 0);
  EXPECT_EQ(answer.at("reasoning").at("effort"), "medium");
  EXPECT_TRUE(answer.at("reasoning").at("summary").is_null());
}

TEST_F(Responses, GivesLogprobsOfTheTextAlone) {
  const json::value answer = respond(with(
      kWho, R"("top_logprobs":2,"include":["message.output_text.logprobs"],"reasoning":{"effort":"low"})"));
  EXPECT_EQ(answer.at("top_logprobs"), 2);
  for (const json::value& item : answer.at("output").as_array()) {
    if (item.at("type") != "message") continue;
    std::string spelled;
    const json::value& part = item.at("content").at(0);
    for (const json::value& token : part.at("logprobs").as_array()) {
      spelled += token.at("token").as_string();
      EXPECT_EQ(token.at("top_logprobs").as_array().size(), 2U);
    }
    EXPECT_EQ(json::value(spelled), part.at("text"));
  }
  const json::value without = respond(kWho);
  EXPECT_EQ(without.at("output").at(0).at("content").at(0).at("logprobs"), json::array());
}

TEST_F(Responses, HoldsAnswersToASchema) {
  const std::string format = R"("text":{"format":{"type":"json_schema","name":"x","schema":{"type":"object",)"
                             R"("properties":{"n":{"type":"integer"}},"required":["n"],)"
                             R"("additionalProperties":false}}})";
  const json::value answer = respond(with(kWho, format));
  const json::value said = json::parse(text_of(answer));
  EXPECT_TRUE(said.at("n").is_int64()) << text_of(answer);
  EXPECT_EQ(said.as_object().size(), 1U);
  EXPECT_EQ(answer.at("text").at("format").at("name"), "x");
}

TEST_F(Responses, GoesThroughAToolLoop) {
  const json::value answer = respond(kWeather);
  ASSERT_EQ(answer.at("output").as_array().size(), 1U) << last_.body;
  const json::value& call = answer.at("output").at(0);
  EXPECT_EQ(call.at("type"), "function_call");
  EXPECT_EQ(call.at("name"), "get_weather");
  EXPECT_EQ(json::parse(call.at("arguments").as_string()), (json::object{{"city", "Paris"}}));
  EXPECT_EQ(call.at("status"), "completed");
  EXPECT_EQ(answer.at("tool_choice"), "required");

  const std::string rest = fmt::format(
      R"([{{"role":"user","content":[{{"type":"input_text","text":"What is the weather in Paris?"}}]}},{},)"
      R"({{"type":"function_call_output","call_id":{},"output":"sunny, 21 degrees"}}])",
      json::serialize(call), json::serialize(call.at("call_id")));
  const json::value second = respond(fmt::format(R"({{"input":{},"temperature":0,{}}})", rest, kTools));
  EXPECT_EQ(second.at("output").at(0).at("type"), "message");
  const json::value chat = ask(
      "/v1/chat/completions",
      R"({"temperature":0,"messages":[{"role":"user","content":"What is the weather in Paris?"},)"
      R"({"role":"assistant","tool_calls":[{"id":"c","type":"function","function":)"
      R"({"name":"get_weather","arguments":"{\"city\":\"Paris\"}"}}]},)"
      R"({"role":"tool","tool_call_id":"c","content":"sunny, 21 degrees"}],)"
      R"("tools":[{"type":"function","function":{"name":"get_weather","description":"Get the weather in a )"
      R"(city","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}]})");
  EXPECT_EQ(second.at("usage").at("input_tokens"), chat.at("usage").at("prompt_tokens"));
  EXPECT_EQ(json::value(text_of(second)), chat.at("choices").at(0).at("message").at("content"));
}

TEST_F(Responses, HidesToolsThatAreNotAllowed) {
  const std::string none = with(kWho, kTools);
  const std::string one = with(
      none,
      R"("tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"type":"function","name":"x"}]})");
  EXPECT_EQ(tokens(one), tokens(kWho));
  EXPECT_GT(tokens(none), tokens(kWho));
  const json::value forced = respond(with(none, R"("tool_choice":{"type":"allowed_tools","mode":"required",)"
                                                R"("tools":[{"type":"function","name":"get_weather"}]})"));
  EXPECT_EQ(forced.at("output").at(0).at("type"), "function_call");
  EXPECT_EQ(respond(with(none, R"("tool_choice":{"type":"function","name":"get_weather"})"))
                .at("output")
                .at(0)
                .at("name"),
            "get_weather");
}

// Items are put together to the messages that chat would have sent.
TEST_F(Responses, ReadsConversations) {
  const auto same = [&](const std::string& input, const std::string& messages) {
    SCOPED_TRACE(input);
    EXPECT_EQ(tokens(fmt::format(R"({{"input":{}}})", input)),
              chat_tokens(fmt::format(R"({{"messages":{}}})", messages)));
  };
  same(R"("Hello")", R"([{"role":"user","content":"Hello"}])");
  same(R"([{"role":"user","content":"Hello"}])", R"([{"role":"user","content":"Hello"}])");
  same(R"([{"type":"message","role":"developer","content":"A"},{"role":"system","content":"B"},)"
       R"({"role":"user","content":"C"}])",
       R"([{"role":"system","content":"A\n\nB"},{"role":"user","content":"C"}])");
  same(
      R"([{"role":"user","content":"Hello"},{"type":"message","id":"m","status":"completed","role":"assistant",)"
      R"("content":[{"type":"output_text","text":"Hi","annotations":[],"logprobs":[]}]},)"
      R"({"role":"user","content":"Bye"}])",
      R"([{"role":"user","content":"Hello"},{"role":"assistant","content":"Hi"},)"
      R"({"role":"user","content":"Bye"}])");
  // Two calls of one turn, answered together; thoughts belong to the turn.
  same(
      R"([{"role":"user","content":"Hello"},{"type":"reasoning","id":"r","summary":[],)"
      R"("content":[{"type":"reasoning_text","text":"Hm."}]},)"
      R"({"type":"function_call","call_id":"1","name":"f","arguments":"{\"a\":1}"},)"
      R"({"type":"function_call","call_id":"2","name":"f","arguments":"{\"a\":2}"},)"
      R"({"type":"function_call_output","call_id":"1","output":"x"},)"
      R"({"type":"function_call_output","call_id":"2","output":[{"type":"input_text","text":"y"}]}])",
      R"([{"role":"user","content":"Hello"},{"role":"assistant","reasoning":"Hm.","content":"","tool_calls":[)"
      R"({"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},)"
      R"({"id":"2","type":"function","function":{"name":"f","arguments":"{\"a\":2}"}}]},)"
      R"({"role":"tool","tool_call_id":"1","content":"x"},{"role":"tool","tool_call_id":"2","content":"y"}])");
  // A message that was cut off is continued.
  const json::value cut = respond(with(kWho, R"("max_output_tokens":3)"));
  const json::value rest =
      respond(fmt::format(R"({{"temperature":0,"input":[{{"role":"user","content":"Who are you?"}},{}]}})",
                          json::serialize(cut.at("output").at(0))));
  EXPECT_EQ(text_of(cut) + text_of(rest), text_of(respond(kWho)));
}

TEST_F(Responses, ReadsPictures) {
  const std::string body = fmt::format(
      R"({{"temperature":0,"input":[{{"role":"user","content":[{{"type":"input_image","detail":"auto",)"
      R"("image_url":"data:image/png;base64,{}"}},)"
      R"({{"type":"input_text","text":"What word is in the picture?"}}]}}]}})",
      example_picture("word.png"));
  const json::value answer = respond(body);
  EXPECT_THAT(text_of(answer), HasSubstr("violin"));
  EXPECT_GT(answer.at("usage").at("input_tokens_details").at("image_tokens").as_int64(), 0);
  EXPECT_EQ(tokens(body), answer.at("usage").at("input_tokens").as_int64());
  const auto image = [](const std::string& part) {
    return R"({"input":[{"role":"user","content":[{"type":"input_image",)" + part + "}]}]}";
  };
  const std::string url = "input[0].content[0].image_url";
  expect_error(image(R"("image_url":"data:image/png;base64,!")"), url, "base64");
  expect_error(image(R"("image_url":"data:image/png;base64,AAAA")"), url, url);
  expect_error(image(R"("image_url":null)"), url, "URL");
  expect_error(image(R"("file_id":"f")"), "input[0].content[0].file_id", "no files");
  expect_error(image(R"("image_url":"http://127.0.0.1:1/a.png")"), "image_url", url);
}

TEST_F(Responses, SaysWhatIsWrong) {
  expect_error("{}", "input", "missing");
  expect_error(R"({"input":[]})", "input", "empty");
  expect_error(R"({"input":7})", "input", "found 7");
  expect_error(R"({"input":[7]})", "input[0]", "an object");
  expect_error(R"({"input":[{"role":"king","content":"x"}]})", "input[0].role", "king");
  expect_error(R"({"input":[{"role":"user"}]})", "input[0].content", "missing");
  expect_error(R"({"input":[{"role":"user","content":[{"type":"input_file"}]}]})", "input[0].content[0].type",
               "input_file");
  expect_error(R"({"input":[{"type":"web_search_call"}]})", "input[0].type", "not served");
  expect_error(R"({"input":[{"type":"item_reference","id":"x"}]})", "input[0].type", "keeps no items");
  expect_error(R"({"input":[{"type":"function_call_output","call_id":"x","output":"y"}]})",
               "input[0].call_id", "no call");
  expect_error(
      R"({"input":[{"role":"user","content":"x"},{"type":"function_call","call_id":"x","name":"f","arguments":"{"}]})",
      "input[1].arguments", "input[1].arguments: not JSON");
  expect_error(with(kWho, R"("previous_response_id":"resp_1")"), "previous_response_id", "stateless");
  expect_error(with(kWho, R"("conversation":{"id":"c"})"), "conversation", "stateless");
  expect_error(with(kWho, R"("background":true)"), "background", "stateless");
  expect_error(with(kWho, R"("prompt":{"id":"p"})"), "prompt", "templates");
  expect_error(with(kWho, R"("store":1)"), "store", "true or false");
  expect_error(with(kWho, R"("model":"gpt-5")"), "model", "gpt-5", 404);
  expect_error(with(kWho, R"("max_output_tokens":0)"), "max_output_tokens", "at least 1");
  expect_error(with(kWho, R"("max_output_tokens":99999)"), "max_output_tokens",
               "max_output_tokens: found 99999");
  expect_error(with(kWho, R"("max_output_tokens":2040)"), "max_output_tokens", "lower max_output_tokens");
  expect_error(with(kWho, R"("stream":true,"max_output_tokens":2040)"), "max_output_tokens", "the limit is");
  expect_error(with(kWho, R"("temperature":-1)"), "temperature", "");
  expect_error(with(kWho, R"("top_logprobs":21)"), "top_logprobs", "0 to 20");
  expect_error(with(kWho, R"("tools":[{"type":"web_search"}])"), "tools[0].type", "web_search");
  expect_error(with(kWho, R"("tools":[{"type":"function"}])"), "tools[0].name", "missing");
  expect_error(with(kWho, R"("tool_choice":"maybe")"), "tool_choice", "expected auto");
  expect_error(with(kWho, R"("tool_choice":"required")"), "tool_choice", "no tools");
  expect_error(with(kWho, R"("tool_choice":{"type":"mcp","server_label":"x"})"), "tool_choice",
               "expected auto");
  expect_error(with(kWho, R"("tool_choice":{"type":"allowed_tools","mode":"auto","tools":null})"),
               "tool_choice.tools", "missing");
  expect_error(with(kWho, R"("tool_choice":{"type":"allowed_tools","mode":null,"tools":[]})"),
               "tool_choice.mode", "auto or required");
  expect_error(with(kWho, R"("text":{"format":{"type":"xml"}})"), "text.format.type", "xml");
  expect_error(with(kWho, R"("text":{"format":{"type":"json_schema","name":"x"}})"), "text.format.schema",
               "missing");
  expect_error(with(kWho, R"("reasoning":{"effort":"some"})"), "reasoning.effort", "some");
  expect_error("[]", "", "expected an object");
  EXPECT_EQ(demo_engine().stats().under_way, 0);
}

TEST_F(Responses, KeepsNothing) {
  for (const std::string& method : {"GET", "DELETE"}) {
    ASSERT_TRUE(client_->send(method + " /v1/responses/resp_1 HTTP/1.1\r\nHost: x\r\n\r\n"));
    const RawResponse response = client_->read();
    EXPECT_EQ(response.status, 404);
    EXPECT_THAT(response.body, HasSubstr("stateless"));
  }
  EXPECT_EQ(client_->get("/v1/responses").status, 405);
  EXPECT_EQ(client_->get("/v1/responses/resp_1/input_items").status, 404);
}

TEST_F(Responses, NamesFieldsThatItIgnores) {
  respond(with(kWho, R"("max_output_tokens":1,"truncation":"auto","service_tier":"flex","top_k":1,)"
                     R"("prompt_cache_key":"k","frobnicate":1)"));
  EXPECT_EQ(last_.header("x-ignored-fields"), "frobnicate");
}

TEST_F(Responses, EndsStreamsWithAFailureWhenToldToStop) {
  // What the test before left behind has ended, so that what runs is ours.
  ASSERT_TRUE(comes_true([] { return demo_engine().stats().under_way == 0; }, std::chrono::seconds(2)));
  ASSERT_TRUE(client_->send(
      post_bytes(kPath, with(kWho, R"("stream":true,"ignore_eos":true,"max_output_tokens":1900)"))));
  ASSERT_TRUE(comes_true([] { return demo_engine().stats().under_way != 0; }, std::chrono::seconds(2)));
  EXPECT_FALSE(server_->drain(std::chrono::milliseconds(100)));
  const RawResponse response = client_->read();
  EXPECT_TRUE(response.whole);
  const std::vector<json::value> events = events_of(response.body);
  ASSERT_FALSE(events.empty());
  const json::value& last = events.back();
  EXPECT_EQ(last.at("type"), "response.failed");
  EXPECT_EQ(last.at("response").at("status"), "failed");
  EXPECT_THAT(std::string(last.at("response").at("error").at("message").as_string()),
              HasSubstr("shutting down"));
}

TEST_F(Responses, CountsInTheMetrics) {
  respond(kWho);
  EXPECT_THAT(client_->get("/metrics").body, HasSubstr("vllm:e2e_request_latency_seconds_count{engine=\"0\","
                                                       "model_name=\"demo\"} 1\n"));
}

}  // namespace
}  // namespace jewel
