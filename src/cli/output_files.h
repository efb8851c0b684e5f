// The files that commands with figures write: --json, --csv and --html. "-" for --json is stdout. One thread.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "base/result.h"

namespace jewel {

struct OutputFiles {
  std::string json, csv, html;  // empty: not wanted

  bool json_to_stdout() const { return json == "-"; }
};

void add_output_options(CLI::App& command, OutputFiles& files);

// Before the work, not behind it: whether each of them can be written.
Result<void> check_output_files(const OutputFiles& files);

// Nothing happens when `path` is empty or "-".
Result<void> write_output_file(const char* flag, const std::string& path, const std::string& text);

}  // namespace jewel
