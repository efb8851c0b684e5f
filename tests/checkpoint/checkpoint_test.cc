#include "checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <filesystem>

#include "checkpoint/tiny_model.h"

namespace jewel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kLayer = "model.language_model.layers.0.";

std::string error_of(const TinyModel& model) {
  const auto opened = Checkpoint::open(model.directory());
  return opened.ok() ? "(opened)" : opened.error().message;
}

// One linear becomes FP8 with a scale of the given dtype and shape.
void quantize(TinyModel& model, const std::string& name, std::vector<int64_t> scale_shape, size_t n_scales) {
  TinyTensor& weight = model.tensors.at(name + ".weight");
  weight.dtype = "F8_E4M3";
  weight.bytes.resize(weight.bytes.size() / 2, 0x38);
  TinyTensor scale{"BF16", std::move(scale_shape), {}};
  for (size_t i = 0; i < n_scales; ++i) scale.bytes.insert(scale.bytes.end(), {0x00, 0x3f});  // 0.5
  model.tensors[name + ".weight_scale"] = scale;
  model.config["quantization_config"] = boost::json::parse(
      R"({"quant_method": "compressed-tensors", "format": "naive-quantized", "config_groups": {"group_0": {"targets": ["Linear"],
          "weights": {"num_bits": 8, "type": "float", "symmetric": true, "strategy": "tensor"}, "input_activations": null}}})");
}

TEST(Checkpoint, BindsEveryField) {
  TinyModel model;
  model.save();
  const auto opened = Checkpoint::open(model.directory());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const ModelWeights& weights = (*opened)->weights();
  EXPECT_TRUE((*opened)->notes().empty());
  EXPECT_EQ(weights.layers.size(), 4u);
  EXPECT_EQ(weights.layers[0].q_proj.out(), 256);
  EXPECT_EQ(weights.layers[1].q_proj.out(), 512);
  EXPECT_TRUE(weights.layers[1].k_proj.present());
  EXPECT_FALSE(weights.layers[2].k_proj.present()) << "inert K of a shared layer must not be bound";
  EXPECT_EQ(weights.layers[0].layer_scalar, 1.0f);
  EXPECT_EQ(weights.norm[1], 1.0f + 1.0f / 128);
  EXPECT_EQ(weights.lm_head.weight.data, weights.embed_tokens.data) << "tied";
  EXPECT_EQ(weights.vision->layers[0].q_proj.input_min, 1.0f);
  EXPECT_THAT((*opened)->stop_token_ids(), ElementsAre(1));
  size_t seen = 0, of = 0;
  (*opened)->read_ahead([&](size_t done, size_t total) { seen = done, of = total; });
  EXPECT_GT(seen, 0u);
  EXPECT_EQ(seen, of);
}

TEST(Checkpoint, WithoutTheInertTensorsOfSharedLayers) {
  TinyModel model;
  for (const char* layer : {"2", "3"}) {
    for (const char* name : {"k_proj", "v_proj", "k_norm"}) {
      EXPECT_EQ(model.tensors.erase("model.language_model.layers." + std::string(layer) + ".self_attn." +
                                    name + ".weight"),
                1u);
    }
  }
  model.save();
  EXPECT_EQ(error_of(model), "(opened)");
}

TEST(Checkpoint, Fp8PerTensorAndPerChannel) {
  TinyModel model;
  quantize(model, kLayer + "mlp.up_proj", {1}, 1);
  quantize(model, kLayer + "mlp.down_proj", {64, 1}, 64);
  model.save();
  const auto opened = Checkpoint::open(model.directory());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const DecoderLayerWeights& layer = (*opened)->weights().layers[0];
  EXPECT_EQ(layer.up_proj.weight.dtype, DType::kF8E4M3);
  EXPECT_THAT(layer.up_proj.scale, ElementsAre(0.5f));
  EXPECT_EQ(layer.down_proj.scale.size(), 64u);
  EXPECT_TRUE(layer.gate_proj.scale.empty());
}

// What others publish as FP8-dynamic: scales per channel, activations quantized at run time.
TEST(Checkpoint, Fp8DynamicLoadsWeightOnlyWithANote) {
  TinyModel model;
  quantize(model, kLayer + "mlp.down_proj", {64, 1}, 64);
  boost::json::object& group =
      model.config["quantization_config"].as_object()["config_groups"].as_object()["group_0"].as_object();
  group["weights"].as_object()["strategy"] = "channel";
  group["input_activations"] = boost::json::parse(
      R"({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "token", "dynamic": true})");
  model.save();
  const auto opened = Checkpoint::open(model.directory());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  EXPECT_TRUE((*opened)->quantization()->dynamic_activations);
  EXPECT_EQ((*opened)->weights().layers[0].down_proj.scale.size(), 64u);
  EXPECT_THAT((*opened)->notes(), ElementsAre(HasSubstr("weights are FP8 (W8A16)")));
}

TEST(Checkpoint, Fp8NeedsItsScaleAndItsConfig) {
  TinyModel model;
  quantize(model, kLayer + "mlp.up_proj", {1}, 1);
  TinyTensors tensors = model.tensors;
  model.tensors.erase(kLayer + "mlp.up_proj.weight_scale");
  model.save();
  EXPECT_THAT(error_of(model), HasSubstr("mlp.up_proj.weight_scale' is missing"));
  model.tensors = tensors;
  model.config.erase("quantization_config");
  model.save();
  EXPECT_THAT(error_of(model), HasSubstr("config.json has no quantization_config"));
}

TEST(Checkpoint, ErrorsNameFileTensorExpectedAndFound) {
  {
    TinyModel model;
    model.tensors.erase(kLayer + "mlp.up_proj.weight");
    model.tensors.erase(kLayer + "mlp.gate_proj.weight");
    model.save();
    EXPECT_THAT(error_of(model), HasSubstr(kLayer + "mlp.gate_proj.weight' is missing, and 1 more"));
  }
  {
    TinyModel model;
    model.tensors[kLayer + "mlp.up_proj.weight"].shape = {32, 128};
    model.save();
    EXPECT_THAT(error_of(model), HasSubstr("model.safetensors: tensor '" + kLayer +
                                           "mlp.up_proj.weight': found shape [32, 128], expected [64, 64]"));
  }
  {
    TinyModel model;
    model.tensors[kLayer + "mlp.up_proj.weight"].dtype = "F16";
    model.save();
    EXPECT_THAT(error_of(model), HasSubstr("found dtype F16, expected BF16, F32 or F8_E4M3"));
  }
  {
    TinyModel model;
    model.tensors[kLayer + "input_layernorm.weight"].bytes[0] = 0xff;
    model.tensors[kLayer + "input_layernorm.weight"].bytes[1] = 0x7f;
    model.save();
    EXPECT_THAT(error_of(model), HasSubstr("holds a NaN"));
  }
  {
    TinyModel model;
    model.save();
    std::filesystem::resize_file(model.directory() + "/model.safetensors", 2000);
    EXPECT_THAT(error_of(model), HasSubstr("model.safetensors"));
    std::filesystem::resize_file(model.directory() + "/model.safetensors", 0);
    EXPECT_THAT(error_of(model), HasSubstr("is empty"));
    std::filesystem::remove(model.directory() + "/model.safetensors");
    EXPECT_THAT(error_of(model),
                HasSubstr("holds neither model.safetensors nor model.safetensors.index.json"));
    model.write("config.json", "{\"model_type\": ");
    EXPECT_THAT(error_of(model), HasSubstr("not valid JSON"));
    std::filesystem::remove(model.directory() + "/config.json");
    EXPECT_THAT(error_of(model), HasSubstr("config.json: cannot be opened"));
  }
  EXPECT_THAT(Checkpoint::open("/nonexistent").error().message, HasSubstr("is not a directory"));
}

TEST(Checkpoint, Shards) {
  TinyModel model;
  model.save();
  std::filesystem::remove(model.directory() + "/model.safetensors");
  TinyTensors parts[2];
  boost::json::object map;
  size_t i = 0;
  for (const auto& [name, tensor] : model.tensors) {
    map[name] = "part-" + std::to_string(i % 2) + ".safetensors";
    parts[i++ % 2][name] = tensor;
  }
  const auto write = [&] {
    for (int part : {0, 1})
      model.write("part-" + std::to_string(part) + ".safetensors", safetensors_bytes(parts[part]));
    model.write("model.safetensors.index.json",
                boost::json::serialize(boost::json::object{{"weight_map", map}}));
  };
  write();
  EXPECT_EQ(error_of(model), "(opened)");
  const boost::json::object good = map;
  for (const char* path : {"../x.safetensors", "..", "", "a/b"}) {
    map = good;
    map[model.tensors.begin()->first] = path;
    write();
    EXPECT_THAT(error_of(model), HasSubstr("expected the name of a file in the same directory")) << path;
  }
  map = good;
  map[model.tensors.begin()->first] = "part-1.safetensors";
  write();
  EXPECT_THAT(error_of(model), HasSubstr("is not in this file, though model.safetensors.index.json says so"));
}

TEST(Checkpoint, OddAddressesAreCopied) {
  TinyModel model;
  model.save(/*misalign=*/1);
  const auto opened = Checkpoint::open(model.directory());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const TensorView& table = (*opened)->weights().embed_tokens;
  EXPECT_EQ(reinterpret_cast<uintptr_t>(table.data) % 2, 0u);
  EXPECT_EQ(widen(table)[1], 1.0f + 1.0f / 128);
}

TEST(Checkpoint, UnusedTensorsAreNoted) {
  TinyModel model;
  model.tensors["model.language_model.layers.0.extra.weight"] = {"BF16", {1}, {0, 0}};
  model.tensors["model.audio_tower.output_proj.bias"] = {"BF16", {1}, {0, 0}};
  model.save();
  const auto opened = Checkpoint::open(model.directory());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  EXPECT_THAT((*opened)->notes(), ElementsAre(HasSubstr("1 tensor of the checkpoint is not used")));
}

}  // namespace
}  // namespace jewel
