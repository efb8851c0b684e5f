// ServedDemo: the demo model behind an ApiServer on a free port, and JSON to and from its routes. For the
// tests of single APIs.
#pragma once

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/http/http_server.h"
#include "server/openai/api_server.h"
#include "server/raw_client.h"

namespace jewel {

class ServedDemo : public testing::Test {
 protected:
  void start(ApiOptions options = {});
  void SetUp() override { start(); }

  // A 200 as JSON. Every request has the same X-Request-Id, so that ids can be compared.
  boost::json::value ask(const std::string& path, const std::string& body);
  // The events of a stream.
  std::vector<boost::json::value> stream(const std::string& path, const std::string& body);
  // A refused request, on a connection of its own.
  RawResponse refused(const std::string& path, const std::string& body);
  // How many tokens a chat's prompt has, by /tokenize.
  int64_t chat_tokens(const std::string& body);

  std::unique_ptr<ApiServer> api_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<RawClient> client_;
  RawResponse last_;
};

// As JSON; each one's "event:" line must say its type, and nothing may stand between them.
std::vector<boost::json::value> events_of(std::string_view body);
// Their types, each run of equal ones once.
std::vector<std::string> types_of(const std::vector<boost::json::value>& events);
// `{"a":1}` with more members.
std::string with(const std::string& object, const std::string& members);
// A picture of models/examples.
std::string example_picture(const std::string& name);

}  // namespace jewel
