// What a model may generate: any ids in any order. The first byte chooses how the others become ids: as text
// in which special tokens are found, or two bytes an id, with some outside the vocabulary. What a client must
// be able to rely on is checked: events are UTF-8 and nest, pieces of a call's arguments put together are its
// JSON object.
#include "text/output_parser.h"

#include <boost/json/parse.hpp>

#include "text/chat_template.h"
#include "text/utf8.h"

namespace {

using namespace jewel;

struct Model {
  Tokenizer tokenizer;
  SpecialIds special;
};

Model load_model() {
  const std::string dir = JEWEL_SOURCE_DIR "/models/jewel-demo";
  Result<Tokenizer> tokenizer = Tokenizer::load(dir + "/tokenizer.json");
  JEWEL_CHECK(tokenizer.ok(), "{}", tokenizer.error().message);
  const Result<boost::json::object> config = read_tokenizer_config(dir);
  JEWEL_CHECK(config.ok(), "{}", config.error().message);
  SpecialIds special = find_special_ids(*tokenizer, *config);
  JEWEL_CHECK(special.tool_call_open >= 0 && special.channel_open >= 0,
              "the demo model lacks Gemma's special tokens");
  return {std::move(tokenizer).value(), special};
}

std::vector<int32_t> ids_from(const uint8_t* data, size_t size, bool as_text, const Tokenizer& tokenizer) {
  if (as_text) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    Result<std::vector<int32_t>> ids = tokenizer.encode(text, SpecialTokens::kParse);
    JEWEL_CHECK(ids.ok(), "encode: {}", ids.error().message);
    return std::move(ids).value();
  }
  std::vector<int32_t> ids;
  const int32_t range = tokenizer.vocab_size() + 4;
  for (size_t i = 0; i + 1 < size; i += 2) ids.push_back((data[i] | data[i + 1] << 8) % range - 2);
  return ids;
}

// Follows the events of one output and stops at the first that does not fit.
class Client {
 public:
  void take(const std::vector<OutputEvent>& events) {
    for (const OutputEvent& event : events) take(event);
  }
  void end() const { JEWEL_CHECK(!in_call_, "call {} never ended", call_); }

 private:
  void take(const OutputEvent& event) {
    JEWEL_CHECK(is_utf8(event.text), "an event's text is not UTF-8");
    switch (event.kind) {
      case OutputEvent::Kind::kReasoning:
      case OutputEvent::Kind::kContent:
        JEWEL_CHECK(!in_call_, "text inside of call {}", call_);
        break;
      case OutputEvent::Kind::kCallStart:
        JEWEL_CHECK(!in_call_ && event.call == call_ + 1, "call {} after call {}", event.call, call_);
        JEWEL_CHECK(!event.text.empty(), "call {} without a name", event.call);
        in_call_ = true;
        call_ = event.call;
        arguments_.clear();
        break;
      case OutputEvent::Kind::kCallArguments:
        JEWEL_CHECK(in_call_ && event.call == call_, "arguments of call {} in call {}", event.call, call_);
        arguments_ += event.text;
        break;
      case OutputEvent::Kind::kCallEnd:
        JEWEL_CHECK(in_call_ && event.call == call_, "end of call {} in call {}", event.call, call_);
        JEWEL_CHECK(event.text == arguments_, "the pieces make {}, the end says {}", arguments_, event.text);
        check_arguments();
        in_call_ = false;
        break;
    }
  }

  void check_arguments() const {
    boost::system::error_code error;
    boost::json::parse_options deep;
    deep.max_depth = ToolCallReader::kMaxDepth + 2;
    const boost::json::value value = boost::json::parse(arguments_, error, {}, deep);
    JEWEL_CHECK(!error && value.is_object(), "the arguments are no JSON object ({}): {}", error.message(),
                arguments_);
  }

  bool in_call_ = false;
  int call_ = -1;
  std::string arguments_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Model model = load_model();
  if (size == 0) return 0;
  const bool as_text = data[0] & 1;
  std::vector<int32_t> prompt;
  if (data[0] & 2) prompt = {model.special.turn_open, model.special.channel_open};

  OutputParser parser(model.tokenizer, model.special, prompt);
  Client client;
  for (const int32_t id : ids_from(data + 1, size - 1, as_text, model.tokenizer))
    client.take(parser.push(id));
  client.take(parser.finish());
  client.end();
  return 0;
}
