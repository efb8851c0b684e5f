#include "model/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>

#include "model/json_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr int64_t kMaxConfigBytes =
    64 << 20;  // a real config.json has a few kB; an ignore list may have thousands of names
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxWidth = 1 << 17;

constexpr std::string_view kFamily =
    "Jewel runs Gemma 4 E2B and E4B (Gemma4ForConditionalGeneration, Gemma4ForCausalLM)";

Error refuse(const std::string& file, std::string_view what) {
  return unsupported(fmt::format("{}: {}; {}", file, what, kFamily));
}

// Names the family members that share the file format but not the arithmetic, by the fields that tell them
// apart.
std::optional<Error> refuse_other_architectures(const json::object& root, const std::string& file) {
  JsonReader reader(root, file);
  const std::string model_type = reader.optional_string("model_type", "");
  std::string architecture;
  if (const json::array* names = reader.optional_array("architectures");
      names != nullptr && !names->empty() && names->front().is_string()) {
    architecture = std::string(names->front().get_string());
  }
  if (reader.failed()) return reader.error();
  const bool known_type = model_type == "gemma4" || model_type == "gemma4_text";
  const bool known_architecture = architecture.empty() || architecture == "Gemma4ForConditionalGeneration" ||
                                  architecture == "Gemma4ForCausalLM";
  if (known_type && known_architecture) return std::nullopt;
  if (model_type == "gemma4_unified" || architecture.starts_with("Gemma4Unified")) {
    return refuse(file, "this is Gemma 4 12B (Gemma4Unified), which Jewel does not run");
  }
  if (model_type == "gemma4_assistant" || architecture.starts_with("Gemma4Assistant")) {
    return refuse(file, "this is a Gemma 4 drafter (gemma4_assistant), which Jewel does not run");
  }
  if (model_type.empty() && architecture.empty()) {
    return refuse(file, "neither model_type nor architectures says what model this is");
  }
  return refuse(file, fmt::format("found model_type '{}', architecture '{}'", model_type, architecture));
}

RopeConfig parse_rope(JsonReader& text, const json::object* all, std::string_view layer_type,
                      RopeConfig fallback) {
  const json::value* value = all == nullptr ? nullptr : all->if_contains(layer_type);
  if (value == nullptr || value->is_null()) return fallback;
  const std::string path = fmt::format("text_config.rope_parameters.{}", layer_type);
  if (!value->is_object()) {
    text.fail("rope_parameters",
              fmt::format("{}: found {}, expected an object", layer_type, describe(*value)));
    return fallback;
  }
  JsonReader reader(value->get_object(), text.file(), path);
  RopeConfig rope;
  const std::string type = reader.optional_string("rope_type", "default");
  rope.proportional = type == "proportional";
  if (type != "default" && type != "proportional") {
    reader.fail("rope_type", fmt::format("found '{}', expected 'default' or 'proportional'", type));
  }
  rope.theta = reader.optional_number("rope_theta", fallback.theta, 1, 1e12);
  rope.partial_rotary_factor = reader.optional_number("partial_rotary_factor", 1, 1e-3, 1);
  if (!rope.proportional && rope.partial_rotary_factor != 1) {
    reader.fail("partial_rotary_factor", "expected rope_type 'proportional' beside it");
  }
  rope.factor = reader.optional_number("factor", 1, 1e-3, 1e6);
  if (reader.failed()) text.fail(reader.error());
  return rope;
}

std::vector<LayerType> parse_layer_types(JsonReader& text, int n_layers) {
  std::vector<LayerType> types;
  const json::array* names = text.optional_array("layer_types");
  if (names == nullptr) {
    for (int i = 0; i < n_layers; ++i)
      types.push_back((i + 1) % 6 == 0 ? LayerType::kFull : LayerType::kSliding);
  } else {
    if (names->size() != static_cast<size_t>(n_layers)) {
      text.fail("layer_types",
                fmt::format("found {} entries, expected num_hidden_layers = {}", names->size(), n_layers));
      return std::vector<LayerType>(static_cast<size_t>(n_layers), LayerType::kFull);
    }
    for (const json::value& name : *names) {
      const bool full = name == "full_attention";
      if (!full && name != "sliding_attention") {
        text.fail("layer_types",
                  fmt::format("found {}, expected 'sliding_attention' or 'full_attention'", describe(name)));
      }
      types.push_back(full ? LayerType::kFull : LayerType::kSliding);
    }
  }
  types.back() = LayerType::kFull;  // the reference forces it, whatever the file says
  return types;
}

// per_layer_config: {"05": {"head_dim": 512}, …}, as Transformers >= 5.17 saves what global_head_dim says
// elsewhere.
void apply_per_layer_config(JsonReader& text, const json::object& overrides,
                            std::vector<LayerConfig>& layers) {
  for (const auto& [key, value] : overrides) {
    int layer = -1;
    const std::string_view digits = key;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), layer);
    if (error != std::errc() || end != digits.data() + digits.size() || layer < 0 ||
        static_cast<size_t>(layer) >= layers.size() || !value.is_object()) {
      text.fail("per_layer_config",
                fmt::format("found key '{}' with {}, expected a layer index below {} with an object",
                            std::string_view(key), describe(value), layers.size()));
      return;
    }
    JsonReader reader(value.get_object(), text.file(),
                      fmt::format("text_config.per_layer_config.{}", digits));
    LayerConfig& config = layers[static_cast<size_t>(layer)];
    config.head_dim = static_cast<int>(reader.optional_int("head_dim", config.head_dim, 1, 4096));
    config.n_kv_heads =
        static_cast<int>(reader.optional_int("num_key_value_heads", config.n_kv_heads, 1, 1024));
    for (const auto& [name, unused] : value.get_object()) {
      if (name != "head_dim" && name != "num_key_value_heads") {
        reader.fail(name, "not known; expected head_dim or num_key_value_heads");
      }
    }
    if (reader.failed()) text.fail(reader.error());
  }
}

// For every layer: itself, or the last layer of its type before the shared ones.
void resolve_kv_sources(JsonReader& text, TextConfig& config) {
  const int first_shared = config.first_shared_layer();
  for (int i = 0; i < config.n_layers; ++i) {
    LayerConfig& layer = config.layers[static_cast<size_t>(i)];
    layer.owns_kv = i < first_shared;
    layer.kv_source = i;
    if (layer.owns_kv) continue;
    int source = first_shared - 1;
    while (source >= 0 && config.layers[static_cast<size_t>(source)].type != layer.type) --source;
    if (source < 0) {
      text.fail("num_kv_shared_layers",
                fmt::format("found {}, but layer {} has no earlier layer of its type to share K and V with",
                            config.n_kv_shared_layers, i));
      return;
    }
    const LayerConfig& owner = config.layers[static_cast<size_t>(source)];
    if (owner.head_dim != layer.head_dim || owner.n_kv_heads != layer.n_kv_heads) {
      text.fail("num_kv_shared_layers",
                fmt::format("layer {} and its source {} differ in head_dim or heads", i, source));
      return;
    }
    layer.kv_source = source;
  }
}

void check_widths(JsonReader& text, const TextConfig& config) {
  const auto multiple_of_64 = [&](std::string_view key, int width) {
    if (width % 64 != 0) text.fail(key, fmt::format("found {}, expected a multiple of 64", width));
  };
  multiple_of_64("hidden_size", config.hidden_size);
  multiple_of_64("hidden_size_per_layer_input", config.hidden_size_per_layer_input);
  for (const LayerConfig& layer : config.layers) {
    multiple_of_64("intermediate_size", layer.intermediate_size);
    if (layer.head_dim != 256 && layer.head_dim != 512) {
      text.fail("head_dim",
                fmt::format("found {}, expected 256 or 512, the two that Gemma 4 has", layer.head_dim));
    }
    if (config.n_heads % layer.n_kv_heads != 0) {
      text.fail("num_key_value_heads", fmt::format("found {}, expected a divisor of num_attention_heads = {}",
                                                   layer.n_kv_heads, config.n_heads));
    }
  }
}

Result<TextConfig> parse_text_config(const json::object& object, const std::string& file,
                                     const std::string& path) {
  JsonReader text(object, file, path);
  if (text.optional_bool("enable_moe_block", false)) {
    return refuse(file,
                  "this is Gemma 4 26B-A4B (mixture of experts, enable_moe_block), which Jewel does not run");
  }
  if (text.optional_bool("attention_k_eq_v", false)) {
    return refuse(file, "this is Gemma 4 31B or 26B (attention_k_eq_v), which Jewel does not run");
  }
  if (text.present("use_bidirectional_attention")) {
    return refuse(file, "use_bidirectional_attention is set, which E2B and E4B do not have");
  }
  if (text.optional_bool("attention_bias", false)) {
    return refuse(file, "attention_bias is true, which E2B and E4B do not have");
  }
  const std::string activation = text.optional_string("hidden_activation", "gelu_pytorch_tanh");
  if (activation != "gelu_pytorch_tanh") {
    return refuse(file, fmt::format("{}: found '{}', expected 'gelu_pytorch_tanh'",
                                    text.where("hidden_activation"), activation));
  }

  TextConfig config;
  const auto required = [&](std::string_view key, int64_t min, int64_t max) {
    return static_cast<int>(text.required_int(key, min, max));
  };
  const auto optional = [&](std::string_view key, int64_t fallback, int64_t min, int64_t max) {
    return static_cast<int>(text.optional_int(key, fallback, min, max));
  };
  config.hidden_size = required("hidden_size", 64, kMaxWidth);
  config.n_layers = required("num_hidden_layers", 1, 1024);
  config.n_heads = required("num_attention_heads", 1, 1024);
  config.vocab_size = required("vocab_size", 1, kMaxVocab);
  config.vocab_size_per_layer_input = optional("vocab_size_per_layer_input", config.vocab_size, 1, kMaxVocab);
  config.hidden_size_per_layer_input = optional("hidden_size_per_layer_input", 256, 0, 1 << 14);
  config.rms_norm_eps = static_cast<float>(text.optional_number("rms_norm_eps", 1e-6, 0, 1));
  config.sliding_window = optional("sliding_window", 512, 1, 1 << 24);
  config.final_logit_softcapping =
      static_cast<float>(text.optional_number("final_logit_softcapping", 0, 0, 1e6));
  config.max_position_embeddings = optional("max_position_embeddings", 131072, 1, 1 << 27);
  config.n_kv_shared_layers = optional("num_kv_shared_layers", 0, 0, config.n_layers - 1);
  config.use_double_wide_mlp = text.optional_bool("use_double_wide_mlp", false);
  config.tie_word_embeddings = text.optional_bool("tie_word_embeddings", true);
  config.pad_token_id = optional("pad_token_id", 0, 0, config.vocab_size - 1);

  const int n_kv_heads = required("num_key_value_heads", 1, 1024);
  const int head_dim = optional("head_dim", 256, 1, 4096);
  const int global_head_dim = optional("global_head_dim", 512, 1, 4096);
  const int intermediate_size = required("intermediate_size", 64, 1 << 20);
  const json::object* ropes = text.optional_object("rope_parameters");
  config.rope_sliding = parse_rope(text, ropes, "sliding_attention", {.theta = 1e4});
  config.rope_full = parse_rope(text, ropes, "full_attention",
                                {.theta = 1e6, .partial_rotary_factor = 0.25, .proportional = true});
  if (text.failed()) return text.error();

  const std::vector<LayerType> types = parse_layer_types(text, config.n_layers);
  const json::object* overrides = text.optional_object("per_layer_config");
  for (int i = 0; i < config.n_layers; ++i) {
    const LayerType type = types[static_cast<size_t>(i)];
    const bool wide = config.use_double_wide_mlp && i >= config.first_shared_layer();
    // global_head_dim speaks only where per_layer_config does not.
    const bool global = type == LayerType::kFull && overrides == nullptr;
    config.layers.push_back({.type = type,
                             .head_dim = global ? global_head_dim : head_dim,
                             .n_kv_heads = n_kv_heads,
                             .intermediate_size = wide ? 2 * intermediate_size : intermediate_size});
  }
  if (overrides != nullptr) apply_per_layer_config(text, *overrides, config.layers);
  if (text.failed()) return text.error();
  resolve_kv_sources(text, config);
  check_widths(text, config);
  if (text.failed()) return text.error();
  return config;
}

Result<VisionConfig> parse_vision_config(const json::object& object, const std::string& file) {
  JsonReader vision(object, file, "vision_config");
  VisionConfig config;
  config.hidden_size = static_cast<int>(vision.optional_int("hidden_size", 768, 64, kMaxWidth));
  config.intermediate_size = static_cast<int>(vision.optional_int("intermediate_size", 3072, 64, 1 << 20));
  config.n_layers = static_cast<int>(vision.optional_int("num_hidden_layers", 16, 0, 1024));
  config.n_heads = static_cast<int>(vision.optional_int("num_attention_heads", 12, 1, 1024));
  config.head_dim = static_cast<int>(vision.optional_int("head_dim", 64, 4, 1024));
  config.patch_size = static_cast<int>(vision.optional_int("patch_size", 16, 1, 64));
  config.pooling_kernel_size = static_cast<int>(vision.optional_int("pooling_kernel_size", 3, 1, 16));
  config.position_embedding_size =
      static_cast<int>(vision.optional_int("position_embedding_size", 10240, 1, 1 << 20));
  config.rms_norm_eps = static_cast<float>(vision.optional_number("rms_norm_eps", 1e-6, 0, 1));
  config.use_clipped_linears = vision.optional_bool("use_clipped_linears", false);
  const int n_kv_heads =
      static_cast<int>(vision.optional_int("num_key_value_heads", config.n_heads, 1, 1024));
  // Published files say "default" where Transformers says "axial"; both mean the two-axis rotation.
  if (const json::object* rope = vision.optional_object("rope_parameters"); rope != nullptr) {
    JsonReader reader(*rope, file, "vision_config.rope_parameters");
    config.rope_theta = reader.optional_number("rope_theta", 100, 1, 1e12);
    if (reader.failed()) vision.fail(reader.error());
  }
  if (vision.failed()) return vision.error();
  if (vision.optional_bool("standardize", false)) {
    return refuse(file, "vision_config.standardize is true (Gemma 4 26B and 31B), which Jewel does not run");
  }
  if (n_kv_heads != config.n_heads) {
    vision.fail("num_key_value_heads",
                fmt::format("found {}, expected num_attention_heads = {}", n_kv_heads, config.n_heads));
  }
  if (config.hidden_size % 64 != 0) {
    vision.fail("hidden_size", fmt::format("found {}, expected a multiple of 64", config.hidden_size));
  }
  if (config.intermediate_size % 64 != 0) {
    vision.fail("intermediate_size",
                fmt::format("found {}, expected a multiple of 64", config.intermediate_size));
  }
  if (config.head_dim % 4 != 0) {
    vision.fail("head_dim", fmt::format("found {}, expected a multiple of 4 (two axes, rotated in pairs)",
                                        config.head_dim));
  }
  if (vision.failed()) return vision.error();
  return config;
}

// One id, a list of ids, or nothing.
std::vector<TokenId> read_id_list(JsonReader& reader, const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  std::vector<TokenId> ids;
  if (value == nullptr || value->is_null()) return ids;
  const auto add = [&](const json::value& id) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= kMaxVocab) {
      reader.fail(key, fmt::format("found {}, expected a token id or a list of them", describe(id)));
      return;
    }
    ids.push_back(static_cast<TokenId>(id.get_int64()));
  };
  if (value->is_array()) {
    for (const json::value& id : value->get_array()) add(id);
  } else {
    add(*value);
  }
  return ids;
}

void read_multimodal_ids(JsonReader& reader, const TextConfig& text, ModelConfig& config) {
  const auto read = [&](std::string_view key) -> std::optional<TokenId> {
    if (!reader.present(key)) return std::nullopt;
    const auto id = static_cast<TokenId>(reader.optional_int(key, 0, 0, kMaxVocab));
    // Configs of small vocabularies keep the published ids of modalities that they do not have.
    if (id >= text.vocab_size) return std::nullopt;
    return id;
  };
  config.boi_token_id = read("boi_token_id");
  config.image_token_id = read("image_token_id");
  config.eoi_token_id = read("eoi_token_id");
  for (const std::string_view key : {"image_token_id", "video_token_id", "audio_token_id"}) {
    if (const auto id = read(key)) config.placeholder_token_ids.push_back(*id);
  }
  config.multimodal_token_ids = config.placeholder_token_ids;
  for (const std::string_view key :
       {"boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index"}) {
    const auto id = read(key);
    if (id && std::ranges::find(config.multimodal_token_ids, *id) == config.multimodal_token_ids.end()) {
      config.multimodal_token_ids.push_back(*id);
    }
  }
}

}  // namespace

std::vector<float> RopeConfig::frequencies(int head_dim) const {
  const int half = head_dim / 2;
  const int rotating = proportional ? static_cast<int>(partial_rotary_factor * head_dim / 2) : half;
  std::vector<float> result(static_cast<size_t>(half), 0.0f);
  for (int i = 0; i < rotating; ++i) {
    // The reference takes the power and the reciprocal in float32, one rounding each.
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    const float power = static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
    result[static_cast<size_t>(i)] = 1.0f / power / static_cast<float>(factor);
  }
  return result;
}

Result<ModelConfig> parse_model_config(const json::object& root, const std::string& file) {
  if (auto refused = refuse_other_architectures(root, file)) return *refused;
  JsonReader reader(root, file);
  ModelConfig config;
  config.model_type = reader.optional_string("model_type", "gemma4");
  if (config.model_type == "gemma4_text") {
    JEWEL_ASSIGN(config.text, parse_text_config(root, file, ""));
  } else {
    const json::object* text = reader.optional_object("text_config");
    if (text == nullptr) return invalid(fmt::format("{}: text_config is missing", file), "text_config");
    JEWEL_ASSIGN(config.text, parse_text_config(*text, file, "text_config"));
    if (const json::object* vision = reader.optional_object("vision_config"); vision != nullptr) {
      JEWEL_ASSIGN(config.vision, parse_vision_config(*vision, file));
    }
    config.has_audio_tower = reader.optional_object("audio_config") != nullptr;
    read_multimodal_ids(reader, config.text, config);
    if (config.vision && !(config.image_token_id && config.boi_token_id && config.eoi_token_id)) {
      reader.fail("image_token_id",
                  "vision_config is there, but image_token_id, boi_token_id and eoi_token_id are not all "
                  "given as ids inside the vocabulary");
    }
  }
  config.eos_token_ids = read_id_list(reader, root, "eos_token_id");
  const json::value* text = root.if_contains("text_config");
  if (config.eos_token_ids.empty() && text != nullptr && text->is_object())
    config.eos_token_ids = read_id_list(reader, text->get_object(), "eos_token_id");
  if (reader.failed()) return reader.error();
  return config;
}

Result<GenerationConfig> parse_generation_config(const json::object& root, const std::string& file) {
  JsonReader reader(root, file);
  GenerationConfig config;
  config.eos_token_ids = read_id_list(reader, root, "eos_token_id");
  config.suppress_tokens = read_id_list(reader, root, "suppress_tokens");
  config.do_sample = reader.optional_bool("do_sample", false);
  config.temperature = reader.optional_number("temperature", 1, 0, 100);
  config.top_k = static_cast<int>(reader.optional_int("top_k", config.do_sample ? 50 : 0, 0, kMaxVocab));
  config.top_p = reader.optional_number("top_p", 1, 0, 1);
  config.min_p = reader.optional_number("min_p", 0, 0, 1);
  config.repetition_penalty = reader.optional_number("repetition_penalty", 1, 0.01, 100);
  if (const json::value* limit = root.if_contains("max_new_tokens"); limit != nullptr && !limit->is_null()) {
    config.max_new_tokens =
        static_cast<int>(reader.optional_int("max_new_tokens", 1, 1, std::numeric_limits<int>::max()));
  }
  if (reader.failed()) return reader.error();
  return config;
}

Result<ProcessorConfig> parse_processor_config(const json::object& root, const std::string& file) {
  JsonReader reader(root, file);
  const json::object* image = reader.optional_object("image_processor");
  if (reader.failed()) return reader.error();
  JsonReader fields(image != nullptr ? *image : root, file, image != nullptr ? "image_processor" : "");
  ProcessorConfig config;
  config.max_soft_tokens = static_cast<int>(fields.optional_int("max_soft_tokens", 280, 1, 1 << 16));
  if (fields.failed()) return fields.error();
  return config;
}

Result<void> check_per_layer_vocabulary(const TextConfig& text) {
  if (text.hidden_size_per_layer_input == 0 || text.vocab_size_per_layer_input >= text.vocab_size) return {};
  return unsupported(fmt::format("config: vocab_size_per_layer_input is {}, less than vocab_size {}",
                                 text.vocab_size_per_layer_input, text.vocab_size));
}

Result<json::object> read_json_object(const std::string& path) {
  std::ifstream stream(path, std::ios::binary | std::ios::ate);
  if (!stream) return not_found(fmt::format("{}: cannot be opened", path));
  const auto bytes = static_cast<int64_t>(stream.tellg());
  if (bytes < 0 || bytes > kMaxConfigBytes) {
    return invalid(
        fmt::format("{}: found {} bytes, expected a JSON file of at most {}", path, bytes, kMaxConfigBytes));
  }
  std::string text(static_cast<size_t>(bytes), '\0');
  stream.seekg(0);
  if (!stream.read(text.data(), bytes)) return invalid(fmt::format("{}: could not be read to its end", path));

  return parse_json_object(text, path);
}

}  // namespace jewel
