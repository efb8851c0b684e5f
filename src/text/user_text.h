// UserText: text by people goes through the chat template without ever becoming a control token.
//
// A template writes its control tokens as text ("<|turn>user\n"), and so could a message. Before rendering,
// protect() breaks every special token that a string holds, and every beginning or end of one at the string's
// edges (which could become one next to the template's text or to another string), with a private mark. After
// rendering, what still reads as a special token is the template's, and restore() takes the marks out of the
// text between.
//
// The mark is U+FDD0 U+FDD2; a U+FDD0 of the text itself becomes U+FDD0 U+FDD1, so that any text comes back
// as it was. Both are noncharacters, which no template looks at: its trim, comparisons, sorting and
// upper-casing work as on the plain string.
#pragma once

#include <boost/json/value.hpp>
#include <string>
#include <string_view>

#include "text/tokenizer.h"

namespace jewel {

class UserText {
 public:
  // `tokenizer` must outlive this object. Every special token has at least two characters (see breakable()).
  explicit UserText(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  // Whether all special tokens of the vocabulary can be broken: those of one character can't.
  bool breakable() const;

  std::string protect(std::string_view text) const;  // UTF-8
  static std::string restore(std::string_view text);

  // The assistant's own content: <|channel> and <channel|> stay whole, since the template removes the
  // thoughts between them; the text around each is protected by itself, so that what closes up behind a
  // removed thought is no token either.
  std::string protect_assistant(std::string_view text, std::string_view channel_open,
                                std::string_view channel_close) const;

  // Every string in a JSON value, keys included.
  boost::json::value protect_all(const boost::json::value& value) const;

 private:
  bool ends_in_a_start(std::string_view text) const;
  bool starts_with_an_end(std::string_view text) const;

  const Tokenizer* tokenizer_;
};

}  // namespace jewel
