// usage.energy in every shape of an answer, the metrics, and neither of them without a meter.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "energy/metered_demo.h"
#include "server/http/http_server.h"
#include "server/openai/api_server.h"
#include "server/raw_client.h"

namespace jewel {
namespace {

namespace json = boost::json;
using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kChat = R"({"model":"demo","max_tokens":12,"temperature":0,"messages":)"
                              R"([{"role":"user","content":"Who are you?"}]})";

struct Shape {
  const char* path;
  const char* body;
};
constexpr Shape kShapes[] = {
    {"/v1/chat/completions", kChat},
    {"/v1/completions", R"({"model":"demo","prompt":"Who","max_tokens":12,"temperature":0})"},
    {"/v1/responses", R"({"model":"demo","input":"Who are you?","max_output_tokens":12,"temperature":0})"},
    {"/v1/messages", kChat},
};

class Served {
 public:
  explicit Served(MeteredDemo demo) : demo_(std::move(demo)) {
    ApiOptions options;
    options.defaults.model_names = {"demo"};
    api_ = std::make_unique<ApiServer>(*demo_.engine, std::move(options));
    auto server = HttpServer::start({.host = "127.0.0.1", .port = 0}, *api_);
    EXPECT_TRUE(server.ok());
    server_ = std::move(*server);
    client_ = std::make_unique<RawClient>(server_->port());
  }

  json::object ask(const Shape& shape, const std::string& more = {}) {
    return json::parse(text(shape, more)).as_object();
  }
  std::string text(const Shape& shape, const std::string& more = {}) {
    std::string body = shape.body;
    if (!more.empty()) body = body.substr(0, body.size() - 1) + "," + more + "}";
    const RawResponse response = client_->post(shape.path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    return response.body;
  }
  std::string get(const std::string& path) { return client_->get(path).body; }

 private:
  MeteredDemo demo_;
  std::unique_ptr<ApiServer> api_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<RawClient> client_;
};

void expect_energy(const json::object& usage, const std::string& where) {
  ASSERT_TRUE(usage.contains("energy")) << where;
  const json::object& energy = usage.at("energy").as_object();
  const auto joules = [&](const char* name) { return energy.at(name).to_number<double>(); };
  EXPECT_NEAR(joules("joules"), joules("image_joules") + joules("prefill_joules") + joules("decode_joules"),
              2e-6)
      << where;
  EXPECT_GT(joules("joules"), 0) << where;
  EXPECT_GE(joules("decode_joules"), joules("reasoning_joules")) << where;
  EXPECT_GE(joules("idle_share_joules"), 0) << where;
  EXPECT_EQ(energy.at("method").as_string(), "nvml") << where;
  EXPECT_EQ(energy.size(), 7u) << where;
}

// Of the last event that has one.
json::object last_usage(const std::string& stream) {
  json::object usage;
  size_t at = 0;
  while ((at = stream.find("data: {", at)) != std::string::npos) {
    at += 6;
    const json::object event = json::parse(stream.substr(at, stream.find("\n\n", at) - at)).as_object();
    const json::value* found = event.if_contains("usage");
    if (const json::value* response = event.if_contains("response"))
      found = response->as_object().if_contains("usage");
    if (found != nullptr && found->is_object()) usage = found->as_object();
  }
  return usage;
}

TEST(EnergyOverHttp, EveryShapeHasIt) {
  Served served(metered_demo());
  for (const Shape& shape : kShapes) {
    expect_energy(served.ask(shape).at("usage").as_object(), shape.path);
    const std::string more = std::string(shape.path).find("completions") != std::string::npos
                                 ? R"("stream":true,"stream_options":{"include_usage":true})"
                                 : R"("stream":true)";
    expect_energy(last_usage(served.text(shape, more)), std::string("streamed ") + shape.path);
  }
}

TEST(EnergyOverHttp, SeveralAnswersAddUp) {
  Served served(metered_demo());
  const json::object one = served.ask(kShapes[0]).at("usage").as_object();
  const json::object three = served.ask(kShapes[0], R"("n":3,"temperature":1)").at("usage").as_object();
  expect_energy(one, "one");
  expect_energy(three, "three");
}

TEST(EnergyOverHttp, MetricsHaveIt) {
  Served served(metered_demo());
  served.ask(kShapes[0]);
  const std::string page = served.get("/metrics");
  for (const char* phase : {"image", "prefill", "decode", "idle"})
    EXPECT_THAT(page, ContainsRegex("\njewel_energy_joules_total\\{[^}]*phase=\"" + std::string(phase) +
                                    "\"\\} [0-9]"));
  EXPECT_THAT(page, HasSubstr("# TYPE jewel_energy_joules_total counter"));
  EXPECT_THAT(page, ContainsRegex("\njewel_power_watts\\{[^}]*\\} [0-9]"));
  EXPECT_THAT(page, ContainsRegex("\njewel_joules_per_output_token\\{[^}]*\\} [0-9]"));
  EXPECT_THAT(page, ContainsRegex("\njewel_request_energy_joules_count\\{[^}]*\\} 1\n"));
  EXPECT_THAT(page,
              ContainsRegex("\nhw_energy_joules_total\\{hw_id=\"scripted GPU\",hw_type=\"gpu\"\\} [0-9]"));
}

TEST(EnergyOverHttp, WithoutAMeterThereIsNoneAnywhere) {
  Served served(demo_without_meter());
  for (const Shape& shape : kShapes) {
    EXPECT_FALSE(served.ask(shape).at("usage").as_object().contains("energy")) << shape.path;
    EXPECT_THAT(served.text(shape, R"("stream":true)"), Not(HasSubstr("joules"))) << shape.path;
  }
  const std::string page = served.get("/metrics");
  EXPECT_THAT(page, Not(HasSubstr("joules")));
  EXPECT_THAT(page, Not(HasSubstr("watts")));
}

}  // namespace
}  // namespace jewel
