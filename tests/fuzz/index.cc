// model.safetensors.index.json beside two good shards: names of shards come from the file, and must not lead
// out of the directory or to a shard that lacks the tensor.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "checkpoint/safetensors.h"

namespace {

using namespace jewel;

void write_file(const std::filesystem::path& path, const char* bytes, size_t size) {
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes, static_cast<std::streamsize>(size));
}

void write_shard(const std::filesystem::path& path, const std::string& tensor) {
  const std::string header = "{\"" + tensor + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size());
  bytes += header + std::string(4, '\0');
  write_file(path, bytes.data(), bytes.size());
}

// Made once, gone at exit.
struct Directory {
  std::filesystem::path outer;  // holds a shard that no index may reach
  std::filesystem::path path;

  Directory() {
    std::string name =
        (std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp") + std::string("/jewel-fuzz-XXXXXX");
    JEWEL_CHECK(mkdtemp(name.data()) != nullptr, "no temporary folder");
    outer = name;
    path = outer / "model";
    std::filesystem::create_directory(path);
    write_shard(outer / "secret.safetensors", "c");
    write_shard(path / "a.safetensors", "a");
    write_shard(path / "b.safetensors", "b");
  }
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(outer, ignored);
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Directory directory;
  write_file(directory.path / "model.safetensors.index.json", reinterpret_cast<const char*>(data), size);
  const auto opened = SafetensorsDirectory::open(directory.path.string());
  if (!opened.ok()) return 0;
  for (const auto& [name, tensor] : opened->tensors()) {
    JEWEL_CHECK(name == "a" || name == "b", "tensor '{}' is in no shard of this directory", name);
    JEWEL_CHECK(tensor.entry != nullptr && tensor.entry->view.bytes == 4, "'{}' without data", name);
  }
  return 0;
}
