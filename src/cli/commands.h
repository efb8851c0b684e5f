// The subcommands of `jewel`, one file each. Every command declares its flags on its own CLI::App and returns
// the exit code: 0 done, 1 error, 2 wrong usage, 3 a gate said no. stdout carries the answer or the JSON,
// stderr everything else.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace jewel {

inline constexpr int kExitDone = 0;
inline constexpr int kExitError = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitGate = 3;

using Command = std::function<int()>;

// Each adds its subcommand and returns what runs it once flags are parsed.
Command add_run_command(CLI::App& app);
Command add_inspect_command(CLI::App& app);
Command add_quantize_command(CLI::App& app);
Command add_bench_command(CLI::App& app);
Command add_eval_command(CLI::App& app);
Command add_report_command(CLI::App& app);
Command add_pull_command(CLI::App& app);

// `serve` reads its own words, because its flags are vLLM's and stand in files too; the subcommand is there
// for
// --help.
void add_serve_command(CLI::App& app);
int serve(const std::vector<std::string>& arguments);

// Prints "jewel: error: …" on stderr; returns kExitError.
int report(const Error& error);

// Bytes for people: "11.9 GB", "23.4 MB" (powers of ten).
std::string human_bytes(double bytes);

// A line on stderr that is rewritten as loading goes on, when stderr is a terminal.
std::function<void(size_t done, size_t total)> loading_progress(const std::string& what);

}  // namespace jewel
