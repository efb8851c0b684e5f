// Reads a golden: tests/data/golden/<model>.json (what was run, with which versions) and <model>.safetensors
// (what the reference computed). tools/goldens/capture.py writes them; docs/goldens.md says what they hold.
//
// A missing or damaged golden is our own bug: every function checks and stops with the file's name.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "model/config.h"
#include "model/stages.h"

namespace jewel {

struct GoldenArray {
  int rows = 0;
  int columns = 0;
  std::vector<float> values;  // [rows, columns]

  std::span<const float> row(int r) const {
    return std::span(values).subspan(static_cast<size_t>(r) * static_cast<size_t>(columns),
                                     static_cast<size_t>(columns));
  }
};

// One prompt of the end-to-end part.
struct GoldenCase {
  std::string name;
  std::vector<TokenId> ids;
  std::vector<int>
      rows;  // positions whose decoder stages and logits are kept, ascending; the last is the prompt's last
  int grid_h = 0, grid_w = 0;       // patches; 0 without an image
  std::vector<int> vision_rows;     // patches whose activations are kept
  std::vector<int> soft_rows;       // soft tokens whose values are kept
  double bf16_logits_distance = 0;  // of Transformers in BF16 to itself in FP32, relative L2
  double bf16_soft_distance = 0;
  std::string picture;        // file beside the golden; empty: the patches are in the golden
  int max_soft_tokens = 0;    // budget of the picture
  std::string pixels_digest;  // FNV-1a of the picture's resized bytes, patch by patch
};

class GoldenFile {
 public:
  static std::unique_ptr<GoldenFile> open(const std::string& directory, const std::string& model);

  const boost::json::object& manifest() const { return manifest_; }
  const std::string& directory() const { return directory_; }
  const std::vector<GoldenCase>& cases() const { return cases_; }
  const GoldenCase& find_case(const std::string& name) const;

  bool contains(const std::string& name) const { return entries_.contains(name); }
  GoldenArray array(const std::string& name) const;
  std::vector<uint8_t> bytes(const std::string& name) const;

  // "<case>/<stage>/<layer>"
  static std::string key(const std::string& prefix, Stage stage, int layer);

 private:
  const TensorView& view(const std::string& name) const;

  std::string directory_;
  std::string label_;
  boost::json::object manifest_;
  std::vector<GoldenCase> cases_;
  std::unique_ptr<MappedFile> file_;
  std::map<std::string, TensorView> entries_;
};

// Which columns of a row a golden keeps when it keeps `count` of `width`: evenly spread, shifted from row to
// row. sample() in tools/goldens/capture.py is the same rule. `row` counts within the array.
int sampled_column(int row, int i, int count, int width);

std::vector<int> int_list(const boost::json::value& value);

}  // namespace jewel
