// chat.completion and chat.completion.chunk. A stream begins with the role, goes on with deltas of content,
// reasoning and tool calls, and ends with the finish reason; reasoning stands under both names that clients
// look for.
#include <fmt/format.h>

#include <utility>

#include "server/openai/answer_parts.h"
#include "server/openai/answer_writer.h"

namespace jewel {
namespace {

using Kind = OutputPiece::Kind;

bool has_logprobs(const Update& update) {
  return !update.tokens.empty() && update.tokens.front().chance;
}

void write_logprobs(JsonOut& out, const Update& update) {
  out.key("logprobs");
  if (!has_logprobs(update)) {
    out.null();
    return;
  }
  out.open('{').key("content").open('[');
  for (const OutputToken& token : update.tokens) {
    if (!token.chance) continue;
    out.open('{');
    write_token(out, *token.chance);
    out.key("top_logprobs").open('[');
    for (const TokenChance& other : token.top) {
      out.open('{');
      write_token(out, other);
      out.close('}');
    }
    out.close(']').close('}');
  }
  out.close(']').close('}');
}

class ChatWriter final : public AnswerWriter {
 public:
  explicit ChatWriter(AnswerHead head)
      : head_(std::move(head)),
        usage_(static_cast<size_t>(head_.n), head_.n),
        begun_(static_cast<size_t>(head_.n)) {
    JsonOut out;
    write_head(out, "chat.completion.chunk");
    chunk_head_ = out.take();
  }

  std::string whole(const std::vector<Update>& answers) override {
    JsonOut out;
    write_head(out, "chat.completion");
    out.key("choices").open('[');
    for (size_t i = 0; i < answers.size(); ++i) write_choice(out, i, answers[i]);
    out.close(']');
    for (size_t i = 0; i < answers.size(); ++i) usage_.see(i, answers[i]);
    out.key("usage");
    usage_.write(out);
    if (answers.front().finish) write_timings(out, *answers.front().finish);
    write_prompt_logprobs(out, answers.front().prompt_logprobs);
    if (head_.return_token_ids) write_prompt_ids(out, answers.front());
    out.close('}');
    return out.take();
  }

  void add_events(std::string& out, size_t choice, const Update& update) override {
    usage_.see(choice, update);
    if (!begun_[choice]) {
      begun_[choice] = true;
      add_event(out, choice, R"({"role":"assistant","content":""})", nullptr, &update);
    }
    // Probabilities and ids go with the first piece of what came together; with an empty one when what these
    // tokens say is not certain yet.
    const Update* extras = has_logprobs(update) || head_.return_token_ids ? &update : nullptr;
    if (extras != nullptr && extras->tokens.empty()) extras = nullptr;
    for (const OutputPiece& piece : update.pieces) {
      const std::string delta = delta_of(choice, piece);
      if (!delta.empty()) add_event(out, choice, delta, std::exchange(extras, nullptr), nullptr);
    }
    if (update.finish) {
      add_finish(out, choice, *update.finish, extras);
    } else if (extras != nullptr) {
      add_event(out, choice, "{}", extras, nullptr);
    }
  }

  void add_last_events(std::string& out) override {
    if (!head_.include_usage) return;
    JsonOut json;
    json.raw(chunk_head_).key("choices").open('[').close(']').key("usage");
    usage_.write(json);
    append_event(out, json.close('}').text());
  }

 private:
  void write_head(JsonOut& out, std::string_view object) const {
    out.open('{')
        .field("id", head_.id)
        .field("object", object)
        .field("created", head_.created)
        .field("model", head_.model)
        .field("system_fingerprint", kFingerprint);
  }

  std::string call_id(size_t choice, int call) const {
    return fmt::format("call-{}-{}-{}", head_.id.substr(head_.id.find('-') + 1), choice, call);
  }

  // `{"content":"…"}`; empty when there is nothing to say.
  std::string delta_of(size_t choice, const OutputPiece& piece) const {
    JsonOut out;
    switch (piece.kind) {
      case Kind::kContent:
        return out.open('{').field("content", piece.text).close('}').take();
      case Kind::kReasoning:
        if (!head_.include_reasoning) return {};
        return out.open('{')
            .field("reasoning", piece.text)
            .field("reasoning_content", piece.text)
            .close('}')
            .take();
      case Kind::kCallStart:
        out.open('{').key("tool_calls").open('[').open('{').field("index", piece.call);
        out.field("id", call_id(choice, piece.call)).field("type", "function").key("function");
        out.open('{').field("name", piece.text).field("arguments", "").close('}');
        return out.close('}').close(']').close('}').take();
      case Kind::kCallArguments:
        out.open('{').key("tool_calls").open('[').open('{').field("index", piece.call).key("function");
        out.open('{').field("arguments", piece.text).close('}');
        return out.close('}').close(']').close('}').take();
      case Kind::kCallEnd:
        return {};  // streamed as it came
    }
    return {};
  }

  void add_event(std::string& out, size_t choice, std::string_view delta, const Update* extras,
                 const Update* first) const {
    JsonOut json;
    json.raw(chunk_head_).key("choices").open('[').open('{').field("index", static_cast<int>(choice));
    json.key("delta").raw(delta);
    if (extras != nullptr)
      write_logprobs(json, *extras);
    else
      json.null_field("logprobs");
    json.null_field("finish_reason");
    if (extras != nullptr && head_.return_token_ids) write_ids(json, "token_ids", extras->tokens);
    json.close('}').close(']');
    if (first != nullptr && head_.return_token_ids) write_prompt_ids(json, *first);
    end_event(out, json);
  }

  void add_finish(std::string& out, size_t choice, const Finish& finish, const Update* extras) const {
    JsonOut json;
    json.raw(chunk_head_).key("choices").open('[').open('{').field("index", static_cast<int>(choice));
    json.key("delta").open('{').close('}');
    if (extras != nullptr)
      write_logprobs(json, *extras);
    else
      json.null_field("logprobs");
    json.field("finish_reason", finish_reason(finish.reason));
    write_stop_reason(json, finish);
    if (extras != nullptr && head_.return_token_ids) write_ids(json, "token_ids", extras->tokens);
    json.close('}').close(']');
    write_timings(json, finish);
    end_event(out, json);
  }

  void end_event(std::string& out, JsonOut& json) const {
    if (head_.continuous_usage) {
      json.key("usage");
      usage_.write(json);
    } else if (head_.include_usage) {
      json.null_field("usage");  // as OpenAI: null in all but the last
    }
    append_event(out, json.close('}').text());
  }

  void write_choice(JsonOut& out, size_t choice, const Update& answer) const {
    std::string content;
    std::string reasoning;
    std::vector<std::pair<std::string, std::string>> calls;  // name, arguments
    for (const OutputPiece& piece : answer.pieces) {
      if (piece.kind == Kind::kContent) content += piece.text;
      if (piece.kind == Kind::kReasoning) reasoning += piece.text;
      if (piece.kind == Kind::kCallStart) calls.emplace_back(piece.text, "");
      if (piece.kind == Kind::kCallEnd && !calls.empty()) calls.back().second = piece.text;
    }
    out.open('{')
        .field("index", static_cast<int>(choice))
        .key("message")
        .open('{')
        .field("role", "assistant");
    if (content.empty() && !calls.empty())
      out.null_field("content");
    else
      out.field("content", content);
    out.null_field("refusal");
    if (!reasoning.empty() && head_.include_reasoning)
      out.field("reasoning", reasoning).field("reasoning_content", reasoning);
    if (!calls.empty()) write_calls(out, choice, calls);
    out.close('}');
    write_logprobs(out, answer);
    out.field("finish_reason", finish_reason(answer.finish ? answer.finish->reason : EndReason::kError));
    if (answer.finish) write_stop_reason(out, *answer.finish);
    if (head_.return_token_ids) write_ids(out, "token_ids", answer.tokens);
    out.close('}');
  }

  void write_calls(JsonOut& out, size_t choice,
                   const std::vector<std::pair<std::string, std::string>>& calls) const {
    out.key("tool_calls").open('[');
    for (size_t i = 0; i < calls.size(); ++i) {
      out.open('{')
          .field("id", call_id(choice, static_cast<int>(i)))
          .field("type", "function")
          .key("function");
      out.open('{').field("name", calls[i].first).field("arguments", calls[i].second).close('}').close('}');
    }
    out.close(']');
  }

  const AnswerHead head_;
  UsageSum usage_;
  std::vector<bool> begun_;
  std::string chunk_head_;  // up to "choices"
};

}  // namespace

std::unique_ptr<AnswerWriter> make_chat_writer(AnswerHead head) {
  return std::make_unique<ChatWriter>(std::move(head));
}

}  // namespace jewel
