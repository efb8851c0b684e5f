// The Hugging Face cache, in its own layout, so that every tool that knows it finds what is there.
//
//   <cache>/models--<org>--<name>/refs/<revision>           text: a commit
//                                /snapshots/<commit>/<file>  symlink to ../../blobs/<etag> (files in folders:
//                                ../../../blobs) /blobs/<etag>               a file's bytes;
//                                <etag>.incomplete while it comes
//   <cache>/.locks/models--<org>--<name>/<etag>.lock         flock() while a blob is written
//
// <cache> is HF_HUB_CACHE, else HF_HOME/hub, else XDG_CACHE_HOME/huggingface/hub, else
// ~/.cache/huggingface/hub. Any thread; nothing is kept in memory.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace jewel {

// "org/name" or "name", each part of letters, digits, '-', '_' and '.'.
bool is_model_name(std::string_view name);
// A path inside a repository that stays inside: no "..", no empty part, no leading '/', no backslash.
bool is_safe_repo_path(std::string_view path);
// Forty hexadecimal digits.
bool is_commit(std::string_view text);

class HubCache {
 public:
  explicit HubCache(std::filesystem::path root) : root_(std::move(root)) {}
  static std::filesystem::path default_root();  // from the environment

  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path repository(std::string_view model) const;
  std::filesystem::path snapshot(std::string_view model, std::string_view commit) const;
  std::filesystem::path blob(std::string_view model, std::string_view etag) const;
  std::filesystem::path lock_file(std::string_view model, std::string_view etag) const;

  // The commit that a revision had when it was last looked up: a commit is its own.
  std::optional<std::string> commit_of(std::string_view model, std::string_view revision) const;
  Result<void> write_ref(std::string_view model, std::string_view revision, std::string_view commit) const;

  // Makes snapshots/<commit>/<path> point at the blob; atomic, replaces what was there.
  Result<void> link(std::string_view model, std::string_view commit, const std::string& path,
                    std::string_view etag) const;

 private:
  std::filesystem::path root_;
};

// Held while it lives; the kernel lets go when the process dies.
class FileLock {
 public:
  // Waits for other processes. `on_wait` is called once when there is something to wait for.
  static Result<FileLock> take(const std::filesystem::path& path,
                               void (*on_wait)(const std::string&) = nullptr);
  FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace jewel
