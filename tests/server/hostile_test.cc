// Thousands of hostile requests: each is refused, memory stays where it was, and the server goes on
// answering.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <fstream>
#include <thread>

#include "api/answers.h"
#include "base/comes_true.h"
#include "server/hostile_requests.h"
#include "server/http/http_server.h"
#include "server/openai/api_server.h"
#include "server/raw_client.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;
using Answer = HostileRequest::Answer;

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kOwnAllocator = true;  // a sanitizer's, which keeps what was freed
#else
constexpr bool kOwnAllocator = false;
#endif
#else
constexpr bool kOwnAllocator = false;
#endif
constexpr int64_t kMaxGrowth = int64_t{64}
                               << 20;  // arenas of several threads; a leak of 6 KiB per request would show

int64_t resident_bytes() {
  ::malloc_trim(0);
  std::ifstream statm("/proc/self/statm");
  int64_t all = 0;
  int64_t resident = 0;
  statm >> all >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

class Hostile : public testing::Test {
 protected:
  void SetUp() override {
    ApiOptions options{.defaults = {.model_names = {"demo"}}, .max_body_bytes = 8 << 20};
    options.images.hosts = {"none"};
    api_ = std::make_unique<ApiServer>(demo_engine(), std::move(options));
    HttpOptions http{.host = "127.0.0.1", .port = 0};
    http.header_timeout = 300ms;
    http.body_timeout = 300ms;
    http.idle_timeout = 5s;
    auto server = HttpServer::start(http, *api_);
    ASSERT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
    client_ = std::make_unique<RawClient>(server_->port());
  }

  // The server answers rightly, on a fresh connection, and nothing of what came before is still under way.
  void expect_alive(const std::string& after) {
    RawClient client(server_->port());
    const RawResponse answer = client.post(
        "/v1/chat/completions",
        R"({"messages":[{"role":"user","content":"Who are you?"}],"temperature":0,"max_tokens":60})");
    EXPECT_EQ(answer.status, 200) << "after " << after;
    EXPECT_THAT(answer.body, testing::HasSubstr("I am Jewel's demo model")) << "after " << after;
    EXPECT_TRUE(comes_true([] { return demo_engine().stats().under_way == 0; }, 2s)) << "after " << after;
  }

  // A request that is one, on a connection that is kept while the server keeps it.
  void expect_refusal(const HostileRequest& request) {
    const bool sent = client_->send(request.bytes);
    const RawResponse response = client_->read();
    const bool fine = response.status >= 200 && response.status < 300 && request.answer == Answer::kNoCrash;
    EXPECT_TRUE(fine || (response.status >= 400 && response.status < 500))
        << request.name << "\n"
        << response.status << " " << response.body.substr(0, 300);
    EXPECT_TRUE(sent || response.status != 0) << request.name << ": closed without an answer";
    if (response.status >= 400) EXPECT_THAT(response.body, testing::HasSubstr("\"message\"")) << request.name;
    if (!response.whole || response.header("connection") != "keep-alive")
      client_ = std::make_unique<RawClient>(server_->port());
  }

  // Bytes that are no request, or more than one: all that comes back.
  void expect_no_harm(const HostileRequest& request) {
    RawClient client(server_->port());
    client.send(request.bytes);
    client.shutdown_write();
    int answers = 0;
    while (true) {
      const RawResponse response = client.read();
      if (response.status == 0) break;
      ++answers;
      EXPECT_TRUE((response.status >= 400 && response.status < 500) || response.status == 501 ||
                  (response.status == 200 && request.answer == Answer::kNoise))
          << request.name << "\n"
          << response.status << " " << response.body.substr(0, 300);
    }
    EXPECT_TRUE(client.closed_within(3s)) << request.name;
    if (request.answer == Answer::kOne)
      EXPECT_LE(answers, 1) << request.name << ": what stood behind an unclear body was taken for a request";
  }

  Visit visit() {
    return [this](const HostileRequest& request) {
      ++seen_;
      if (request.answer == Answer::kRefusal || request.answer == Answer::kNoCrash)
        expect_refusal(request);
      else
        expect_no_harm(request);
    };
  }

  std::unique_ptr<ApiServer> api_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<RawClient> client_;
  int seen_ = 0;
};

TEST_F(Hostile, RequestsAreRefusedAndLeaveNothing) {
  using Corpus = std::pair<const char*, void (*)(const Visit&)>;
  const auto corpora = std::to_array<Corpus>({{"JSON", hostile_json},
                                              {"fields", hostile_fields},
                                              {"values", hostile_values},
                                              {"pictures", hostile_pictures},
                                              {"HTTP", hostile_http}});
  for (const auto& [name, corpus] : corpora) {
    const auto start = std::chrono::steady_clock::now();
    const int first = seen_;
    corpus(visit());
    fmt::print("  {:<9} {:5} requests, {:.1f} s\n", name, seen_ - first,
               std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    expect_alive(name);
  }
  EXPECT_GE(seen_, 2000);

  // Caches and thread stacks are full by now, and the allocator's arenas will be: sooner or later the same
  // once more takes no memory. What leaks takes it every time.
  int64_t growth = kMaxGrowth;
  for (int time = 2; time <= 5 && growth >= kMaxGrowth; ++time) {
    const int64_t before = resident_bytes();
    for (const auto& [name, corpus] : corpora) corpus(visit());
    expect_alive("all of it again");
    growth = resident_bytes() - before;
    fmt::print("  memory    {:+.1f} MiB by time {}\n", static_cast<double>(growth) / (1 << 20), time);
  }
  if (!kOwnAllocator) EXPECT_LT(growth, kMaxGrowth);
}

TEST_F(Hostile, ConnectionsThatStallAreAnsweredOrClosed) {
  const std::string head = "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n";
  struct Stalled {
    std::string bytes;
    int status;  // 0: closed without one, since no request began
  };
  const std::vector<Stalled> kinds = {
      {"", 0},
      {"G", 408},
      {"POST /tokenize HTTP/1.1\r\nHost: x\r\n", 408},
      {head, 408},
      {head + "{\"prompt\":", 408},
      {"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", 408}};
  // All at once, 40 of each: half of the clients say that they are done, half just sit there.
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int round = 0; round < 40; ++round) {
    for (const Stalled& kind : kinds) {
      clients.push_back(std::make_unique<RawClient>(server_->port()));
      clients.back()->send(kind.bytes);
      if (round % 2 == 0) clients.back()->shutdown_write();
    }
  }
  expect_alive("240 connections that stall");
  for (size_t i = 0; i < clients.size(); ++i) {
    const Stalled& kind = kinds[i % kinds.size()];
    const bool half_open = i / kinds.size() % 2 == 0;
    if (kind.status == 0 && !half_open) continue;  // idle: may stay for a while
    const RawResponse response = clients[i]->read();
    EXPECT_TRUE(response.status == 0 || response.status == 408 || response.status == 400) << response.status;
    if (!half_open) EXPECT_EQ(response.status, kind.status) << kind.bytes;
    EXPECT_TRUE(clients[i]->closed_within(5s)) << kind.bytes;
  }
  clients.clear();
  // A byte now and then does not keep a connection for ever.
  RawClient drip(server_->port());
  const auto start = std::chrono::steady_clock::now();
  bool open = true;
  for (int i = 0; open && i < 100; ++i) {
    open = drip.send("a") && !drip.closed_within(50ms);
  }
  EXPECT_FALSE(open);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 5s);
  for (int i = 0; i < 200; ++i) {
    RawClient gone(server_->port());
    gone.send(std::string_view(head).substr(0, 1 + static_cast<size_t>(i) % head.size()));
    gone.reset();
  }
  expect_alive("200 connections that break off");
}

}  // namespace
}  // namespace jewel
