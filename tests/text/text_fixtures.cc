#include "text_fixtures.h"

#include "base/check.h"
#include "text/text_file.h"

namespace jewel {

const std::string& demo_tokenizer_json() {
  static const std::string json = read_text_file(std::string(kDemoDir) + "/tokenizer.json", 1 << 28).value();
  return json;
}

const PromptBuilder& demo_prompts() {
  static const PromptBuilder builder = PromptBuilder::load(kDemoDir).value();
  return builder;
}

}  // namespace jewel
