// A model's name on the command line → its directory: a directory is itself, a name is looked for in the
// Hugging Face cache and downloaded when it is not there, with progress on stderr. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "base/result.h"
#include "hub/hub.h"

namespace jewel {

// How --help calls what may stand there.
inline constexpr const char* kModelHelp =
    "Directory of a model, or a name such as google/gemma-4-E4B-it: from the Hugging Face cache, else "
    "downloaded "
    "into it";
inline constexpr const char* kRevisionHelp = "Branch, tag or commit of a named model";

// One line on stderr about a download, rewritten on a terminal, else one every ten percent.
class DownloadLine {
 public:
  DownloadLine();
  void operator()(const DownloadProgress& progress);

 private:
  const bool terminal_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point next_{};
  double next_part_ = 0;
  double first_ = -1;  // bytes that were there before
};

enum class ModelPart : uint8_t { kAll, kWithoutWeights };

// `options` as HubOptions::from_environment() made them, with what flags changed.
Result<std::string> model_directory(const std::string& directory_or_name, HubOptions options,
                                    ModelPart part = ModelPart::kAll);
// The same for commands whose only flag about it is --revision.
Result<std::string> model_directory(const std::string& directory_or_name, const std::string& revision,
                                    ModelPart part = ModelPart::kAll);

}  // namespace jewel
