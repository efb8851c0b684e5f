// ChatTemplate: the checkpoint's own chat_template.jinja, rendered as Transformers renders it.
//
// The engine is minijinja behind rust/textkit, with Python's way of printing values. Immutable after loading,
// any thread may render. A rendering has a bounded number of steps; errors name the template's line and carry
// its raise_exception text.
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

struct tk_template;

namespace jewel {

struct RenderOptions {
  bool add_generation_prompt = true;
  std::optional<bool> enable_thinking;  // left undefined for the template when not given
  boost::json::object extra;   // further variables ("preserve_thinking"), they win over the ones above
  std::optional<int64_t> now;  // what strftime_now prints, seconds since 1970; the clock when not given
};

class ChatTemplate {
 public:
  // DIR/chat_template.jinja, else "chat_template" of DIR/tokenizer_config.json (a string, or a list of which
  // "default" is taken). Special tokens named in tokenizer_config.json are variables of the template
  // (bos_token, …).
  static Result<ChatTemplate> load(const std::string& dir);
  // `source` in place of the directory's own, with the directory's special tokens.
  static Result<ChatTemplate> load(const std::string& dir, std::string_view source);
  static Result<ChatTemplate> from_source(std::string_view source, boost::json::object special_tokens);

  // `messages` as the OpenAI chat format has them, tool_calls' arguments as objects; an empty `tools` is
  // none.
  Result<std::string> render(const boost::json::array& messages, const boost::json::array& tools,
                             const RenderOptions& options) const;

 private:
  struct Close {
    void operator()(tk_template* handle) const;
  };

  ChatTemplate() = default;

  std::unique_ptr<tk_template, Close> handle_;
  boost::json::object special_tokens_;
};

// DIR/tokenizer_config.json as an object; empty when there is no such file.
Result<boost::json::object> read_tokenizer_config(const std::string& dir);

}  // namespace jewel
