// Reads a small text file of a checkpoint as a whole. Errors name the file.
#pragma once

#include <string>

#include "base/result.h"

namespace jewel {

Result<std::string> read_text_file(const std::string& path, size_t max_bytes);
bool file_exists(const std::string& path);

}  // namespace jewel
