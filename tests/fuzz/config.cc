// The bytes of config.json, generation_config.json and processor_config.json: read as any of them.
#include "model/config.h"

#include "checkpoint/compressed_tensors.h"
#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace jewel;
  const MemoryFile file(data, size);
  const Result<boost::json::object> json = read_json_object(file.path());
  if (!json.ok()) return 0;
  if (const Result<ModelConfig> config = parse_model_config(*json, "config.json"); config.ok()) {
    // What later code relies on: a layer's K and V come from an earlier layer, or from itself, that owns
    // them.
    const TextConfig& text = config->text;
    JEWEL_CHECK(static_cast<int>(text.layers.size()) == text.n_layers, "{} of {} layers", text.layers.size(),
                text.n_layers);
    for (int i = 0; i < text.n_layers; ++i) {
      const LayerConfig& layer = text.layers[static_cast<size_t>(i)];
      JEWEL_CHECK(layer.kv_source >= 0 && layer.kv_source <= i, "layer {} reads K and V of layer {}", i,
                  layer.kv_source);
      JEWEL_CHECK(text.layers[static_cast<size_t>(layer.kv_source)].owns_kv, "layer {} owns no K and V",
                  layer.kv_source);
      JEWEL_CHECK(layer.head_dim > 0 && layer.intermediate_size > 0, "layer {} has no width", i);
      (void)text.rope(layer.type).frequencies(layer.head_dim);
    }
  }
  (void)parse_generation_config(*json, "generation_config.json");
  (void)parse_processor_config(*json, "processor_config.json");
  if (const auto* quantization = json->if_contains("quantization_config");
      quantization && quantization->is_object()) {
    (void)parse_quantization_config(quantization->get_object(), "config.json");
  }
  return 0;
}
