// A Subject behind a URL: any server with OpenAI's API. Texts' odds need `prompt_logprobs`, an extension that
// Jewel and vLLM have.

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <charconv>
#include <condition_variable>
#include <mutex>

#include "client/data_url.h"
#include "client/openai_client.h"
#include "eval/subject.h"
#include "model/json_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {

// The messages with their pictures inside, as the API wants them.
json::array wire_messages(const Conversation& input) {
  json::array messages = input.messages;
  size_t next = 0;
  for (json::value& message : messages) {
    json::value* content = message.get_object().if_contains("content");
    if (content == nullptr || !content->is_array()) continue;
    for (json::value& part : content->get_array()) {
      if (part.at("type").get_string() != "image") continue;
      part = image_part(*input.images[next++]);
    }
  }
  return messages;
}

json::object wire_conversation(const Conversation& input) {
  json::object request = {{"messages", wire_messages(input)}};
  if (!input.tools.empty()) request["tools"] = input.tools;
  if (input.think) request["chat_template_kwargs"] = {{"enable_thinking", true}};
  return request;
}

bool of_one_task(const Error& error) {
  return error.code == ErrorCode::kInvalid || error.code == ErrorCode::kTooLarge;
}

TaskAnswer described(const ChatAnswer& reply) {
  TaskAnswer answer{.text = reply.content, .finish_reason = reply.finish_reason};
  for (const ServerToolCall& call : reply.tool_calls) {
    if (!answer.text.empty() && answer.text.back() != '\n') answer.text += '\n';
    answer.text += call_line(call.name, call.arguments);
  }
  if (reply.usage) {
    answer.output_tokens = reply.usage->completion_tokens;
    if (reply.usage->energy) answer.joules = reply.usage->energy->joules;
  }
  return answer;
}

// [null, {"<id>": {"logprob": …, "rank": …, "decoded_token": …}, …}, …]: the text's own token comes first.
Result<TextOdds> read_odds(const json::value* list, const std::string& where) {
  const auto bad = [&](std::string_view what) {
    return invalid(fmt::format("{}: prompt_logprobs: {}", where, what));
  };
  if (list == nullptr || !list->is_array())
    return unsupported(
        fmt::format("{}: the answer has no prompt_logprobs; divergence needs a server that gives them, as "
                    "Jewel and vLLM do",
                    where));
  TextOdds odds;
  for (const json::value& entry : list->get_array()) {
    if (entry.is_null()) continue;
    if (!entry.is_object() || entry.get_object().empty()) return bad("an entry is no object");
    TokenOdds token;
    bool first = true, picture = false;
    for (const auto& [key, value] : entry.get_object()) {
      int64_t id = 0;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (error != std::errc() || end != key.data() + key.size()) return bad("a key is no token id");
      const json::value* logprob = value.is_object() ? value.get_object().if_contains("logprob") : nullptr;
      if (logprob == nullptr || !logprob->is_number()) return bad("a token has no logprob");
      const auto number = static_cast<float>(logprob->to_number<double>());
      const json::value* rank = value.get_object().if_contains("rank");
      const json::value* text = value.get_object().if_contains("decoded_token");
      if (first) {
        token.id = id;
        token.logprob = number;
        token.rank = rank != nullptr && rank->is_int64() ? static_cast<int>(rank->get_int64()) : 0;
        picture = text != nullptr && text->is_string() && text->get_string() == "<|image|>";
        first = false;
      }
      token.top.emplace_back(id, number);
    }
    std::ranges::sort(token.top, std::ranges::greater{}, &std::pair<int64_t, float>::second);
    if (!picture) odds.tokens.push_back(std::move(token));
  }
  return odds;
}

class ServerSubject : public Subject {
 public:
  ServerSubject(std::unique_ptr<OpenAiClient> client, int n_top)
      : client_(std::move(client)), n_top_(n_top) {}

  std::string describe() const override { return fmt::format("{} at {}", client_->model(), client_->url()); }

  Result<std::vector<TaskAnswer>> answer(std::span<const EvalTask> tasks, const AnswerSettings& settings,
                                         const std::atomic<bool>& cancel,
                                         const std::function<void(size_t)>& progress) override {
    std::vector<TaskAnswer> answers(tasks.size());
    std::mutex mutex;
    std::condition_variable changed;
    size_t under_way = 0, done = 0;
    std::optional<Error> failed;
    for (size_t i = 0; i < tasks.size(); ++i) {
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return under_way < static_cast<size_t>(settings.concurrency) || failed; });
        progress(done);
        if (cancel && !failed) failed = Error{ErrorCode::kCancelled, "interrupted", {}};
        if (failed) break;
        ++under_way;
      }
      auto body = std::make_shared<const std::string>(client_->chat_body(request_of(tasks[i], settings)));
      client_->start(std::move(body), [&, i](Result<ChatAnswer> reply) {
        const std::scoped_lock lock(mutex);
        if (reply.ok()) {
          answers[i] = described(*reply);
        } else if (of_one_task(reply.error())) {
          answers[i].failed = reply.error().message;
        } else if (!failed) {
          failed = std::move(reply).error();
        }
        ++done;
        --under_way;
        changed.notify_all();
      });
    }
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return under_way == 0; });
    if (failed) return *std::move(failed);
    progress(done);
    return answers;
  }

  Result<TextOdds> odds(const Conversation& text) override {
    json::object request;
    const bool chat = !text.messages.empty();
    if (chat) {
      request = wire_conversation(text);
      request["add_generation_prompt"] = false;
    } else {
      request["prompt"] = text.raw;
    }
    request["model"] = client_->model();
    request["max_tokens"] = 1;
    request["temperature"] = 0;
    request["prompt_logprobs"] = n_top_;
    const char* route = chat ? "/chat/completions" : "/completions";
    JEWEL_ASSIGN(const json::value reply, client_->post(route, request));
    const std::string where = client_->url() + route;
    if (!reply.is_object())
      return invalid(fmt::format("{}: found {}, expected an object", where, jewel::describe(reply)));
    const json::object& fields = reply.get_object();
    if (chat) return read_odds(fields.if_contains("prompt_logprobs"), where);
    const json::value* choices = fields.if_contains("choices");
    if (choices == nullptr || !choices->is_array() || choices->get_array().empty() ||
        !choices->get_array()[0].is_object())
      return invalid(fmt::format("{}: the answer has no choices", where));
    return read_odds(choices->get_array()[0].get_object().if_contains("prompt_logprobs"), where);
  }

 private:
  static json::object request_of(const EvalTask& task, const AnswerSettings& settings) {
    json::object request = wire_conversation(task.input);
    request["max_tokens"] = task.max_tokens > 0 ? task.max_tokens : settings.max_tokens;
    request["temperature"] = settings.temperature;
    request["seed"] = settings.seed;
    if (settings.top_p) request["top_p"] = *settings.top_p;
    if (settings.top_k) request["top_k"] = *settings.top_k;
    return request;
  }

  std::unique_ptr<OpenAiClient> client_;
  int n_top_;
};

}  // namespace

Result<std::unique_ptr<Subject>> open_server(const std::string& url, const SubjectOptions& options) {
  JEWEL_ASSIGN(auto client,
               OpenAiClient::open({.url = url, .api_key = options.api_key, .model = options.served_model}));
  return std::unique_ptr<Subject>(std::make_unique<ServerSubject>(std::move(client), options.n_top));
}

}  // namespace jewel
