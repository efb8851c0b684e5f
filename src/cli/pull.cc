// jewel pull NAME: a model from the hub into the Hugging Face cache; its directory on stdout.

#include <fmt/format.h>

#include <atomic>
#include <csignal>
#include <cstdio>

#include "cli/commands.h"
#include "cli/model_directory.h"
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

int pull(const PullFlags& flags) {
  HubOptions options = HubOptions::from_environment();
  options.revision = flags.revision;
  options.parallel_files = flags.parallel;
  if (!flags.cache_dir.empty()) options.cache_root = flags.cache_dir;
  std::signal(SIGINT, [](int) { interrupted = true; });
  options.cancelled = &interrupted;
  DownloadLine line;
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
