// Deep idle over HTTP: what a prober, a dashboard and the next client see while the device is given back; and
// that a server without requests does nothing.
#include <dirent.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <boost/json.hpp>
#include <fstream>
#include <thread>

#include "api/answers.h"
#include "api/engine_parts.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/releasable_backend.h"
#include "base/comes_true.h"
#include "checkpoint/checkpoint.h"
#include "server/http/http_server.h"
#include "server/openai/api_server.h"
#include "server/openai/stats_log.h"
#include "server/raw_client.h"

namespace jewel {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;
using testing::HasSubstr;

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kQuestion =
    R"({"messages":[{"role":"user","content":"Who are you?"}],"temperature":0,"max_tokens":8})";

class DeepIdleServer : public testing::Test {
 protected:
  void serve(Result<std::unique_ptr<Engine>> engine) {
    ASSERT_TRUE(engine.ok()) << engine.error().message;
    api_.reset();
    engine_ = std::move(engine.value());
    ApiOptions options;
    options.defaults.model_names = {"demo"};
    api_ = std::make_unique<ApiServer>(*engine_, std::move(options));
    auto server = HttpServer::start({.host = "127.0.0.1", .port = 0}, *api_);
    ASSERT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
  }
  void TearDown() override { server_.reset(); }

  RawResponse ask() { return RawClient(server_->port()).post(kChat, kQuestion); }
  RawResponse get(const std::string& path) { return RawClient(server_->port()).get(path); }

  double metric(const std::string& name) {
    const std::string page = get("/metrics").body;
    const size_t at = page.find("\n" + name + "{");
    if (at == std::string::npos) {
      ADD_FAILURE() << "no metric " << name << " in\n" << page;
      return -1;
    }
    return std::stod(page.substr(page.find("} ", at) + 2));
  }
  bool goes_to_sleep() {
    return comes_true([&] { return metric("jewel_idle_released") == 1; });
  }
  static std::string content(const RawResponse& response) {
    EXPECT_EQ(response.status, 200) << response.body;
    if (response.status != 200) return {};
    return std::string(
        json::parse(response.body).at("choices").at(0).at("message").at("content").as_string());
  }

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ApiServer> api_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(DeepIdleServer, ProbesDoNotWakeItAndTheNextRequestDoes) {
  EngineOptions options = demo_options();
  options.idle_release_s = 0.05;
  serve(Engine::load(kDemo, options));
  const std::string first = content(ask());
  EXPECT_FALSE(first.empty());
  ASSERT_TRUE(goes_to_sleep());
  const double releases = metric("jewel_idle_releases_total"),
               wakes = metric("jewel_idle_wake_seconds_count");
  const double away = metric("jewel_idle_released_seconds_total");
  EXPECT_GE(releases, 1);
  for (const char* path : {"/health", "/ping", "/v1/models", "/load", "/version"})
    EXPECT_EQ(get(path).status, 200) << path;
  std::this_thread::sleep_for(10ms);
  EXPECT_EQ(metric("jewel_idle_released"), 1);
  EXPECT_EQ(metric("jewel_idle_wake_seconds_count"), wakes);
  EXPECT_GE(metric("jewel_idle_released_seconds_total"), away + 0.01);
  EXPECT_EQ(content(ask()), first);
  EXPECT_EQ(metric("jewel_idle_wake_seconds_count"), wakes + 1);
  EXPECT_GT(metric("jewel_idle_wake_seconds_sum"), 0);
  EXPECT_EQ(metric("jewel_idle_wakes_failed_total"), 0);
  ASSERT_TRUE(goes_to_sleep());
  EXPECT_GT(metric("jewel_idle_releases_total"), releases);
  EXPECT_EQ(get("/health?deep=1").status, 200);  // computes, so it wakes
  EXPECT_GT(metric("jewel_idle_wake_seconds_count"), wakes + 1);
  ASSERT_TRUE(goes_to_sleep());
  EXPECT_TRUE(server_->drain(5s));
}

TEST_F(DeepIdleServer, ADeviceThatCannotBeHadIs503) {
  auto parts = open_parts(kDemo, demo_options());
  ASSERT_TRUE(parts.ok());
  const auto checkpoint = std::static_pointer_cast<Checkpoint>(parts->owner);
  const auto refused = std::make_shared<std::atomic<int>>(0);
  parts->backend = std::make_unique<ReleasableBackend>(
      std::move(parts->backend),
      [refused, checkpoint]() -> Result<std::unique_ptr<Backend>> {
        if (++*refused <= 3) return unavailable("the card is full");
        return make_cpu_backend(checkpoint->config(), checkpoint->weights(), {.n_threads = 1});
      },
      std::function<void()>());
  parts->idle_release_s = 0.02;
  serve(make_engine(std::move(*parts), demo_options()));
  ASSERT_TRUE(goes_to_sleep());
  for (int i = 1; i <= 3; ++i) {
    EXPECT_EQ(get("/health").status, 200);
    const RawResponse response = ask();
    EXPECT_EQ(response.status, 503);
    EXPECT_EQ(response.header("retry-after"), "1");
    const json::value error = json::parse(response.body).at("error");
    EXPECT_EQ(error.at("type"), json::value("ServiceUnavailableError"));
    EXPECT_THAT(std::string(error.at("message").as_string()), HasSubstr("the card is full"));
    EXPECT_EQ(metric("jewel_idle_wakes_failed_total"), i);
    EXPECT_EQ(metric("jewel_idle_released"), 1);
  }
  const RawResponse sick = get("/health");
  EXPECT_EQ(sick.status, 503);
  EXPECT_THAT(sick.body, HasSubstr("could not have it again"));
  EXPECT_FALSE(content(ask()).empty());
  EXPECT_EQ(get("/health").status, 200);
}

// Of all threads of this process: how often one was woken, and the CPU's time.
int64_t wake_ups() {
  int64_t sum = 0;
  DIR* tasks = ::opendir("/proc/self/task");
  while (const dirent* task = ::readdir(tasks)) {  // NOLINT(concurrency-mt-unsafe): this thread alone reads
    std::ifstream status(fmt::format("/proc/self/task/{}/status", task->d_name));
    std::string word;
    int64_t count = 0;
    while (status >> word) {
      if (word == "voluntary_ctxt_switches:" && status >> count) sum += count;
    }
  }
  ::closedir(tasks);
  return sum;
}

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// A thread that spins takes whole seconds, one that polls every 20 ms wakes 50 times in each.
TEST_F(DeepIdleServer, AServerWithoutRequestsDoesNothing) {
  for (const bool asleep : {false, true}) {
    SCOPED_TRACE(asleep);
    EngineOptions options = demo_options();
    options.n_threads = 2;
    options.idle_release_s = asleep ? 0.02 : 0;
    serve(Engine::load(kDemo, options));
    const StatsLog log([this] { return engine_->stats(); }, 10s);
    EXPECT_FALSE(content(ask()).empty());
    if (asleep) ASSERT_TRUE(goes_to_sleep());
    std::this_thread::sleep_for(200ms);  // connections close, caches settle
    const double cpu = cpu_seconds();
    const int64_t woken = wake_ups();
    std::this_thread::sleep_for(2s);
    EXPECT_LT(wake_ups() - woken, 50);
    EXPECT_LT(cpu_seconds() - cpu, 0.2);
    server_.reset();
  }
}

}  // namespace
}  // namespace jewel
