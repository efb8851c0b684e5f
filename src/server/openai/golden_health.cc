#include "server/openai/golden_health.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "server/openai/api_error.h"
#include "server/openai/json_out.h"

namespace jewel {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTokens = 8;  // of an answer
constexpr std::chrono::seconds kKeep{5};
constexpr std::chrono::seconds kLimit{60};
constexpr int kFirst = -1'000'000;  // a server under load is not a sick one
// Equal tokens come from equal numbers, in the last bit; what is allowed here is what a report may call
// drift.
constexpr double kMaxDrift = 0.01;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void put(std::string& out, uint32_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
}

// 64×64 pixels, BMP: a red square on a shaded ground. `number` stands in a field that decoders pass over, so
// that each check's file is a new one and is encoded, not remembered.
std::string picture(uint32_t number) {
  constexpr uint32_t kSide = 64;
  constexpr uint32_t kHeader = 54;
  std::string out = "BM";
  put(out, kHeader + kSide * kSide * 3, 4);
  put(out, number, 4);
  put(out, kHeader, 4);
  put(out, 40, 4);
  put(out, kSide, 4);
  put(out, kSide, 4);
  put(out, 1, 2);
  put(out, 24, 2);
  for (int i = 0; i < 6; ++i) put(out, 0, 4);
  for (uint32_t y = 0; y < kSide; ++y) {
    for (uint32_t x = 0; x < kSide; ++x) {
      const bool square = x >= 16 && x < 48 && y >= 16 && y < 48;
      put(out, square ? 0x2020E0 : (x * 2) << 8 | y * 2, 3);
    }
  }
  return out;
}

struct Golden {
  std::string name;
  Request request;
};

std::vector<Golden> golden_prompts(const ModelInfo& info, uint32_t number) {
  Request base;
  base.sampling.temperature = 0;
  base.max_tokens = kTokens;
  base.ignore_eos = true;
  base.parse_output = false;
  base.logprobs = 0;
  base.prompt_logprobs = 0;  // and so nothing comes from the prefix cache
  base.priority = kFirst;
  base.deadline = Clock::now() + kLimit;
  std::vector<Golden> prompts;
  prompts.push_back({"text", base});
  prompts.back().request.prompt = "One, two, three, four,";
  if (!info.has_chat_template) return prompts;
  prompts.push_back({"chat", base});
  prompts.back().request.messages = {text_message("user", "Which colour is the sky?")};
  if (!info.has_vision) return prompts;
  prompts.push_back({"image", base});
  prompts.back().request.messages = {image_message({picture(number)}, "What is in the picture?")};
  prompts.back().request.max_soft_tokens = 70;
  return prompts;
}

// What came of one prompt.
struct Answer {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;  // the prompt's, then the answer's
  std::optional<std::string> problem;
  double ttft_s = 0;
  double seconds = 0;
  bool ended = false;

  void add(const Update& update) {
    const auto see = [&](const OutputToken& token) {
      if (!token.chance) return;
      logprobs.push_back(token.chance->logprob);
      if (!std::isfinite(token.chance->logprob)) problem = "a log-probability is not finite";
    };
    for (const OutputToken& token : update.prompt_logprobs) see(token);
    for (const OutputToken& token : update.tokens) {
      ids.push_back(token.id);
      see(token);
    }
    if (!update.finish) return;
    ended = true;
    ttft_s = update.finish->timings.ttft_s;
    if (update.finish->error)
      problem = update.finish->error->message;
    else if (update.finish->reason != EndReason::kLength || ids.empty() || logprobs.size() < ids.size())
      problem = fmt::format("{} tokens came, expected {}", ids.size(), kTokens);  // or the server's own limit
  }
};

double drift(const Answer& a, const Answer& b) {
  if (a.logprobs.size() != b.logprobs.size()) return HUGE_VAL;
  double most = 0;
  for (size_t i = 0; i < a.logprobs.size(); ++i)
    most = std::max(most, std::fabs(static_cast<double>(a.logprobs[i]) - b.logprobs[i]));
  return most;
}

}  // namespace

struct GoldenHealth::State : std::enable_shared_from_this<GoldenHealth::State> {
  std::mutex mutex;  // guards all of it
  uint32_t runs = 0;
  bool running = false;
  Clock::time_point began;
  std::vector<Golden> prompts;  // names only, once begun
  std::vector<Answer> answers;
  std::vector<Answer> first;  // empty: not taken yet
  std::optional<ServerResponse> result;
  std::optional<Clock::time_point> result_at;
  std::vector<std::function<void()>> waiting;

  void begin(const Submit& submit, const ModelInfo& info);
  void see(size_t prompt, uint32_t run, const Update& update);
  void end();
  ServerResponse judge();
  ServerResponse aged() const;
};

// With the lock held: submit() never calls back before it returns, only from threads of the engine.
void GoldenHealth::State::begin(const Submit& submit, const ModelInfo& info) {
  running = true;
  began = Clock::now();
  const uint32_t run = ++runs;
  prompts = golden_prompts(info, run);
  answers.assign(prompts.size(), {});
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto ticket =
        submit(std::move(prompts[i].request),
               [self = shared_from_this(), i, run](Update&& update) { self->see(i, run, update); });
    if (ticket.ok()) continue;
    answers[i].problem = ticket.error().message;
    answers[i].ended = true;
  }
  if (std::ranges::all_of(answers, &Answer::ended)) end();
}

void GoldenHealth::State::see(size_t prompt, uint32_t run, const Update& update) {
  std::vector<std::function<void()>> wake;
  {
    const std::scoped_lock lock(mutex);
    if (run != runs || !running) return;
    Answer& answer = answers[prompt];
    answer.add(update);
    if (!answer.ended) return;
    answer.seconds = seconds_since(began);
    if (!std::ranges::all_of(answers, &Answer::ended)) return;
    end();
    wake.swap(waiting);
  }
  for (const auto& one : wake) one();
}

void GoldenHealth::State::end() {
  running = false;
  result = judge();
  result_at = Clock::now();
}

ServerResponse GoldenHealth::State::judge() {
  const bool compare = !first.empty();
  bool good = true;
  JsonOut list;
  list.open('[');
  for (size_t i = 0; i < answers.size(); ++i) {
    Answer& answer = answers[i];
    const double moved = compare && !answer.problem ? drift(answer, first[i]) : 0;
    if (compare && !answer.problem && (answer.ids != first[i].ids || moved > kMaxDrift))
      answer.problem = "the answer is not the one that was taken at first";
    good = good && !answer.problem;
    list.open('{').field("name", prompts[i].name).field("ok", !answer.problem);
    if (answer.problem)
      list.field("problem", *answer.problem);
    else
      list.null_field("problem");
    list.field("tokens", static_cast<uint64_t>(answer.ids.size()))
        .field("ttft_s", answer.ttft_s)
        .field("seconds", answer.seconds)
        .field("logprob_drift", moved)
        .close('}');
  }
  list.close(']');
  if (!compare && good) first = answers;
  JsonOut out;
  out.open('{').field("status", good ? "ok" : "failed").field("compared", compare);
  out.field("seconds", seconds_since(began)).key("prompts").raw(list.text());
  ServerResponse response{.status = good ? 200 : 503, .body = out.take()};
  if (!good) response.headers.push_back({.name = "Retry-After", .value = std::to_string(kKeep.count())});
  return response;
}

ServerResponse GoldenHealth::State::aged() const {
  ServerResponse response = *result;
  response.body += fmt::format(R"(,"age_s":{:.3f}}})", seconds_since(*result_at));
  return response;
}

namespace {

class CheckReply final : public PendingReply {
 public:
  explicit CheckReply(std::shared_ptr<GoldenHealth::State> state) : state_(std::move(state)) {}

  void start(std::function<void()> wake) override {
    {
      const std::scoped_lock lock(state_->mutex);
      if (state_->running) {
        state_->waiting.push_back(std::move(wake));
        return;
      }
    }
    wake();
  }

  Progress take() override {
    Progress progress;
    {
      const std::scoped_lock lock(state_->mutex);
      if (stopping_) {
        progress.head = std::make_unique<ServerResponse>(error_response(503, "the server is shutting down"));
      } else if (!state_->running && state_->result) {
        progress.head = std::make_unique<ServerResponse>(state_->aged());
      } else {
        return progress;
      }
    }
    progress.done = true;
    return progress;
  }

  void stop() override { stopping_ = true; }

 private:
  const std::shared_ptr<GoldenHealth::State> state_;
  bool stopping_ = false;
};

}  // namespace

GoldenHealth::GoldenHealth(Engine& engine)
    : GoldenHealth(
          [&engine](Request request, UpdateCallback on_update) {
            return engine.submit(std::move(request), std::move(on_update));
          },
          engine.info(), kKeep) {}

GoldenHealth::GoldenHealth(Submit submit, const ModelInfo& info, std::chrono::milliseconds keep)
    : submit_(std::move(submit)), info_(info), keep_(keep), state_(std::make_shared<State>()) {}

void GoldenHealth::take_answers() {
  const std::scoped_lock lock(state_->mutex);
  if (!state_->running && state_->first.empty()) state_->begin(submit_, info_);
}

Reply GoldenHealth::check() {
  const std::scoped_lock lock(state_->mutex);
  const bool fresh = state_->result_at && Clock::now() - *state_->result_at < keep_;
  if (!state_->running && fresh) return state_->aged();
  if (!state_->running) state_->begin(submit_, info_);
  return std::make_unique<CheckReply>(state_);
}

}  // namespace jewel
