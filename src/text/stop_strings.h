// StopStrings: texts that end an answer, found across the pieces that the answer comes in.
//
// What may still turn out to be the beginning of a stop text is held back, and nothing else: the longest end
// of the text so far that begins one of them. Of several stop texts the one that is complete first ends the
// answer; of those that are complete at the same byte, the longest. One Knuth–Morris–Pratt automaton per
// text; a byte costs as many steps as there are texts. One object per sequence and thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace jewel {

class StopStrings {
 public:
  // `texts` are not empty. `include`: a found text is part of the answer.
  StopStrings(std::vector<std::string> texts, bool include);

  // The text that became certain with this piece. Nothing may be pushed once found() says something.
  // `may_stop` false: a text that is complete within this piece does not count (min_tokens).
  std::string push(std::string_view piece, bool may_stop = true);

  // The answer ended: what was held back is part of it.
  std::string flush();

  // Which text ended the answer.
  std::optional<std::string_view> found() const;

 private:
  struct Automaton {
    std::string text;
    std::vector<size_t>
        borders;         // [text.size()] of the first i + 1 bytes: the longest proper end that begins text
    size_t matched = 0;  // bytes of text that the answer so far ends in
  };

  std::vector<Automaton> automata_;
  bool include_;
  std::string held_;
  std::optional<size_t> found_;  // in automata_
};

}  // namespace jewel
