// PromptBuilder: a conversation, or a raw text, to the token ids that the model reads.
//
// chat() renders the checkpoint's template, finds the template's control tokens in the result and nothing
// else: control tokens that a person typed into a message, a name, a tool's description, arguments or result
// stay text (text/user_text.h). raw() is for completions: what reads as a special token is one, and BOS is
// put in front if it is not there. Both replace each image placeholder <|image|> by <|image>, N soft token
// places <|image|> and <image|>, N being the caller's. Immutable after loading, any thread may build prompts.
#pragma once

#include <boost/json/array.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/chat_template.h"
#include "text/special_ids.h"
#include "text/tokenizer.h"

namespace jewel {

// Where an image's soft tokens stand in Prompt::ids.
struct ImageSpan {
  int image = 0;     // which image, in the order of the conversation
  int position = 0;  // of the first soft token's id
  int count = 0;     // soft tokens
};

struct Prompt {
  std::vector<int32_t> ids;
  std::vector<ImageSpan> images;
};

class PromptBuilder {
 public:
  // tokenizer.json, tokenizer_config.json and the chat template of a checkpoint's directory. Without a
  // template chat() is an error and raw() works. `chat_template`: Jinja source in place of the directory's
  // own; empty: its own.
  static Result<PromptBuilder> load(const std::string& dir, std::string_view chat_template = {});
  static Result<PromptBuilder> make(Tokenizer tokenizer, const boost::json::object& tokenizer_config,
                                    std::optional<ChatTemplate> chat_template);

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const SpecialIds& special() const { return special_; }
  bool has_template() const { return template_.has_value(); }

  // `messages`: OpenAI chat messages; a content part other than {"type": "text", "text": …} matters by its
  // type alone. Tool calls' arguments may be objects, null or JSON text of an object. image_tokens[i]: soft
  // tokens of image i, as many entries as there are image parts.
  Result<Prompt> chat(const boost::json::array& messages, const boost::json::array& tools,
                      const RenderOptions& options, std::span<const int> image_tokens) const;

  // The same prompt as text, before images are put in; for people to look at.
  Result<std::string> render(const boost::json::array& messages, const boost::json::array& tools,
                             const RenderOptions& options) const;

  // `with_bos`: <bos> is put in front when it is not there.
  Result<Prompt> raw(std::string_view text, std::span<const int> image_tokens, bool with_bos = true) const;

  // Ids as they are, but for the places of images.
  Result<Prompt> from_ids(std::span<const int32_t> ids, std::span<const int> image_tokens) const {
    return put_images(ids, image_tokens);
  }

 private:
  PromptBuilder() = default;
  Result<std::string> render_protected(const boost::json::array& messages, const boost::json::array& tools,
                                       const RenderOptions& options) const;
  Result<Prompt> put_images(std::span<const int32_t> ids, std::span<const int> image_tokens) const;

  std::unique_ptr<Tokenizer> tokenizer_;  // on the heap, so that its address survives a move
  SpecialIds special_;
  std::optional<ChatTemplate> template_;
};

}  // namespace jewel
