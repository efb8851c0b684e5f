#include "server/openai/answer_parts.h"

#include <algorithm>
#include <cmath>

#include "server/openai/api_error.h"

namespace jewel {
namespace {

constexpr double kLeastLogprob = -9999.0;

void write_rate(JsonOut& out, std::string_view name, int tokens, double seconds) {
  if (seconds > 0 && tokens > 0) out.field(name, tokens / seconds);
}

}  // namespace

void UsageSum::see(size_t answer, const Update& update) {
  Usage& usage = each_[answer];
  if (update.prompt) {
    usage.prompt_tokens = update.prompt->prompt_tokens;
    usage.image_tokens = update.prompt->image_tokens;
  }
  if (update.finish) {
    usage = update.finish->usage;
    energies_[answer] = update.finish->energy;
  } else {
    usage.completion_tokens += static_cast<int>(update.tokens.size());
  }
}

// Sums of microjoules, without the dust that adding doubles leaves.
std::optional<Energy> UsageSum::energy() const {
  Energy sum;
  for (const std::optional<Energy>& one : energies_) {
    if (!one) return std::nullopt;
    const auto add = [](double& to, double joules) { to = std::round((to + joules) * 1e6) / 1e6; };
    add(sum.joules, one->joules);
    add(sum.image_joules, one->image_joules);
    add(sum.prefill_joules, one->prefill_joules);
    add(sum.decode_joules, one->decode_joules);
    add(sum.reasoning_joules, one->reasoning_joules);
    add(sum.idle_share_joules, one->idle_share_joules);
    sum.method = one->method;
  }
  return sum;
}

void UsageSum::write(JsonOut& out) const {
  Usage sum;
  for (size_t i = 0; i < each_.size(); ++i) {
    if (i % static_cast<size_t>(n_) == 0) {
      sum.prompt_tokens += each_[i].prompt_tokens;
      sum.cached_tokens += each_[i].cached_tokens;
      sum.image_tokens += each_[i].image_tokens;
    }
    sum.completion_tokens += each_[i].completion_tokens;
    sum.reasoning_tokens += each_[i].reasoning_tokens;
  }
  out.open('{')
      .field("prompt_tokens", sum.prompt_tokens)
      .field("completion_tokens", sum.completion_tokens)
      .field("total_tokens", sum.prompt_tokens + sum.completion_tokens);
  out.key("prompt_tokens_details")
      .open('{')
      .field("cached_tokens", sum.cached_tokens)
      .field("image_tokens", sum.image_tokens)
      .close('}');
  out.key("completion_tokens_details").open('{').field("reasoning_tokens", sum.reasoning_tokens).close('}');
  write_energy(out, energy());
  out.close('}');
}

void write_energy(JsonOut& out, const std::optional<Energy>& energy) {
  if (!energy) return;
  out.key("energy")
      .open('{')
      .field("joules", energy->joules)
      .field("image_joules", energy->image_joules)
      .field("prefill_joules", energy->prefill_joules)
      .field("decode_joules", energy->decode_joules)
      .field("reasoning_joules", energy->reasoning_joules)
      .field("idle_share_joules", energy->idle_share_joules)
      .field("method", energy->method)
      .close('}');
}

std::string_view finish_reason(EndReason reason) {
  switch (reason) {
    case EndReason::kCancelled:
      return "abort";
    case EndReason::kDeadline:
    case EndReason::kError:
      return "error";
    default:
      return name_of(reason);
  }
}

void write_stop_reason(JsonOut& out, const Finish& finish) {
  out.key("stop_reason");
  if (!finish.stop_text.empty())
    out.value(finish.stop_text);
  else if (finish.stop_token_id >= 0)
    out.value(int64_t{finish.stop_token_id});
  else
    out.null();
}

void write_token(JsonOut& out, const TokenChance& chance) {
  out.field("token", chance.bytes).field("logprob", finite_logprob(chance.logprob)).key("bytes").open('[');
  for (const char byte : chance.bytes) out.value(int{static_cast<unsigned char>(byte)});
  out.close(']');
}

void write_timings(JsonOut& out, const Finish& finish) {
  const Timings& t = finish.timings;
  const Usage& u = finish.usage;
  out.key("timings")
      .open('{')
      .field("load_s", t.load_s)
      .field("queue_s", t.queue_s)
      .field("image_s", t.image_s)
      .field("ttft_s", t.ttft_s)
      .field("decode_s", t.decode_s);
  write_rate(out, "prompt_tok_s", u.prompt_tokens - u.cached_tokens, t.prefill_s);
  write_rate(out, "decode_tok_s", u.completion_tokens - 1, t.decode_s);  // the first came with the prefill
  out.close('}');
}

void write_ids(JsonOut& out, std::string_view name, const std::vector<OutputToken>& tokens) {
  out.key(name).open('[');
  for (const OutputToken& token : tokens) out.value(int64_t{token.id});
  out.close(']');
}

void write_prompt_ids(JsonOut& out, const Update& update) {
  out.key("prompt_token_ids").open('[');
  if (update.prompt) {
    for (const int32_t id : update.prompt->ids) out.value(int64_t{id});
  }
  out.close(']');
}

double finite_logprob(float logprob) {
  return std::isfinite(logprob) ? std::max(static_cast<double>(logprob), kLeastLogprob) : kLeastLogprob;
}

void write_prompt_logprobs(JsonOut& out, const std::vector<OutputToken>& tokens) {
  out.key("prompt_logprobs");
  if (tokens.empty()) {
    out.null();
    return;
  }
  const auto write_one = [&](const TokenChance& chance) {
    out.key(std::to_string(chance.id))
        .open('{')
        .field("logprob", finite_logprob(chance.logprob))
        .field("rank", chance.rank)
        .field("decoded_token", chance.bytes)
        .close('}');
  };
  out.open('[');
  for (const OutputToken& token : tokens) {
    if (!token.chance) {
      out.null();
      continue;
    }
    out.open('{');
    write_one(*token.chance);
    for (const TokenChance& other : token.top) {
      if (other.id != token.id) write_one(other);
    }
    out.close('}');
  }
  out.close(']');
}

void append_event(std::string& out, std::string_view json) {
  out += "data: ";
  out += json;
  out += "\n\n";
}

void append_event(std::string& out, std::string_view name, std::string_view json) {
  out += "event: ";
  out += name;
  out += '\n';
  append_event(out, json);
}

void AnswerWriter::add_error(std::string& out, int status, std::string_view message, std::string_view param) {
  append_event(out, error_json(status, message, param));
}

std::string_view AnswerWriter::end_mark() const {
  return "data: [DONE]\n\n";
}

}  // namespace jewel
