#include "cli/output_files.h"

#include <fmt/format.h>

#include <fstream>
#include <string_view>
#include <utility>

namespace jewel {

void add_output_options(CLI::App& command, OutputFiles& files) {
  command.add_option("--json", files.json, "Write the figures to this file; - prints them instead");
  command.add_option("--csv", files.csv, "Write them as CSV");
  command.add_option("--html", files.html, "Write a report with plots, one file");
}

Result<void> check_output_files(const OutputFiles& files) {
  for (const auto& [flag, path] :
       {std::pair("--json", &files.json), {"--csv", &files.csv}, {"--html", &files.html}}) {
    if (path->empty() || (*path == "-" && flag == std::string_view("--json"))) continue;
    if (*path == "-") return invalid(fmt::format("{}: only --json can be printed, expected a file", flag));
    if (!std::ofstream(*path, std::ios::app))
      return unavailable(fmt::format("{}: {} cannot be written", flag, *path));
  }
  return {};
}

Result<void> write_output_file(const char* flag, const std::string& path, const std::string& text) {
  if (path.empty() || path == "-") return {};
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return unavailable(fmt::format("{}: {} cannot be written", flag, path));
  return {};
}

}  // namespace jewel
