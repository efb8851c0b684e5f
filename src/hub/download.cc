#include "hub/download.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "hub/http.h"

namespace jewel {
namespace fs = std::filesystem;
namespace {

bool is_hex(std::string_view text, size_t digits) {
  return text.size() == digits &&
         std::ranges::all_of(text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

Error disk_error(const fs::path& path, int code) {
  if (code == ENOSPC || code == EDQUOT) {
    return unavailable(
        fmt::format("{}: the disk is full; free some space, or point HF_HUB_CACHE at another disk. What "
                    "has come so far is kept",
                    path.parent_path().string()));
  }
  return unavailable(fmt::format("{}: {}", path.string(), std::strerror(code)));
}

// 0, or errno.
int write_all(int fd, std::span<const char> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return 0;
}

// The file's checksum by the rule that its name follows: SHA-256 of the bytes, or git's SHA-1 of a blob.
Result<std::string> checksum(int fd, const RepoFile& file, const fs::path& path) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> digest(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  const bool git = file.sha256.empty();
  if (!digest || EVP_DigestInit_ex(digest.get(), git ? EVP_sha1() : EVP_sha256(), nullptr) != 1) {
    return internal("OpenSSL offers no SHA digest");
  }
  if (git) {
    const std::string header = fmt::format("blob {}", file.bytes);
    EVP_DigestUpdate(digest.get(), header.c_str(), header.size() + 1);
  }
  std::vector<char> buffer(1 << 20);
  for (off_t at = 0;;) {
    const ssize_t n = ::pread(fd, buffer.data(), buffer.size(), at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return disk_error(path, errno);
    if (n == 0) break;
    EVP_DigestUpdate(digest.get(), buffer.data(), static_cast<size_t>(n));
    at += n;
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> bytes{};
  unsigned length = 0;
  EVP_DigestFinal_ex(digest.get(), bytes.data(), &length);
  std::string hex;
  for (unsigned i = 0; i < length; ++i) hex += fmt::format("{:02x}", bytes[i]);
  return hex;
}

// "bytes 100-199/200": where the part begins.
int64_t content_range_start(const std::string& header) {
  constexpr std::string_view kUnit = "bytes ";
  int64_t start = -1;
  if (header.starts_with(kUnit))
    std::from_chars(header.data() + kUnit.size(), header.data() + header.size(), start);
  return start;
}

}  // namespace

bool RepoFile::usable() const {
  return bytes >= 0 && (sha256.empty() ? is_hex(git_sha1, 40) : is_hex(sha256, 64));
}

std::string url_escaped(std::string_view text, bool keep_slashes) {
  std::string out;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '-' || c == '_' || c == '.' || c == '~' || (c == '/' && keep_slashes);
    if (plain)
      out += c;
    else
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

HttpRequest hub_request(const HubOptions& options) {
  HttpRequest request;
  request.bearer_token = options.token;
  request.allow_http = options.endpoint.starts_with("http://");
  request.cancelled = options.cancelled;
  return request;
}

Downloader::Downloader(const HubCache& cache, std::string model, std::string commit,
                       const HubOptions& options)
    : cache_(cache), model_(std::move(model)), commit_(std::move(commit)), options_(options) {}

bool Downloader::in_cache(const RepoFile& file) const {
  std::error_code error;
  return fs::is_regular_file(cache_.blob(model_, file.etag()), error) &&
         fs::file_size(cache_.blob(model_, file.etag()), error) == static_cast<uintmax_t>(file.bytes);
}

void Downloader::expect(std::span<const RepoFile> files) {
  const std::scoped_lock lock(mutex_);
  for (const RepoFile& file : files) {
    if (in_cache(file)) continue;
    progress_.total_bytes += file.bytes;
    ++progress_.total_files;
  }
}

void Downloader::add_progress(int64_t bytes, int files) {
  const std::scoped_lock lock(mutex_);
  progress_.done_bytes += bytes;
  progress_.done_files += files;
  if (options_.progress) options_.progress(progress_);
}

Result<void> Downloader::fetch(std::span<const RepoFile> files) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::optional<Error> failed;
  const auto work = [&] {
    for (size_t i = next++; i < files.size(); i = next++) {
      if (auto fetched = fetch_one(files[i]); !fetched.ok()) {
        const std::scoped_lock lock(mutex);
        if (!failed) failed = std::move(fetched).error();
        next = files.size();
      }
    }
  };
  std::vector<std::thread> threads;
  const size_t n = std::min(files.size(), static_cast<size_t>(std::max(1, options_.parallel_files)));
  for (size_t i = 1; i < n; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (failed) return *std::move(failed);
  return {};
}

Result<void> Downloader::fetch_one(const RepoFile& file) {
  const fs::path blob = cache_.blob(model_, file.etag());
  if (!in_cache(file)) {
    JEWEL_ASSIGN(const FileLock lock, FileLock::take(cache_.lock_file(model_, file.etag())));
    if (in_cache(file)) {
      add_progress(file.bytes, 1);  // somebody else brought it meanwhile
    } else {
      JEWEL_TRY(fetch_blob(file, blob));
    }
  }
  return cache_.link(model_, commit_, file.path, file.etag());
}

Result<void> Downloader::fetch_blob(const RepoFile& file, const fs::path& blob) {
  fs::path part = blob;
  part += ".incomplete";
  std::error_code error;
  fs::create_directories(blob.parent_path(), error);
  if (error)
    return unavailable(fmt::format("{}: cannot be made: {}", blob.parent_path().string(), error.message()));
  const FileDescriptor fd(::open(part.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (fd.get() < 0) return disk_error(part, errno);

  int64_t have = ::lseek(fd.get(), 0, SEEK_END);
  if (have < 0) return disk_error(part, errno);
  if (have > file.bytes) have = 0;  // of another file
  struct statvfs disk{};
  if (::statvfs(part.c_str(), &disk) == 0) {
    const auto free = static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
    if (free < file.bytes - have) {
      return unavailable(
          fmt::format("{} needs {:.1f} GB more, and {} has {:.1f} GB free; free some space, or point "
                      "HF_HUB_CACHE at another disk",
                      file.path, static_cast<double>(file.bytes - have) / 1e9, blob.parent_path().string(),
                      static_cast<double>(free) / 1e9));
    }
  }
  int64_t told = have;  // bytes that progress knows of
  add_progress(have, 0);

  Error why;
  double pause = options_.first_retry_s;
  for (int attempt = 0; attempt <= options_.retries; ++attempt) {
    if (attempt > 0) {
      if (options_.note)
        options_.note(fmt::format("{}: {}; trying again from byte {}", file.path, why.message, have));
      std::this_thread::sleep_for(std::chrono::duration<double>(pause));
      pause *= 2;
    }
    const int64_t before = have;
    JEWEL_ASSIGN(const bool all, transfer(file, fd.get(), have, why));
    told += have - before;
    if (!all) {
      if (have > before) attempt = 0;  // it moves: patience starts again
      continue;
    }
    JEWEL_ASSIGN(const std::string found, checksum(fd.get(), file, part));
    if (found == file.etag()) {
      if (::fsync(fd.get()) != 0) return disk_error(part, errno);
      if (::rename(part.c_str(), blob.c_str()) != 0) return disk_error(blob, errno);
      add_progress(0, 1);
      return {};
    }
    why = unavailable(fmt::format("its checksum is {}, expected {}", found, file.etag()));
    add_progress(-told, 0);
    have = told = 0;
  }
  if (have == 0) ::unlink(part.c_str());
  return unavailable(fmt::format("{} of {} could not be downloaded: {}; run the same command again to go on",
                                 file.path, model_, why.message));
}

Result<bool> Downloader::transfer(const RepoFile& file, int fd, int64_t& have, Error& why) {
  if (have == file.bytes) return true;
  int disk = 0;           // errno of a failed write
  bool too_long = false;  // more bytes than the listing says
  HttpRequest request = hub_request(options_);
  request.url =
      fmt::format("{}/{}/resolve/{}/{}", options_.endpoint, model_, commit_, url_escaped(file.path, true));
  request.first_byte = have;
  request.on_headers = [&](const HttpResponse& response) {
    if (response.status != 200 && response.status != 206) return false;
    const bool goes_on =
        response.status == 206 && content_range_start(response.header("content-range")) == have;
    if (!goes_on) {  // the whole file comes
      if (response.status == 206 && have > 0) return false;
      add_progress(-have, 0);
      have = 0;
    }
    if (::ftruncate(fd, have) != 0 || ::lseek(fd, have, SEEK_SET) < 0) disk = errno;
    return disk == 0;
  };
  request.on_body = [&](std::span<const char> bytes) {
    if (have + static_cast<int64_t>(bytes.size()) > file.bytes) {
      too_long = true;
      return false;
    }
    disk = write_all(fd, bytes);
    if (disk != 0) return false;
    have += static_cast<int64_t>(bytes.size());
    add_progress(static_cast<int64_t>(bytes.size()), 0);
    return true;
  };
  auto response = http_get(request);
  if (disk != 0) return disk_error(cache_.blob(model_, file.etag()), disk);
  if (!response.ok()) {
    if (response.error().code != ErrorCode::kUnavailable) return std::move(response).error();
    why = std::move(response).error();
    return false;
  }
  if (too_long) {
    add_progress(-have, 0);
    have = 0;
    why = unavailable(fmt::format("more bytes came than the {} that the hub lists", file.bytes));
    return false;
  }
  if (response->status == 401 || response->status == 403) {
    return not_found(
        fmt::format("{} of {} may not be read (status {}): accept the model's conditions at {}/{}, and set "
                    "HF_TOKEN to a token that may read it",
                    file.path, model_, response->status, options_.endpoint, model_));
  }
  if (response->status != 200 && response->status != 206) {
    why = unavailable(fmt::format("the hub answered with status {}", response->status));
    return false;
  }
  if (have < file.bytes) {
    why = unavailable(fmt::format("{} of {} bytes came", have, file.bytes));
    return false;
  }
  return true;
}

}  // namespace jewel
