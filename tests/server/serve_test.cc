// `jewel serve` as a user starts it: words, files, signals.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "cli/run_program.h"
#include "server/raw_client.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

const std::string kDemoModel = JEWEL_SOURCE_DIR "/models/jewel-demo";

TEST(Serve, SaysWhatIsWrongWithTheWords) {
  const ProgramOutput unknown = run_program({"serve", kDemoModel, "--kv-cash-dtype", "fp8"});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("kv-cache-dtype"));
  EXPECT_EQ(run_program({"serve"}).exit_code, 2);
  EXPECT_EQ(run_program({"serve", "/nonexistent/model"}).exit_code, 1);
  const ProgramOutput help = run_program({"serve", "--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("--max-num-seqs"));
  EXPECT_THAT(run_program({"--help"}).out, HasSubstr("serve"));
}

TEST(Serve, ChecksAFile) {
  const std::string path = fmt::format("/tmp/jewel_serve_test_{}.yaml", ::getpid());
  std::ofstream(path) << "max_num_seqs: 4\ndisable_log_requests: true\n";
  const ProgramOutput good = run_program({"serve", kDemoModel, "--config", path, "--check-config"});
  EXPECT_EQ(good.exit_code, 0) << good.out << good.err;
  EXPECT_THAT(good.out, HasSubstr("max_num_seqs"));
  std::ofstream(path) << "max_num_sequences: 4\n";
  EXPECT_EQ(run_program({"serve", kDemoModel, "--config", path, "--check-config"}).exit_code, 2);
  ::unlink(path.c_str());
}

// A server of its own on a Unix socket.
class Served {
 public:
  Served() : path_(fmt::format("/tmp/jewel_serve_test_{}.sock", ::getpid())), child_(::fork()) {
    if (child_ != 0) return;
    ::execl(JEWEL_BINARY, JEWEL_BINARY, "serve", kDemoModel.c_str(), "--uds", path_.c_str(), "--log-level",
            "error", "--served-model-name", "demo", nullptr);
    ::_exit(127);
  }
  ~Served() {
    if (child_ > 0) ::kill(child_, SIGKILL), ::waitpid(child_, nullptr, 0);
  }
  Served(const Served&) = delete;
  Served& operator=(const Served&) = delete;

  bool wait_ready() const {
    for (int i = 0; i < 2000; ++i) {
      if (RawClient(path_).connected()) return true;
      std::this_thread::sleep_for(5ms);
    }
    return false;
  }
  void signal(int number) const { ::kill(child_, number); }
  // 128 + signal when it was killed; -1 when it still runs after the limit.
  int wait_exit(std::chrono::milliseconds limit) {
    const auto end = std::chrono::steady_clock::now() + limit;
    int status = 0;
    while (::waitpid(child_, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > end) return -1;
      std::this_thread::sleep_for(5ms);
    }
    child_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
  pid_t child_;
};

constexpr const char* kQuestion = R"({"messages":[{"role":"user","content":"Who are you?"}],"temperature":0)";

TEST(Serve, AnswersSoonAfterItsStart) {
  const auto start = std::chrono::steady_clock::now();
  Served served;
  ASSERT_TRUE(served.wait_ready());
  RawClient client(served.path());
  const RawResponse answer =
      client.post("/v1/chat/completions", std::string(kQuestion) + R"(,"model":"demo"})");
  EXPECT_EQ(answer.status, 200);
  EXPECT_THAT(answer.body, HasSubstr("Jewel"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, 10s);  // one second on a machine that does nothing else
  served.signal(SIGTERM);
  EXPECT_EQ(served.wait_exit(5s), 0);
}

TEST(Serve, LetsRequestsFinishAndStopsAtTheSecondSignal) {
  Served served;
  ASSERT_TRUE(served.wait_ready());
  RawClient client(served.path());
  const std::string endless =
      std::string(kQuestion) + R"(,"stream":true,"ignore_eos":true,"max_tokens":8000})";
  ASSERT_TRUE(client.send(post_bytes("/v1/chat/completions", endless)));
  EXPECT_THAT(client.read_until("content"), HasSubstr("200 OK"));
  served.signal(SIGTERM);
  EXPECT_EQ(served.wait_exit(300ms), -1);  // still answering
  served.signal(SIGTERM);
  EXPECT_EQ(served.wait_exit(5s), 0);
  EXPECT_THAT(client.read_until("[DONE]"), HasSubstr("shutting down"));
}

}  // namespace
}  // namespace jewel
