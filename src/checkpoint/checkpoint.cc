#include "checkpoint/checkpoint.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>

#include "model/json_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kReadAheadStep = 64 << 20;

bool is_floating(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

// Scalars are written as [] by some tools and as [1] by others.
bool same_shape(const TensorSpec& spec, const TensorView& view) {
  if (spec.kind == TensorKind::kScalar)
    return view.shape.empty() || (view.shape.size() == 1 && view.shape[0] == 1);
  return spec.shape == view.shape;
}

bool starts_with_any(std::string_view name, std::initializer_list<std::string_view> prefixes) {
  return std::ranges::any_of(prefixes, [&](std::string_view prefix) { return name.starts_with(prefix); });
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> Checkpoint::open(const std::string& directory) {
  if (!std::filesystem::is_directory(directory)) {
    return not_found(
        fmt::format("{}: is not a directory; expected a model directory with config.json, tokenizer.json and "
                    "model.safetensors",
                    directory));
  }
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->directory_ = directory;
  JEWEL_TRY(checkpoint->read_json_files());
  JEWEL_ASSIGN(checkpoint->files_, SafetensorsDirectory::open(directory));
  JEWEL_TRY(checkpoint->bind_tensors());
  return checkpoint;
}

Result<void> Checkpoint::read_json_files() {
  JEWEL_ASSIGN(const json::object config, read_json_object(directory_ + "/config.json"));
  JEWEL_ASSIGN(config_, parse_model_config(config, "config.json"));
  // Transformers writes it at the top level, some tools inside text_config.
  const json::value* quantization = config.if_contains("quantization_config");
  if (const json::value* text = config.if_contains("text_config");
      quantization == nullptr && text != nullptr && text->is_object()) {
    quantization = text->get_object().if_contains("quantization_config");
  }
  if (quantization != nullptr && !quantization->is_null()) {
    if (!quantization->is_object()) {
      return invalid(fmt::format("config.json: quantization_config: found {}, expected an object",
                                 describe(*quantization)),
                     "quantization_config");
    }
    JEWEL_ASSIGN(quantization_, parse_quantization_config(quantization->get_object(), "config.json"));
    if (quantization_->dynamic_activations || quantization_->static_activations) {
      notes_.emplace_back(
          "the checkpoint asks for FP8 activations; they stay BF16 here and weights are FP8 (W8A16)");
    }
  }
  const auto read_optional = [&](const char* name) -> Result<std::optional<json::object>> {
    if (!std::filesystem::exists(directory_ + "/" + name)) return std::optional<json::object>();
    JEWEL_ASSIGN(json::object object, read_json_object(directory_ + "/" + name));
    return std::optional<json::object>(std::move(object));
  };
  JEWEL_ASSIGN(const auto generation, read_optional("generation_config.json"));
  if (generation) {
    JEWEL_ASSIGN(generation_, parse_generation_config(*generation, "generation_config.json"));
  }
  JEWEL_ASSIGN(auto processor, read_optional("processor_config.json"));
  if (!processor) {
    JEWEL_ASSIGN(processor, read_optional("preprocessor_config.json"));
  }
  if (processor) {
    JEWEL_ASSIGN(processor_, parse_processor_config(*processor, "processor_config.json"));
  }
  if (config_.has_audio_tower) notes_.emplace_back("the checkpoint has an audio tower, which is not run");
  return {};
}

Result<void> Checkpoint::bind_tensors() {
  const bool text_only = files_->find("model.language_model.embed_tokens.weight").entry == nullptr &&
                         files_->find("model.embed_tokens.weight").entry != nullptr;
  prefix_ = text_only ? NamePrefix::kTextOnly : NamePrefix::kMultimodal;
  const std::vector<TensorSpec> table = tensor_table(config_, prefix_, weights_);

  std::vector<std::string_view> missing;
  std::set<std::string, std::less<>> known;
  for (const TensorSpec& spec : table) {
    known.insert(spec.name);
    known.insert(spec.name + "_scale");
    const SafetensorsDirectory::Tensor tensor = files_->find(spec.name);
    if (tensor.entry != nullptr) {
      JEWEL_TRY(bind(spec, tensor));
    } else if (spec.required) {
      missing.push_back(spec.name);
    }
  }
  if (!missing.empty()) {
    return invalid(
        fmt::format("{}: tensor '{}' is missing{}; is the checkpoint complete?", directory_, missing[0],
                    missing.size() > 1 ? fmt::format(", and {} more", missing.size() - 1) : ""),
        std::string(missing[0]));
  }
  if (!weights_.lm_head.present()) weights_.lm_head.weight = weights_.embed_tokens;

  // Tensors that nobody asked for are no error (audio towers, input scales, tools' extras), but a person
  // should know.
  std::vector<std::string_view> unused;
  for (const auto& [name, tensor] : files_->tensors()) {
    if (!known.contains(name) && !starts_with_any(name, {"model.audio_tower.", "model.embed_audio."}) &&
        !name.ends_with(".input_scale")) {
      unused.push_back(name);
    }
  }
  if (!unused.empty()) {
    notes_.emplace_back(fmt::format("{} tensor{} of the checkpoint {} not used, the first is '{}'",
                                    unused.size(), unused.size() == 1 ? "" : "s",
                                    unused.size() == 1 ? "is" : "are", unused[0]));
  }
  return {};
}

Result<void> Checkpoint::bind(const TensorSpec& spec, const SafetensorsDirectory::Tensor& tensor) {
  const std::string where = fmt::format("{}: tensor '{}'", *tensor.file, spec.name);
  const TensorView& view = tensor.entry->view;
  if (!tensor.entry->dtype_known) {
    return unsupported(
        fmt::format("{}: found dtype {}, expected BF16, F32 or F8_E4M3", where, tensor.entry->dtype_name),
        spec.name);
  }
  if (!same_shape(spec, view)) {
    return invalid(
        fmt::format("{}: found shape {}, expected {}", where, shape_text(view.shape), shape_text(spec.shape)),
        spec.name);
  }
  if (auto* const* linear = std::get_if<LinearWeight*>(&spec.field))
    return bind_linear(spec, view, where, **linear);
  if (std::holds_alternative<std::monostate>(spec.field)) return {};
  if (auto* const* table = std::get_if<TensorView*>(&spec.field)) {
    if (view.dtype != DType::kBF16 && view.dtype != DType::kF32) {
      return unsupported(
          fmt::format("{}: found dtype {}, expected BF16 or F32", where, dtype_name(view.dtype)), spec.name);
    }
    **table = aligned(view);
    return {};
  }
  if (!is_floating(view.dtype)) {
    return unsupported(
        fmt::format("{}: found dtype {}, expected BF16, F16 or F32", where, dtype_name(view.dtype)),
        spec.name);
  }
  std::vector<float> values = widen(view);
  for (const float value : values) {
    if (std::isnan(value)) return invalid(fmt::format("{}: holds a NaN", where), spec.name);
  }
  if (auto* const* norm = std::get_if<NormWeight*>(&spec.field)) {
    **norm = std::move(values);
  } else {
    *std::get<float*>(spec.field) = values[0];
  }
  return {};
}

Result<void> Checkpoint::bind_linear(const TensorSpec& spec, const TensorView& view, const std::string& where,
                                     LinearWeight& linear) {
  if (view.dtype != DType::kBF16 && view.dtype != DType::kF32 && view.dtype != DType::kF8E4M3) {
    return unsupported(
        fmt::format("{}: found dtype {}, expected BF16, F32 or F8_E4M3", where, dtype_name(view.dtype)),
        spec.name);
  }
  linear.weight = aligned(view);
  if (view.dtype != DType::kF8E4M3) return {};
  if (!quantization_) {
    return invalid(fmt::format("{}: is F8_E4M3, but config.json has no quantization_config", where),
                   spec.name);
  }
  const std::string scale_name = spec.name + "_scale";
  const SafetensorsDirectory::Tensor scale = files_->find(scale_name);
  if (scale.entry == nullptr)
    return invalid(fmt::format("{}: is F8_E4M3, but '{}' is missing", where, scale_name), scale_name);
  const std::string scale_where = fmt::format("{}: tensor '{}'", *scale.file, scale_name);
  if (!scale.entry->dtype_known) {
    return unsupported(
        fmt::format("{}: found dtype {}, expected F32, BF16 or F16", scale_where, scale.entry->dtype_name),
        scale_name);
  }
  JEWEL_ASSIGN(linear.scale, read_weight_scale(scale.entry->view, linear.out(), scale_where));
  return {};
}

// Kernels load elements as such: a tensor whose address is not a multiple of its element is copied once.
TensorView Checkpoint::aligned(const TensorView& view) {
  if (reinterpret_cast<uintptr_t>(view.data) % dtype_bytes(view.dtype) == 0) return view;
  TensorView copy = view;
  copies_.emplace_back(view.data, view.data + view.bytes);
  copy.data = copies_.back().data();
  return copy;
}

void Checkpoint::read_ahead(const std::function<void(size_t done, size_t total)>& progress) const {
  ModelWeights unused;
  std::vector<std::span<const std::byte>> ranges;
  size_t total = 0;
  for (const TensorSpec& spec : tensor_table(config_, prefix_, unused)) {
    if (spec.kind != TensorKind::kLinear || std::holds_alternative<std::monostate>(spec.field)) continue;
    const SafetensorsDirectory::Tensor tensor = files_->find(spec.name);
    if (tensor.entry == nullptr) continue;
    ranges.emplace_back(tensor.entry->view.data, tensor.entry->view.bytes);
    total += tensor.entry->view.bytes;
  }
  size_t done = 0;
  for (const std::span<const std::byte> range : ranges) {
    for (size_t offset = 0; offset < range.size(); offset += kReadAheadStep) {
      const size_t bytes = std::min(kReadAheadStep, range.size() - offset);
      const auto begin = reinterpret_cast<uintptr_t>(range.data() + offset) / kPage * kPage;
      const auto end = reinterpret_cast<uintptr_t>(range.data() + offset + bytes);
      // Kernels before 5.14 do not know it: then the pages come with their first use, which is no error.
      ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ);
      done += bytes;
      progress(done, total);
    }
  }
}

}  // namespace jewel
