// Anthropic's Messages: a message whose content is a row of blocks, whole or as typed events. message_start
// says the prompt's length; how much of it was found in the cache is known with the first token and said by
// message_delta, whose figures are the whole answer's.
#include <fmt/format.h>

#include <utility>

#include "server/openai/answer_items.h"
#include "server/openai/answer_parts.h"
#include "server/openai/answer_writer.h"
#include "server/openai/api_error.h"

namespace jewel {
namespace {

using Kind = AnswerItem::Kind;
using What = ItemChange::What;

// Clients send thoughts back with their signature, and some leave out thoughts that have none. Nobody here
// checks it.
constexpr std::string_view kSignature = "jewel";

std::string_view stop_reason(const Finish& finish) {
  switch (finish.reason) {
    case EndReason::kStop:
      return finish.stop_text.empty() ? "end_turn" : "stop_sequence";
    case EndReason::kToolCalls:
      return "tool_use";
    case EndReason::kLength:
      return "max_tokens";
    default:
      return finish_reason(finish.reason);
  }
}

class AnthropicWriter final : public AnswerWriter {
 public:
  explicit AnthropicWriter(AnswerHead head)
      : head_(std::move(head)), short_id_(head_.id.substr(head_.id.find('_') + 1)) {}

  std::string whole(const std::vector<Update>& answers) override {
    see(answers.front());
    items_.take(answers.front());
    JsonOut out;
    open_message(out);
    for (const AnswerItem& item : items_.items()) {
      if (is_shown(item)) write_block(out, item);
    }
    out.close(']');
    close_message(out);
    return out.take();
  }

  void add_events(std::string& out, size_t /*choice*/, const Update& update) override {
    if (!begun_) {
      begun_ = true;
      add_start(out, update);
    }
    see(update);
    for (const ItemChange& change : items_.take(update)) {
      const AnswerItem& item = items_.items()[change.item];
      if (!is_shown(item)) continue;
      switch (change.what) {
        case What::kOpened:
          add_block_start(out, item);
          break;
        case What::kGrew:
          if (!change.text.empty()) add_delta(out, item.kind, change.text);
          break;
        case What::kClosed:
          add_block_stop(out, item.kind);
          break;
      }
    }
  }

  void add_last_events(std::string& out) override {
    JsonOut json;
    json.open('{').field("type", "message_delta").key("delta").open('{');
    write_stop(json);
    json.close('}').key("usage");
    write_usage(json);
    if (finish_) write_timings(json, *finish_);
    append_event(out, "message_delta", json.close('}').text());
    append_event(out, "message_stop", R"({"type":"message_stop"})");
  }

  void add_error(std::string& out, int status, std::string_view message,
                 std::string_view /*param*/) override {
    append_event(out, "error", anthropic_error_json(status, message));
  }

  std::string_view end_mark() const override { return {}; }

 private:
  void see(const Update& update) {
    if (update.prompt) usage_.prompt_tokens = update.prompt->prompt_tokens;
    if (!update.finish) return;
    usage_ = update.finish->usage;
    finish_ = update.finish;
  }

  bool is_shown(const AnswerItem& item) const {
    return head_.include_reasoning || item.kind != Kind::kReasoning;
  }

  void open_message(JsonOut& out) const {
    out.open('{')
        .field("id", head_.id)
        .field("type", "message")
        .field("role", "assistant")
        .field("model", head_.model)
        .key("content")
        .open('[');
  }

  void close_message(JsonOut& out) const {
    write_stop(out);
    out.key("usage");
    write_usage(out);
    if (finish_) write_timings(out, *finish_);
    out.close('}');
  }

  void write_stop(JsonOut& out) const {
    if (finish_)
      out.field("stop_reason", stop_reason(*finish_));
    else
      out.null_field("stop_reason");
    if (finish_ && !finish_->stop_text.empty())
      out.field("stop_sequence", finish_->stop_text);
    else
      out.null_field("stop_sequence");
  }

  // input_tokens are those that no cache had.
  void write_usage(JsonOut& out) const {
    out.open('{')
        .field("input_tokens", usage_.prompt_tokens - usage_.cached_tokens)
        .field("cache_creation_input_tokens", 0)
        .field("cache_read_input_tokens", usage_.cached_tokens)
        .field("output_tokens", usage_.completion_tokens);
    out.key("output_tokens_details").open('{').field("thinking_tokens", usage_.reasoning_tokens).close('}');
    if (finish_) write_energy(out, finish_->energy);
    out.close('}');
  }

  void open_call(JsonOut& out, const AnswerItem& item) const {
    out.open('{').field("type", "tool_use").field("id", fmt::format("toolu_{}_{}", short_id_, item.call));
    out.field("name", item.name).key("input");
  }

  void write_block(JsonOut& out, const AnswerItem& item) const {
    switch (item.kind) {
      case Kind::kReasoning:
        out.open('{').field("type", "thinking").field("thinking", item.text);
        out.field("signature", kSignature).close('}');
        break;
      case Kind::kText:
        out.open('{').field("type", "text").field("text", item.text).close('}');
        break;
      case Kind::kCall:
        open_call(out, item);
        out.raw(item.text.empty() ? "{}" : item.text).close('}');
        break;
    }
  }

  // ---- events

  void add_start(std::string& out, const Update& update) {
    Usage now;
    if (update.prompt) now.prompt_tokens = update.prompt->prompt_tokens;
    usage_ = now;
    JsonOut json;
    json.open('{').field("type", "message_start").key("message");
    open_message(json);
    json.close(']');
    close_message(json);
    append_event(out, "message_start", json.close('}').text());
  }

  void add_block_start(std::string& out, const AnswerItem& item) {
    JsonOut json;
    json.open('{').field("type", "content_block_start").field("index", block_).key("content_block");
    switch (item.kind) {
      case Kind::kReasoning:
        json.raw(R"({"type":"thinking","thinking":"","signature":""})");
        break;
      case Kind::kText:
        json.raw(R"({"type":"text","text":""})");
        break;
      case Kind::kCall:
        open_call(json, item);
        json.raw("{}").close('}');
        break;
    }
    append_event(out, "content_block_start", json.close('}').text());
  }

  void add_delta(std::string& out, Kind kind, std::string_view text) const {
    switch (kind) {
      case Kind::kReasoning:
        return add_delta(out, "thinking_delta", "thinking", text);
      case Kind::kText:
        return add_delta(out, "text_delta", "text", text);
      case Kind::kCall:
        return add_delta(out, "input_json_delta", "partial_json", text);
    }
  }

  void add_delta(std::string& out, std::string_view type, std::string_view name,
                 std::string_view text) const {
    JsonOut json;
    json.open('{').field("type", "content_block_delta").field("index", block_).key("delta");
    json.open('{').field("type", type).field(name, text).close('}');
    append_event(out, "content_block_delta", json.close('}').text());
  }

  void add_block_stop(std::string& out, Kind kind) {
    if (kind == Kind::kReasoning) add_delta(out, "signature_delta", "signature", kSignature);
    JsonOut json;
    json.open('{').field("type", "content_block_stop").field("index", block_++).close('}');
    append_event(out, "content_block_stop", json.text());
  }

  const AnswerHead head_;
  const std::string short_id_;  // the request's
  AnswerItems items_;
  Usage usage_;
  std::optional<Finish> finish_;
  int block_ = 0;
  bool begun_ = false;
};

}  // namespace

std::unique_ptr<AnswerWriter> make_anthropic_writer(AnswerHead head) {
  return std::make_unique<AnthropicWriter>(std::move(head));
}

}  // namespace jewel
