#include "checkpoint/safetensors_writer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr size_t kAlignment = 8;  // of the data's start, as the format's own library writes it

Error write_error(const std::string& path) {
  const int code = errno;
  const std::string text = std::strerror(code);
  if (code == ENOSPC || code == EDQUOT)
    return unavailable(fmt::format("{}: the disk is full; free some space or choose another place", path));
  return unavailable(fmt::format("{}: cannot be written ({})", path, text));
}

Result<void> write_all(int fd, size_t offset, std::span<const std::byte> bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return write_error(path);
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += static_cast<size_t>(n);
  }
  return {};
}

std::string header_of(const std::vector<OutputTensor>& tensors, std::span<const size_t> members) {
  std::vector<std::string> entries = {R"("__metadata__":{"format":"pt"})"};
  size_t offset = 0;
  for (const size_t i : members) {
    const OutputTensor& tensor = tensors[i];
    entries.push_back(fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                                  json::serialize(json::string(tensor.name)), tensor.dtype_name,
                                  fmt::join(tensor.shape, ","), offset, offset + tensor.bytes));
    offset += tensor.bytes;
  }
  std::string header = fmt::format("{{{}}}", fmt::join(entries, ","));
  header.append((kAlignment - header.size() % kAlignment) % kAlignment, ' ');
  return header;
}

}  // namespace

Result<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::create(const std::string& directory,
                                                                     std::vector<OutputTensor> tensors,
                                                                     size_t shard_bytes) {
  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter);
  writer->directory_ = directory;
  writer->tensors_ = std::move(tensors);
  writer->places_.resize(writer->tensors_.size());
  std::vector<std::vector<size_t>> shards(1);
  size_t filled = 0;
  for (size_t i = 0; i < writer->tensors_.size(); ++i) {
    const size_t bytes = writer->tensors_[i].bytes;
    if (shard_bytes > 0 && filled > 0 && filled + bytes > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(i);
    filled += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1
                                 ? "model.safetensors"
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    JEWEL_TRY(writer->open_file(name, shards[i]));
  }
  return writer;
}

Result<void> SafetensorsWriter::open_file(const std::string& name, std::span<const size_t> members) {
  const std::string path = directory_ + "/" + name;
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return write_error(path);
  files_.push_back({name, fd});
  const std::string header = header_of(tensors_, members);
  std::string start;
  for (size_t i = 0; i < 8; ++i) start.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
  start += header;
  size_t offset = start.size();
  for (const size_t i : members) {
    places_[i] = {files_.size() - 1, offset};
    offset += tensors_[i].bytes;
  }
  file_bytes_ += offset;
  // Space is taken now, so that a full disk shows before hours of work, not after.
  if (const int code = ::posix_fallocate(fd, 0, static_cast<off_t>(offset));
      code != 0 && code != EOPNOTSUPP && code != EINVAL) {
    errno = code;
    return write_error(path);
  }
  return write_all(fd, 0, std::as_bytes(std::span(start)), path);
}

SafetensorsWriter::~SafetensorsWriter() {
  for (const File& file : files_) ::close(file.fd);
}

Result<void> SafetensorsWriter::write(size_t tensor, size_t offset, std::span<const std::byte> bytes) {
  JEWEL_CHECK(offset + bytes.size() <= tensors_[tensor].bytes, "{} + {} bytes of tensor {} with {}", offset,
              bytes.size(), tensors_[tensor].name, tensors_[tensor].bytes);
  const Place& place = places_[tensor];
  const File& file = files_[place.file];
  JEWEL_TRY(write_all(file.fd, place.offset + offset, bytes, directory_ + "/" + file.name));
  // Writing to the disk starts now and goes on behind; finish() then has little left to wait for.
  ::sync_file_range(file.fd, static_cast<off_t>(place.offset + offset), static_cast<off_t>(bytes.size()),
                    SYNC_FILE_RANGE_WRITE);
  written_ += bytes.size();
  return {};
}

Result<void> SafetensorsWriter::finish() {
  size_t expected = 0;
  for (const OutputTensor& tensor : tensors_) expected += tensor.bytes;
  JEWEL_CHECK(written_ == expected, "{} of {} bytes were written", written_.load(), expected);
  for (const File& file : files_) {
    if (::fsync(file.fd) != 0) return write_error(directory_ + "/" + file.name);
  }
  if (files_.size() > 1) {
    json::object map;
    for (size_t i = 0; i < tensors_.size(); ++i) map[tensors_[i].name] = files_[places_[i].file].name;
    const json::object index = {{"metadata", {{"total_size", expected}}}, {"weight_map", std::move(map)}};
    JEWEL_TRY(write_file(directory_ + "/model.safetensors.index.json", json::serialize(index) + "\n"));
  }
  return sync_directory(directory_);
}

Result<void> write_file(const std::string& path, std::string_view bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return write_error(path);
  Result<void> result = write_all(fd, 0, std::as_bytes(std::span(bytes)), path);
  if (result.ok() && ::fsync(fd) != 0) result = write_error(path);
  ::close(fd);
  return result;
}

Result<void> sync_directory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return write_error(path);
  const bool synced = ::fsync(fd) == 0;
  ::close(fd);
  if (!synced) return write_error(path);
  return {};
}

}  // namespace jewel
