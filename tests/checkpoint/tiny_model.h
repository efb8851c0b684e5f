// A model directory of a few kilobytes, written by the test, to be broken in one place at a time.
#pragma once

#include <boost/json/object.hpp>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace jewel {

struct TinyTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};
using TinyTensors = std::map<std::string, TinyTensor>;

// The bytes of a safetensors file. The header is padded with spaces to a multiple of 8, plus `misalign`
// bytes.
std::string safetensors_bytes(const TinyTensors& tensors, size_t misalign = 0);

// A directory under the system's temporary folder, removed at the end of the test.
class TinyModel {
 public:
  TinyModel();
  ~TinyModel();
  TinyModel(const TinyModel&) = delete;
  TinyModel& operator=(const TinyModel&) = delete;

  std::string directory() const { return directory_.string(); }
  void write(const std::string& name, const std::string& bytes) const;
  // config.json and model.safetensors from the two members.
  void save(size_t misalign = 0) const;

  boost::json::object config;
  TinyTensors tensors;  // BF16, every tensor of the config, the inert ones of shared layers too

 private:
  std::filesystem::path directory_;
};

}  // namespace jewel
