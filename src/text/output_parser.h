// OutputParser: what the model generates, id by id, told apart into reasoning, content and tool calls.
//
//   [<|channel>thought\n reasoning [\n]<channel|>] content {<|tool_call>call:NAME{…}<tool_call|>} then
//   <turn|> | <|tool_response> | <eos>
//
// One state machine over token ids: the delimiters are ids, so text that merely looks like one stays text,
// and no control token ever shows as text. Streamed events, put together, are the result; there is no second
// parser for the whole.
//
// Rules (the reference's, with its white space):
// - Reasoning is the text behind "<|channel>thought\n" without one newline before <channel|>; an empty one is
// nothing. The label
//   is held back until it is certain. <|tool_call> ends reasoning, too. Another label than "thought" is part
//   of the text.
// - A prompt may have ended inside the thought channel: give the prompt's ids to the constructor.
// - Content is kept as it is, except that white space right before and after a tool call is dropped (held
// back meanwhile).
// - A call that is none (no name in front of a brace) is content. Tolerances inside of calls:
// text/tool_call.h.
// - After <turn|>, <|tool_response> or <eos> nothing follows; other control tokens where they don't belong
// print nothing. One object per sequence and thread; the Tokenizer must outlive it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "text/detokenizer.h"
#include "text/special_ids.h"
#include "text/tokenizer.h"
#include "text/tool_call.h"

namespace jewel {

struct OutputEvent {
  enum class Kind {
    kReasoning,      // text: the next piece
    kContent,        // text: the next piece
    kCallStart,      // text: the function's name
    kCallArguments,  // text: the next piece of the arguments' JSON
    kCallEnd,        // text: the arguments' JSON as a whole; complete says whether the model closed the call
  };
  Kind kind;
  std::string text;
  int call = 0;  // index of the call, from 0
  bool complete = true;
};

// Everything the events said.
struct ParsedOutput {
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;

  void add(const OutputEvent& event);
};

class OutputParser {
 public:
  OutputParser(const Tokenizer& tokenizer, const SpecialIds& special, std::span<const int32_t> prompt = {});

  std::vector<OutputEvent> push(int32_t id);
  std::vector<OutputEvent> finish();  // the output ended; nothing may be pushed afterwards

  // White space next to tool calls is content too, and nothing of it is held back: for whoever looks for
  // "\n" as a stop text. Before the first push().
  void keep_white_space() { keep_white_space_ = true; }

  bool in_reasoning() const { return state_ == State::kLabel || state_ == State::kReasoning; }
  bool in_content() const { return state_ == State::kContent; }

 private:
  enum class State { kContent, kLabel, kReasoning, kCall, kDone };

  void control(int32_t id);
  void text(const std::string& piece);
  void content(const std::string& piece);
  void reasoning(const std::string& piece);
  void label(const std::string& piece);
  void call_text(std::string arguments);
  void begin_call();
  void end_state();
  void emit(OutputEvent::Kind kind, std::string text);

  const Tokenizer* tokenizer_;
  SpecialIds special_;
  Detokenizer detokenizer_;
  State state_ = State::kContent;
  std::vector<OutputEvent> events_;
  std::string held_;  // label: its start; reasoning: a newline; content: white space that a call may follow
  ToolCallReader reader_;
  std::string arguments_;  // of the call being read
  bool call_started_ = false;
  bool after_call_ = false;  // white space is dropped until content begins again
  int calls_ = 0;
  bool keep_white_space_ = false;
};

}  // namespace jewel
