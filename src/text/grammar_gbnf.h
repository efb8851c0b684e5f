// GBNF, the grammars of llama.cpp and XGrammar, as Lark (text/grammar.h, kLark).
//
//   root   ::= "[" (number ("," number)*)? "]"     # a comment
//   number ::= "-"? [0-9]+
//
// Read: rules with ::= (line breaks are white space; a name before ::= begins the next rule), literals and
// character classes with the escapes \n \r \t \\ \" \[ \] \- \xHH \uHHHH \UHHHHHHHH, groups, |, . and the
// repetitions * + ? {m} {m,} {m,n}. Text is matched character by character, as GBNF means it, and not by
// Lark's rule that the longest word wins: a grammar without recursion becomes one regular expression, in
// another every character is a word of its own. Pure functions, any thread; the text may be hostile.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace jewel {

// A line of it begins with `name ::=`; Lark has no such thing.
bool is_gbnf(std::string_view text);

// Errors name the line.
Result<std::string> lark_from_gbnf(std::string_view text);

}  // namespace jewel
