#include "text/detokenizer.h"

#include <utility>

#include "text/utf8.h"

namespace jewel {

std::string Detokenizer::push(int32_t id) {
  switch (tokenizer_->kind(id)) {
    case Tokenizer::Kind::kHole:
      return {};
    case Tokenizer::Kind::kByte:
      bytes_ += tokenizer_->token_bytes(id);
      return {};
    case Tokenizer::Kind::kText:
      break;
  }
  std::string text = flush();
  text += tokenizer_->token_bytes(id);
  return text;
}

std::string Detokenizer::flush() {
  std::string run = std::exchange(bytes_, {});
  if (is_utf8(run)) return run;
  std::string text;
  for (size_t i = 0; i < run.size(); ++i) text += kReplacementCharacter;
  return text;
}

}  // namespace jewel
