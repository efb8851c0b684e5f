#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/published_configs.h"

namespace jewel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Result<ModelConfig> parse(std::string_view text) {
  return parse_model_config(parse_object(text), "config.json");
}

// The E4B file with one key of text_config set to a JSON value.
Result<ModelConfig> parse_with(std::string_view key, std::string_view value) {
  boost::json::object root = parse_object(kE4bConfig);
  root["text_config"].as_object()[key] = boost::json::parse(value);
  return parse_model_config(root, "config.json");
}

std::string replace(std::string text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(ModelConfig, E4bLayersAreResolved) {
  const auto parsed = parse(kE4bConfig);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  const TextConfig& text = parsed->text;
  EXPECT_EQ(text.first_shared_layer(), 24);
  for (int i = 0; i < 42; ++i) {
    const LayerConfig& layer = text.layers[static_cast<size_t>(i)];
    const bool full = i % 6 == 5;
    EXPECT_EQ(layer.type, full ? LayerType::kFull : LayerType::kSliding) << i;
    EXPECT_EQ(layer.head_dim, full ? 512 : 256) << i;
    EXPECT_EQ(layer.owns_kv, i < 24) << i;
    EXPECT_EQ(layer.kv_source, i < 24 ? i : full ? 23 : 22) << i;
    EXPECT_EQ(layer.intermediate_size, 10240) << i;
  }
  EXPECT_EQ(parsed->image_token_id, 258880);
  EXPECT_THAT(parsed->eos_token_ids, ElementsAre(1, 106));
  EXPECT_THAT(parsed->placeholder_token_ids, ElementsAre(258880, 258884, 258881));
  EXPECT_EQ(parsed->multimodal_token_ids.size(), 7u);
  EXPECT_TRUE(parsed->has_audio_tower);
  EXPECT_TRUE(parsed->vision->use_clipped_linears);
}

TEST(ModelConfig, E2bHasFourToOneLayersAndAWideMlpWhereKvIsShared) {
  std::string layers;
  for (int i = 0; i < 35; ++i)
    layers += std::string(i ? "," : "") + (i % 5 == 4 ? "\"full_attention\"" : "\"sliding_attention\"");
  const auto parsed = parse(replace(std::string(kE2bTextConfig), "LAYERS", layers));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  const TextConfig& text = parsed->text;
  EXPECT_EQ(text.layers[14].intermediate_size, 6144);
  EXPECT_EQ(text.layers[15].intermediate_size, 12288);
  EXPECT_EQ(text.layers[33].kv_source, 13);
  EXPECT_EQ(text.layers[34].kv_source, 14);
  EXPECT_FALSE(parsed->vision.has_value());
}

TEST(ModelConfig, BothSpellingsOfPerLayerOverridesAgree) {
  boost::json::object root = parse_object(kE4bConfig);
  boost::json::object& text = root["text_config"].as_object();
  text.erase("global_head_dim");
  boost::json::object overrides;
  for (int i = 5; i < 42; i += 6)
    overrides[i < 10 ? "0" + std::to_string(i) : std::to_string(i)] = {{"head_dim", 512}};
  text["per_layer_config"] = overrides;
  const auto saved_again = parse_model_config(root, "config.json");
  const auto original = parse(kE4bConfig);
  ASSERT_TRUE(saved_again.ok()) << saved_again.error().message;
  for (size_t i = 0; i < 42; ++i) {
    EXPECT_EQ(saved_again->text.layers[i].head_dim, original->text.layers[i].head_dim) << i;
    EXPECT_EQ(saved_again->text.layers[i].n_kv_heads, original->text.layers[i].n_kv_heads) << i;
  }
}

TEST(ModelConfig, LastLayerIsAlwaysFull) {
  const auto parsed =
      parse_with("layer_types", "[\"full_attention\", \"sliding_attention\", \"sliding_attention\"]");
  EXPECT_THAT(parsed.error().message, HasSubstr("expected num_hidden_layers = 42"));
  boost::json::object root = parse_object(kE4bConfig);
  boost::json::object& text = root["text_config"].as_object();
  text["num_hidden_layers"] = 3;
  text["num_kv_shared_layers"] = 0;
  text["layer_types"] = {"full_attention", "sliding_attention", "sliding_attention"};
  const auto forced = parse_model_config(root, "config.json");
  ASSERT_TRUE(forced.ok()) << forced.error().message;
  EXPECT_EQ(forced->text.layers[2].type, LayerType::kFull);
  EXPECT_EQ(forced->text.layers[2].head_dim, 512);
}

struct Refusal {
  std::string_view from, to, says;
};

TEST(ModelConfig, OtherArchitecturesAreRefusedByName) {
  const Refusal cases[] = {
      {"Gemma4ForConditionalGeneration", "LlamaForCausalLM", "LlamaForCausalLM"},
      {"\"model_type\": \"gemma4\"", "\"model_type\": \"gemma3\"", "gemma3"},
      {"\"model_type\": \"gemma4\"", "\"model_type\": \"gemma4_unified\"", "12B"},
      {"\"model_type\": \"gemma4\"", "\"model_type\": \"gemma4_assistant\"", "drafter"},
      {"\"hidden_size\": 2560", "\"enable_moe_block\": true, \"hidden_size\": 2560", "26B-A4B"},
      {"\"hidden_size\": 2560", "\"attention_k_eq_v\": true, \"hidden_size\": 2560", "31B"},
      {"\"standardize\": false", "\"standardize\": true", "standardize"},
      {"\"use_bidirectional_attention\": null", "\"use_bidirectional_attention\": \"vision\"",
       "bidirectional"},
  };
  for (const Refusal& c : cases) {
    const auto parsed = parse(replace(std::string(kE4bConfig), c.from, c.to));
    ASSERT_FALSE(parsed.ok()) << c.to;
    EXPECT_EQ(parsed.error().code, ErrorCode::kUnsupported) << c.to;
    EXPECT_THAT(parsed.error().message, HasSubstr(c.says));
    EXPECT_THAT(parsed.error().message, HasSubstr("Jewel runs Gemma 4 E2B and E4B"));
  }
}

TEST(ModelConfig, BadValuesNameTheKey) {
  const std::pair<std::string_view, std::string_view> cases[] = {
      {"hidden_size", "\"big\""},
      {"hidden_size", "2561"},
      {"hidden_size", "-64"},
      {"hidden_size", "1e300"},
      {"num_hidden_layers", "0"},
      {"num_hidden_layers", "1000000000"},
      {"num_key_value_heads", "3"},
      {"head_dim", "128"},
      {"num_kv_shared_layers", "42"},
      {"num_kv_shared_layers", "37"},
      {"layer_types", "{}"},
      {"layer_types", "[1]"},
      {"rope_parameters", "[]"},
      {"rms_norm_eps", "-1"},
      {"sliding_window", "0"},
      {"per_layer_config", "{\"99\": {}}"},
      {"per_layer_config", "{\"x\": {\"head_dim\": 512}}"},
      {"vocab_size", "99999999999"},
  };
  for (const auto& [key, value] : cases) {
    const auto parsed = parse_with(key, value);
    ASSERT_FALSE(parsed.ok()) << key << " = " << value;
    EXPECT_THAT(parsed.error().message, HasSubstr(std::string(key)));
    EXPECT_THAT(parsed.error().message, HasSubstr("config.json"));
  }
  EXPECT_THAT(parse("{\"model_type\": \"gemma4\"}").error().message, HasSubstr("text_config is missing"));
}

TEST(RopeConfig, ProportionalRotatesAQuarterOverTheFullHeadDim) {
  const auto parsed = parse(kE4bConfig);
  const std::vector<float> sliding = parsed->text.rope(LayerType::kSliding).frequencies(256);
  ASSERT_EQ(sliding.size(), 128u);
  EXPECT_FLOAT_EQ(sliding[0], 1.0f);
  EXPECT_NEAR(sliding[127], std::pow(10000.0, -254.0 / 256.0), 1e-10);
  const std::vector<float> full = parsed->text.rope(LayerType::kFull).frequencies(512);
  ASSERT_EQ(full.size(), 256u);
  EXPECT_NEAR(full[63], std::pow(1e6, -126.0 / 512.0), 1e-8);
  for (size_t i = 64; i < 256; ++i) EXPECT_EQ(full[i], 0.0f);
}

TEST(GenerationConfig, ListAndSingleStopIds) {
  const auto list =
      parse_generation_config(parse_object(R"({"eos_token_id": [1, 106, 50], "do_sample": true, "top_k": 64,
      "top_p": 0.95, "temperature": 1.0})"),
                              "generation_config.json");
  ASSERT_TRUE(list.ok());
  EXPECT_THAT(list->eos_token_ids, ElementsAre(1, 106, 50));
  EXPECT_EQ(list->top_k, 64);
  EXPECT_EQ(list->top_p, 0.95);
  const auto single =
      parse_generation_config(parse_object(R"({"eos_token_id": 1})"), "generation_config.json");
  EXPECT_THAT(single->eos_token_ids, ElementsAre(1));
  EXPECT_FALSE(
      parse_generation_config(parse_object(R"({"eos_token_id": "1"})"), "generation_config.json").ok());
}

TEST(ProcessorConfig, BudgetFromTheImageProcessor) {
  EXPECT_EQ(parse_processor_config(parse_object(R"({"image_processor": {"max_soft_tokens": 70}})"), "f")
                ->max_soft_tokens,
            70);
  EXPECT_EQ(parse_processor_config(parse_object("{}"), "f")->max_soft_tokens, 280);
}

}  // namespace
}  // namespace jewel
