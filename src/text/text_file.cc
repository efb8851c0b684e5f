#include "text/text_file.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

namespace jewel {

Result<std::string> read_text_file(const std::string& path, size_t max_bytes) {
  struct stat info = {};
  if (::stat(path.c_str(), &info) != 0) return not_found(fmt::format("{}: {}", path, std::strerror(errno)));
  if (!S_ISREG(info.st_mode)) return invalid(fmt::format("{}: not a regular file", path));
  if (static_cast<size_t>(info.st_size) > max_bytes)
    return too_large(fmt::format("{}: {} bytes, the limit is {}", path, info.st_size, max_bytes));
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) return not_found(fmt::format("{}: {}", path, std::strerror(errno)));
  std::string text(static_cast<size_t>(info.st_size), '\0');
  const size_t n = std::fread(text.data(), 1, text.size(), file.get());
  if (n != text.size()) return invalid(fmt::format("{}: read {} of {} bytes", path, n, text.size()));
  return text;
}

bool file_exists(const std::string& path) {
  struct stat info = {};
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

}  // namespace jewel
