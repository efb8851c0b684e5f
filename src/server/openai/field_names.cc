#include "server/openai/field_names.h"

#include <algorithm>
#include <string_view>

namespace jewel {
namespace {

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

// The field itself or one below it.
bool is_within(std::string_view field, std::string_view outer) {
  if (!field.starts_with(outer)) return false;
  return field.size() == outer.size() || field[outer.size()] == '.' || field[outer.size()] == '[';
}

void replace_words(std::string& text, std::string_view word, std::string_view with) {
  size_t at = 0;
  while ((at = text.find(word, at)) != std::string::npos) {
    const size_t end = at + word.size();
    const bool whole =
        (at == 0 || !is_name_char(text[at - 1])) && (end == text.size() || !is_name_char(text[end]));
    if (whole) text.replace(at, word.size(), with);
    at += whole ? with.size() : 1;
  }
}

}  // namespace

Error FieldNames::apply(Error error) const {
  const auto known =
      std::ranges::find_if(names_, [&](const auto& name) { return is_within(error.param, name.first); });
  if (known == names_.end()) return error;
  const auto& [ours, theirs] = *known;
  error.param.replace(0, ours.size(), theirs);
  replace_words(error.message, ours, theirs);
  return error;
}

}  // namespace jewel
