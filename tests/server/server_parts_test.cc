#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/comes_true.h"
#include "base/log.h"
#include "server/http/cors.h"
#include "server/openai/client_limit.h"
#include "server/openai/engine_watch.h"
#include "server/openai/stats_log.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

TEST(StatsLine, SaysWhatHappenedSinceTheLast) {
  StatsLine line;
  Stats stats;
  stats.prompt_tokens = 1000;
  stats.prefix_queries = 1000;
  EXPECT_TRUE(line.look(stats, 10));
  stats.prompt_tokens = 1250;
  stats.generated_tokens = 100;
  stats.prefix_queries = 1200;
  stats.prefix_hits = 50;
  stats.under_way = 3;
  stats.running = 2;
  stats.waiting = 1;
  stats.kv_usage = 0.125;
  const auto figures = line.look(stats, 10);
  ASSERT_TRUE(figures);
  EXPECT_EQ(figures->text(),
            "Engine 000: Avg prompt throughput: 25.0 tokens/s, Avg generation throughput: 10.0 tokens/s, "
            "Running: 2 reqs, Waiting: 1 reqs, GPU KV cache usage: 12.5%, Prefix cache hit rate: 25.0%, "
            "MM cache hit rate: 0.0%");
  stats.under_way = stats.running = stats.waiting = 0;
  stats.kv_usage = 0;
  ASSERT_TRUE(line.look(stats, 10));  // a line with zeros
  EXPECT_FALSE(line.look(stats, 10));
  EXPECT_FALSE(line.look(stats, 10));
  stats.generated_tokens += 1;
  const auto again = line.look(stats, 10);
  ASSERT_TRUE(again);
  EXPECT_DOUBLE_EQ(again->generation_tok_s, 0.1);
  EXPECT_DOUBLE_EQ(again->prefix_hit_rate, 0.25);  // nothing was looked up since
}

TEST(StatsLog, LogsWhileThereIsWork) {
  testing::internal::CaptureStderr();
  std::atomic<uint64_t> tokens{0};
  std::atomic<int> asked{0};
  {
    const StatsLog log(
        [&] {
          ++asked;
          Stats stats;
          stats.generated_tokens = tokens;
          return stats;
        },
        5ms);
    EXPECT_TRUE(comes_true([&] { return asked >= 5; }));
    tokens = 100;
    EXPECT_TRUE(comes_true([&] { return asked >= 10; }));
  }
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 2) << lines;  // the work, and a line with zeros
  EXPECT_THAT(lines, HasSubstr("info: Engine 000: Avg prompt throughput: 0.0 tokens/s"));
}

TEST(EngineWatch, SeesAnEngineThatStandsStill) {
  EngineWatch watch(20ms);
  Stats stats;
  stats.steps_failed_in_a_row = 2;
  EXPECT_FALSE(watch.trouble(stats));
  stats.steps_failed_in_a_row = 3;
  EXPECT_THAT(*watch.trouble(stats), HasSubstr("last 3 steps"));
  stats.steps_failed_in_a_row = 0;
  stats.running = 1;
  stats.steps = 7;
  EXPECT_FALSE(watch.trouble(stats));
  std::this_thread::sleep_for(30ms);
  EXPECT_THAT(*watch.trouble(stats), HasSubstr("ended no step"));
  stats.steps = 8;
  EXPECT_FALSE(watch.trouble(stats));
  std::this_thread::sleep_for(30ms);
  stats.running = 0;
  EXPECT_FALSE(watch.trouble(stats));
  stats.running = 1;
  EXPECT_FALSE(watch.trouble(stats));  // its time begins when it runs again
}

TEST(ClientLimit, CountsByKeyOrAddress) {
  const auto from = [](const std::string& peer, const std::string& key = "") {
    ServerRequest head{.method = "POST", .peer = peer};
    if (!key.empty()) head.headers.push_back({"Authorization", "Bearer " + key});
    return head;
  };
  const ClientLimit none(0, false);
  EXPECT_NE(none.enter(from("1.2.3.4")), nullptr);
  const ClientLimit by_address(1, false);
  auto first = by_address.enter(from("1.2.3.4"));
  EXPECT_NE(first, nullptr);
  EXPECT_EQ(by_address.enter(from("1.2.3.4", "another")), nullptr);
  EXPECT_NE(by_address.enter(from("1.2.3.5")), nullptr);
  first.reset();
  EXPECT_NE(by_address.enter(from("1.2.3.4")), nullptr);
  const auto subscriber = by_address.enter(from("2001:db8:1:2::1"));
  EXPECT_EQ(by_address.enter(from("2001:db8:1:2:ffff::9")), nullptr);
  EXPECT_NE(by_address.enter(from("2001:db8:1:3::1")), nullptr);
  const ClientLimit by_key(1, true);
  const auto a = by_key.enter(from("1.2.3.4", "a"));
  EXPECT_NE(by_key.enter(from("1.2.3.4", "b")), nullptr);
  EXPECT_EQ(by_key.enter(from("5.6.7.8", "a")), nullptr);
}

class CorsTest : public testing::Test {
 protected:
  static ServerRequest asked(const std::string& origin, const std::string& method = "GET",
                             const std::string& preflight_for = "", const std::string& headers = "") {
    ServerRequest head{.method = method, .path = "/v1/models"};
    if (!origin.empty()) head.headers.push_back({"origin", origin});
    if (!preflight_for.empty()) head.headers.push_back({"Access-Control-Request-Method", preflight_for});
    if (!headers.empty()) head.headers.push_back({"Access-Control-Request-Headers", headers});
    return head;
  }
  static std::string value(const std::vector<HttpHeader>& headers, std::string_view name) {
    std::string out = "(none)";
    for (const HttpHeader& header : headers) {
      if (header.name == name) out = header.value;
    }
    return out;
  }
};

TEST_F(CorsTest, IsOffUnlessAskedFor) {
  const Cors cors(CorsRules{});
  EXPECT_TRUE(cors.headers_for(asked("https://a.example")).empty());
  EXPECT_FALSE(cors.preflight(asked("https://a.example", "OPTIONS", "POST")));
}

TEST_F(CorsTest, LetsAnyoneReadWithoutCredentials) {
  const Cors cors({.origins = {"*"}});
  const auto headers = cors.headers_for(asked("https://a.example"));
  EXPECT_EQ(value(headers, "Access-Control-Allow-Origin"), "*");
  EXPECT_EQ(value(headers, "Access-Control-Allow-Credentials"), "(none)");
  EXPECT_EQ(value(headers, "Vary"), "(none)");
  EXPECT_TRUE(cors.headers_for(asked("")).empty());
  // The wildcard would not cover Authorization: it is named.
  const auto answer =
      cors.preflight(asked("https://a.example", "OPTIONS", "POST", "authorization,content-type"));
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->status, 204);
  EXPECT_EQ(value(answer->headers, "Access-Control-Allow-Headers"), "authorization,content-type");
  EXPECT_THAT(value(answer->headers, "Access-Control-Allow-Methods"), HasSubstr("POST"));
  EXPECT_FALSE(cors.preflight(asked("https://a.example", "OPTIONS")));  // a plain OPTIONS
  EXPECT_FALSE(cors.preflight(asked("https://a.example", "POST", "POST")));
  const auto odd = cors.preflight(asked("https://a.example", "OPTIONS", "POST", "x\r\nSet-Cookie: a"));
  EXPECT_EQ(value(odd->headers, "Access-Control-Allow-Headers"), "(none)");
}

TEST_F(CorsTest, NamesTheOriginWhereTheWildcardIsNoAnswer) {
  const Cors cors({.origins = {"*"}, .credentials = true});
  const auto headers = cors.headers_for(asked("https://a.example"));
  EXPECT_EQ(value(headers, "Access-Control-Allow-Origin"), "https://a.example");
  EXPECT_EQ(value(headers, "Access-Control-Allow-Credentials"), "true");
  EXPECT_EQ(value(headers, "Vary"), "Origin");
}

TEST_F(CorsTest, HoldsToLists) {
  const Cors cors({.origins = {"https://a.example/", "http://localhost:3000"},
                   .methods = {"GET", "POST"},
                   .headers = {"Content-Type"}});
  EXPECT_EQ(value(cors.headers_for(asked("https://a.example")), "Access-Control-Allow-Origin"),
            "https://a.example");
  for (const char* other : {"https://b.example", "http://a.example", "https://a.example.b.example", "null",
                            "https://a.example:444", "http://localhost"}) {
    const auto headers = cors.headers_for(asked(other));
    EXPECT_EQ(value(headers, "Access-Control-Allow-Origin"), "(none)") << other;
    EXPECT_EQ(value(headers, "Vary"), "Origin");
    EXPECT_EQ(cors.preflight(asked(other, "OPTIONS", "POST"))->status, 403) << other;
  }
  EXPECT_EQ(value(cors.headers_for(asked("")), "Vary"), "Origin");  // caches must know
  const auto answer = cors.preflight(asked("http://localhost:3000", "OPTIONS", "DELETE", "authorization"));
  EXPECT_EQ(answer->status, 204);
  EXPECT_EQ(value(answer->headers, "Access-Control-Allow-Methods"), "GET, POST");
  EXPECT_EQ(value(answer->headers, "Access-Control-Allow-Headers"), "Content-Type");
}

}  // namespace
}  // namespace jewel
