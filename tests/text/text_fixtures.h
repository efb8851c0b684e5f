// What the text tests share: the demo model's tokenizer, loaded once, and the time limits of the build at
// hand.
#pragma once

#include <string>

#include "text/prompt.h"
#include "text/tokenizer.h"

namespace jewel {

inline constexpr char kDemoDir[] = JEWEL_SOURCE_DIR "/models/jewel-demo";

const std::string& demo_tokenizer_json();
const PromptBuilder& demo_prompts();
inline const Tokenizer& demo_tokenizer() {
  return demo_prompts().tokenizer();
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr double kTimeLimitSeconds = 20;
#define JEWEL_TIME_LIMIT_SET
#endif
#endif
#ifndef JEWEL_TIME_LIMIT_SET
inline constexpr double kTimeLimitSeconds = 2;
#endif

}  // namespace jewel
