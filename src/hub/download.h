// The download of a commit's files into the cache: several at a time, resumed, checked, then named.
#pragma once

#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "hub/hub.h"

namespace jewel {

struct HttpRequest;

// A file of a repository, as the hub lists it.
struct RepoFile {
  std::string path;
  int64_t bytes = -1;
  std::string git_sha1;  // of small files: the checksum and the blob's name
  std::string sha256;    // of large ones (LFS)

  // The name of its blob, which is its ETag too.
  const std::string& etag() const { return sha256.empty() ? git_sha1 : sha256; }
  bool usable() const;  // size known, checksum well-formed
};

// One commit of one model. The threads of fetch() are its own; call it from one thread.
class Downloader {
 public:
  Downloader(const HubCache& cache, std::string model, std::string commit, const HubOptions& options);

  // Adds files to what progress counts, those that are not in the cache yet.
  void expect(std::span<const RepoFile> files);
  // Brings files into the snapshot. Stops at the first that cannot be had; what came so far is kept.
  Result<void> fetch(std::span<const RepoFile> files);

 private:
  Result<void> fetch_one(const RepoFile& file);
  Result<void> fetch_blob(const RepoFile& file, const std::filesystem::path& blob);
  // One connection's worth. True: all bytes are there. False: cut; `why` says how.
  Result<bool> transfer(const RepoFile& file, int fd, int64_t& have, Error& why);
  bool in_cache(const RepoFile& file) const;
  void add_progress(int64_t bytes, int files);

  const HubCache& cache_;
  const std::string model_;
  const std::string commit_;
  const HubOptions& options_;
  std::mutex mutex_;  // guards progress_
  DownloadProgress progress_;
};

// A request to the hub: token, protocols, cancellation.
HttpRequest hub_request(const HubOptions& options);

// Percent-encoded for a URL's path; slashes are kept when `keep_slashes`.
std::string url_escaped(std::string_view text, bool keep_slashes);

}  // namespace jewel
