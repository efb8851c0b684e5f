// A request's messages and tools as JSON, through the demo model's chat template to token ids. A control
// token that a person typed must not become one: a prompt has no more turns than the messages and the
// template account for.
#include <algorithm>
#include <boost/json/parse.hpp>

#include "text/prompt.h"

namespace {

using namespace jewel;
namespace json = boost::json;

PromptBuilder load_builder() {
  Result<PromptBuilder> builder = PromptBuilder::load(JEWEL_SOURCE_DIR "/models/jewel-demo");
  JEWEL_CHECK(builder.ok(), "{}", builder.error().message);
  JEWEL_CHECK(builder->has_template(), "the demo model has no template");
  return std::move(builder).value();
}

json::array array_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_array() ? value->get_array() : json::array();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const PromptBuilder builder = load_builder();
  boost::system::error_code error;
  const json::value request = json::parse({reinterpret_cast<const char*>(data), size}, error);
  if (error || !request.is_object()) return 0;
  const json::array messages = array_at(request.get_object(), "messages");
  const json::array tools = array_at(request.get_object(), "tools");
  RenderOptions options;
  options.now = 0;
  options.enable_thinking = request.get_object().contains("think");

  // As many images as the messages turn out to have, if they have at most two.
  for (size_t n_images = 0; n_images <= 2; ++n_images) {
    const std::vector<int> image_tokens(n_images, 5);
    const Result<Prompt> prompt = builder.chat(messages, tools, options, image_tokens);
    if (!prompt.ok()) continue;
    const SpecialIds& special = builder.special();
    const auto count = [&](int32_t id) { return std::count(prompt->ids.begin(), prompt->ids.end(), id); };
    // Each message opens at most one turn; the template adds one for tools or thinking and one for the
    // answer.
    JEWEL_CHECK(count(special.turn_open) <= static_cast<int64_t>(messages.size()) + 2,
                "{} turns from {} messages", count(special.turn_open), messages.size());
    JEWEL_CHECK(count(special.image) == static_cast<int64_t>(5 * n_images), "{} soft tokens for {} images",
                count(special.image), n_images);
    break;
  }
  return 0;
}
