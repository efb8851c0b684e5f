// Runs the jewel program as a user does and catches what it prints.
#pragma once

#include <string>
#include <vector>

namespace jewel {

struct ProgramOutput {
  int exit_code = -1;  // 128 + signal when it was killed
  std::string out;
  std::string err;
};

// `input` is its stdin.
ProgramOutput run_program(const std::vector<std::string>& arguments, const std::string& input = {});

}  // namespace jewel
