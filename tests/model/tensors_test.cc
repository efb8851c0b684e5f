#include "model/tensors.h"

#include <gtest/gtest.h>

#include <map>

#include "model/published_configs.h"

namespace jewel {
namespace {

int64_t values(const TensorSpec& spec) {
  int64_t count = 1;
  for (const int64_t size : spec.shape) count *= size;
  return count;
}

bool is_kv_scale(const TensorSpec& spec) {
  return spec.name.ends_with("k_scale") || spec.name.ends_with("v_scale");
}

// The published file has 2130 tensors; 752 of them are the audio tower's and its embedder's, which the table
// leaves out.
TEST(TensorTable, E4bAgreesWithThePublishedCountsAndSizes) {
  const auto config = parse_model_config(parse_object(kE4bConfig), "config.json");
  ASSERT_TRUE(config.ok());
  ModelWeights weights;
  int64_t language = 0, language_values = 0, inert_values = 0, vision = 0, vision_values = 0, quantizable = 0;
  for (const TensorSpec& spec : tensor_table(*config, NamePrefix::kMultimodal, weights)) {
    if (is_kv_scale(spec) || spec.name == "lm_head.weight") continue;
    if (spec.name.starts_with("model.language_model.")) {
      ++language;
      language_values += values(spec);
      if (std::holds_alternative<std::monostate>(spec.field)) inert_values += values(spec);
    } else {
      ++vision;
      vision_values += values(spec);
    }
    quantizable += spec.quantizable ? 1 : 0;
  }
  EXPECT_EQ(language, 719);
  EXPECT_EQ(language_values, 7'518'069'034);
  EXPECT_EQ(inert_values, 55'055'616);
  EXPECT_EQ(vision, 658 + 1);
  EXPECT_EQ(vision_values, 167'364'608 + 448 + 1'966'080);
  EXPECT_EQ(quantizable, 258);
  EXPECT_EQ(weights.layers.size(), 42u);
  EXPECT_EQ(weights.vision->layers.size(), 16u);
}

TEST(TensorTable, EveryNameAndEveryFieldOnce) {
  const auto config = parse_model_config(parse_object(kE4bConfig), "config.json");
  ModelWeights weights;
  std::map<std::string, int> names;
  std::map<const void*, std::string> fields;
  for (const TensorSpec& spec : tensor_table(*config, NamePrefix::kMultimodal, weights)) {
    EXPECT_EQ(++names[spec.name], 1) << spec.name;
    const void* field = std::visit(
        [](const auto& f) -> const void* {
          if constexpr (std::is_same_v<std::decay_t<decltype(f)>, std::monostate>)
            return nullptr;
          else
            return f;
        },
        spec.field);
    if (field == nullptr) continue;
    EXPECT_TRUE(fields.emplace(field, spec.name).second)
        << spec.name << " and " << fields[field] << " share a field";
  }
}

TEST(TensorTable, TextOnlyNames) {
  const auto config = parse_model_config(parse_object(kE4bConfig), "config.json");
  ModelWeights weights;
  const auto table = tensor_table(*config, NamePrefix::kTextOnly, weights);
  EXPECT_EQ(table[0].name, "model.embed_tokens.weight");
}

}  // namespace
}  // namespace jewel
