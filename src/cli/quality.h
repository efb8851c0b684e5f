// Right answers before and after quantizing: every task of a JSONL file is answered by both models, greedily,
// and compared with the answer that the file wants. What `jewel quantize --quality` puts into the model card.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "base/result.h"
#include "cli/local_model.h"

namespace jewel {

struct QualityRow {
  std::string category;
  int n = 0;
  int right_source = 0;
  int right_result = 0;
};

struct QualityTable {
  std::vector<QualityRow> rows;  // by category, in the file's order
  QualityRow all;                // category "all"

  // Right answers of the result per right answer of the source.
  double recovery() const {
    return all.right_source > 0 ? static_cast<double>(all.right_result) / all.right_source : 1;
  }
};

// A line of a conversations file: {"messages": […], "tools": […], "images": ["a.png", …], "enable_thinking":
// true}. Image names are relative to the file's directory; `where` names the line in errors.
Result<ChatInput> parse_conversation(const boost::json::object& line, const std::string& where,
                                     const std::string& directory);

// Lines of `file` are conversations with "answer", the whole output but its stop token as the tokenizer
// prints it, and optionally "skill" or "category".
Result<QualityTable> compare_answers(const std::string& source, const std::string& result,
                                     const std::string& file, const std::atomic<bool>& cancel);

// Calls body(object, where) for every line that is not blank; stops at the first Error.
Result<void> for_each_json_line(
    const std::string& file,
    const std::function<Result<void>(const boost::json::object&, const std::string&)>& body);

std::string directory_of(const std::string& file);

}  // namespace jewel
