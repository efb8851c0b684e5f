#include "checkpoint/compressed_tensors.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "checkpoint/safetensors.h"
#include "model/json_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr std::string_view kSupported =
    "Jewel loads FP8 E4M3 weights with one scale per tensor or per channel (formats float-quantized, "
    "naive-quantized)";

Result<void> parse_group(const json::object& group, const std::string& file, const std::string& path,
                         QuantizationConfig& config) {
  JsonReader reader(group, file, path);
  const json::object* weights = reader.optional_object("weights");
  if (weights == nullptr)
    return unsupported(fmt::format("{}: {} has no weights scheme; {}", file, path, kSupported), path);
  JsonReader scheme(*weights, file, path + ".weights");
  const auto bits = scheme.optional_int("num_bits", 8, 1, 64);
  const std::string type = scheme.optional_string("type", "int");
  const std::string strategy = scheme.optional_string("strategy", "tensor");
  const bool symmetric = scheme.optional_bool("symmetric", true);
  if (scheme.failed()) return scheme.error();
  if (bits != 8 || type != "float" || !symmetric || (strategy != "tensor" && strategy != "channel")) {
    return unsupported(
        fmt::format("{}: {}: found {}-bit {}, {}, strategy '{}'; {}", file, scheme.where("weights"), bits,
                    type, symmetric ? "symmetric" : "asymmetric", strategy, kSupported),
        path);
  }
  config.strategy = strategy == "channel" ? ScaleStrategy::kChannel : ScaleStrategy::kTensor;
  if (const json::object* inputs = reader.optional_object("input_activations"); inputs != nullptr) {
    JsonReader activations(*inputs, file, path + ".input_activations");
    // "dynamic" is true, false or the string "local" (block schemes, refused by their strategy above).
    const json::value* dynamic = inputs->if_contains("dynamic");
    (dynamic != nullptr && dynamic->is_bool() && dynamic->get_bool() ? config.dynamic_activations
                                                                     : config.static_activations) = true;
  }
  if (reader.failed()) return reader.error();
  return {};
}

}  // namespace

Result<QuantizationConfig> parse_quantization_config(const json::object& quantization,
                                                     const std::string& file) {
  JsonReader reader(quantization, file, "quantization_config");
  QuantizationConfig config;
  const std::string method = reader.optional_string("quant_method", "compressed-tensors");
  config.format = reader.optional_string("format", "float-quantized");
  const json::object* groups = reader.optional_object("config_groups");
  const json::array* ignore = reader.optional_array("ignore");
  const json::object* kv_cache = reader.optional_object("kv_cache_scheme");
  if (reader.failed()) return reader.error();

  if (method != "compressed-tensors") {
    return unsupported(fmt::format("{}: found quant_method '{}', expected 'compressed-tensors'; {}", file,
                                   method, kSupported),
                       "quantization_config.quant_method");
  }
  if (config.format != "float-quantized" && config.format != "naive-quantized") {
    return unsupported(fmt::format("{}: found format '{}'; {}", file, config.format, kSupported),
                       "quantization_config.format");
  }
  if (groups == nullptr || groups->empty()) {
    return invalid(fmt::format("{}: quantization_config.config_groups is missing or empty", file),
                   "quantization_config.config_groups");
  }
  for (const auto& [name, group] : *groups) {
    const std::string path = fmt::format("quantization_config.config_groups.{}", std::string_view(name));
    if (!group.is_object())
      return invalid(fmt::format("{}: {}: found {}, expected an object", file, path, describe(group)), path);
    JEWEL_TRY(parse_group(group.get_object(), file, path, config));
  }
  if (ignore != nullptr) {
    for (const json::value& name : *ignore) {
      if (!name.is_string())
        return invalid(
            fmt::format("{}: quantization_config.ignore: found {}, expected names", file, describe(name)));
      config.ignore.emplace_back(name.get_string());
    }
  }
  if (kv_cache != nullptr) {
    JsonReader scheme(*kv_cache, file, "quantization_config.kv_cache_scheme");
    const auto bits = scheme.optional_int("num_bits", 8, 1, 64);
    const std::string type = scheme.optional_string("type", "float");
    const std::string strategy = scheme.optional_string("strategy", "tensor");
    if (scheme.failed()) return scheme.error();
    if (bits != 8 || type != "float" || strategy != "tensor") {
      return unsupported(fmt::format("{}: quantization_config.kv_cache_scheme: found {}-bit {}, strategy "
                                     "'{}', expected 8-bit float per tensor",
                                     file, bits, type, strategy),
                         "quantization_config.kv_cache_scheme");
    }
    config.fp8_kv_cache = true;
  }
  return config;
}

std::vector<float> widen(const TensorView& tensor) {
  const size_t count = tensor.bytes / dtype_bytes(tensor.dtype);
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    const std::byte* at = tensor.data + i * dtype_bytes(tensor.dtype);
    uint16_t half = 0;
    switch (tensor.dtype) {
      case DType::kF32:
        std::memcpy(&values[i], at, 4);
        break;
      case DType::kBF16:
        std::memcpy(&half, at, 2), values[i] = bf16_to_f32(half);
        break;
      case DType::kF16:
        std::memcpy(&half, at, 2), values[i] = f16_to_f32(half);
        break;
      default:
        JEWEL_CHECK(false, "cannot widen {}", dtype_name(tensor.dtype));
    }
  }
  return values;
}

Result<std::vector<float>> read_weight_scale(const TensorView& scale, int64_t out, const std::string& where) {
  if (scale.dtype != DType::kF32 && scale.dtype != DType::kBF16 && scale.dtype != DType::kF16) {
    return invalid(fmt::format("{}: found {}, expected F32, BF16 or F16", where, dtype_name(scale.dtype)));
  }
  const auto& shape = scale.shape;
  const bool per_tensor = shape.empty() || (shape.size() == 1 && shape[0] == 1);
  const bool per_channel =
      (shape.size() == 1 && shape[0] == out) || (shape.size() == 2 && shape[0] == out && shape[1] == 1);
  if (!per_tensor && !per_channel) {
    return invalid(fmt::format("{}: found shape {}, expected [], [1], [{}] or [{}, 1]", where,
                               shape_text(shape), out, out));
  }
  std::vector<float> values = widen(scale);
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]) || values[i] <= 0) {
      return invalid(
          fmt::format("{}: scale {} is {}, expected a positive finite number", where, i, values[i]));
    }
  }
  return values;
}

}  // namespace jewel
