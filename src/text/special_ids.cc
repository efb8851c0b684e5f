#include "text/special_ids.h"

namespace jewel {

std::string configured_token(const boost::json::object& tokenizer_config, std::string_view key) {
  const boost::json::value* value = tokenizer_config.if_contains(key);
  if (value != nullptr && value->is_object()) value = value->get_object().if_contains("content");
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

SpecialIds find_special_ids(const Tokenizer& tokenizer, const boost::json::object& tokenizer_config) {
  const auto find = [&](std::string_view key, std::string_view name) {
    const std::string configured = configured_token(tokenizer_config, key);
    return tokenizer.id_of(configured.empty() ? name : std::string_view(configured)).value_or(-1);
  };
  SpecialIds ids;
  ids.bos = find("bos_token", "<bos>");
  ids.eos = find("eos_token", "<eos>");
  ids.pad = find("pad_token", "<pad>");
  ids.turn_open = find("sot_token", "<|turn>");
  ids.turn_close = find("eot_token", "<turn|>");
  ids.channel_open = find("soc_token", "<|channel>");
  ids.channel_close = find("eoc_token", "<channel|>");
  ids.tool_call_open = find("stc_token", "<|tool_call>");
  ids.tool_call_close = find("etc_token", "<tool_call|>");
  ids.tool_response_open = find("str_token", "<|tool_response>");
  ids.tool_response_close = find("etr_token", "<tool_response|>");
  ids.quote = find("escape_token", "<|\"|>");
  ids.boi = find("boi_token", "<|image>");
  ids.image = find("image_token", "<|image|>");
  ids.eoi = find("eoi_token", "<image|>");
  ids.boa = find("boa_token", "<|audio>");
  ids.audio = find("audio_token", "<|audio|>");
  ids.eoa = find("eoa_token", "<audio|>");
  ids.video = find("video_token", "<|video|>");
  return ids;
}

}  // namespace jewel
