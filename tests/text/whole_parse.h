// A second reading of the output format, for comparison with the streaming parser: recursive, over the whole
// sequence.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "text/output_parser.h"

namespace jewel {

// A character, or a quote mark.
struct CallElement {
  bool is_mark;
  char c;
};

std::optional<ToolCall> whole_tool_call(const std::vector<CallElement>& body);
ParsedOutput whole_output(const Tokenizer& tokenizer, const SpecialIds& special,
                          const std::vector<int32_t>& ids, bool starts_in_reasoning);

}  // namespace jewel
