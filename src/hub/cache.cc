#include "hub/cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "text/text_file.h"

namespace jewel {
namespace fs = std::filesystem;
namespace {

bool is_word(std::string_view part) {
  const auto good = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  return !part.empty() && part.size() <= 96 && part != "." && part != ".." && std::ranges::all_of(part, good);
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// ~ at the front is the home directory.
fs::path expanded(const std::string& path) {
  if (path == "~" || path.starts_with("~/"))
    return fs::path(environment("HOME")) / path.substr(std::min<size_t>(2, path.size()));
  return path;
}

Error disk_error(const fs::path& path, std::string_view what, int code) {
  return unavailable(fmt::format("{}: {}: {}", path.string(), what, std::strerror(code)));
}

// A name beside `path` that no other thread or process uses.
fs::path temporary_beside(const fs::path& path) {
  static std::atomic<uint64_t> count{0};
  fs::path out = path;
  out += fmt::format(".{}-{}.tmp", ::getpid(), count++);
  return out;
}

Result<void> make_parent(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error)
    return unavailable(fmt::format("{}: cannot be made: {}", path.parent_path().string(), error.message()));
  return {};
}

}  // namespace

bool is_model_name(std::string_view name) {
  const size_t slash = name.find('/');
  if (slash == std::string_view::npos) return is_word(name);
  return is_word(name.substr(0, slash)) && is_word(name.substr(slash + 1));
}

bool is_safe_repo_path(std::string_view path) {
  if (path.empty() || path.size() > 512) return false;
  while (true) {
    const size_t slash = path.find('/');
    const std::string_view part = path.substr(0, slash);
    const auto bad = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == '\\' || c == 0x7f; };
    if (part.empty() || part == "." || part == ".." || std::ranges::any_of(part, bad)) return false;
    if (slash == std::string_view::npos) return true;
    path.remove_prefix(slash + 1);
  }
}

bool is_commit(std::string_view text) {
  return text.size() == 40 &&
         std::ranges::all_of(text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

fs::path HubCache::default_root() {
  if (const std::string cache = environment("HF_HUB_CACHE"); !cache.empty()) return expanded(cache);
  if (const std::string home = environment("HF_HOME"); !home.empty()) return expanded(home) / "hub";
  const std::string xdg = environment("XDG_CACHE_HOME");
  return (xdg.empty() ? fs::path(environment("HOME")) / ".cache" : expanded(xdg)) / "huggingface" / "hub";
}

fs::path HubCache::repository(std::string_view model) const {
  std::string folder = "models--" + std::string(model);
  if (const size_t slash = folder.find('/'); slash != std::string::npos) folder.replace(slash, 1, "--");
  return root_ / folder;
}

fs::path HubCache::snapshot(std::string_view model, std::string_view commit) const {
  return repository(model) / "snapshots" / commit;
}

fs::path HubCache::blob(std::string_view model, std::string_view etag) const {
  return repository(model) / "blobs" / etag;
}

fs::path HubCache::lock_file(std::string_view model, std::string_view etag) const {
  return root_ / ".locks" / repository(model).filename() / fmt::format("{}.lock", etag);
}

std::optional<std::string> HubCache::commit_of(std::string_view model, std::string_view revision) const {
  if (is_commit(revision)) return std::string(revision);
  if (!is_safe_repo_path(revision)) return std::nullopt;
  auto text = read_text_file((repository(model) / "refs" / revision).string(), 256);
  if (!text.ok()) return std::nullopt;
  std::string commit = std::move(text).value();
  while (!commit.empty() && (commit.back() == '\n' || commit.back() == ' ')) commit.pop_back();
  return is_commit(commit) ? std::optional(commit) : std::nullopt;
}

Result<void> HubCache::write_ref(std::string_view model, std::string_view revision,
                                 std::string_view commit) const {
  if (revision == commit) return {};
  const fs::path path = repository(model) / "refs" / revision;
  JEWEL_TRY(make_parent(path));
  const fs::path temporary = temporary_beside(path);
  std::ofstream(temporary) << commit;
  if (::rename(temporary.c_str(), path.c_str()) != 0) return disk_error(path, "cannot be written", errno);
  return {};
}

Result<void> HubCache::link(std::string_view model, std::string_view commit, const std::string& path,
                            std::string_view etag) const {
  const fs::path link = snapshot(model, commit) / path;
  JEWEL_TRY(make_parent(link));
  const fs::path target = fs::relative(blob(model, etag), link.parent_path());
  const fs::path temporary = temporary_beside(link);
  if (::symlink(target.c_str(), temporary.c_str()) != 0) return disk_error(link, "cannot be linked", errno);
  if (::rename(temporary.c_str(), link.c_str()) != 0) {
    const int code = errno;
    ::unlink(temporary.c_str());
    return disk_error(link, "cannot be linked", code);
  }
  return {};
}

Result<FileLock> FileLock::take(const fs::path& path, void (*on_wait)(const std::string&)) {
  JEWEL_TRY(make_parent(path));
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) return disk_error(path, "cannot be opened", errno);
  FileLock lock(fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return lock;
  if (on_wait) on_wait(path.string());
  while (::flock(fd, LOCK_EX) != 0) {
    if (errno != EINTR) return disk_error(path, "cannot be locked", errno);
  }
  return lock;
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace jewel
