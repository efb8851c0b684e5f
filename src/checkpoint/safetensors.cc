#include "checkpoint/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "model/config.h"
#include "model/json_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeaderBytes = 100 << 20;  // the format's own limit
constexpr size_t kMaxRank = 8;

Error bad_tensor(const std::string& label, std::string_view tensor, std::string_view what) {
  return invalid(fmt::format("{}: tensor '{}': {}", label, tensor, what), std::string(tensor));
}

// A non-negative whole number that fits, else false.
bool read_size(const json::value& value, uint64_t& out) {
  if (value.is_uint64()) {
    out = value.get_uint64();
    return out <= INT64_MAX;
  }
  if (!value.is_int64() || value.get_int64() < 0) return false;
  out = static_cast<uint64_t>(value.get_int64());
  return true;
}

// One entry of the header, checked against the size of the data that follows it.
Result<SafetensorsEntry> parse_entry(std::string_view name, const json::value& value,
                                     std::span<const std::byte> data, const std::string& label) {
  if (!value.is_object())
    return bad_tensor(label, name, fmt::format("found {}, expected an object", describe(value)));
  const json::object& object = value.get_object();
  const json::value* dtype = object.if_contains("dtype");
  const json::value* shape = object.if_contains("shape");
  const json::value* offsets = object.if_contains("data_offsets");
  if (dtype == nullptr || !dtype->is_string()) return bad_tensor(label, name, "dtype is not a string");
  if (shape == nullptr || !shape->is_array()) return bad_tensor(label, name, "shape is not an array");
  if (offsets == nullptr || !offsets->is_array() || offsets->get_array().size() != 2) {
    return bad_tensor(label, name, "data_offsets is not an array of two numbers");
  }
  if (shape->get_array().size() > kMaxRank) {
    return bad_tensor(
        label, name,
        fmt::format("found {} dimensions, expected at most {}", shape->get_array().size(), kMaxRank));
  }

  SafetensorsEntry entry;
  entry.name = name;
  entry.dtype_name = std::string(dtype->get_string());
  uint64_t count = 1;
  for (const json::value& dimension : shape->get_array()) {
    uint64_t size = 0;
    if (!read_size(dimension, size) || __builtin_mul_overflow(count, size, &count) ||
        count > (uint64_t{1} << 48)) {
      return bad_tensor(label, name, fmt::format("shape {} is not a possible size", json::serialize(*shape)));
    }
    entry.view.shape.push_back(static_cast<int64_t>(size));
  }
  uint64_t begin = 0;
  uint64_t end = 0;
  if (!read_size(offsets->get_array()[0], begin) || !read_size(offsets->get_array()[1], end) || begin > end ||
      end > data.size()) {
    return bad_tensor(
        label, name,
        fmt::format(
            "data_offsets are {}, expected a range inside the {} bytes of data (is the file cut short?)",
            json::serialize(*offsets), data.size()));
  }
  if (const auto known = dtype_from_name(entry.dtype_name)) {
    entry.dtype_known = true;
    entry.view.dtype = *known;
    const uint64_t expected = count * dtype_bytes(*known);
    if (end - begin != expected) {
      return bad_tensor(label, name,
                        fmt::format("found {} bytes, expected {} for {} {}", end - begin, expected,
                                    entry.dtype_name, shape_text(entry.view.shape)));
    }
  }
  entry.view.data = data.data() + begin;
  entry.view.bytes = end - begin;
  return entry;
}

// The format wants every byte of data in exactly one tensor.
Result<void> check_coverage(const std::vector<SafetensorsEntry>& entries, std::span<const std::byte> data,
                            const std::string& label) {
  std::vector<const SafetensorsEntry*> by_offset;
  by_offset.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) by_offset.push_back(&entry);
  std::ranges::sort(by_offset, [](const auto* a, const auto* b) {
    return std::pair(a->view.data, a->view.bytes) < std::pair(b->view.data, b->view.bytes);
  });
  const std::byte* covered = data.data();
  std::string_view previous = "(start)";
  for (const SafetensorsEntry* entry : by_offset) {
    if (entry->view.data < covered) {
      return bad_tensor(
          label, entry->name,
          fmt::format("overlaps tensor '{}' by {} bytes", previous, covered - entry->view.data));
    }
    if (entry->view.data > covered) {
      return bad_tensor(
          label, entry->name,
          fmt::format("leaves a gap of {} bytes after tensor '{}'", entry->view.data - covered, previous));
    }
    covered += entry->view.bytes;
    previous = entry->name;
  }
  const auto left = static_cast<size_t>(data.data() + data.size() - covered);
  if (left != 0)
    return invalid(fmt::format("{}: {} bytes after the last tensor belong to none", label, left));
  return {};
}

std::string last_error() {
  return std::strerror(errno);
}

}  // namespace

std::string shape_text(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

Result<std::vector<SafetensorsEntry>> parse_safetensors(std::span<const std::byte> file,
                                                        const std::string& label) {
  if (file.size() < kLengthBytes) {
    return invalid(fmt::format("{}: found {} bytes, expected a safetensors file (at least {})", label,
                               file.size(), kLengthBytes));
  }
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) header_bytes |= std::to_integer<uint64_t>(file[i]) << (8 * i);
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.size() - kLengthBytes) {
    return invalid(
        fmt::format("{}: the header says that it has {} bytes, the file has {} in all; not a safetensors "
                    "file, or cut short",
                    label, header_bytes, file.size()));
  }
  const auto* text = reinterpret_cast<const char*>(file.data() + kLengthBytes);
  JEWEL_ASSIGN(const json::object header, parse_json_object({text, header_bytes}, label + " (header)"));

  const std::span<const std::byte> data = file.subspan(kLengthBytes + header_bytes);
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, value] : header) {
    if (name == "__metadata__") continue;
    JEWEL_ASSIGN(SafetensorsEntry entry, parse_entry(name, value, data, label));
    entries.push_back(std::move(entry));
  }
  JEWEL_TRY(check_coverage(entries, data, label));
  std::ranges::sort(entries, {}, &SafetensorsEntry::name);
  return entries;
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return not_found(fmt::format("{}: cannot be opened ({})", path, last_error()));
  struct stat info = {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return invalid(fmt::format("{}: is not a regular file", path));
  }
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) {
    ::close(fd);
    return invalid(fmt::format("{}: is empty", path));
  }
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  const std::string error = last_error();
  ::close(fd);
  if (data == MAP_FAILED)
    return unavailable(fmt::format("{}: {} bytes cannot be mapped ({})", path, size, error));
  return MappedFile(static_cast<const std::byte*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

Result<std::unique_ptr<SafetensorsDirectory::File>> SafetensorsDirectory::open_file(
    const std::string& directory, const std::string& name) {
  JEWEL_ASSIGN(MappedFile mapping, MappedFile::open(directory + "/" + name));
  JEWEL_ASSIGN(std::vector<SafetensorsEntry> entries, parse_safetensors(mapping.bytes(), name));
  return std::make_unique<File>(File{name, std::move(mapping), std::move(entries)});
}

Result<SafetensorsDirectory> SafetensorsDirectory::open(const std::string& directory) {
  const std::string single = "model.safetensors";
  const std::string index = "model.safetensors.index.json";
  SafetensorsDirectory result;
  if (std::filesystem::exists(directory + "/" + single)) {
    JEWEL_ASSIGN(auto file, open_file(directory, single));
    result.files_.push_back(std::move(file));
    for (const SafetensorsEntry& entry : result.files_[0]->entries) {
      result.by_name_[entry.name] = {&entry, &result.files_[0]->name};
    }
    return result;
  }
  if (!std::filesystem::exists(directory + "/" + index)) {
    return not_found(fmt::format("{}: holds neither {} nor {}", directory, single, index));
  }

  JEWEL_ASSIGN(const json::object root, read_json_object(directory + "/" + index));
  const json::value* map = root.if_contains("weight_map");
  if (map == nullptr || !map->is_object())
    return invalid(fmt::format("{}: weight_map is not an object", index), "weight_map");
  std::map<std::string, const File*, std::less<>> files;
  for (const auto& [name, value] : map->get_object()) {
    // The index is outside data: a shard is a plain name in this directory, never a path.
    const std::string shard = value.is_string() ? std::string(value.get_string()) : std::string();
    if (shard.empty() || shard.find('/') != std::string::npos || shard.find('\0') != std::string::npos ||
        shard == "..") {
      return invalid(
          fmt::format("{}: weight_map['{}']: found {}, expected the name of a file in the same directory",
                      index, std::string_view(name), describe(value)),
          "weight_map");
    }
    if (!files.contains(shard)) {
      JEWEL_ASSIGN(auto opened, open_file(directory, shard));
      files[shard] = opened.get();
      result.files_.push_back(std::move(opened));
    }
    const File* file = files[shard];
    const std::string_view wanted = name;
    const auto entry = std::ranges::lower_bound(file->entries, wanted, {}, &SafetensorsEntry::name);
    if (entry == file->entries.end() || entry->name != wanted) {
      return bad_tensor(shard, wanted, fmt::format("is not in this file, though {} says so", index));
    }
    result.by_name_[std::string(wanted)] = {&*entry, &file->name};
  }
  return result;
}

SafetensorsDirectory::Tensor SafetensorsDirectory::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? Tensor{} : found->second;
}

size_t SafetensorsDirectory::file_bytes() const {
  size_t total = 0;
  for (const auto& file : files_) total += file->mapping.bytes().size();
  return total;
}

}  // namespace jewel
