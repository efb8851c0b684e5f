#include "server/served_demo.h"

#include "api/answers.h"
#include "client/data_url.h"

namespace jewel {

namespace json = boost::json;

void ServedDemo::start(ApiOptions options) {
  if (options.defaults.model_names.empty()) options.defaults.model_names = {"demo", "gpt-4"};
  options.model_root = "models/jewel-demo";
  options.max_body_bytes = 8 << 20;
  server_.reset();
  api_ = std::make_unique<ApiServer>(demo_engine(), std::move(options));
  auto server = HttpServer::start({.host = "127.0.0.1", .port = 0}, *api_);
  ASSERT_TRUE(server.ok()) << server.error().message;
  server_ = std::move(*server);
  client_ = std::make_unique<RawClient>(server_->port());
}

json::value ServedDemo::ask(const std::string& path, const std::string& body) {
  last_ = client_->post(path, body, "X-Request-Id: test\r\n");
  EXPECT_EQ(last_.status, 200) << last_.body << "\n" << body.substr(0, 400);
  boost::system::error_code error;
  json::value value = json::parse(last_.body, error);
  EXPECT_FALSE(error) << last_.body;
  return value;
}

std::vector<json::value> ServedDemo::stream(const std::string& path, const std::string& body) {
  last_ = client_->post(path, with(body, R"("stream":true)"), "X-Request-Id: test\r\n");
  EXPECT_EQ(last_.status, 200) << last_.body;
  EXPECT_EQ(last_.header("content-type"), "text/event-stream; charset=utf-8");
  return events_of(last_.body);
}

RawResponse ServedDemo::refused(const std::string& path, const std::string& body) {
  last_ = RawClient(server_->port()).post(path, body);
  EXPECT_GE(last_.status, 400) << body;
  return last_;
}

int64_t ServedDemo::chat_tokens(const std::string& body) {
  return ask("/tokenize", body).at("count").as_int64();
}

std::vector<json::value> events_of(std::string_view body) {
  constexpr std::string_view kName = "event: ";
  constexpr std::string_view kData = "\ndata: ";
  std::vector<json::value> events;
  while (!body.empty()) {
    const size_t data = body.find(kData);
    const size_t end = body.find("\n\n");
    if (!body.starts_with(kName) || data == std::string_view::npos || end == std::string_view::npos) {
      ADD_FAILURE() << "no event: " << body.substr(0, 200);
      break;
    }
    events.push_back(json::parse(body.substr(data + kData.size(), end - data - kData.size())));
    EXPECT_EQ(events.back().at("type").as_string(), body.substr(kName.size(), data - kName.size()));
    body.remove_prefix(end + 2);
  }
  return events;
}

std::vector<std::string> types_of(const std::vector<json::value>& events) {
  std::vector<std::string> types;
  for (const json::value& event : events) {
    const std::string type(event.at("type").as_string());
    if (types.empty() || types.back() != type) types.push_back(type);
  }
  return types;
}

std::string with(const std::string& object, const std::string& members) {
  return object.substr(0, object.size() - 1) + "," + members + "}";
}

std::string example_picture(const std::string& name) {
  return base64(read_file("models/examples/" + name));
}

}  // namespace jewel
