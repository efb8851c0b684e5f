// Writing safetensors files whose tensors are known before their bytes are: headers first, then data at fixed
// offsets by any thread in any order. The format is described in checkpoint/safetensors.h.
//
//   JEWEL_ASSIGN(auto writer, SafetensorsWriter::create(directory, tensors, shard_bytes));
//   JEWEL_TRY(writer->write(3, 0, bytes));   // any thread
//   ...
//   JEWEL_TRY(writer->finish());             // everything is on disk, the index too
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace jewel {

struct OutputTensor {
  std::string name;
  std::string dtype_name;
  std::vector<int64_t> shape;
  size_t bytes = 0;
};

class SafetensorsWriter {
 public:
  // One file model.safetensors when everything fits into shard_bytes (0 = no limit), else
  // model-00001-of-000NN.safetensors and model.safetensors.index.json. The directory must exist and hold no
  // such file.
  static Result<std::unique_ptr<SafetensorsWriter>> create(const std::string& directory,
                                                           std::vector<OutputTensor> tensors,
                                                           size_t shard_bytes);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // Bytes [offset, offset + bytes.size()) of a tensor, numbered as in create(). A full disk is an Error
  // (kUnavailable).
  Result<void> write(size_t tensor, size_t offset, std::span<const std::byte> bytes);

  // After every byte was written: flushes to disk and writes the index.
  Result<void> finish();

  size_t file_bytes() const { return file_bytes_; }

 private:
  struct File {
    std::string name;
    int fd = -1;
  };
  struct Place {
    size_t file = 0;
    size_t offset = 0;
  };

  SafetensorsWriter() = default;
  Result<void> open_file(const std::string& name, std::span<const size_t> members);

  std::string directory_;
  std::vector<OutputTensor> tensors_;
  std::vector<Place> places_;
  std::vector<File> files_;
  size_t file_bytes_ = 0;
  std::atomic<size_t> written_ = 0;
};

// Writes a whole small file and flushes it.
Result<void> write_file(const std::string& path, std::string_view bytes);
// Flushes a directory's entries.
Result<void> sync_directory(const std::string& path);

}  // namespace jewel
