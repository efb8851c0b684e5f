// text_completion: the older API's answers, whole and streamed; both have the same shape.
#include <algorithm>
#include <string_view>
#include <utility>

#include "server/openai/answer_parts.h"
#include "server/openai/answer_writer.h"

namespace jewel {
namespace {

struct Entry {
  const OutputToken* token;
  std::string_view text;
  size_t offset;
};

class CompletionWriter final : public AnswerWriter {
 public:
  CompletionWriter(AnswerHead head, size_t answers)
      : head_(std::move(head)), usage_(answers, head_.n), begun_(answers), offsets_(answers) {}

  std::string whole(const std::vector<Update>& answers) override {
    JsonOut out;
    write_head(out);
    out.key("choices").open('[');
    for (size_t i = 0; i < answers.size(); ++i) {
      usage_.see(i, answers[i]);
      write_choice(out, i, answers[i], echo_of(i));
    }
    out.close(']').key("usage");
    usage_.write(out);
    if (answers.front().finish) write_timings(out, *answers.front().finish);
    return out.close('}').take();
  }

  void add_events(std::string& out, size_t choice, const Update& update) override {
    usage_.see(choice, update);
    const bool waits = head_.echo_logprobs && !begun_[choice] && update.prompt_logprobs.empty();
    if (waits && update.tokens.empty() && !update.finish)
      return;  // the prompt's log-probabilities come first
    const std::string echo = begun_[choice] ? "" : echo_of(choice);
    begun_[choice] = true;
    if (update.pieces.empty() && update.tokens.empty() && !update.finish && echo.empty()) return;
    JsonOut json;
    write_head(json);
    json.key("choices").open('[');
    write_choice(json, choice, update, echo);
    json.close(']');
    if (update.finish) write_timings(json, *update.finish);
    if (head_.continuous_usage) {
      json.key("usage");
      usage_.write(json);
    } else if (head_.include_usage) {
      json.null_field("usage");
    }
    append_event(out, json.close('}').text());
  }

  void add_last_events(std::string& out) override {
    if (!head_.include_usage) return;
    JsonOut json;
    write_head(json);
    json.key("choices").open('[').close(']').key("usage");
    usage_.write(json);
    append_event(out, json.close('}').text());
  }

 private:
  std::string echo_of(size_t choice) const {
    const size_t prompt = choice / static_cast<size_t>(head_.n);
    return prompt < head_.echo.size() ? head_.echo[prompt] : "";
  }

  void write_head(JsonOut& out) const {
    out.open('{')
        .field("id", head_.id)
        .field("object", "text_completion")
        .field("created", head_.created)
        .field("model", head_.model)
        .field("system_fingerprint", kFingerprint);
  }

  void write_choice(JsonOut& out, size_t choice, const Update& update, const std::string& echo) {
    out.open('{').field("index", static_cast<int>(choice)).field("text", echo + update.content());
    write_logprobs(out, choice, update, echo);
    if (update.finish) {
      out.field("finish_reason", finish_reason(update.finish->reason));
      write_stop_reason(out, *update.finish);
    } else {
      out.null_field("finish_reason").null_field("stop_reason");
    }
    if (!update.prompt_logprobs.empty() && !head_.echo_logprobs)
      write_prompt_logprobs(out, update.prompt_logprobs);
    if (head_.return_token_ids) {
      if (update.prompt) write_prompt_ids(out, update);
      write_ids(out, "token_ids", update.tokens);
    }
    out.close('}');
  }

  // Four lists of equal length; offsets count bytes from the choice's beginning. Tokens of an echoed prompt
  // come first: its first has no probability, and one that the text does not show (<bos>) takes no room.
  void write_logprobs(JsonOut& out, size_t choice, const Update& update, std::string_view echo) {
    std::vector<Entry> entries;
    if (head_.echo_logprobs) {
      for (const OutputToken& token : update.prompt_logprobs) {
        entries.push_back({.token = &token,
                           .text = token.chance ? token.chance->bytes : token.bytes,
                           .offset = offsets_[choice]});
        if (echo.substr(std::min(offsets_[choice], echo.size())).starts_with(token.bytes))
          offsets_[choice] += token.bytes.size();
      }
    }
    for (const OutputToken& token : update.tokens) {
      if (!token.chance) continue;
      entries.push_back({.token = &token, .text = token.chance->bytes, .offset = offsets_[choice]});
      offsets_[choice] += token.chance->bytes.size();
    }
    out.key("logprobs");
    if (entries.empty()) {
      out.null();
      return;
    }
    out.open('{').key("text_offset").open('[');
    for (const Entry& entry : entries) out.value(static_cast<uint64_t>(entry.offset));
    out.close(']').key("token_logprobs").open('[');
    for (const Entry& entry : entries) {
      if (entry.token->chance)
        out.value(finite_logprob(entry.token->chance->logprob));
      else
        out.null();
    }
    out.close(']').key("tokens").open('[');
    for (const Entry& entry : entries) out.value(entry.text);
    out.close(']').key("top_logprobs").open('[');
    for (const Entry& entry : entries) {
      if (!entry.token->chance) {
        out.null();
        continue;
      }
      out.open('{');
      for (const TokenChance& other : entry.token->top) out.field(other.bytes, finite_logprob(other.logprob));
      out.close('}');
    }
    out.close(']').close('}');
  }

  const AnswerHead head_;
  UsageSum usage_;
  std::vector<bool> begun_;
  std::vector<size_t> offsets_;
};

}  // namespace

std::unique_ptr<AnswerWriter> make_completion_writer(AnswerHead head, size_t answers) {
  return std::make_unique<CompletionWriter>(std::move(head), answers);
}

}  // namespace jewel
