// What is around the answers, over the demo model and through real sockets: pictures by address, CORS, the
// access line, limits per client, health.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>
#include <thread>

#include "api/answers.h"
#include "base/comes_true.h"
#include "base/log.h"
#include "server/http/http_server.h"
#include "server/openai/api_server.h"
#include "server/openai/golden_health.h"
#include "server/raw_client.h"
#include "server/stand_in_site.h"

namespace jewel {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kChat = "/v1/chat/completions";

std::string chat(std::string_view more = R"("max_tokens":4)") {
  return fmt::format(R"({{"messages":[{{"role":"user","content":"Who are you?"}}],"temperature":0,{}}})",
                     more);
}

std::string about(const std::vector<std::string>& urls, std::string_view more = R"("max_tokens":16)") {
  std::string parts;
  for (const std::string& url : urls)
    parts += fmt::format(R"({{"type":"image_url","image_url":{{"url":"{}"}}}},)", url);
  return fmt::format(
      R"({{"messages":[{{"role":"user","content":[{}{{"type":"text","text":"What word is in the picture?"}}]}}],)"
      R"("temperature":0,{}}})",
      parts, more);
}

class Operation : public testing::Test {
 protected:
  void start(ApiOptions options = {}) {
    options.defaults.model_names = {"demo"};
    server_.reset();
    api_ = std::make_unique<ApiServer>(demo_engine(), std::move(options));
    auto server = HttpServer::start({.host = "127.0.0.1", .port = 0}, *api_);
    ASSERT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
  }
  RawResponse post(const std::string& body, const std::string& path = kChat,
                   const std::string& headers = {}) {
    return RawClient(server_->port()).post(path, body, headers);
  }
  RawResponse get(const std::string& path, const std::string& headers = {}) {
    return RawClient(server_->port()).get(path, headers);
  }
  static ApiOptions with_loopback() {
    ApiOptions options;
    options.images.hosts = {{"127.0.0.1"}};
    return options;
  }

  std::unique_ptr<ApiServer> api_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(Operation, FetchesPicturesByAddress) {
  start(with_loopback());
  StandInSite site([](const std::string& path) {
    return path == "/word.png" ? site_answer(read_file("models/examples/word.png"))
                               : site_answer("no", "", "404 Not Found");
  });
  const RawResponse whole = post(about({site.url("/word.png")}));
  EXPECT_EQ(whole.status, 200) << whole.body;
  EXPECT_THAT(whole.body, HasSubstr("violin"));
  EXPECT_EQ(site.heads().size(), 1U);
  const RawResponse stream = post(about({site.url("/word.png")}, R"("max_tokens":16,"stream":true,"n":2)"));
  EXPECT_EQ(stream.status, 200);
  EXPECT_EQ(stream.events().back(), "[DONE]");
  EXPECT_EQ(site.heads().size(), 2U);
  // Twice in one request: fetched once.
  const RawResponse twice = post(about({site.url("/word.png"), site.url("/word.png")}));
  EXPECT_EQ(twice.status, 200) << twice.body;
  EXPECT_EQ(site.heads().size(), 3U);
  const RawResponse tokens = post(about({site.url("/word.png")}), "/tokenize");
  EXPECT_EQ(tokens.status, 200) << tokens.body;
  EXPECT_GT(json::parse(tokens.body).at("count").as_int64(), 70);
}

TEST_F(Operation, SaysWhyAPictureIsMissing) {
  start(with_loopback());
  StandInSite site([](const std::string& path) {
    if (path == "/text") return site_answer("no picture at all");
    return site_answer("no", "", "404 Not Found");
  });
  const auto expect = [&](const std::string& url, int status, const std::string& part) {
    const RawResponse got = post(about({url}, R"("stream":true)"));
    EXPECT_EQ(got.status, status) << got.body;
    const json::value error = json::parse(got.body).at("error");
    EXPECT_EQ(error.at("param"), json::value("image_url"));
    EXPECT_EQ(error.at("code").as_int64(), status);
    EXPECT_EQ(error.at("type"), json::value(status == 422 ? "UnprocessableEntityError" : "BadRequestError"));
    EXPECT_THAT(std::string(error.at("message").as_string()),
                HasSubstr("messages[0].content[0].image_url.url: "));
    EXPECT_THAT(std::string(error.at("message").as_string()), HasSubstr(part));
  };
  expect(site.url("/none"), 422, "404 Not Found");
  expect(site.url("/text"), 422, "expected JPEG");
  expect("http://127.0.0.1:1/", 422, "127.0.0.1");
  expect("http://other.example/", 400, "--allowed-media-domains");
  expect("http://user@127.0.0.1/", 400, "user name");
  expect("file:///etc/passwd", 400, "--allowed-local-media-path");
  start();
  expect(site.url("/none"), 400, "not of the public internet");
  expect("http://169.254.169.254/latest/", 400, "not of the public internet");
  ApiOptions options;
  options.images.hosts = {std::vector<std::string>()};
  start(options);
  expect("https://example.com/", 400, "data URL");
  options = with_loopback();
  options.images.can_fetch = false;
  start(options);
  const RawResponse without = post(about({site.url("/")}));
  EXPECT_EQ(without.status, 501);
  EXPECT_THAT(without.body, HasSubstr("libcurl"));
  options = with_loopback();
  options.images.max_images = 1;
  start(options);
  const RawResponse many = post(about({site.url("/1"), site.url("/2")}));
  EXPECT_EQ(many.status, 400);
  EXPECT_THAT(many.body, HasSubstr("at most 1 image(s)"));
}

TEST_F(Operation, ReadsFilesUnderOneDirectory) {
  ApiOptions options;
  options.images.local_directory = JEWEL_SOURCE_DIR "/models/examples";
  start(options);
  const RawResponse read = post(about({"file://" JEWEL_SOURCE_DIR "/models/examples/word.png"}));
  EXPECT_EQ(read.status, 200) << read.body;
  EXPECT_THAT(read.body, HasSubstr("violin"));
  EXPECT_EQ(post(about({"file://" JEWEL_SOURCE_DIR "/README.md"})).status, 400);
}

TEST_F(Operation, GivesUpPicturesOfClientsThatLeft) {
  start(with_loopback());
  StandInSite site([](const std::string&) { return SiteAnswer{.hang = true}; });
  {
    RawClient client(server_->port());
    ASSERT_TRUE(client.send(post_bytes(kChat, about({site.url("/a"), site.url("/b")}))));
    EXPECT_TRUE(comes_true([&] { return site.heads().size() == 2; }, 5s));
    EXPECT_EQ(get("/health").status, 200);  // nobody else waits
    EXPECT_EQ(post(chat()).status, 200);
    client.reset();
  }
  const auto left = std::chrono::steady_clock::now();
  EXPECT_TRUE(comes_true([&] { return site.left() == 2; }, 5s));
  EXPECT_LT(std::chrono::steady_clock::now() - left, 2500ms);
  // One that is told to end while a picture is on its way ends with an error.
  RawClient waiting(server_->port());
  ASSERT_TRUE(waiting.send(post_bytes(kChat, about({site.url("/c")}))));
  EXPECT_TRUE(comes_true([&] { return site.heads().size() == 3; }, 5s));
  EXPECT_FALSE(server_->drain(100ms));
  EXPECT_EQ(waiting.read().status, 503);
}

TEST_F(Operation, LetsPagesOfOtherOriginsReadAnswersAndErrors) {
  const std::string origin = "Origin: https://a.example\r\n";
  start();
  EXPECT_EQ(get("/version", origin).header("access-control-allow-origin"), "");
  ApiOptions options{.api_keys = {"secret"}};
  options.cors.origins = {"https://a.example"};
  start(options);
  EXPECT_EQ(get("/version", origin).header("access-control-allow-origin"), "https://a.example");
  const RawResponse refused = get("/v1/models", origin);
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.header("access-control-allow-origin"), "https://a.example");
  EXPECT_EQ(refused.header("vary"), "Origin");
  const RawResponse stream =
      post(chat(R"("stream":true,"max_tokens":2)"), kChat, origin + "Authorization: Bearer secret\r\n");
  EXPECT_EQ(stream.status, 200);
  EXPECT_EQ(stream.header("access-control-allow-origin"), "https://a.example");
  EXPECT_EQ(get("/version", "Origin: https://b.example\r\n").header("access-control-allow-origin"), "");
  const auto preflight = [&](const std::string& from) {
    RawClient client(server_->port());
    EXPECT_TRUE(
        client.send(fmt::format("OPTIONS {} HTTP/1.1\r\nHost: x\r\nOrigin: {}\r\n"
                                "Access-Control-Request-Method: POST\r\n"
                                "Access-Control-Request-Headers: authorization\r\n\r\n",
                                kChat, from)));
    return client.read();
  };
  const RawResponse good = preflight("https://a.example");  // without a key
  EXPECT_EQ(good.status, 204);
  EXPECT_EQ(good.header("access-control-allow-origin"), "https://a.example");
  EXPECT_EQ(good.header("access-control-allow-headers"), "authorization");
  EXPECT_EQ(preflight("https://b.example").status, 403);
}

TEST_F(Operation, LogsALineForEachRequestOnlyWhenAsked) {
  for (const bool asked : {false, true}) {
    ApiOptions options{.api_keys = {"secret-key"}, .log_requests = asked};
    start(options);
    testing::internal::CaptureStderr();
    const std::string key = "Authorization: Bearer secret-key\r\nX-Request-Id: my-id\r\n";
    EXPECT_EQ(post(chat(), std::string(kChat) + "?token=hidden", key).status, 200);
    EXPECT_EQ(get("/v1/models").status, 401);
    EXPECT_EQ(get("/%0a%1b[31m").status, 401);
    server_.reset();  // every line is written
    const std::string lines = testing::internal::GetCapturedStderr();
    if (!asked) {
      EXPECT_EQ(lines, "");
      continue;
    }
    EXPECT_THAT(lines,
                HasSubstr("info: request client=127.0.0.1 method=POST path=/v1/chat/completions status=200"));
    EXPECT_THAT(lines, HasSubstr("whole=true id=my-id\n"));
    EXPECT_THAT(lines, HasSubstr("path=/v1/models status=401"));
    for (const char* secret : {"secret-key", "Who are you", "hidden", "\x1b"})
      EXPECT_THAT(lines, Not(HasSubstr(secret)));
    EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 3) << lines;
  }
}

TEST_F(Operation, HoldsAClientToItsShare) {
  ApiOptions options{.api_keys = {"one", "two"}, .max_requests_per_client = 1};
  start(options);
  const std::string one = "Authorization: Bearer one\r\n";
  RawClient busy(server_->port());
  ASSERT_TRUE(
      busy.send(post_bytes(kChat, chat(R"("ignore_eos":true,"max_tokens":1500,"stream":true)"), one)));
  EXPECT_THAT(busy.read_until("data:"), HasSubstr("200 OK"));
  const RawResponse second = post(chat(), kChat, one);
  EXPECT_EQ(second.status, 429);
  EXPECT_EQ(second.header("retry-after"), "1");
  EXPECT_THAT(second.body, HasSubstr("RateLimitError"));
  EXPECT_EQ(post(chat(), kChat, "Authorization: Bearer two\r\n").status, 200);
  EXPECT_EQ(get("/v1/models", one).status, 200);
  busy.reset();
  EXPECT_TRUE(comes_true([&] { return post(chat(), kChat, one).status == 200; }, 5s));
}

TEST_F(Operation, ChecksItselfWhenAsked) {
  ApiOptions options{.api_keys = {"secret"}, .root_path = "/api"};
  start(options);
  const std::string key = "Authorization: Bearer secret\r\n";
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(get("/health?deep=0").status, 200);
  for (const char* path : {"/health?deep=1", "/api/health?x=1&deep=true", "/health/deep"})
    EXPECT_EQ(get(path).status, 401) << path;
  const RawResponse first = get("/health?deep=1", key);
  EXPECT_EQ(first.status, 200) << first.body;
  const json::value report = json::parse(first.body);
  EXPECT_EQ(report.at("status"), json::value("ok"));
  EXPECT_FALSE(report.at("compared").as_bool());
  const json::array& prompts = report.at("prompts").as_array();
  ASSERT_EQ(prompts.size(), 3U);
  for (const json::value& prompt : prompts) {
    EXPECT_TRUE(prompt.at("ok").as_bool());
    EXPECT_TRUE(prompt.at("problem").is_null());
    EXPECT_EQ(prompt.at("tokens").as_int64(), 8);
    EXPECT_GT(prompt.at("ttft_s").as_double(), 0);
  }
  std::this_thread::sleep_for(20ms);
  const json::value again = json::parse(get("/api/health?deep=1", key).body);  // kept
  EXPECT_EQ(again.at("seconds"), report.at("seconds"));
  EXPECT_GT(again.at("age_s").as_double(), report.at("age_s").as_double());
  EXPECT_EQ(demo_engine().stats().under_way, 0);
  api_->set_draining();
  for (const char* path : {"/health", "/health?deep=1", "/ping"}) {
    const RawResponse draining = get(path, key);
    EXPECT_EQ(draining.status, 503) << path;
    EXPECT_EQ(draining.header("retry-after"), "1");
  }
}

// A check's end.
ServerResponse ended(Reply reply) {
  if (auto* whole = std::get_if<ServerResponse>(&reply)) return std::move(*whole);
  PendingReply& pending = *std::get<std::unique_ptr<PendingReply>>(reply);
  std::atomic<bool> woken{false};
  pending.start([&] { woken = true; });
  EXPECT_TRUE(comes_true([&] { return woken.load(); }, 10s));
  PendingReply::Progress progress = pending.take();
  EXPECT_TRUE(progress.done);
  return progress.done ? *progress.head : ServerResponse{.status = 0};
}

// The demo engine, and what a broken one would say.
class Golden : public testing::Test {
 protected:
  GoldenHealth health(std::chrono::milliseconds keep = 0ms) {
    return GoldenHealth(
        [this](Request request, const UpdateCallback& on_update) {
          ++submitted_;
          return demo_engine().submit(std::move(request), [this, on_update](Update&& update) {
            if (spoil_) spoil_(update);
            on_update(std::move(update));
          });
        },
        demo_engine().info(), keep);
  }
  static ServerResponse check(GoldenHealth& health) { return ended(health.check()); }
  std::function<void(Update&)> spoil_;
  std::atomic<int> submitted_{0};
};

TEST_F(Golden, ComputesTheSameAgain) {
  GoldenHealth golden = health();
  EXPECT_THAT(check(golden).body, HasSubstr(R"("compared":false)"));
  const auto images_before = demo_engine().stats();
  for (int i = 0; i < 3; ++i) {
    const ServerResponse again = check(golden);
    EXPECT_EQ(again.status, 200) << again.body;
    EXPECT_THAT(again.body, HasSubstr(R"("compared":true)"));
    const json::value report = json::parse(again.body);
    for (const json::value& prompt : report.at("prompts").as_array())
      EXPECT_EQ(prompt.at("logprob_drift").to_number<double>(), 0);  // bitwise
  }
  const auto images_after = demo_engine().stats();
  EXPECT_EQ(images_after.image_queries - images_before.image_queries, 3U);
  EXPECT_EQ(images_after.image_hits, images_before.image_hits);  // encoded anew
}

TEST_F(Golden, SeesOtherTokensAndNumbers) {
  GoldenHealth golden = health();
  ASSERT_EQ(check(golden).status, 200);
  const auto expect_failure = [&](const std::string& part) {
    const ServerResponse response = check(golden);
    EXPECT_EQ(response.status, 503) << response.body;
    EXPECT_THAT(response.body, HasSubstr(R"({"status":"failed")"));
    EXPECT_THAT(response.body, HasSubstr(part));
    EXPECT_TRUE(json::parse(response.body).is_object());
  };
  spoil_ = [](Update& update) {
    if (!update.tokens.empty()) ++update.tokens[0].id;
  };
  expect_failure("not the one that was taken at first");
  spoil_ = [](Update& update) {
    if (!update.tokens.empty() && update.tokens[0].chance) update.tokens[0].chance->logprob += 0.5F;
  };
  expect_failure("not the one that was taken at first");
  spoil_ = [](Update& update) {
    if (!update.tokens.empty() && update.tokens[0].chance) update.tokens[0].chance->logprob = NAN;
  };
  expect_failure("not finite");
  spoil_ = [](Update& update) {
    if (update.finish) update.finish->error = Error{ErrorCode::kInternal, "the device fell off", {}};
  };
  expect_failure("the device fell off");
  spoil_ = {};
  EXPECT_EQ(check(golden).status, 200);
}

TEST_F(Golden, RunsOnceForAllWhoAsk) {
  GoldenHealth golden = health(1min);
  std::vector<std::thread> askers;
  askers.reserve(8);
  std::atomic<int> good{0};
  for (int i = 0; i < 8; ++i)
    askers.emplace_back([&] { good += ended(golden.check()).status == 200 ? 1 : 0; });
  for (std::thread& asker : askers) asker.join();
  EXPECT_EQ(good, 8);
  EXPECT_EQ(submitted_, 3);
  // First answers that are bad are not kept as the measure.
  GoldenHealth bad = health();
  spoil_ = [](Update& update) {
    if (update.finish) update.finish->error = Error{ErrorCode::kInternal, "no", {}};
  };
  EXPECT_EQ(check(bad).status, 503);
  spoil_ = {};
  EXPECT_THAT(check(bad).body, HasSubstr(R"("compared":false)"));
}

}  // namespace
}  // namespace jewel
