#include "text/stop_strings.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace jewel {
namespace {

// How much of `text` is matched after one more byte.
size_t advance(std::string_view text, const std::vector<size_t>& borders, size_t matched, char byte) {
  if (matched == text.size()) matched = borders[matched - 1];
  while (matched > 0 && text[matched] != byte) matched = borders[matched - 1];
  return text[matched] == byte ? matched + 1 : matched;
}

std::vector<size_t> borders_of(std::string_view text) {
  std::vector<size_t> borders(text.size(), 0);
  for (size_t i = 1; i < text.size(); ++i) borders[i] = advance(text, borders, borders[i - 1], text[i]);
  return borders;
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> texts, bool include) : include_(include) {
  for (std::string& text : texts) {
    JEWEL_CHECK(!text.empty(), "an empty stop text ends everything");
    std::vector<size_t> borders = borders_of(text);
    automata_.push_back({std::move(text), std::move(borders)});
  }
}

std::string StopStrings::push(std::string_view piece, bool may_stop) {
  JEWEL_CHECK(!found_, "the answer has ended");
  std::string text = std::exchange(held_, {});
  for (const char byte : piece) {
    text += byte;
    for (size_t i = 0; i < automata_.size(); ++i) {
      Automaton& automaton = automata_[i];
      automaton.matched = advance(automaton.text, automaton.borders, automaton.matched, byte);
      const bool complete = automaton.matched == automaton.text.size();
      const bool longer = !found_ || automata_[*found_].text.size() < automaton.text.size();
      if (may_stop && complete && longer) found_ = i;
    }
    if (found_) {
      if (!include_) text.resize(text.size() - automata_[*found_].text.size());
      return text;
    }
  }
  size_t held = 0;
  for (const Automaton& automaton : automata_) {
    // A whole text that did not count is over; only its own beginning inside of it may go on.
    const bool whole = automaton.matched == automaton.text.size();
    held = std::max(held, whole ? automaton.borders.back() : automaton.matched);
  }
  held_ = text.substr(text.size() - held);
  text.resize(text.size() - held);
  return text;
}

std::string StopStrings::flush() {
  return std::exchange(held_, {});
}

std::optional<std::string_view> StopStrings::found() const {
  if (!found_) return std::nullopt;
  return automata_[*found_].text;
}

}  // namespace jewel
