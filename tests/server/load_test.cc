// Many clients at once, over an engine that computes nothing. How fast that goes, bench/server_load measures.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "base/comes_true.h"
#include "server/fake_engine.h"
#include "server/http/http_server.h"
#include "server/openai/api_server.h"
#include "server/raw_client.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;

constexpr int kClients = 1000;
// The first client's answer must still go on when the last client's begins, on a busy machine too: 1,900
// steps take 380 s.
constexpr double kStepMs = 200;

class Load : public testing::Test {
 protected:
  void SetUp() override {
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    n_clients_ = std::min<int>(kClients, static_cast<int>(files.rlim_max / 2) - 100);
    auto engine = make_fake_engine({.max_num_seqs = kClients, .step_ms = kStepMs});
    ASSERT_TRUE(engine.ok()) << engine.error().message;
    engine_ = std::move(*engine);
    api_ = std::make_unique<ApiServer>(*engine_, ApiOptions{.defaults = {.model_names = {"demo"}}});
    auto server = HttpServer::start({.host = "127.0.0.1", .port = 0}, *api_);
    ASSERT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
  }
  void TearDown() override {
    server_.reset();
    api_.reset();
  }

  int n_clients_ = 0;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ApiServer> api_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(Load, GivesEveryPageBackWhenAllClientsVanish) {
  const std::string request = post_bytes(
      "/v1/chat/completions",
      R"({"messages":[{"role":"user","content":"Hi"}],"stream":true,"ignore_eos":true,"max_tokens":1900})");
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < n_clients_; ++i) {
    clients.push_back(std::make_unique<RawClient>(server_->port()));
    ASSERT_TRUE(clients.back()->connected()) << i;
    ASSERT_TRUE(clients.back()->send(request)) << i;
  }
  ASSERT_TRUE(comes_true([&] { return engine_->stats().running == n_clients_; }, 60s))
      << engine_->stats().running << " of " << n_clients_ << " run";
  EXPECT_GT(engine_->stats().kv_usage, 0);
  for (size_t i = 0; i < clients.size(); ++i) i % 2 == 0 ? clients[i]->reset() : clients[i]->close();

  const bool empty = comes_true([&] {
    const Stats stats = engine_->stats();
    return stats.under_way == 0 && stats.running == 0 && stats.waiting == 0 && stats.kv_usage == 0;
  });
  EXPECT_TRUE(empty) << engine_->stats().running << " still run, " << engine_->stats().kv_usage
                     << " of the pages held";
  EXPECT_EQ(engine_->stats().cancelled, static_cast<uint64_t>(n_clients_));
  EXPECT_TRUE(comes_true([&] { return server_->connections() == 0; }));

  RawClient next(server_->port());
  const RawResponse answer =
      next.post("/v1/chat/completions",
                R"({"messages":[{"role":"user","content":"Hi"}],"ignore_eos":true,"max_tokens":12})");
  EXPECT_EQ(answer.status, 200);
  EXPECT_NE(answer.body.find("the quick brown"), std::string::npos) << answer.body;
}

}  // namespace
}  // namespace jewel
