#include "server/openai/answer_reply.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "server/openai/answer_feed.h"
#include "server/openai/api_error.h"

namespace jewel {
namespace {

constexpr std::string_view kStopping = "the server is shutting down; try again, or another one";
constexpr std::string_view kTooSlow = "the answer was not read fast enough";

const char* id_prefix(AnswerShape shape) {
  switch (shape) {
    case AnswerShape::kChat:
      return "chatcmpl-";
    case AnswerShape::kCompletion:
      return "cmpl-";
    case AnswerShape::kResponses:
      return "resp_";
    case AnswerShape::kMessages:
      return "msg_";
  }
  return "";
}

// The texts of echoed prompts that were given as ids.
void find_echo(const Engine& engine, Asked& asked) {
  for (size_t prompt = 0; prompt < asked.echo.size(); ++prompt) {
    const Request& request = asked.requests[prompt * static_cast<size_t>(asked.n)];
    if (!request.prompt_ids) continue;
    if (auto text = engine.detokenize(*request.prompt_ids); text.ok()) asked.echo[prompt] = *std::move(text);
  }
}

AnswerHead head_of(Asked& asked, const std::string& id) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return {.id = id_prefix(asked.shape) + id,
          .created = std::chrono::duration_cast<std::chrono::seconds>(now).count(),
          .model = asked.model,
          .n = asked.n,
          .include_usage = asked.include_usage,
          .continuous_usage = asked.continuous_usage,
          .include_reasoning = asked.include_reasoning,
          .return_token_ids = asked.return_token_ids,
          .echo = std::move(asked.echo),
          .echo_logprobs = asked.echo_logprobs,
          .repeated = std::move(asked.repeated)};
}

std::unique_ptr<AnswerWriter> make_writer(const Engine& engine, Asked& asked, const std::string& id) {
  find_echo(engine, asked);
  AnswerHead head = head_of(asked, id);
  switch (asked.shape) {
    case AnswerShape::kCompletion:
      return make_completion_writer(std::move(head), asked.requests.size());
    case AnswerShape::kResponses:
      return make_responses_writer(std::move(head));
    case AnswerShape::kMessages:
      return make_anthropic_writer(std::move(head));
    case AnswerShape::kChat:
      break;
  }
  return make_chat_writer(std::move(head));
}

// What this request wants differently from what the engine says.
struct Wishes {
  bool tokens_as_ids = false;
  bool prompt_only = false;

  void apply(Update& update) const {
    if (prompt_only) {
      update.pieces.clear();
      update.tokens.clear();
      if (update.finish && !update.finish->error) {
        update.finish->reason = EndReason::kLength;
        update.finish->stop_token_id = -1;
        update.finish->usage.completion_tokens = update.finish->usage.reasoning_tokens = 0;
      }
    }
    if (!tokens_as_ids) return;
    const auto rename = [](TokenChance& chance) { chance.bytes = "token_id:" + std::to_string(chance.id); };
    for (OutputToken& token : update.tokens) {
      if (token.chance) rename(*token.chance);
      for (TokenChance& other : token.top) rename(other);
    }
  }
};

// A header that names the fields nobody here knows; of the client's making, so it is kept short.
void name_ignored(ServerResponse& response, const std::vector<std::string>& ignored) {
  constexpr size_t kMaxChars = 256;
  std::string names;
  for (const std::string& name : ignored) {
    if (names.size() + name.size() > kMaxChars) break;
    names += (names.empty() ? "" : ", ") + name;
  }
  if (!names.empty()) response.headers.push_back({.name = "X-Ignored-Fields", .value = names});
}

class AnswerReply final : public PendingReply {
 public:
  AnswerReply(Engine& engine, std::shared_ptr<Metrics> metrics, Asked asked, const std::string& id)
      : engine_(engine),
        metrics_(std::move(metrics)),
        asked_(std::move(asked)),
        feed_(std::make_shared<AnswerFeed>(asked_.requests.size(), asked_.stream)),
        writer_(make_writer(engine_, asked_, id)) {}

  ~AnswerReply() override { cancel(); }

  void start(std::function<void()> wake) override {
    feed_->set_wake(wake);
    const Wishes wishes{.tokens_as_ids = asked_.tokens_as_ids, .prompt_only = asked_.prompt_only};
    for (size_t i = 0; i < asked_.requests.size(); ++i) {
      auto watch = std::make_shared<RequestWatch>(metrics_);
      auto ticket = engine_.submit(std::move(asked_.requests[i]),
                                   [feed = feed_, watch = std::move(watch), wishes, i](Update&& update) {
                                     watch->see(update);
                                     wishes.apply(update);
                                     feed->add(i, std::move(update));
                                   });
      if (!ticket.ok()) {
        refused_ = std::move(ticket).error();
        cancel();
        break;
      }
      tickets_.push_back(*std::move(ticket));
    }
    asked_.requests.clear();
    if (refused_) wake();
  }

  Progress take() override {
    if (refused_) return end_with(*refused_);
    if (stopping_) return end_with(503, kStopping);
    const AnswerFeed::State state = feed_->state();
    if (state.overflowed) {
      cancel();
      return end_with(500, kTooSlow);
    }
    return asked_.stream ? take_events(state) : take_whole(state);
  }

  void stop() override {
    stopping_ = true;
    cancel();
  }

 private:
  void cancel() const {
    for (const Ticket& ticket : tickets_) ticket.cancel();
  }

  Progress take_whole(const AnswerFeed::State& state) {
    if (!state.all_finished && !state.failed) return {};
    std::vector<AnswerFeed::Slot> slots = feed_->take();
    if (state.failed) return end_with(slots);
    std::vector<Update> answers;
    answers.reserve(slots.size());
    for (AnswerFeed::Slot& slot : slots) answers.push_back(std::move(slot.update));
    Progress progress{.head = std::make_unique<ServerResponse>(), .done = true};
    name_ignored(*progress.head, asked_.ignored);
    progress.head->body = writer_->whole(answers);
    return progress;
  }

  // The status is not sent before every choice is known to be possible: what is wrong with a request is said
  // by a status, not by an event.
  Progress take_events(const AnswerFeed::State& state) {
    if (!begun_ && !state.all_valid && !state.failed) return {};
    std::vector<AnswerFeed::Slot> slots = feed_->take();
    if (state.failed && !begun_) return end_with(slots);
    Progress progress;
    if (!begun_) progress.head = begin();
    for (size_t i = 0; i < slots.size(); ++i) {
      if (slots[i].any) writer_->add_events(progress.body, i, slots[i].update);
    }
    if (state.failed) {
      const Progress failed = end_with(slots);
      progress.body += failed.body;
      progress.done = true;
    } else if (state.all_finished) {
      writer_->add_last_events(progress.body);
      progress.body += writer_->end_mark();
      progress.done = true;
    }
    return progress;
  }

  std::unique_ptr<ServerResponse> begin() {
    begun_ = true;
    auto head = std::make_unique<ServerResponse>();
    head->content_type = "text/event-stream; charset=utf-8";
    head->headers = {{.name = "Cache-Control", .value = "no-cache"},
                     {.name = "X-Accel-Buffering", .value = "no"}};
    name_ignored(*head, asked_.ignored);
    return head;
  }

  // The first of the errors that the slots ended with.
  Progress end_with(const std::vector<AnswerFeed::Slot>& slots) {
    cancel();
    for (const AnswerFeed::Slot& slot : slots) {
      const std::optional<Finish>& finish = slot.update.finish;
      if (!finish || !finish->error) continue;
      // A deadline is the server's own, no field of the request.
      if (finish->reason == EndReason::kDeadline) return end_with(504, finish->error->message);
      return end_with(*finish->error);
    }
    return end_with(500, "the answer ended without a reason");
  }

  // In the words of the API that the client speaks.
  Progress end_with(const Error& error) {
    const Error named = asked_.names.apply(error);
    return end_with(status_of(named), named.message, named.param);
  }

  Progress end_with(int status, std::string_view message, std::string_view param = {}) {
    Progress progress;
    progress.done = true;
    if (begun_) {
      writer_->add_error(progress.body, status, message, param);
      progress.body += writer_->end_mark();
    } else {
      const ErrorShape shape =
          asked_.shape == AnswerShape::kMessages ? ErrorShape::kAnthropic : ErrorShape::kOpenAi;
      progress.head = std::make_unique<ServerResponse>(error_response(status, message, param, shape));
    }
    return progress;
  }

  Engine& engine_;
  const std::shared_ptr<Metrics> metrics_;
  Asked asked_;
  const std::shared_ptr<AnswerFeed> feed_;
  const std::unique_ptr<AnswerWriter> writer_;
  std::vector<Ticket> tickets_;
  std::optional<Error> refused_;
  bool begun_ = false;
  bool stopping_ = false;
};

}  // namespace

std::unique_ptr<PendingReply> make_answer_reply(Engine& engine, std::shared_ptr<Metrics> metrics, Asked asked,
                                                const std::string& id) {
  return std::make_unique<AnswerReply>(engine, std::move(metrics), std::move(asked), id);
}

}  // namespace jewel
