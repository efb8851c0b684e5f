#include "text/output_parser.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace jewel {
namespace {

constexpr std::string_view kLabel = "thought\n";
constexpr std::string_view kWhiteSpace = " \t\r\n";

}  // namespace

void ParsedOutput::add(const OutputEvent& event) {
  switch (event.kind) {
    case OutputEvent::Kind::kReasoning:
      reasoning += event.text;
      break;
    case OutputEvent::Kind::kContent:
      content += event.text;
      break;
    case OutputEvent::Kind::kCallStart:
      tool_calls.push_back({event.text, "", false});
      break;
    case OutputEvent::Kind::kCallArguments:
      tool_calls.back().arguments += event.text;
      break;
    case OutputEvent::Kind::kCallEnd:
      tool_calls.back().complete = event.complete;
      break;
  }
}

OutputParser::OutputParser(const Tokenizer& tokenizer, const SpecialIds& special,
                           std::span<const int32_t> prompt)
    : tokenizer_(&tokenizer), special_(special), detokenizer_(tokenizer) {
  // The last channel marker or turn of the prompt says where the output begins. What the prompt holds behind
  // an open
  // <|channel> is read again, and its events forgotten.
  for (size_t i = prompt.size(); i-- > 0;) {
    const int32_t id = prompt[i];
    if (id == special_.turn_open || id == special_.turn_close || id == special_.channel_close ||
        id == special_.tool_call_open || id == special_.tool_response_open)
      break;
    if (id != special_.channel_open || id < 0) continue;
    for (const int32_t again : prompt.subspan(i)) push(again);
    text(detokenizer_.flush());
    if (state_ == State::kReasoning) held_.clear();
    events_.clear();
    break;
  }
}

std::vector<OutputEvent> OutputParser::push(int32_t id) {
  if (state_ == State::kDone) return {};
  if (tokenizer_->is_special(id)) {
    text(detokenizer_.flush());
    control(id);
  } else {
    text(detokenizer_.push(id));
  }
  return std::exchange(events_, {});
}

std::vector<OutputEvent> OutputParser::finish() {
  if (state_ == State::kDone) return {};
  text(detokenizer_.flush());
  // Nothing closed what is open: what was held back is part of it.
  const bool keeps_held = state_ == State::kReasoning || state_ == State::kContent;
  const std::string rest = keeps_held ? std::exchange(held_, {}) : std::string();
  if (!rest.empty())
    emit(state_ == State::kReasoning ? OutputEvent::Kind::kReasoning : OutputEvent::Kind::kContent, rest);
  end_state();
  state_ = State::kDone;
  return std::exchange(events_, {});
}

void OutputParser::control(int32_t id) {
  if (state_ == State::kCall && id == special_.quote) {
    call_text(reader_.quote());
  } else if (id == special_.channel_open && state_ != State::kReasoning && state_ != State::kLabel) {
    end_state();
    state_ = State::kLabel;
  } else if ((id == special_.channel_close && in_reasoning()) ||
             (id == special_.tool_call_close && state_ == State::kCall)) {
    end_state();
    state_ = State::kContent;
  } else if (id == special_.tool_call_open) {
    if (state_ == State::kContent) held_.clear();
    end_state();
    begin_call();
  } else if (id == special_.turn_close || id == special_.tool_response_open || id == special_.eos) {
    end_state();
    state_ = State::kDone;
  }
}

// Leaves a state: what it held back is decided, a call is closed.
void OutputParser::end_state() {
  switch (state_) {
    case State::kLabel:
      // "thought" without its newline is an empty thought; anything else was no label.
      if (held_ != "thought" && !held_.empty()) emit(OutputEvent::Kind::kReasoning, held_);
      held_.clear();
      break;
    case State::kReasoning:
      held_.clear();
      break;
    case State::kContent:
      if (!held_.empty()) emit(OutputEvent::Kind::kContent, std::exchange(held_, {}));
      break;
    case State::kCall: {
      call_text(reader_.finish());
      if (call_started_) {
        events_.push_back({OutputEvent::Kind::kCallEnd, arguments_, calls_, reader_.complete()});
        ++calls_;
      }
      after_call_ = call_started_;
      if (!held_.empty())
        emit(OutputEvent::Kind::kContent, std::exchange(held_, {}));  // of a call that was none
      break;
    }
    case State::kDone:
      break;
  }
}

void OutputParser::begin_call() {
  state_ = State::kCall;
  reader_ = ToolCallReader();
  arguments_.clear();
  call_started_ = false;
}

void OutputParser::text(const std::string& piece) {
  if (piece.empty()) return;
  switch (state_) {
    case State::kContent:
      content(piece);
      break;
    case State::kLabel:
      label(piece);
      break;
    case State::kReasoning:
      reasoning(piece);
      break;
    case State::kCall:
      call_text(reader_.text(piece));
      break;
    case State::kDone:
      break;
  }
}

void OutputParser::content(const std::string& piece) {
  if (keep_white_space_) {
    emit(OutputEvent::Kind::kContent, piece);
    return;
  }
  std::string all = std::exchange(held_, {}) + piece;
  if (after_call_) {
    all.erase(0, std::min(all.find_first_not_of(kWhiteSpace), all.size()));
    if (all.empty()) return;
    after_call_ = false;
  }
  const size_t last = all.find_last_not_of(kWhiteSpace);
  const size_t certain = last == std::string::npos ? 0 : last + 1;
  held_ = all.substr(certain);
  all.resize(certain);
  if (!all.empty()) emit(OutputEvent::Kind::kContent, std::move(all));
}

void OutputParser::reasoning(const std::string& piece) {
  std::string all = std::exchange(held_, {}) + piece;
  if (all.ends_with('\n')) {
    held_ = "\n";
    all.pop_back();
  }
  if (!all.empty()) emit(OutputEvent::Kind::kReasoning, std::move(all));
}

void OutputParser::label(const std::string& piece) {
  const std::string all = std::exchange(held_, {}) + piece;
  if (all.size() < kLabel.size() && kLabel.starts_with(all)) {
    held_ = all;
    return;
  }
  state_ = State::kReasoning;
  const std::string rest = all.starts_with(kLabel) ? all.substr(kLabel.size()) : all;
  if (!rest.empty()) reasoning(rest);
}

void OutputParser::call_text(std::string arguments) {
  if (reader_.malformed()) {
    const std::string raw = reader_.take_raw();
    if (!raw.empty()) content(raw);
    return;
  }
  if (!call_started_ && reader_.has_name()) {
    emit(OutputEvent::Kind::kCallStart, reader_.name());
    call_started_ = true;
  }
  if (arguments.empty()) return;
  arguments_ += arguments;
  emit(OutputEvent::Kind::kCallArguments, std::move(arguments));
}

void OutputParser::emit(OutputEvent::Kind kind, std::string text) {
  events_.push_back({kind, std::move(text), calls_, true});
}

}  // namespace jewel
