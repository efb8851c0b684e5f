// jewel pull NAME: a model from the hub into the Hugging Face cache; its directory on stdout.

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>

#include "cli/commands.h"
#include "hub/hub.h"

namespace jewel {
namespace {

struct PullFlags {
  std::string name;
  std::string revision = "main";
  std::string cache_dir;
  int parallel = 4;
  bool quiet = false;
};

std::atomic<bool> interrupted{false};

// One line on stderr, rewritten on a terminal, else one every ten percent.
class ProgressLine {
 public:
  void operator()(const DownloadProgress& progress) {
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

 private:
  const bool terminal_ = ::isatty(STDERR_FILENO) != 0;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point next_{};
  double next_part_ = 0;
  double first_ = -1;  // bytes that were there before
};

int pull(const PullFlags& flags) {
  HubOptions options = HubOptions::from_environment();
  options.revision = flags.revision;
  options.parallel_files = flags.parallel;
  if (!flags.cache_dir.empty()) options.cache_root = flags.cache_dir;
  std::signal(SIGINT, [](int) { interrupted = true; });
  options.cancelled = &interrupted;
  ProgressLine line;
  if (!flags.quiet) {
    options.progress = std::ref(line);
    options.note = [](const std::string& text) { fmt::print(stderr, "\njewel: {}\n", text); };
  }
  auto found = pull_model(flags.name, options);
  if (!found.ok()) {
    if (found.error().code != ErrorCode::kCancelled) return report(found.error());
    fmt::print(stderr, "\njewel: interrupted; the same command goes on where it stopped\n");
    return kExitError;
  }
  fmt::print("{}\n", found->directory);
  return kExitDone;
}

}  // namespace

Command add_pull_command(CLI::App& app) {
  auto flags = std::make_shared<PullFlags>();
  CLI::App* command = app.add_subcommand("pull", "Download a model into the Hugging Face cache");
  command->add_option("name", flags->name, "such as google/gemma-4-E4B-it")->required();
  command->add_option("--revision", flags->revision, "branch, tag or commit")->capture_default_str();
  command->add_option("--download-dir", flags->cache_dir, "a cache other than HF_HUB_CACHE's");
  command->add_option("--parallel", flags->parallel, "files at once")
      ->check(CLI::Range(1, 32))
      ->capture_default_str();
  command->add_flag("--quiet,-q", flags->quiet, "no progress");
  command->footer(
      "Only the files that Jewel reads are brought. A cut download goes on where it stopped, and every file "
      "is checked\n"
      "against the hub's checksum.\n"
      "Environment: HF_HOME or HF_HUB_CACHE (where), HF_TOKEN (gated and private models), HF_ENDPOINT, "
      "HF_HUB_OFFLINE.");
  return [flags] { return pull(*flags); };
}

}  // namespace jewel
