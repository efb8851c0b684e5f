// Reading safetensors files by mmap: single files, and shards with an index.
//
//   8 bytes            N, little-endian: length of the header
//   N bytes            JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, …,
//                             "__metadata__": {"key": "string"}}
//   the rest           tensor data, row-major; offsets count from here, cover it without gaps or overlaps
//
// Every number of the header is validated before anything is read through it: a lying file is an Error that
// names the file and the tensor. Views stay valid as long as the file object. Immutable after open: any
// thread may read. A file that somebody truncates while it is mapped ends the program (SIGBUS), as with every
// mapped file.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/weights.h"

namespace jewel {

struct SafetensorsEntry {
  std::string name;
  std::string
      dtype_name;  // as written; entries of formats that Jewel does not read are listed, view.data is set
  bool dtype_known = false;
  TensorView view;  // view.dtype only where dtype_known
};

// The header's entries, sorted by name. `file` is the whole file's bytes, `label` names it in messages.
Result<std::vector<SafetensorsEntry>> parse_safetensors(std::span<const std::byte> file,
                                                        const std::string& label);

// A read-only mapping of a whole file.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const std::byte* data, size_t size) : data_(data), size_(size) {}
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// All tensors of a model directory: model.safetensors, or the shards that model.safetensors.index.json lists.
class SafetensorsDirectory {
 public:
  static Result<SafetensorsDirectory> open(const std::string& directory);

  struct Tensor {
    const SafetensorsEntry* entry = nullptr;
    const std::string* file = nullptr;  // name inside the directory, for messages
  };
  // entry is nullptr where there is no such tensor.
  Tensor find(std::string_view name) const;
  const std::map<std::string, Tensor, std::less<>>& tensors() const { return by_name_; }
  size_t file_bytes() const;

 private:
  struct File {
    std::string name;
    MappedFile mapping;
    std::vector<SafetensorsEntry> entries;
  };
  static Result<std::unique_ptr<File>> open_file(const std::string& directory, const std::string& name);

  std::vector<std::unique_ptr<File>> files_;
  std::map<std::string, Tensor, std::less<>> by_name_;
};

// "[2, 3]"
std::string shape_text(std::span<const int64_t> shape);

}  // namespace jewel
