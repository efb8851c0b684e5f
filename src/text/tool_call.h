// ToolCallReader: one tool call in the model's dialect, read as it comes, written as JSON as it comes.
//
//   call:NAME{key:<|"|>text<|"|>,n:3,list:[true,null],o:{k:1.5}}      between <|tool_call> and <tool_call|>
//
// Strings stand between quote marks (one token) and are raw: commas, braces and newlines inside mean nothing.
// The reader is a state machine over characters and quote marks; what it has written never changes, so that a
// streamed call equals a whole one.
//
// Tolerated: white space around keys and values; "call:" missing; ( ) for the outer { }; a string without
// marks (a bare value ends at the next separator and is JSON's number, true, false, null, else a string; none
// and nil are null); "text" in JSON's own quotes; a missing value (null); marks around keys; anything after
// the call; a missing end: what is open is closed and complete() is false. Nesting deeper than kMaxDepth is
// read as text. Bytes in must be UTF-8, JSON out is UTF-8. One object per call and thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace jewel {

class ToolCallReader {
 public:
  static constexpr size_t kMaxDepth = 64;
  static constexpr size_t kMaxNameBytes = 256;

  // Each returns the JSON text of the arguments that became certain.
  std::string text(std::string_view piece);
  std::string quote();
  std::string finish();  // the call's end, or the output's

  // Everything up to the arguments' opening brace is needed to know the name. Malformed: this is no call, but
  // text, and take_raw() hands out what came of it since the last time.
  bool has_name() const { return state_ != State::kName && state_ != State::kMalformed; }
  bool malformed() const { return state_ == State::kMalformed; }
  bool complete() const { return complete_; }  // after finish(): the call was closed by the model itself
  const std::string& name() const { return name_; }
  std::string take_raw() { return std::exchange(raw_, {}); }

 private:
  enum class State {
    kName,        // before the outer {
    kKey,         // in an object, before the colon
    kQuotedKey,   // the same, between marks
    kValue,       // before or in a bare value
    kString,      // between marks
    kAfterValue,  // before a separator
    kJunkString,  // between marks, where none belong
    kDone,        // behind the outer }
    kMalformed,
  };

  void character(char c);
  void open_arguments();
  void end_key();
  void begin_value();
  void end_bare_value();
  void end_container();
  bool is_closer(char c) const;

  State state_ = State::kName;
  std::string out_;  // JSON not yet handed out
  std::string raw_;  // the text before the arguments, or all text when malformed
  std::string name_;
  std::string pending_;       // a key or a bare value being read
  char json_quote_ = 0;       // inside a "…" in pending_
  bool json_escape_ = false;  // behind a backslash there
  std::vector<char> open_;    // '{' or '[' of each container, outermost first
  std::vector<bool> filled_;  // whether it has an element yet
  char outer_closer_ = '}';
  bool complete_ = false;
};

struct ToolCall {
  std::string name;
  std::string arguments;  // a JSON object as text
  bool complete = true;
};

// A whole call from text in which quote marks stand as their spelling; nothing when the text is no call.
std::optional<ToolCall> parse_tool_call(std::string_view body, std::string_view quote_mark = "<|\"|>");

}  // namespace jewel
