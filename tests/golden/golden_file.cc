#include "golden_file.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <boost/json/value_to.hpp>
#include <cstring>

#include "base/check.h"
#include "model/dtype.h"

namespace jewel {
namespace {

GoldenCase parse_case(const boost::json::object& json) {
  GoldenCase result;
  result.name = std::string(json.at("name").as_string());
  for (int id : int_list(json.at("ids"))) result.ids.push_back(id);
  result.rows = int_list(json.at("rows"));
  const boost::json::object& distance = json.at("bf16_distance").as_object();
  result.bf16_logits_distance = distance.at("logits").as_double();
  if (!json.contains("grid")) return result;
  const std::vector<int> grid = int_list(json.at("grid"));
  result.grid_h = grid.at(0);
  result.grid_w = grid.at(1);
  result.vision_rows = int_list(json.at("vision_rows"));
  result.soft_rows = int_list(json.at("soft_rows"));
  result.bf16_soft_distance = distance.at("vision.project").as_double();
  if (!json.contains("file")) return result;
  result.picture = std::string(json.at("file").as_string());
  result.max_soft_tokens = static_cast<int>(json.at("max_soft_tokens").as_int64());
  result.pixels_digest = std::string(json.at("pixels_digest").as_string());
  return result;
}

}  // namespace

std::vector<int> int_list(const boost::json::value& value) {
  return boost::json::value_to<std::vector<int>>(value);
}

int sampled_column(int row, int i, int count, int width) {
  if (width <= count) return i;
  const int step = width / count;
  return static_cast<int>(static_cast<int64_t>(i) * width / count) + row * 7 % step;
}

std::unique_ptr<GoldenFile> GoldenFile::open(const std::string& directory, const std::string& model) {
  auto golden = std::make_unique<GoldenFile>();
  golden->directory_ = directory;
  golden->label_ = directory + "/" + model + ".safetensors";
  auto manifest = read_json_object(directory + "/" + model + ".json");
  JEWEL_CHECK(manifest.ok(), "{}", manifest.error().message);
  golden->manifest_ = std::move(manifest.value());
  for (const auto& entry : golden->manifest_.at("cases").as_array()) {
    golden->cases_.push_back(parse_case(entry.as_object()));
  }
  auto file = MappedFile::open(golden->label_);
  JEWEL_CHECK(file.ok(), "{}", file.error().message);
  golden->file_ = std::make_unique<MappedFile>(std::move(file.value()));
  auto entries = parse_safetensors(golden->file_->bytes(), golden->label_);
  JEWEL_CHECK(entries.ok(), "{}", entries.error().message);
  for (SafetensorsEntry& entry : entries.value()) golden->entries_[entry.name] = std::move(entry.view);
  return golden;
}

const GoldenCase& GoldenFile::find_case(const std::string& name) const {
  const auto found =
      std::find_if(cases_.begin(), cases_.end(), [&](const GoldenCase& c) { return c.name == name; });
  JEWEL_CHECK(found != cases_.end(), "{} has no case '{}'", label_, name);
  return *found;
}

const TensorView& GoldenFile::view(const std::string& name) const {
  const auto found = entries_.find(name);
  JEWEL_CHECK(found != entries_.end(), "{} has no array '{}'; capture it again", label_, name);
  return found->second;
}

GoldenArray GoldenFile::array(const std::string& name) const {
  const TensorView& tensor = view(name);
  JEWEL_CHECK(tensor.shape.size() == 2, "{}: '{}' has {} axes, expected 2", label_, name,
              tensor.shape.size());
  GoldenArray result{
      .rows = static_cast<int>(tensor.shape[0]), .columns = static_cast<int>(tensor.shape[1]), .values = {}};
  const size_t count = static_cast<size_t>(tensor.shape[0] * tensor.shape[1]);
  result.values.resize(count);
  if (tensor.dtype == DType::kF32) {
    std::memcpy(result.values.data(), tensor.data, count * sizeof(float));
  } else {
    JEWEL_CHECK(tensor.dtype == DType::kBF16, "{}: '{}' is neither F32 nor BF16", label_, name);
    for (size_t i = 0; i < count; ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, tensor.data + i * sizeof(bits), sizeof(bits));
      result.values[i] = bf16_to_f32(bits);
    }
  }
  return result;
}

std::vector<uint8_t> GoldenFile::bytes(const std::string& name) const {
  const TensorView& tensor = view(name);
  JEWEL_CHECK(tensor.dtype == DType::kU8, "{}: '{}' is not U8", label_, name);
  std::vector<uint8_t> result(tensor.bytes);
  std::memcpy(result.data(), tensor.data, tensor.bytes);
  return result;
}

std::string GoldenFile::key(const std::string& prefix, Stage stage, int layer) {
  return prefix + "/" + std::string(stage_name(stage)) + "/" + std::to_string(layer);
}

}  // namespace jewel
