// OpenAI's Responses: a Response whose output is a row of items, whole or as typed events. The last event
// carries the same Response as the whole answer; reasoning events have the names that vLLM gives them.
#include <fmt/format.h>

#include <utility>

#include "server/openai/answer_items.h"
#include "server/openai/answer_parts.h"
#include "server/openai/answer_writer.h"

namespace jewel {
namespace {

using Kind = AnswerItem::Kind;
using What = ItemChange::What;

void write_usage(JsonOut& out, const Usage& usage, const std::optional<Energy>& energy) {
  out.open('{').field("input_tokens", usage.prompt_tokens).key("input_tokens_details").open('{');
  out.field("cached_tokens", usage.cached_tokens)
      .field("cache_write_tokens", 0)
      .field("image_tokens", usage.image_tokens)
      .close('}');
  out.field("output_tokens", usage.completion_tokens).key("output_tokens_details").open('{');
  out.field("reasoning_tokens", usage.reasoning_tokens).close('}');
  out.field("total_tokens", usage.prompt_tokens + usage.completion_tokens);
  write_energy(out, energy);
  out.close('}');
}

void write_logprobs(JsonOut& out, const std::vector<OutputToken>& tokens, size_t from) {
  out.key("logprobs").open('[');
  for (size_t i = from; i < tokens.size(); ++i) {
    out.open('{');
    write_token(out, *tokens[i].chance);
    out.key("top_logprobs").open('[');
    for (const TokenChance& other : tokens[i].top) {
      out.open('{');
      write_token(out, other);
      out.close('}');
    }
    out.close(']').close('}');
  }
  out.close(']');
}

class ResponsesWriter final : public AnswerWriter {
 public:
  explicit ResponsesWriter(AnswerHead head)
      : head_(std::move(head)), short_id_(head_.id.substr(head_.id.find('_') + 1)) {}

  std::string whole(const std::vector<Update>& answers) override {
    see(answers.front());
    items_.take(answers.front());
    JsonOut out;
    write_response(out, final_status());
    return out.take();
  }

  void add_events(std::string& out, size_t /*choice*/, const Update& update) override {
    if (!std::exchange(begun_, true)) {  // before anything is seen: this may be the end already
      add_response_event(out, "response.created", "in_progress");
      add_response_event(out, "response.in_progress", "in_progress");
    }
    see(update);
    for (const ItemChange& change : items_.take(update)) {
      switch (change.what) {
        case What::kOpened:
          add_opened(out, change.item);
          break;
        case What::kGrew:
          add_grown(out, change);
          break;
        case What::kClosed:
          add_closed(out, change.item);
          break;
      }
    }
  }

  void add_last_events(std::string& out) override {
    const std::string_view status = final_status();
    add_response_event(out, fmt::format("response.{}", status), status);
  }

  void add_error(std::string& out, int status, std::string_view message,
                 std::string_view /*param*/) override {
    JsonOut error;
    error.open('{').field("code", status == 429 ? "rate_limit_exceeded" : "server_error");
    error_ = error.field("message", message).close('}').take();
    add_response_event(out, "response.failed", "failed");
  }

  std::string_view end_mark() const override { return {}; }

 private:
  void see(const Update& update) {
    if (update.prompt) {
      usage_.prompt_tokens = update.prompt->prompt_tokens;
      usage_.image_tokens = update.prompt->image_tokens;
    }
    if (update.finish) {
      usage_ = update.finish->usage;
      finish_ = update.finish;
    }
  }

  std::string_view final_status() const {
    return finish_ && !is_cut_off(finish_->reason) ? "completed" : "incomplete";
  }

  std::string item_id(size_t index) const {
    const Kind kind = items_.items()[index].kind;
    const char* prefix = kind == Kind::kReasoning ? "rs" : kind == Kind::kText ? "msg" : "fc";
    return fmt::format("{}_{}_{}", prefix, short_id_, index);
  }

  void write_response(JsonOut& out, std::string_view status) const {
    const bool ended = finish_.has_value();
    out.open('{')
        .field("id", head_.id)
        .field("object", "response")
        .field("created_at", head_.created)
        .field("status", status)
        .field("model", head_.model);
    out.key("error").raw(error_.empty() ? "null" : error_);
    out.key("incomplete_details");
    if (ended && status == "incomplete") {
      const bool length = finish_->reason == EndReason::kLength;
      out.open('{').field("reason", length ? "max_output_tokens" : name_of(finish_->reason)).close('}');
    } else {
      out.null();
    }
    out.raw(head_.repeated).key("output").open('[');
    for (size_t i = 0; i < items_.items().size(); ++i) write_item(out, i);
    out.close(']').key("usage");
    if (ended) {
      write_usage(out, usage_, finish_->energy);
      write_timings(out, *finish_);
    } else {
      out.null();
    }
    out.close('}');
  }

  void write_part(JsonOut& out, const AnswerItem& item, std::string_view text) const {
    out.open('{').field("type", item.kind == Kind::kReasoning ? "reasoning_text" : "output_text");
    out.field("text", text);
    if (item.kind == Kind::kText) {
      out.key("annotations").open('[').close(']');
      write_logprobs(out, item.tokens, text.empty() ? item.tokens.size() : 0);
    }
    out.close('}');
  }

  // `fresh`: it was just opened, and whatever came together with that has not been said yet.
  void write_item(JsonOut& out, size_t index, bool fresh = false) const {
    const AnswerItem& item = items_.items()[index];
    out.open('{').field("id", item_id(index));
    switch (item.kind) {
      case Kind::kReasoning:
        out.field("type", "reasoning").key("summary").open('[').close(']');
        out.null_field("encrypted_content");
        break;
      case Kind::kText:
        out.field("type", "message").field("role", "assistant");
        break;
      case Kind::kCall:
        out.field("type", "function_call").field("call_id", fmt::format("call_{}_{}", short_id_, item.call));
        out.field("name", item.name).field("arguments", fresh ? std::string() : item.text);
        break;
    }
    if (item.kind != Kind::kCall) {
      out.key("content").open('[');
      if (!fresh) write_part(out, item, item.text);
      out.close(']');
    }
    const bool incomplete = item.cut_off || item.open;
    out.field("status", fresh ? "in_progress" : incomplete ? "incomplete" : "completed").close('}');
  }

  // ---- events

  JsonOut begin_event(std::string_view type) {
    JsonOut json;
    json.open('{').field("type", type).field("sequence_number", sequence_++);
    return json;
  }

  JsonOut begin_item_event(std::string_view type, size_t item) {
    JsonOut json = begin_event(type);
    json.field("item_id", item_id(item)).field("output_index", static_cast<uint64_t>(item));
    return json;
  }

  void add_response_event(std::string& out, std::string_view type, std::string_view status) {
    JsonOut json = begin_event(type);
    write_response(json.key("response"), status);
    append_event(out, type, json.close('}').text());
  }

  void add_item_event(std::string& out, std::string_view type, size_t index, bool fresh) {
    JsonOut json = begin_event(type);
    json.field("output_index", static_cast<uint64_t>(index)).key("item");
    write_item(json, index, fresh);
    append_event(out, type, json.close('}').text());
  }

  void add_part_event(std::string& out, std::string_view type, size_t index, std::string_view text) {
    JsonOut json = begin_item_event(type, index);
    json.field("content_index", 0).key("part");
    write_part(json, items_.items()[index], text);
    append_event(out, type, json.close('}').text());
  }

  // What happened to the text of an item: "response.output_text.delta".
  static std::string text_event(Kind kind, std::string_view what) {
    const char* of = kind == Kind::kReasoning ? "reasoning_text"
                     : kind == Kind::kText    ? "output_text"
                                              : "function_call_arguments";
    return fmt::format("response.{}.{}", of, what);
  }

  void add_opened(std::string& out, size_t index) {
    add_item_event(out, "response.output_item.added", index, /*fresh=*/true);
    if (items_.items()[index].kind != Kind::kCall)
      add_part_event(out, "response.content_part.added", index, "");
  }

  void add_grown(std::string& out, const ItemChange& change) {
    const AnswerItem& item = items_.items()[change.item];
    const std::string type = text_event(item.kind, "delta");
    JsonOut json = begin_item_event(type, change.item);
    if (item.kind != Kind::kCall) json.field("content_index", 0);
    json.field("delta", change.text);
    if (item.kind == Kind::kText) write_logprobs(json, item.tokens, change.first_token);
    append_event(out, type, json.close('}').text());
  }

  void add_closed(std::string& out, size_t index) {
    const AnswerItem& item = items_.items()[index];
    const std::string type = text_event(item.kind, "done");
    JsonOut json = begin_item_event(type, index);
    if (item.kind == Kind::kCall) {
      json.field("name", item.name).field("arguments", item.text);
    } else {
      json.field("content_index", 0).field("text", item.text);
      if (item.kind == Kind::kText) write_logprobs(json, item.tokens, 0);
    }
    append_event(out, type, json.close('}').text());
    if (item.kind != Kind::kCall) add_part_event(out, "response.content_part.done", index, item.text);
    add_item_event(out, "response.output_item.done", index, /*fresh=*/false);
  }

  const AnswerHead head_;
  const std::string short_id_;  // the request's
  AnswerItems items_;
  Usage usage_;
  std::optional<Finish> finish_;
  std::string error_;  // JSON, when the answer failed
  int sequence_ = 0;
  bool begun_ = false;
};

}  // namespace

std::unique_ptr<AnswerWriter> make_responses_writer(AnswerHead head) {
  return std::make_unique<ResponsesWriter>(std::move(head));
}

}  // namespace jewel
