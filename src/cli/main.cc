#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string_view>

#include "base/log.h"
#include "cli/commands.h"

namespace jewel {

int report(const Error& error) {
  std::fflush(stdout);
  if (log_is_json())
    log().error("{}", error.message);
  else
    fmt::print(stderr, "jewel: error: {}\n", error.message);
  return kExitError;
}

std::string human_bytes(double bytes) {
  if (bytes >= 1e9) return fmt::format("{:.2f} GB", bytes / 1e9);
  if (bytes >= 1e6) return fmt::format("{:.1f} MB", bytes / 1e6);
  if (bytes >= 1e3) return fmt::format("{:.1f} kB", bytes / 1e3);
  return fmt::format("{:.0f} B", bytes);
}

std::function<void(size_t, size_t)> loading_progress(const std::string& what) {
  const auto start = std::chrono::steady_clock::now();
  const bool terminal = ::isatty(STDERR_FILENO) != 0 && !log_is_json();
  return [=, shown = -1](size_t done, size_t total) mutable {
    const int percent =
        static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(std::max<size_t>(total, 1)));
    if (!terminal || (percent == shown && done != total)) return;
    shown = percent;
    const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    fmt::print(stderr, "\r\033[Kloading {}: {}% of {}, {}/s{}", what, percent,
               human_bytes(static_cast<double>(total)),
               human_bytes(static_cast<double>(done) / std::max(elapsed, 1e-9)),
               done == total ? "\r\033[K" : "");
    std::fflush(stderr);
  };
}

}  // namespace jewel

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "serve") return jewel::serve({argv + 2, argv + argc});
  CLI::App app("Jewel serves Gemma 4: text and images in, text out.", "jewel");
  app.set_version_flag("--version", "jewel " JEWEL_VERSION);
  app.require_subcommand(1);
  app.fallthrough(false);
  app.footer(
      "Examples:\n"
      "  jewel run models/jewel-demo \"Who are you?\"\n"
      "  jewel run models/jewel-demo --image cat.jpg \"What does it say?\"\n"
      "  jewel serve models/jewel-demo --host 127.0.0.1\n"
      "  jewel inspect models/jewel-demo\n"
      "\n"
      "jewel COMMAND --help tells what a command can do.");
  const jewel::Command run = jewel::add_run_command(app);
  const jewel::Command inspect = jewel::add_inspect_command(app);
  const jewel::Command quantize = jewel::add_quantize_command(app);
  const jewel::Command bench = jewel::add_bench_command(app);
  const jewel::Command eval = jewel::add_eval_command(app);
  const jewel::Command card = jewel::add_report_command(app);
  jewel::add_serve_command(app);
  const jewel::Command pull = jewel::add_pull_command(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);  // prints help, version or the mistake
    return code == 0 ? jewel::kExitDone : jewel::kExitUsage;
  }
  if (app.got_subcommand("run")) return run();
  if (app.got_subcommand("quantize")) return quantize();
  if (app.got_subcommand("bench")) return bench();
  if (app.got_subcommand("eval")) return eval();
  if (app.got_subcommand("report")) return card();
  if (app.got_subcommand("pull")) return pull();
  return inspect();
}
