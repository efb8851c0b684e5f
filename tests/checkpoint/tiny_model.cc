#include "checkpoint/tiny_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <fstream>

#include "model/tensors.h"

namespace jewel {
namespace {

// Two sliding layers and two full ones, the last two without K and V.
constexpr const char* kConfig = R"({
  "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4",
  "boi_token_id": 60, "image_token_id": 61, "eoi_token_id": 62, "eos_token_id": 1,
  "text_config": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 1,
    "num_key_value_heads": 1, "hidden_size_per_layer_input": 64, "vocab_size": 64, "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]},
  "vision_config": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "position_embedding_size": 16, "use_clipped_linears": true}})";

}  // namespace

std::string safetensors_bytes(const TinyTensors& tensors, size_t misalign) {
  std::vector<std::string> entries;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const size_t end = data.size() + tensor.bytes.size();
    entries.push_back(fmt::format(R"("{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", name,
                                  tensor.dtype, fmt::join(tensor.shape, ","), data.size(), end));
    data.append(tensor.bytes.begin(), tensor.bytes.end());
  }
  std::string header = fmt::format("{{{}}}", fmt::join(entries, ","));
  header.append((8 - header.size() % 8) % 8 + misalign, ' ');
  std::string file;
  for (size_t i = 0; i < 8; ++i) file.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
  return file + header + data;
}

TinyModel::TinyModel() : config(boost::json::parse(kConfig).as_object()) {
  std::string pattern = (std::filesystem::temp_directory_path() / "jewel_test_XXXXXX").string();
  directory_ = ::mkdtemp(pattern.data());
  const auto parsed = parse_model_config(config, "config.json");
  EXPECT_TRUE(parsed.ok()) << parsed.error().message;
  ModelWeights weights;
  for (const TensorSpec& spec : tensor_table(*parsed, NamePrefix::kMultimodal, weights)) {
    if (spec.name == "lm_head.weight" || spec.name.ends_with("_scale")) continue;
    size_t count = 1;
    for (const int64_t size : spec.shape) count *= static_cast<size_t>(size);
    TinyTensor tensor{"BF16", spec.shape, {}};
    for (size_t i = 0; i < count; ++i) {  // 1 + i/128: every value has its own bits
      const uint16_t bits = f32_to_bf16(1.0f + static_cast<float>(i % 128) / 128.0f);
      tensor.bytes.push_back(static_cast<uint8_t>(bits & 0xff));
      tensor.bytes.push_back(static_cast<uint8_t>(bits >> 8));
    }
    tensors[spec.name] = std::move(tensor);
  }
}

TinyModel::~TinyModel() {
  std::filesystem::remove_all(directory_);
}

void TinyModel::write(const std::string& name, const std::string& bytes) const {
  std::ofstream(directory_ / name, std::ios::binary) << bytes;
}

void TinyModel::save(size_t misalign) const {
  write("config.json", boost::json::serialize(config));
  write("model.safetensors", safetensors_bytes(tensors, misalign));
}

}  // namespace jewel
