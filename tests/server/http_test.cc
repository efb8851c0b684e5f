// The HTTP layer with a handler that answers at once, bit by bit, or never.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <future>
#include <mutex>
#include <thread>

#include "server/http/http_server.h"
#include "server/raw_client.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

std::atomic<int> waiting{0};  // answers that have begun and neither ended nor been given up
std::atomic<int> told_to_stop{0};

// Sends `count` pieces of `size` bytes, as fast as they are taken; 0: sends one and then waits for ever.
class Pieces final : public PendingReply {
 public:
  Pieces(int count, size_t size) : count_(count), size_(size) { ++waiting; }
  ~Pieces() override { --waiting; }

  void start(std::function<void()> wake) override { wake_ = std::move(wake); }
  Progress take() override {
    Progress progress;
    if (sent_ == 0) {
      progress.head = std::make_unique<ServerResponse>();
      progress.head->content_type = "text/plain";
    }
    if (stopped_) {
      progress.body = "stopped";
      progress.done = true;
      return progress;
    }
    if (sent_ == 0 || sent_ < count_) progress.body = std::string(size_, 'x');
    ++sent_;
    progress.done = count_ > 0 && sent_ >= count_;
    if (!progress.done && count_ > 0) wake_();
    return progress;
  }
  void stop() override {
    ++told_to_stop;
    stopped_ = true;
  }

 private:
  std::function<void()> wake_;
  const int count_;
  const size_t size_;
  int sent_ = 0;
  bool stopped_ = false;
};

// The whole answer, but later and from another thread.
class Later final : public PendingReply {
 public:
  ~Later() override { thread_.join(); }
  void start(std::function<void()> wake) override {
    thread_ = std::thread([this, wake = std::move(wake)] {
      std::this_thread::sleep_for(100ms);
      ready_ = true;
      wake();
    });
  }
  Progress take() override {
    Progress progress;
    if (!ready_) return progress;
    progress.head = std::make_unique<ServerResponse>();
    progress.head->body = "later";
    progress.done = true;
    return progress;
  }
  void stop() override {}

 private:
  std::thread thread_;
  std::atomic<bool> ready_{false};
};

// Has its wake() given to somebody who never stops calling it.
class Rung final : public PendingReply {
 public:
  explicit Rung(std::promise<std::function<void()>>& to) : to_(to) {}
  void start(std::function<void()> wake) override { to_.set_value(std::move(wake)); }
  Progress take() override { return {}; }
  void stop() override {}

 private:
  std::promise<std::function<void()>>& to_;
};

class Stub final : public HttpHandler {
 public:
  Admission admit(const ServerRequest& head) override {
    Admission admission{.max_body_bytes = 1000};
    if (head.path == "/secret") {
      admission.refusal = std::make_unique<ServerResponse>(trouble(401, "no key"));
    } else if (head.path == "/large") {
      admission.max_body_bytes = 8 << 20;
    }
    return admission;
  }
  Reply handle(ServerRequest&& request) override {
    ++handled;
    if (request.path == "/later") return std::make_unique<Later>();
    if (request.path == "/rung") return std::make_unique<Rung>(rung);
    if (request.path == "/never") return std::make_unique<Pieces>(0, 5);
    if (request.path == "/pieces") return std::make_unique<Pieces>(3, 10);
    if (request.path == "/flood") return std::make_unique<Pieces>(100'000, 10'000);
    if (request.path == "/large") return ServerResponse{.body = std::to_string(request.body.size())};
    return ServerResponse{.headers = {{"X-Query", request.query}},
                          .body = fmt::format("{} {} {}", request.method, request.path, request.body)};
  }
  ServerResponse trouble(int status, std::string_view message) override {
    return {.status = status, .content_type = "text/plain", .body = std::string(message)};
  }
  std::atomic<int> handled{0};
  std::promise<std::function<void()>> rung;
};

class Http : public testing::Test {
 protected:
  void SetUp() override {
    waiting = 0;
    told_to_stop = 0;
    options_.host = "127.0.0.1";
    options_.port = 0;
    options_.header_timeout = 300ms;
    options_.body_timeout = 300ms;
    options_.idle_timeout = 400ms;
  }
  void start() {
    auto server = HttpServer::start(options_, stub_);
    ASSERT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
  }
  int port() const { return server_->port(); }
  static bool comes_true(const std::function<bool()>& condition, std::chrono::milliseconds limit = 3s) {
    const auto end = Clock::now() + limit;
    while (!condition()) {
      if (Clock::now() > end) return false;
      std::this_thread::sleep_for(2ms);
    }
    return true;
  }

  HttpOptions options_;
  Stub stub_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(Http, AnswersOnOneConnectionAgainAndAgain) {
  start();
  RawClient client(port());
  for (int i = 0; i < 5; ++i) {
    const RawResponse response = client.get(fmt::format("/a{}?q={}", i, i));
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, fmt::format("GET /a{} ", i));
    EXPECT_EQ(response.header("x-query"), fmt::format("q={}", i));
    EXPECT_EQ(response.header("connection"), "keep-alive");
    EXPECT_FALSE(response.header("x-request-id").empty());
  }
  EXPECT_EQ(client.post("/p", "hello").body, "POST /p hello");
  EXPECT_EQ(client.get("/b", "X-Request-Id: mine-1\r\n").header("x-request-id"), "mine-1");
  EXPECT_NE(client.get("/b", "X-Request-Id: a b\r\n").header("x-request-id"), "a b");
}

TEST_F(Http, AnswersPipelinedRequestsInOrder) {
  start();
  RawClient client(port());
  std::string three =
      post_bytes("/1", "one") + "GET /2 HTTP/1.1\r\nHost: x\r\n\r\n" + post_bytes("/3", "three");
  ASSERT_TRUE(client.send(three));
  EXPECT_EQ(client.read().body, "POST /1 one");
  EXPECT_EQ(client.read().body, "GET /2 ");
  EXPECT_EQ(client.read().body, "POST /3 three");
}

TEST_F(Http, TakesRequestsByteByByteAndInChunks) {
  start();
  RawClient client(port());
  for (const char c : post_bytes("/slow", "body")) {
    ASSERT_TRUE(client.send(std::string_view(&c, 1)));
    std::this_thread::sleep_for(200us);
  }
  EXPECT_EQ(client.read().body, "POST /slow body");
  ASSERT_TRUE(
      client.send("POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                  "3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nTrailer: y\r\n\r\n"));
  EXPECT_EQ(client.read().body, "POST /c abcde");
}

TEST_F(Http, SaysContinueOnlyWhenTheBodyIsWanted) {
  start();
  RawClient client(port());
  const std::string expect = "Host: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
  ASSERT_TRUE(client.send("POST /e HTTP/1.1\r\n" + expect));
  EXPECT_EQ(client.read().status, 100);
  ASSERT_TRUE(client.send("body"));
  EXPECT_EQ(client.read().body, "POST /e body");
  ASSERT_TRUE(client.send("POST /secret HTTP/1.1\r\n" + expect));
  const RawResponse refused = client.read();
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.header("connection"), "close");
  EXPECT_TRUE(client.closed_within(3s));
}

TEST_F(Http, RefusesBeforeTheBodyIsRead) {
  start();
  RawClient client(port());
  // 1 GB is announced and never sent.
  ASSERT_TRUE(client.send("POST /secret HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"));
  EXPECT_EQ(client.read().status, 401);
  RawClient second(port());
  ASSERT_TRUE(second.send("POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n"));
  const RawResponse large = second.read();
  EXPECT_EQ(large.status, 413);
  EXPECT_THAT(large.body, testing::HasSubstr("1001 bytes, the limit of this route is 1000"));
  RawClient third(port());
  ASSERT_TRUE(third.send("POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" +
                         std::string(1001, 'x') + "\r\n0\r\n\r\n"));
  EXPECT_EQ(third.read().status, 413);
  EXPECT_EQ(stub_.handled, 0);
  // The client that sends all of a refused body still gets to read the answer.
  RawClient fourth(port());
  fourth.send(post_bytes("/p", std::string(300'000, 'x')));
  EXPECT_EQ(fourth.read().status, 413);
  RawClient fifth(port());
  EXPECT_EQ(fifth.post("/large", std::string(5 << 20, 'x')).body, std::to_string(5 << 20));
}

TEST_F(Http, LimitsWhatAllBodiesTakeTogether) {
  options_.max_buffered_bytes = 6 << 20;
  options_.body_timeout = 1500ms;  // the second must be here before the first is given up
  start();
  RawClient first(port());
  ASSERT_TRUE(first.send("POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\nx"));
  std::this_thread::sleep_for(50ms);
  RawClient second(port());
  const RawResponse busy = second.post("/large", std::string(3 << 20, 'x'));
  EXPECT_EQ(busy.status, 503);
  EXPECT_EQ(busy.header("retry-after"), "1");
  EXPECT_EQ(first.read().status, 408);  // and gives its bytes back, maybe a moment after its answer is read
  int status = 0;
  EXPECT_TRUE(comes_true(
      [&] {
        RawClient third(port());
        status = third.post("/large", std::string(3 << 20, 'x')).status;
        return status != 503;
      },
      1s));
  EXPECT_EQ(status, 200);
}

TEST_F(Http, AnswersHeadWithoutABody) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send("HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n"));
  const RawResponse response = client.read(/*head_only=*/true);
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.header("content-length"), "8");  // "HEAD /h "
  EXPECT_EQ(client.get("/next").body, "GET /next ");
}

TEST_F(Http, RefusesWhatIsNoRequest) {
  start();
  const std::vector<std::pair<std::string, int>> cases = {
      {"\x16\x03\x01\x02 hello\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\n\r\n", 400},  // no Host
      {"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400},
      {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nabc", 501},
      {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nX: " + std::string(70'000, 'a') + "\r\n\r\n", 431},
      {"GET /" + std::string(70'000, 'a') + " HTTP/1.1\r\nHost: x\r\n\r\n", 431},
  };
  for (const auto& [bytes, status] : cases) {
    RawClient client(port());
    client.send(bytes);
    const RawResponse response = client.read();
    EXPECT_EQ(response.status, status) << bytes.substr(0, 80);
    EXPECT_EQ(response.header("connection"), "close") << bytes.substr(0, 80);
  }
  EXPECT_EQ(stub_.handled, 0);
  RawClient client(port());
  EXPECT_EQ(client.get("/alive").status, 200);
}

TEST_F(Http, GivesUpOnSlowHeadsAndBodiesAndIdleClients) {
  start();
  RawClient head(port());
  RawClient body(port());
  RawClient idle(port());
  const auto begin = Clock::now();
  ASSERT_TRUE(head.send("GET / HTTP/1.1\r\nHos"));
  ASSERT_TRUE(body.send("POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab"));
  EXPECT_EQ(head.read().status, 408);
  const RawResponse late = body.read();
  EXPECT_EQ(late.status, 408);
  EXPECT_THAT(late.body, testing::HasSubstr("2 bytes"));
  EXPECT_TRUE(idle.closed_within(2s));
  EXPECT_GE(Clock::now() - begin, 300ms);
  EXPECT_TRUE(comes_true([&] { return server_->connections() == 0; }, 5s));
}

TEST_F(Http, SendsAnswersThatComeBitByBitOrLater) {
  start();
  RawClient client(port());
  const RawResponse pieces = client.get("/pieces");
  EXPECT_EQ(pieces.header("transfer-encoding"), "chunked");
  EXPECT_EQ(pieces.body, std::string(30, 'x'));
  EXPECT_TRUE(pieces.whole);
  EXPECT_EQ(client.get("/later").body, "later");
  EXPECT_EQ(client.get("/again").status, 200);
  // HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
  RawClient old(port());
  ASSERT_TRUE(old.send("GET /pieces HTTP/1.0\r\n\r\n"));
  const std::string all = old.read_until("never comes");
  EXPECT_TRUE(all.ends_with("\r\n\r\n" + std::string(30, 'x'))) << all;
}

TEST_F(Http, SeesWithinASecondThatAClientIsGone) {
  start();
  for (const bool crash : {false, true}) {
    for (const char* extra : {"", "GET /pipelined HTTP/1.1\r\nHost: x\r\n\r\n"}) {
      RawClient client(port());
      ASSERT_TRUE(client.send(std::string("GET /never HTTP/1.1\r\nHost: x\r\n\r\n") + extra));
      EXPECT_THAT(client.read_until("xxxxx"), testing::HasSubstr("xxxxx"));
      EXPECT_EQ(waiting, 1);
      const auto left = Clock::now();
      crash ? client.reset() : client.close();
      EXPECT_TRUE(comes_true([] { return waiting == 0; }));
      EXPECT_LT(Clock::now() - left, 1s);
    }
  }
}

TEST_F(Http, WaitsForSlowReadersWithoutPilingUp) {
  options_.write_timeout = 500ms;
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send("GET /flood HTTP/1.1\r\nHost: x\r\n\r\n"));  // 1 GB, if anyone took it
  client.read_until("xxxx");
  EXPECT_EQ(waiting, 1);
  EXPECT_TRUE(comes_true([] { return waiting == 0; }, 3s));  // nobody reads: given up
}

TEST_F(Http, RefusesConnectionsBeyondTheLimit) {
  options_.max_connections = 2;
  options_.idle_timeout = 5s;
  start();
  RawClient first(port());
  RawClient second(port());
  EXPECT_EQ(first.get("/1").status, 200);
  EXPECT_EQ(second.get("/2").status, 200);
  {
    RawClient third(port());
    const RawResponse refused = third.get("/3");
    EXPECT_EQ(refused.status, 503);
    EXPECT_EQ(refused.header("retry-after"), "1");
  }
  first.close();
  EXPECT_TRUE(comes_true([&] {
    RawClient next(port());
    return next.get("/4").status == 200;
  }));
}

TEST_F(Http, DrainsWhatIsUnderWay) {
  start();
  RawClient idle(port());
  EXPECT_EQ(idle.get("/x").status, 200);
  RawClient busy(port());
  ASSERT_TRUE(busy.send("GET /later HTTP/1.1\r\nHost: x\r\n\r\n"));
  std::this_thread::sleep_for(30ms);
  EXPECT_TRUE(server_->drain(2s));
  const RawResponse last = busy.read();
  EXPECT_EQ(last.body, "later");
  EXPECT_EQ(last.header("connection"), "close");
  EXPECT_TRUE(idle.closed_within(1s));
  EXPECT_FALSE(RawClient(port()).connected());
}

TEST_F(Http, EndsWhatDoesNotEndByItself) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send("GET /never HTTP/1.1\r\nHost: x\r\n\r\n"));
  client.read_until("xxxxx");
  EXPECT_FALSE(server_->drain(100ms));
  EXPECT_EQ(told_to_stop, 1);
  EXPECT_THAT(client.read_until("0\r\n\r\n"), testing::HasSubstr("stopped"));
  EXPECT_EQ(waiting, 0);
}

TEST_F(Http, StopsAtOnceWhenToldTwice) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send("GET /never HTTP/1.1\r\nHost: x\r\n\r\n"));
  client.read_until("xxxxx");
  std::thread second([&] {
    std::this_thread::sleep_for(100ms);
    server_->stop_now();
  });
  const auto begin = Clock::now();
  EXPECT_FALSE(server_->drain(60s));
  EXPECT_LT(Clock::now() - begin, 3s);
  second.join();
  server_.reset();
  EXPECT_EQ(waiting, 0);
}

TEST_F(Http, ListensOnAUnixSocket) {
  const std::string path = fmt::format("/tmp/jewel_http_test_{}.sock", ::getpid());
  options_.uds = path;
  start();
  RawClient client(path);
  EXPECT_EQ(client.get("/u").body, "GET /u ");
  // A second server does not take it away.
  auto second = HttpServer::start(options_, stub_);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.error().message, testing::HasSubstr("another server"));
  EXPECT_EQ(client.get("/still").status, 200);
  client.close();
  server_.reset();
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
}

// A worker that is done just then: it owns nothing that goes with the server.
TEST_F(Http, EndsWhileItsConnectionsAreWoken) {
  for (int round = 0; round < 3; ++round) {  // a second each: the reply has no end
    stub_.rung = {};
    start();
    RawClient client(port());
    ASSERT_TRUE(client.send("GET /rung HTTP/1.1\r\nHost: x\r\n\r\n"));
    std::atomic<bool> stop{false};
    std::thread ringing([&stop, wake = stub_.rung.get_future().get()] {
      while (!stop) wake();
    });
    server_.reset();
    stop = true;
    ringing.join();
  }
}

TEST_F(Http, SaysWhyItCannotListen) {
  start();
  HttpOptions taken = options_;
  taken.port = port();
  auto second = HttpServer::start(taken, stub_);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.error().message, testing::HasSubstr("in use"));
  HttpOptions tls = options_;
  tls.tls.certfile = "/nonexistent.pem";
  auto third = HttpServer::start(tls, stub_);
  ASSERT_FALSE(third.ok());
  EXPECT_THAT(third.error().message, testing::HasSubstr("/nonexistent.pem"));
}

TEST_F(Http, HoldsHundredsOfConnections) {
  options_.idle_timeout = 10s;
  start();
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 300; ++i) {
    clients.push_back(std::make_unique<RawClient>(port()));
    ASSERT_TRUE(clients.back()->send("GET /never HTTP/1.1\r\nHost: x\r\n\r\n"));
  }
  EXPECT_TRUE(comes_true([] { return waiting == 300; }));
  const auto left = Clock::now();
  clients.clear();
  EXPECT_TRUE(comes_true([] { return waiting == 0; }));
  EXPECT_LT(Clock::now() - left, 1s);
}

}  // namespace
}  // namespace jewel
