// The grammar of tool calls: what the model may write when a request declares tools.
//
//   <|tool_call>call:NAME{key:<|"|>text<|"|>,n:3}<tool_call|> …
//
// Each function's parameters (a JSON schema) become rules in the model's own dialect: bare keys in the order
// the template writes them (by name, case ignored), strings raw between quote marks, no white space. Read:
// type (also a list), nullable, properties, required, additionalProperties, items, minItems, maxItems, enum,
// const, anyOf, oneOf, allOf, $ref into the schema itself, minLength, maxLength, pattern, minimum and its
// kin. Keywords of documentation are passed over, other ones too: the template shows the model no more.
// Parameters that the schema does not name are not allowed, unless additionalProperties or the absence of any
// properties says so. Pure functions, any thread.
#pragma once

#include <boost/json/array.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "text/special_ids.h"

namespace jewel {

struct ToolGrammar {
  enum class Calls : uint8_t {
    kMust,  // the answer is calls
    kMay,   // the answer is `content`, or calls, or (free content only) text and then calls
  };
  Calls calls = Calls::kMust;
  std::string_view only;     // this function alone; empty: all of them
  bool parallel = true;      // several calls in a row
  bool strict_only = false;  // arguments of functions without "strict": true may be anything well-formed
  // kMay: the rule of the content as Lark ("%json {…}", a terminal's name with its definition below); empty:
  // any text.
  std::string content;
};

// The grammar as Lark (text/grammar.h, kLark). Errors name the field: "tools[1].function.parameters.…".
Result<std::string> tool_call_grammar(const boost::json::array& tools, const ToolGrammar& options,
                                      const SpecialIds& special);

}  // namespace jewel
