// What the server adds to the engine: memory of idle connections, streams at once, latency. The engine is the
// real one over a backend that computes nothing (backend/fake), so that all time is the scheduler's, the
// text's and the server's; the clients are a process of their own (load_client.h) on the same cores.
//
//   server_load [JSON_FILE]
//
// "idle": kIdle keep-alive connections, each of which was answered once; resident memory of this process with
// them, less that before them. "streams": kStreams at once; as fast as they go, and with a step every
// kPaceMs, where every token should have an event of its own. "latency": one request after the other, through
// HTTP and, in turn with it, through Engine::submit(); alone, and while 32 streams are under way. "gone":
// kGone clients vanish in the middle of their streams; how long until no page is held any more. Exit code 3
// when a bar is missed.
#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "base/log.h"
#include "load_client.h"
#include "model/json_text.h"
#include "report/result_file.h"
#include "server/fake_engine.h"
#include "server/http/http_server.h"
#include "server/openai/api_server.h"

namespace jewel {
namespace {

using Clock = std::chrono::steady_clock;
using Figures = LoadClient::Figures;

constexpr int kIdle = 2000, kStreams = 256, kTokens = 1000, kGone = 1000;
constexpr int kSlots = 1024;
constexpr int kRequests = 500;  // of a latency
constexpr int kOthers = 32;     // streams beside them
constexpr int kRounds = 3;
constexpr double kPaceMs = 4;  // 256 rows: 64,000 tokens/s are offered
constexpr double kOtherPaceMs = 5;
constexpr double kMaxIdleKb = 20, kMinTokensPerSecond = 50'000, kMaxAddedMs = 1, kMaxGoneS = 1;

template <typename T>
T must(Result<T> result) {
  if (result.ok()) return std::move(result).value();
  fmt::print(stderr, "server_load: {}\n", result.error().message);
  std::exit(1);
}

struct Served {
  explicit Served(double step_ms)
      : engine(must(make_fake_engine({.max_num_seqs = kSlots, .step_ms = step_ms}))),
        api(*engine, {.defaults = {.model_names = {"demo"}}}) {
    server = must(HttpServer::start({.host = "127.0.0.1", .port = 0}, api));
  }
  int port() const { return server->port(); }

  std::unique_ptr<Engine> engine;
  ApiServer api;
  std::unique_ptr<HttpServer> server;
};

std::string chat(int max_tokens, bool stream) {
  const std::string body = fmt::format(
      R"({{"model":"demo","messages":[{{"role":"user","content":"Who are you?"}}],"max_tokens":{},)"
      R"("ignore_eos":true,"temperature":0,"stream":{}{}}})",
      max_tokens, stream, stream ? R"(,"stream_options":{"include_usage":true})" : "");
  return fmt::format(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
      "{}\r\n\r\n{}",
      body.size(), body);
}

Request same_request(int max_tokens) {
  Request request{
      .messages = {text_message("user", "Who are you?")}, .max_tokens = max_tokens, .ignore_eos = true};
  request.sampling.temperature = 0;
  return request;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void expect_all(const Figures& figures, int n, int tokens_each) {
  if (figures.failed == 0 && figures.tokens == int64_t{n} * tokens_each) return;
  fmt::print(stderr, "server_load: {} of {} requests failed, {} tokens came, {} were asked for\n",
             figures.failed, n, figures.tokens, int64_t{n} * tokens_each);
  std::exit(1);
}

double resident_bytes() {
  ::malloc_trim(0);
  std::ifstream statm("/proc/self/statm");
  int64_t all = 0;
  int64_t resident = 0;
  statm >> all >> resident;
  return static_cast<double>(resident * ::sysconf(_SC_PAGESIZE));
}

class Bench {
 public:
  int run(const char* json_file) {
    result_ = begin_result("jewel serve over a backend that computes nothing: what the server adds");
    result_.settings = {{"model", "the demo model's config and tokenizer"},
                        {"http_threads", HttpOptions{}.threads},
                        {"clients", "a process of their own on the same cores, loopback"},
                        {"rounds", kRounds}};
    result_.ceilings = {{"idle_kb_per_connection", kMaxIdleKb},
                        {"stream_tokens_per_s_at_least", kMinTokensPerSecond},
                        {"added_ms_p50", kMaxAddedMs},
                        {"gone_s", kMaxGoneS}};
    idle();
    streams(0, "as fast as they go");
    streams(kPaceMs, fmt::format("a step every {} ms", kPaceMs));
    latency(false);
    latency(true);
    gone();
    fmt::print("bars: {}\n", met_ ? "met" : "missed");
    if (json_file != nullptr) {
      std::ofstream file(json_file);
      file << pretty_json(as_json(result_));
      file.close();
      if (!file) {
        fmt::print(stderr, "server_load: {} cannot be written\n", json_file);
        return 1;
      }
    }
    return met_ ? 0 : 3;
  }

 private:
  void add(std::string name, double value, std::string unit, int64_t n, std::optional<double> ceiling = {},
           std::string note = {}) {
    fmt::print("{:<52} {:>12} {}{}{}\n", name, number_text(value), unit,
               ceiling ? fmt::format("  (bar: {})", number_text(*ceiling)) : "",
               note.empty() ? "" : "  " + note);
    result_.figures.push_back({.name = std::move(name),
                               .value = value,
                               .unit = std::move(unit),
                               .ceiling = ceiling,
                               .n = n,
                               .note = std::move(note)});
  }

  // Once before, so that what is allocated once and for all is there.
  void idle() {
    Served served(0);
    const std::string request = chat(4, true);
    expect_all(client_.open_idle(served.port(), 256, request), 256, 4);
    client_.close_all();
    while (served.server->connections() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const double before = resident_bytes();
    expect_all(client_.open_idle(served.port(), kIdle, request), kIdle, 4);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    if (served.server->connections() != kIdle) std::exit(1);
    const double kb = (resident_bytes() - before) / kIdle / 1000;
    client_.close_all();
    add(fmt::format("idle, {} keep-alive connections, each", kIdle), kb, "KB", kIdle, kMaxIdleKb);
    met_ = met_ && kb <= kMaxIdleKb;
  }

  void streams(double pace_ms, const std::string& how) {
    Served served(pace_ms);
    const std::string request = chat(kTokens, true);
    expect_all(client_.at_once(served.port(), 8, chat(16, true)), 8, 16);
    Figures best;
    for (int round = 0; round < kRounds; ++round) {
      Figures figures = client_.at_once(served.port(), kStreams, request);
      expect_all(figures, kStreams, kTokens);
      if (round == 0 || figures.seconds < best.seconds) best = std::move(figures);
    }
    const double rate = static_cast<double>(best.tokens) / best.seconds;
    const std::string name = fmt::format("{} streams, {}", kStreams, how);
    add(name + ", in all", rate, "tokens/s", kRounds, kMinTokensPerSecond);
    // Role, finish reason, usage and [DONE] are events without text.
    const double text_events = static_cast<double>(best.events - 4 * kStreams);
    add(name + ", tokens per event", static_cast<double>(best.tokens) / text_events, "", kRounds);
    add(name + ", the clients' own time", best.cpu_s / best.seconds, "cores", kRounds);
    met_ = met_ && rate >= kMinTokensPerSecond;
  }

  // Both ways in turn, so that what drifts falls on both.
  void latency(bool busy) {
    const double pace = busy ? kOtherPaceMs : 0;
    Served served(pace);
    std::thread others;
    const int rounds = 10;
    const int n = kRequests / rounds / (busy ? 5 : 1);
    std::atomic<bool> ended{false};
    if (busy) {
      // Long enough to outlive what is measured; the rest is cancelled.
      others = std::thread([&] {
        while (!ended)
          expect_all(background_.at_once(served.port(), kOthers, chat(kTokens, true)), kOthers, kTokens);
      });
      while (served.engine->stats().running < kOthers)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::vector<double> http_first, http_whole, direct_first, direct_whole;
    const auto append = [](std::vector<double>& to, const std::vector<double>& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    for (int round = 0; round <= rounds; ++round) {
      const Figures figures = client_.one_by_one(served.port(), n, chat(16, true));
      expect_all(figures, n, 16);
      std::vector<double> first, whole;
      for (int i = 0; i < n; ++i) direct(*served.engine, first, whole);
      if (round == 0) continue;  // warm now
      append(http_first, figures.first);
      append(http_whole, figures.whole);
      append(direct_first, first);
      append(direct_whole, whole);
    }
    ended = true;
    if (busy) others.join();
    const std::string name = busy ? fmt::format("latency beside {} streams", kOthers) : "latency";
    const auto each = static_cast<int64_t>(http_first.size());
    report_latency(name + ", first text", median(http_first), median(direct_first), each);
    report_latency(name + ", 16 tokens to their end", median(http_whole), median(direct_whole), each);
  }

  void gone() {
    Served served(kPaceMs);
    double worst = 0;
    for (int round = 0; round < kRounds; ++round) {
      client_.open_streams(served.port(), kGone, chat(kTokens, true));
      while (served.engine->stats().running < kGone)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      const auto start = Clock::now();
      client_.vanish();
      const auto busy = [&] {
        const Stats stats = served.engine->stats();
        return stats.kv_usage > 0 || stats.under_way > 0 || stats.running > 0;
      };
      while (busy()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      worst = std::max(worst, std::chrono::duration<double>(Clock::now() - start).count());
    }
    add(fmt::format("{} clients gone, until no page is held", kGone), worst, "s", kRounds, kMaxGoneS,
        "the slowest round");
    met_ = met_ && worst <= kMaxGoneS;
  }

  static void direct(Engine& engine, std::vector<double>& first, std::vector<double>& whole) {
    const auto start = Clock::now();
    const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
    Stream stream = must(engine.submit(same_request(16)));
    bool seen = false;
    while (const auto update = stream.next()) {
      if (seen || update->pieces.empty()) continue;
      seen = true;
      first.push_back(seconds());
    }
    whole.push_back(seconds());
  }

  void report_latency(const std::string& name, double http_s, double direct_s, int64_t n) {
    const double added_ms = (http_s - direct_s) * 1000;
    add(name + ", added, p50", added_ms, "ms", n, kMaxAddedMs,
        fmt::format("HTTP {:.3f} ms, engine {:.3f} ms", http_s * 1000, direct_s * 1000));
    met_ = met_ && added_ms <= kMaxAddedMs;
  }

  LoadClient client_;  // these two fork: before any thread
  LoadClient background_;
  ResultFile result_;
  bool met_ = true;
};

}  // namespace
}  // namespace jewel

int main(int argc, char** argv) {
  jewel::Bench bench;
  jewel::set_log_level("error");
  return bench.run(argc > 1 ? argv[1] : nullptr);
}
