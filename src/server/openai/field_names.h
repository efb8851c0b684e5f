// FieldNames: the engine speaks of fields by the names of OpenAI's chat API; a client of another API is told
// of them by the names that it sent. Plain data.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "jewel/result.h"

namespace jewel {

class FieldNames {
 public:
  // "max_tokens" is called "max_output_tokens" here; what stands below a field ("tools[0].function.name")
  // goes with it. The first of several that fit counts.
  void add(std::string ours, std::string theirs) { names_.emplace_back(std::move(ours), std::move(theirs)); }

  // The same error, its param and its sentence in the client's words.
  Error apply(Error error) const;

 private:
  std::vector<std::pair<std::string, std::string>> names_;
};

}  // namespace jewel
