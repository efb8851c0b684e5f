// Structural tags: free text in which certain openings lead to content that must follow a schema, as Lark
// (text/grammar.h, kLark). Both forms that clients send are read:
//
//   {"structures": [{"begin": "<f=a>", "schema": {…}, "end": "</f>"}], "triggers": ["<f="]}
//   {"format": {"type": …}} with the types const_string, json_schema, regex, grammar, any_text, sequence, or,
//   tag, triggered_tags, tags_with_separator (XGrammar's)
//
// Text is free until a trigger has been said; then one of the tags that begin with it must be. The names of
// control tokens in tags are text, not control tokens. Pure function, any thread; the JSON may be hostile.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace jewel {

// Errors name the place: "format.tags[1].begin".
Result<std::string> lark_from_structural_tag(std::string_view json);

}  // namespace jewel
