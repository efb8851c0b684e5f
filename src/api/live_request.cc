#include "api/live_request.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

namespace jewel {
namespace {

double seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

EndReason end_reason(FinishReason reason, bool calls) {
  switch (reason) {
    case FinishReason::kStop:
      return calls ? EndReason::kToolCalls : EndReason::kStop;
    case FinishReason::kLength:
      return EndReason::kLength;
    case FinishReason::kCancelled:
      return EndReason::kCancelled;
    case FinishReason::kDeadline:
      return EndReason::kDeadline;
    case FinishReason::kRepetition:
      return EndReason::kRepetition;
    case FinishReason::kError:
      break;
  }
  return EndReason::kError;
}

OutputPiece::Kind piece_kind(OutputEvent::Kind kind) {
  switch (kind) {
    case OutputEvent::Kind::kReasoning:
      return OutputPiece::Kind::kReasoning;
    case OutputEvent::Kind::kContent:
      return OutputPiece::Kind::kContent;
    case OutputEvent::Kind::kCallStart:
      return OutputPiece::Kind::kCallStart;
    case OutputEvent::Kind::kCallArguments:
      return OutputPiece::Kind::kCallArguments;
    case OutputEvent::Kind::kCallEnd:
      break;
  }
  return OutputPiece::Kind::kCallEnd;
}

// To the microjoule, so that parts and sum agree as they are printed.
double rounded(double joules) {
  return std::round(joules * 1e6) / 1e6;
}

Energy energy_of(const RequestJoules& joules, std::string method) {
  Energy energy{.image_joules = rounded(joules.image),
                .prefill_joules = rounded(joules.prefill),
                .decode_joules = rounded(joules.decode),
                .reasoning_joules = rounded(joules.reasoning),
                .idle_share_joules = rounded(joules.idle_share),
                .method = std::move(method)};
  energy.joules = rounded(energy.image_joules + energy.prefill_joules + energy.decode_joules);
  return energy;
}

bool is_whole(OutputPiece::Kind kind) {
  return kind == OutputPiece::Kind::kCallStart || kind == OutputPiece::Kind::kCallEnd;
}

void add_piece(std::vector<OutputPiece>& pieces, OutputPiece piece) {
  if (!pieces.empty() && pieces.back().kind == piece.kind && pieces.back().call == piece.call &&
      !is_whole(piece.kind)) {
    pieces.back().text += piece.text;
  } else {
    pieces.push_back(std::move(piece));
  }
}

template <typename T>
void move_behind(std::vector<T>& target, std::vector<T> more) {
  if (target.empty()) {
    target = std::move(more);
  } else {
    target.insert(target.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  }
}

size_t bytes_of(const std::vector<OutputToken>& tokens) {
  size_t bytes = tokens.size() * sizeof(OutputToken);
  for (const OutputToken& token : tokens) bytes += token.top.size() * sizeof(TokenChance);
  return bytes;
}

}  // namespace

void append(Update& update, Update later) {
  if (later.prompt) update.prompt = std::move(later.prompt);
  move_behind(update.prompt_logprobs, std::move(later.prompt_logprobs));
  for (OutputPiece& piece : later.pieces) add_piece(update.pieces, std::move(piece));
  move_behind(update.tokens, std::move(later.tokens));
  if (later.finish) update.finish = std::move(later.finish);
}

size_t bytes_of(const Update& update) {
  size_t bytes = bytes_of(update.prompt_logprobs) + bytes_of(update.tokens);
  for (const OutputPiece& piece : update.pieces) bytes += sizeof(OutputPiece) + piece.text.size();
  return bytes;
}

LiveRequest::LiveRequest(Wiring wiring) : wiring_(std::move(wiring)) {}

// ---- the reader

std::optional<Update> LiveRequest::next(std::optional<std::chrono::milliseconds> limit) {
  std::unique_lock lock(mutex_);
  const auto ready = [this] { return readable_now_ || ended_; };
  if (limit) {
    if (!readable_.wait_for(lock, *limit, ready)) return Update{};
  } else {
    readable_.wait(lock, ready);
  }
  if (!readable_now_) return std::nullopt;
  readable_now_ = false;
  unread_bytes_ = 0;
  return std::exchange(unread_, {});
}

void LiveRequest::cancel() {
  cancelled_ = true;
  SequenceId id = 0;
  {
    const std::scoped_lock lock(mutex_);
    id = sequence_;
  }
  if (id != 0) wiring_.engine->cancel(id, FinishReason::kCancelled);
}

// ---- the preparing worker

void LiveRequest::begin(AnswerFormat format) {
  format_ = std::move(format);
  usage_.prompt_tokens = format_.prompt.prompt_tokens;
  usage_.image_tokens = format_.prompt.image_tokens;
  if (format_.parse) {
    parser_.emplace(*wiring_.tokenizer, *wiring_.special, format_.prompt_ids);
    if (!format_.stop.empty()) parser_->keep_white_space();
  } else {
    detokenizer_.emplace(*wiring_.tokenizer);
  }
  if (!format_.stop.empty()) stops_.emplace(std::move(format_.stop), format_.include_stop);
  handed_over_ = Clock::now();
}

void LiveRequest::started(SequenceId id) {
  arrive([id](LiveRequest& self) { self.sequence_ = id; });
  // A cancel() that came before the id was known found nothing to cancel.
  if (cancelled_) wiring_.engine->cancel(id, FinishReason::kCancelled);
}

void LiveRequest::fail(Error error) {
  arrive([&](LiveRequest& self) { self.arrived_.failed = std::move(error); });
}

// ---- the engine's thread

Continue LiveRequest::on_token(const TokenEvent& event) {
  arrive([&](LiveRequest& self) {
    if (event.index == 0) self.first_token_ = Clock::now();
    self.sequence_ = event.sequence;
    self.arrived_.tokens.push_back(event.token);
  });
  return Continue::kYes;
}

void LiveRequest::on_prompt_logprobs(SequenceId /*sequence*/, PromptLogprobs logprobs) {
  arrive([&](LiveRequest& self) { self.arrived_.prompt_logprobs = std::move(logprobs); });
}

void LiveRequest::on_finished(const Finished& finished) {
  arrive([&](LiveRequest& self) { self.arrived_.finished = finished; });
}

// Changes what arrived, and sees to it that an output thread looks at it.
template <typename Change>
void LiveRequest::arrive(const Change& change) {
  {
    const std::scoped_lock lock(mutex_);
    change(*this);
    if (std::exchange(working_, true)) return;
  }
  wiring_.output->post([self = shared_from_this()] { self->work(); });
}

// ---- an output thread

void LiveRequest::work() {
  while (true) {
    Arrived arrived;
    {
      const std::scoped_lock lock(mutex_);
      const bool tell_prompt = sequence_ != 0 && !prompt_told_;
      if (ended_ || (arrived_.nothing() && !tell_prompt)) {
        working_ = false;
        return;
      }
      arrived = std::exchange(arrived_, {});
    }
    if (arrived.finished && !arrived.measured && !measure(arrived) && arrived.nothing()) continue;
    deliver(digest(std::move(arrived)));
  }
}

// False: the end, and it alone, waits for the meter, which lets it arrive again.
bool LiveRequest::measure(Arrived& arrived) {
  arrived.measured = true;
  if (wiring_.meter == nullptr) return true;
  const auto later = [self = shared_from_this(),
                      finished = *arrived.finished](std::optional<RequestJoules> joules) {
    self->arrive([&](LiveRequest& request) {
      request.arrived_.finished = finished;
      request.arrived_.measured = true;
      request.arrived_.joules = joules;
    });
  };
  const int rows_in_flight = arrived.finished->stats.rows_in_flight;
  if (wiring_.meter->close(arrived.finished->sequence, rows_in_flight, arrived.joules, later)) return true;
  arrived.finished.reset();
  return false;
}

Update LiveRequest::digest(Arrived arrived) {
  Update update;
  if (!arrived.failed && !prompt_told_) {
    prompt_told_ = true;
    update.prompt = format_.prompt;
  }
  if (arrived.prompt_logprobs) update.prompt_logprobs = described(*arrived.prompt_logprobs);
  for (const SampledToken& token : arrived.tokens) {
    if (!stop_found_) take_token(token, update);
  }
  if (arrived.finished) {
    if (!stop_found_) end_text(update);
    update.finish = finish_of(*arrived.finished, arrived.joules);
  }
  if (arrived.failed) {
    update.finish.emplace();
    const bool gone = cancelled_ || arrived.failed->code == ErrorCode::kCancelled;
    update.finish->reason = gone ? EndReason::kCancelled : EndReason::kError;
    if (!gone) update.finish->error = std::move(arrived.failed);
  }
  return update;
}

void LiveRequest::take_token(const SampledToken& token, Update& update) {
  ++usage_.completion_tokens;
  update.tokens.push_back(described(token.id, format_.wants_logprobs ? &token.logprob : nullptr, token.top));
  bool& in_content = update.tokens.back().in_content;
  if (!parser_) {
    in_content = !(format_.skip_special && wiring_.tokenizer->is_special(token.id));
    if (in_content) add_content(detokenizer_->push(token.id), update);
    return;
  }
  const bool was_reasoning = parser_->in_reasoning();
  const bool was_content = parser_->in_content();
  take_events(parser_->push(token.id), update);
  in_content = was_content && parser_->in_content();
  if (was_reasoning || parser_->in_reasoning()) ++usage_.reasoning_tokens;
}

void LiveRequest::take_events(std::vector<OutputEvent> events, Update& update) {
  for (OutputEvent& event : events) {
    if (stop_found_) return;
    if (event.kind == OutputEvent::Kind::kContent) {
      add_content(std::move(event.text), update);
      continue;
    }
    // Text that was held back before a thought or a call stands before it.
    if (stops_) add_piece(update.pieces, {.text = stops_->flush()});
    if (event.kind == OutputEvent::Kind::kCallStart) ++calls_;
    add_piece(update.pieces, {.kind = piece_kind(event.kind),
                              .text = std::move(event.text),
                              .call = event.call,
                              .complete = event.complete});
  }
}

void LiveRequest::add_content(std::string text, Update& update) {
  if (stops_) {
    text = stops_->push(text, usage_.completion_tokens >= format_.min_tokens);
    stop_found_ = stops_->found().has_value();
  }
  if (!text.empty()) add_piece(update.pieces, {.text = std::move(text)});
  if (!stop_found_) return;
  SequenceId id = 0;
  {
    const std::scoped_lock lock(mutex_);
    id = sequence_;
  }
  wiring_.engine->cancel(id, FinishReason::kStop);
}

// What parser, detokenizer and stop texts still hold back.
void LiveRequest::end_text(Update& update) {
  if (parser_) {
    take_events(parser_->finish(), update);
  } else if (detokenizer_) {
    add_content(detokenizer_->flush(), update);
  }
  if (!stops_ || stop_found_) return;
  const std::string rest = stops_->flush();
  if (!rest.empty()) add_piece(update.pieces, {.text = rest});
}

Finish LiveRequest::finish_of(const Finished& finished, const std::optional<RequestJoules>& joules) {
  Finish finish;
  if (joules) finish.energy = energy_of(*joules, wiring_.meter->method());
  // The engine may have come to another end (a length, a cancel) before it heard of the stop text.
  finish.reason = end_reason(stop_found_ ? FinishReason::kStop : finished.reason, calls_ > 0);
  if (stop_found_) {
    finish.stop_text = *stops_->found();
  } else {
    finish.stop_token_id = finished.stop_token;
  }
  finish.error = finished.error;
  usage_.cached_tokens = finished.stats.cached_tokens;
  finish.usage = usage_;
  finish.timings.load_s = wiring_.load_s;
  finish.timings.image_s = format_.image_s;
  finish.timings.queue_s = seconds(*handed_over_ - submitted_) + seconds(finished.stats.queue);
  finish.timings.prefill_s = seconds(finished.stats.prefill);
  finish.timings.decode_s = seconds(finished.stats.decode);
  const std::scoped_lock lock(mutex_);
  if (first_token_) finish.timings.ttft_s = seconds(*first_token_ - submitted_);
  if (finish.reason == EndReason::kDeadline && !finish.error)
    finish.error = unavailable("the deadline passed before the answer was complete", "deadline");
  if (overflowed_) {
    finish.reason = EndReason::kError;
    finish.error =
        unavailable(fmt::format("more than {} bytes of the answer were left unread; read faster, "
                                "or raise max_unread_bytes",
                                wiring_.max_unread_bytes));
  }
  return finish;
}

void LiveRequest::deliver(Update update) {
  const bool last = update.finish.has_value();
  if (last && wiring_.on_end) wiring_.on_end(*update.finish);
  if (wiring_.on_update) {
    if (last) {
      const std::scoped_lock lock(mutex_);
      ended_ = true;
    }
    wiring_.on_update(std::move(update));
    return;
  }
  SequenceId too_far = 0;
  {
    const std::scoped_lock lock(mutex_);
    unread_bytes_ += bytes_of(update);
    if (!overflowed_)
      append(unread_, std::move(update));
    else if (last)
      unread_.finish = std::move(update.finish);
    readable_now_ = true;
    ended_ = last;
    if (!overflowed_ && !last && unread_bytes_ > wiring_.max_unread_bytes) {
      overflowed_ = true;
      too_far = sequence_;
    }
  }
  readable_.notify_all();
  if (too_far != 0) wiring_.engine->cancel(too_far, FinishReason::kCancelled);
}

// ---- what tokens look like to a client

TokenChance LiveRequest::chance_of(const TokenLogprob& logprob) const {
  return {.id = logprob.id,
          .bytes = std::string(wiring_.tokenizer->token_bytes(logprob.id)),
          .logprob = logprob.logprob,
          .rank = logprob.rank};
}

OutputToken LiveRequest::described(TokenId id, const TokenLogprob* logprob,
                                   const std::vector<TokenLogprob>& top) const {
  OutputToken token{.id = id};
  if (logprob != nullptr) token.chance = chance_of(*logprob);
  for (const TokenLogprob& one : top) token.top.push_back(chance_of(one));
  return token;
}

// The engine's row i speaks of token i + 1; ours of token i.
std::vector<OutputToken> LiveRequest::described(const PromptLogprobs& logprobs) const {
  std::vector<OutputToken> tokens;
  for (size_t i = 0; i < format_.prompt_ids.size(); ++i) {
    if (i == 0) {
      tokens.push_back({.id = format_.prompt_ids[0]});
    } else {
      tokens.push_back(described(format_.prompt_ids[i], &logprobs.token.at(i - 1), logprobs.top.at(i - 1)));
    }
    tokens.back().bytes = wiring_.tokenizer->token_bytes(format_.prompt_ids[i]);
  }
  return tokens;
}

}  // namespace jewel
