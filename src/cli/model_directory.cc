#include "cli/model_directory.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "cli/commands.h"

namespace jewel {

DownloadLine::DownloadLine() : terminal_(::isatty(STDERR_FILENO) != 0) {}

void DownloadLine::operator()(const DownloadProgress& progress) {
  const auto now = std::chrono::steady_clock::now();
  const double done = static_cast<double>(progress.done_bytes);
  const double total = static_cast<double>(std::max<int64_t>(progress.total_bytes, 1));
  const bool finished = progress.done_files == progress.total_files;
  if (first_ < 0) first_ = done;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double rate = (done - first_) / std::max(elapsed, 1e-3);
  if (terminal_ ? now < next_ && !finished : done / total < next_part_ && !finished) return;
  next_ = now + std::chrono::milliseconds(100);
  next_part_ = done / total + 0.1;
  const int left = rate > 0 ? static_cast<int>((total - done) / rate) : 0;
  fmt::print(stderr, "{}{:3.0f}% of {}, {} of {} files, {}/s, {}:{:02} left{}", terminal_ ? "\r\033[K" : "",
             100 * done / total, human_bytes(total), progress.done_files, progress.total_files,
             human_bytes(rate), left / 60, left % 60, terminal_ && !finished ? "" : "\n");
  std::fflush(stderr);
}

Result<std::string> model_directory(const std::string& directory_or_name, HubOptions options,
                                    ModelPart part) {
  DownloadLine line;
  options.with_weights = part == ModelPart::kAll;
  options.progress = std::ref(line);
  options.note = [](const std::string& text) { fmt::print(stderr, "jewel: {}\n", text); };
  JEWEL_ASSIGN(FoundModel found, find_model(directory_or_name, options));
  return std::move(found.directory);
}

Result<std::string> model_directory(const std::string& directory_or_name, const std::string& revision,
                                    ModelPart part) {
  HubOptions options = HubOptions::from_environment();
  if (!revision.empty()) options.revision = revision;
  return model_directory(directory_or_name, std::move(options), part);
}

}  // namespace jewel
