#include "text/prompt.h"

#include <fmt/format.h>

#include "text/messages.h"
#include "text/text_file.h"
#include "text/user_text.h"
#include "text/utf8.h"

namespace jewel {

Result<PromptBuilder> PromptBuilder::load(const std::string& dir, std::string_view chat_template_source) {
  JEWEL_ASSIGN(Tokenizer tokenizer, Tokenizer::load(dir + "/tokenizer.json"));
  JEWEL_ASSIGN(boost::json::object config, read_tokenizer_config(dir));
  std::optional<ChatTemplate> chat_template;
  if (!chat_template_source.empty()) {
    auto loaded = ChatTemplate::load(dir, chat_template_source);
    if (!loaded.ok()) return invalid("chat_template: " + loaded.error().message, "chat_template");
    chat_template = std::move(loaded).value();
  } else if (file_exists(dir + "/chat_template.jinja") || config.contains("chat_template")) {
    JEWEL_ASSIGN(chat_template, ChatTemplate::load(dir));
  }
  return make(std::move(tokenizer), config, std::move(chat_template));
}

Result<PromptBuilder> PromptBuilder::make(Tokenizer tokenizer, const boost::json::object& tokenizer_config,
                                          std::optional<ChatTemplate> chat_template) {
  PromptBuilder builder;
  builder.tokenizer_ = std::make_unique<Tokenizer>(std::move(tokenizer));
  builder.special_ = find_special_ids(*builder.tokenizer_, tokenizer_config);
  builder.template_ = std::move(chat_template);
  if (builder.special_.bos < 0)
    return unsupported("the tokenizer has no <bos> token; expected the vocabulary of Gemma's family");
  if (!UserText(*builder.tokenizer_).breakable())
    return unsupported(
        "the tokenizer has a special token of one character; messages that hold it could not be told from "
        "control");
  return builder;
}

Result<std::string> PromptBuilder::render_protected(const boost::json::array& messages,
                                                    const boost::json::array& tools,
                                                    const RenderOptions& options) const {
  if (!template_)
    return invalid(
        "this model has no chat template (chat_template.jinja); use a raw prompt instead of messages");
  const UserText user_text(*tokenizer_);
  const ChannelMarkers channel{tokenizer_->token_bytes(special_.channel_open),
                               tokenizer_->token_bytes(special_.channel_close)};
  JEWEL_ASSIGN(const boost::json::array ready, messages_for_template(messages, user_text, channel));
  RenderOptions protected_options = options;
  protected_options.extra = user_text.protect_all(options.extra).get_object();
  return template_->render(ready, user_text.protect_all(tools).get_array(), protected_options);
}

Result<std::string> PromptBuilder::render(const boost::json::array& messages, const boost::json::array& tools,
                                          const RenderOptions& options) const {
  JEWEL_ASSIGN(const std::string text, render_protected(messages, tools, options));
  return UserText::restore(text);
}

Result<Prompt> PromptBuilder::chat(const boost::json::array& messages, const boost::json::array& tools,
                                   const RenderOptions& options, std::span<const int> image_tokens) const {
  JEWEL_ASSIGN(const std::string rendered, render_protected(messages, tools, options));
  const std::string_view text = rendered;
  std::vector<int32_t> ids;
  size_t begin = 0;
  while (true) {
    const auto match = tokenizer_->find_special(text, begin);
    const size_t end = match ? match->position : text.size();
    JEWEL_ASSIGN(
        const std::vector<int32_t> piece,
        tokenizer_->encode(UserText::restore(text.substr(begin, end - begin)), SpecialTokens::kAsText));
    ids.insert(ids.end(), piece.begin(), piece.end());
    if (!match) break;
    ids.push_back(match->id);
    begin = match->position + match->length;
  }
  return put_images(ids, image_tokens);
}

Result<Prompt> PromptBuilder::raw(std::string_view text, std::span<const int> image_tokens,
                                  bool with_bos) const {
  JEWEL_ASSIGN(std::vector<int32_t> ids, tokenizer_->encode(text, SpecialTokens::kParse));
  if (with_bos && (ids.empty() || ids.front() != special_.bos)) ids.insert(ids.begin(), special_.bos);
  return put_images(ids, image_tokens);
}

Result<Prompt> PromptBuilder::put_images(std::span<const int32_t> ids,
                                         std::span<const int> image_tokens) const {
  Prompt prompt;
  size_t images = 0;
  for (const int32_t id : ids) {
    const bool is_image = id == special_.image && special_.image >= 0;
    if (!is_image) {
      prompt.ids.push_back(id);
      continue;
    }
    if (images < image_tokens.size()) {
      const int count = image_tokens[images];
      JEWEL_CHECK(count > 0, "image {} has {} soft tokens", images, count);
      if (special_.boi >= 0) prompt.ids.push_back(special_.boi);
      prompt.images.push_back({static_cast<int>(images), static_cast<int>(prompt.ids.size()), count});
      prompt.ids.insert(prompt.ids.end(), static_cast<size_t>(count), special_.image);
      if (special_.eoi >= 0) prompt.ids.push_back(special_.eoi);
    }
    ++images;
  }
  if (images != image_tokens.size())
    return invalid(fmt::format(
        "the prompt has {} image placeholders ({}) for {} images; give one image for each, in order", images,
        special_.image >= 0 ? tokenizer_->token_bytes(special_.image) : "<|image|>", image_tokens.size()));
  return prompt;
}

}  // namespace jewel
