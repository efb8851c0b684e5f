// `jewel serve` as a user starts it: words, files, signals.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "cli/run_program.h"
#include "server/raw_client.h"
#include "server/stand_in_site.h"

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

// A server of its own on a Unix socket; what it says on stderr goes into a file when one is named.
class Served {
 public:
  explicit Served(const std::vector<std::string>& more = {"--log-level", "error"},
                  const std::string& stderr_file = {})
      : path_(fmt::format("/tmp/jewel_serve_test_{}.sock", ::getpid())) {
    std::vector<std::string> words{JEWEL_BINARY,          "serve", kDemoModel, "--uds", path_,
                                   "--served-model-name", "demo"};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> arguments;
    arguments.reserve(words.size() + 1);
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    child_ = ::fork();
    if (child_ != 0) return;
    if (!stderr_file.empty()) {
      const int fd = ::open(stderr_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      ::dup2(fd, STDERR_FILENO);
    }
    ::setenv("VLLM_LOG_STATS_INTERVAL", "0.2", 1);
    ::execv(JEWEL_BINARY, arguments.data());
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
  pid_t child_ = -1;
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

// One client's request over its own connection, read to its end on a thread of its own.
class Asking {
 public:
  Asking(const std::string& path, std::string body) : client_(path) {
    EXPECT_TRUE(client_.send(post_bytes("/v1/chat/completions", body)));
    reader_ = std::thread([this] { answer_ = client_.read(); });
  }
  ~Asking() { reader_.join(); }
  Asking(const Asking&) = delete;
  Asking& operator=(const Asking&) = delete;

  // What a client can work with: a whole answer, or an error that says what happened, and then the end.
  enum class End : uint8_t { kAnswered, kError, kBroken };
  End end() {
    reader_.join();
    reader_ = std::thread([] {});
    const bool is_stream = answer_.header("content-type").starts_with("text/event-stream");
    const bool says_why = answer_.body.find("shutting down") != std::string::npos;
    if (!answer_.whole || !client_.closed_within(5s)) return End::kBroken;
    if (answer_.status == 503) return says_why ? End::kError : End::kBroken;
    if (answer_.status != 200) return End::kBroken;
    if (is_stream && !answer_.body.ends_with("data: [DONE]\n\n")) return End::kBroken;
    if (says_why) return End::kError;
    return answer_.body.find(R"("finish_reason":"length")") != std::string::npos ? End::kAnswered
                                                                                 : End::kBroken;
  }
  const RawResponse& answer() const { return answer_; }

 private:
  RawClient client_;
  RawResponse answer_;
  std::thread reader_;
};

// More than run at once, streamed and whole, short and endless.
std::vector<std::unique_ptr<Asking>> ask_much(const std::string& path) {
  std::vector<std::unique_ptr<Asking>> all;
  for (int i = 0; i < 48; ++i) {
    all.push_back(
        std::make_unique<Asking>(path, fmt::format(R"({},"ignore_eos":true,"stream":{},"max_tokens":{}}})",
                                                   kQuestion, i % 2 == 0, i % 4 < 2 ? 8 : 8000)));
  }
  // The endless half of them is in the engine, so all connections have been accepted.
  RawClient prober(path);
  const auto late = std::chrono::steady_clock::now() + 10s;
  int under_way = 0;
  while (under_way < 24 && std::chrono::steady_clock::now() < late) {
    const RawResponse load = prober.get("/load");
    boost::system::error_code error;
    const boost::json::value value = boost::json::parse(load.body, error);
    if (load.status == 200 && !error) under_way = value.at("server_load").to_number<int>();
    std::this_thread::sleep_for(2ms);
  }
  EXPECT_GE(under_way, 24);
  return all;
}

std::map<Asking::End, int> ends_of(const std::vector<std::unique_ptr<Asking>>& all) {
  std::map<Asking::End, int> ends;
  for (const auto& one : all) {
    const Asking::End end = one->end();
    EXPECT_NE(end, Asking::End::kBroken) << one->answer().status << " " << one->answer().body.substr(0, 500);
    ++ends[end];
  }
  return ends;
}

TEST(Serve, EndsEveryRequestOfManyWhenToldToStop) {
  Served served({"--log-level", "error", "--max-num-seqs", "8", "--drain-timeout", "1"});
  ASSERT_TRUE(served.wait_ready());
  const auto all = ask_much(served.path());
  served.signal(SIGTERM);
  auto ends = ends_of(all);
  EXPECT_EQ(served.wait_exit(10s), 0);
  EXPECT_EQ(ends[Asking::End::kAnswered] + ends[Asking::End::kError], 48);
  EXPECT_GT(ends[Asking::End::kError], 0) << "8000 tokens in a second?";
  EXPECT_FALSE(RawClient(served.path()).connected());
}

TEST(Serve, EndsAllOfThemAtOnceAtTheSecondSignal) {
  Served served({"--log-level", "error", "--max-num-seqs", "8"});  // 30 s to drain
  ASSERT_TRUE(served.wait_ready());
  const auto all = ask_much(served.path());
  served.signal(SIGTERM);
  EXPECT_EQ(served.wait_exit(200ms), -1);
  served.signal(SIGTERM);
  EXPECT_EQ(served.wait_exit(10s), 0);
  EXPECT_GT(ends_of(all)[Asking::End::kError], 0);
}

// What a program that reads the log can rely on: every line is a JSON object, those about mistakes too.
TEST(Serve, LogsInJson) {
  const std::string file = fmt::format("/tmp/jewel_serve_test_{}.log", ::getpid());
  {
    Served served({"--log-format", "json", "--enable-log-requests", "--disable-log-requests"}, file);
    ASSERT_TRUE(served.wait_ready());
    RawClient client(served.path());
    EXPECT_EQ(client.post("/v1/chat/completions", std::string(kQuestion) + R"(,"frobnicate":1})").status,
              200);
    std::this_thread::sleep_for(500ms);  // for a line of statistics
    client.close();
    served.signal(SIGTERM);
    EXPECT_EQ(served.wait_exit(10s), 0);
  }
  std::ifstream in(file);
  std::set<std::string> messages;
  for (std::string line; std::getline(in, line);) {
    boost::system::error_code error;
    const boost::json::value value = boost::json::parse(line, error);
    ASSERT_FALSE(error) << line;
    messages.emplace(value.at("message").as_string());
    EXPECT_EQ(value.at("time").as_string().size(), 24U);
    EXPECT_TRUE(value.as_object().contains("level"));
    EXPECT_THAT(line, testing::Not(HasSubstr("Who are you")));
  }
  for (const char* expected : {"serving", "request", "stats"})
    EXPECT_TRUE(messages.contains(expected)) << expected;
  EXPECT_GE(messages.size(), 5U);  // the retired flag and the unknown field too
  ::unlink(file.c_str());
  const ProgramOutput mistake = run_program({"serve", "/nonexistent", "--log-format", "json"});
  EXPECT_EQ(mistake.exit_code, 1);
  EXPECT_EQ(mistake.err.substr(0, 9), R"({"time":")");
  EXPECT_EQ(mistake.err.substr(mistake.err.size() - 3), "\"}\n");
}

// vLLM's variable of the environment.
TEST(Serve, FollowsRedirectsOfPicturesUnlessToldNotTo) {
  StandInSite site([](const std::string& path) {
    return path == "/moved" ? site_redirect("/none") : site_answer("", "", "404 Not Found");
  });
  for (const char* redirects : {"1", "0"}) {
    ::setenv("VLLM_MEDIA_URL_ALLOW_REDIRECTS", redirects, 1);
    Served served({"--allowed-media-domains", "127.0.0.1", "--log-level", "error"});
    ::unsetenv("VLLM_MEDIA_URL_ALLOW_REDIRECTS");
    ASSERT_TRUE(served.wait_ready());
    const RawResponse answer =
        RawClient(served.path())
            .post("/v1/chat/completions", fmt::format(R"({{"messages":[{{"role":"user","content":[{{"type":)"
                                                      R"("image_url","image_url":{{"url":"{}"}}}}]}}]}})",
                                                      site.url("/moved")));
    const bool follows = std::string(redirects) == "1";
    EXPECT_EQ(answer.status, follows ? 422 : 400);
    EXPECT_THAT(answer.body, HasSubstr(follows ? "404 Not Found" : "redirects are not followed"));
    served.signal(SIGTERM);
    EXPECT_EQ(served.wait_exit(10s), 0);
  }
}

TEST(Serve, ChecksWhatPicturesMayComeFrom) {
  const ProgramOutput missing =
      run_program({"serve", kDemoModel, "--allowed-local-media-path", "/nonexistent/pictures"});
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_THAT(missing.err, HasSubstr("--allowed-local-media-path /nonexistent/pictures: not a directory"));
}

}  // namespace
}  // namespace jewel
