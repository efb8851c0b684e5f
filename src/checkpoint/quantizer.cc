#include "checkpoint/quantizer.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <set>
#include <thread>

#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_writer.h"
#include "model/json_text.h"

namespace jewel {

namespace fs = std::filesystem;
namespace json = boost::json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr size_t kCopyBytes = 16 << 20;  // one piece of work of a tensor that is copied
constexpr size_t kMemoryPage = 4096;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string module_of(std::string_view tensor) {
  return std::string(tensor.substr(0, tensor.size() - std::string_view(".weight").size()));
}

bool is_ple_linear(std::string_view module) {
  return module.ends_with(".per_layer_input_gate") || module.ends_with(".per_layer_projection") ||
         module.ends_with(".per_layer_model_projection");
}

// Matrices that a Transformers module of class Linear holds: every 2-D X.weight but the embedding tables.
bool is_linear(std::string_view name, const SafetensorsEntry& entry) {
  return name.ends_with(".weight") && entry.view.shape.size() == 2 &&
         !name.ends_with("embed_tokens.weight") && !name.ends_with("embed_tokens_per_layer.weight");
}

size_t scale_count(const QuantizeOptions& options, const std::vector<int64_t>& shape) {
  return options.strategy == ScaleStrategy::kTensor ? 1 : static_cast<size_t>(shape[0]);
}

// Drops a range of a mapping from this process's memory; the system's cache keeps it.
void forget(std::span<const std::byte> bytes) {
  const auto begin =
      (reinterpret_cast<uintptr_t>(bytes.data()) + kMemoryPage - 1) / kMemoryPage * kMemoryPage;
  const auto end = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size()) / kMemoryPage * kMemoryPage;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void read_ahead(std::span<const std::byte> bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(bytes.data()) / kMemoryPage * kMemoryPage;
  ::madvise(reinterpret_cast<void*>(begin), reinterpret_cast<uintptr_t>(bytes.data() + bytes.size()) - begin,
            MADV_WILLNEED);
}

std::span<const uint16_t> as_bf16(const TensorView& view) {
  return {reinterpret_cast<const uint16_t*>(view.data), view.bytes / sizeof(uint16_t)};
}

// The decoder linears that the scheme quantizes. K and V of layers that own none belong to them: vLLM fuses
// them with the layer's q_proj, and all parts of a fused module must be alike.
std::set<std::string, std::less<>> quantizable_names(const Checkpoint& checkpoint,
                                                     const QuantizeOptions& options) {
  std::set<std::string, std::less<>> names;
  ModelWeights unused;
  for (const TensorSpec& spec : tensor_table(checkpoint.config(), checkpoint.prefix(), unused)) {
    const bool inert = std::holds_alternative<std::monostate>(spec.field);
    const bool ple = spec.kind == TensorKind::kLinear && is_ple_linear(module_of(spec.name));
    if (spec.quantizable || (inert && spec.kind == TensorKind::kLinear) ||
        (ple && options.ple_linears == PleLinears::kFp8)) {
      names.insert(spec.name);
    }
  }
  return names;
}

std::set<std::string, std::less<>> inert_names(const Checkpoint& checkpoint) {
  std::set<std::string, std::less<>> names;
  ModelWeights unused;
  for (const TensorSpec& spec : tensor_table(checkpoint.config(), checkpoint.prefix(), unused)) {
    if (std::holds_alternative<std::monostate>(spec.field)) names.insert(spec.name);
  }
  return names;
}

Result<QuantizePlan> make_plan(const Checkpoint& checkpoint, const QuantizeOptions& options) {
  if (checkpoint.quantization()) {
    return invalid(fmt::format("{}: is quantized already ({}); start from the BF16 checkpoint",
                               checkpoint.directory(), checkpoint.quantization()->format));
  }
  std::vector<std::regex> ignore;
  for (const std::string& pattern : options.ignore) {
    try {
      ignore.emplace_back(pattern);
    } catch (const std::regex_error& error) {
      return invalid(fmt::format("--ignore: '{}' is not a regular expression ({})", pattern, error.what()),
                     "ignore");
    }
  }
  const auto quantizable = quantizable_names(checkpoint, options);
  const auto inert = inert_names(checkpoint);
  QuantizePlan plan;
  for (const auto& [name, tensor] : checkpoint.files().tensors()) {
    const SafetensorsEntry& entry = *tensor.entry;
    PlannedTensor planned{.name = name,
                          .shape = entry.view.shape,
                          .source_bytes = entry.view.bytes,
                          .result_bytes = entry.view.bytes};
    const std::string module = name.ends_with(".weight") ? module_of(name) : name;
    const bool ignored =
        std::ranges::any_of(ignore, [&](const std::regex& r) { return std::regex_search(module, r); });
    if (options.unused == Unused::kDrop && inert.contains(name)) {
      planned.action = TensorAction::kDrop;
      planned.result_bytes = 0;
    } else if (quantizable.contains(name) && !ignored) {
      if (!entry.dtype_known || entry.view.dtype != DType::kBF16) {
        return unsupported(
            fmt::format("{}: tensor '{}': found {}, expected BF16", *tensor.file, name, entry.dtype_name),
            name);
      }
      planned.action = TensorAction::kQuantize;
      planned.result_bytes = entry.view.bytes / 2 + scale_count(options, entry.view.shape) * sizeof(uint16_t);
      if (!inert.contains(name)) ++plan.n_quantized;
    } else if (is_linear(name, entry)) {
      plan.ignored_modules.push_back(module);
    }
    plan.source_bytes += planned.source_bytes;
    plan.result_bytes += planned.result_bytes;
    plan.tensors.push_back(std::move(planned));
  }
  if (std::ranges::find(plan.ignored_modules, "lm_head") == plan.ignored_modules.end())
    plan.ignored_modules.emplace_back("lm_head");
  return plan;
}

// What each output tensor is made of.
struct Output {
  const PlannedTensor* planned = nullptr;
  const SafetensorsEntry* source = nullptr;
  size_t tensor = 0;  // its number in the writer
  size_t scale = 0;   // its scale's, when quantized
};

struct Layout {
  std::vector<OutputTensor> tensors;
  std::vector<Output> outputs;
  std::vector<std::pair<size_t, float>> constants;  // KV scales
};

Layout make_layout(const Checkpoint& checkpoint, const QuantizePlan& plan, const QuantizeOptions& options) {
  Layout layout;
  for (const PlannedTensor& planned : plan.tensors) {
    if (planned.action == TensorAction::kDrop) continue;
    const SafetensorsEntry* source = checkpoint.files().find(planned.name).entry;
    Output output{.planned = &planned, .source = source, .tensor = layout.tensors.size()};
    if (planned.action == TensorAction::kCopy) {
      layout.tensors.push_back({planned.name, source->dtype_name, planned.shape, planned.source_bytes});
    } else {
      const size_t scales = scale_count(options, planned.shape);
      std::vector<int64_t> scale_shape = {static_cast<int64_t>(scales)};
      if (options.strategy == ScaleStrategy::kChannel) scale_shape.push_back(1);
      layout.tensors.push_back({planned.name, "F8_E4M3", planned.shape, planned.source_bytes / 2});
      output.scale = layout.tensors.size();
      layout.tensors.push_back({planned.name + "_scale", "BF16", scale_shape, scales * sizeof(uint16_t)});
    }
    layout.outputs.push_back(output);
  }
  const std::string model = checkpoint.prefix() == NamePrefix::kTextOnly ? "model." : "model.language_model.";
  for (const auto& [layer, scales] : options.kv_scales) {
    const std::pair<const char*, float> parts[] = {{"k_scale", scales.first}, {"v_scale", scales.second}};
    for (const auto& [name, value] : parts) {
      layout.constants.emplace_back(layout.tensors.size(), value);
      layout.tensors.push_back(
          {fmt::format("{}layers.{}.self_attn.{}", model, layer, name), "BF16", {1}, sizeof(uint16_t)});
    }
  }
  return layout;
}

// A part of one output: a whole quantized tensor, or a range of a copied one.
struct Piece {
  const Output* output = nullptr;
  size_t begin = 0;
  size_t bytes = 0;

  std::span<const std::byte> source() const { return {output->source->view.data + begin, bytes}; }
};

std::vector<Piece> cut_into_pieces(const Layout& layout) {
  std::vector<Piece> pieces;
  for (const Output& output : layout.outputs) {
    const size_t bytes = output.planned->source_bytes;
    const size_t step =
        output.planned->action == TensorAction::kQuantize ? std::max<size_t>(bytes, 1) : kCopyBytes;
    for (size_t begin = 0; begin < bytes; begin += step)
      pieces.push_back({&output, begin, std::min(step, bytes - begin)});
  }
  return pieces;
}

// Runs body(piece) for all pieces on all threads; the calling thread reports progress. The first Error wins
// and stops the rest.
template <typename Body>
Result<void> for_all_pieces(const std::vector<Piece>& pieces, int n_threads, const std::atomic<bool>& cancel,
                            std::string_view what, const QuantizeProgress& progress, Body body) {
  size_t total = 0;
  for (const Piece& piece : pieces) total += piece.bytes;
  std::atomic<size_t> next = 0;
  std::atomic<size_t> done = 0;
  std::atomic<int> running = n_threads;
  std::mutex mutex;
  std::optional<Error> failure;
  std::atomic<bool> failed = false;
  const auto work = [&] {
    for (size_t i = next++; i < pieces.size() && !failed && !cancel; i = next++) {
      const size_t ahead = i + static_cast<size_t>(n_threads);
      if (ahead < pieces.size()) read_ahead(pieces[ahead].source());
      Result<void> result = body(pieces[i]);
      forget(pieces[i].source());
      done += pieces[i].bytes;
      if (!result.ok() && !failed.exchange(true)) {
        const std::lock_guard lock(mutex);
        failure = std::move(result).error();
      }
    }
    --running;
    running.notify_one();
  };
  {
    std::vector<std::jthread> threads;
    threads.reserve(static_cast<size_t>(n_threads));
    for (int i = 0; i < n_threads; ++i) threads.emplace_back(work);
    while (running > 0) {
      if (progress) progress(what, done, total);
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
  if (failure) return *failure;
  if (cancel) return Error{ErrorCode::kCancelled, "interrupted; nothing was left behind", {}};
  if (progress) progress(what, total, total);
  return {};
}

Error not_finite(const Piece& piece, size_t row) {
  return invalid(fmt::format("tensor '{}': row {} holds a NaN or an infinity; the source is damaged",
                             piece.output->planned->name, row),
                 piece.output->planned->name);
}

Result<void> quantize_piece(const Piece& piece, const QuantizeOptions& options, SafetensorsWriter& writer) {
  const Output& output = *piece.output;
  const std::span<const uint16_t> values = as_bf16(output.source->view);
  const auto rows = static_cast<size_t>(output.planned->shape[0]);
  const auto columns = static_cast<size_t>(output.planned->shape[1]);
  thread_local std::vector<uint8_t> codes;
  codes.resize(values.size());
  std::vector<uint16_t> scales;
  const bool per_row = options.strategy == ScaleStrategy::kChannel;
  float amax = 0;
  for (size_t r = 0; r < rows; ++r) {
    const Bf16Range range = bf16_range(values.subspan(r * columns, columns));
    if (!range.all_finite) return not_finite(piece, r);
    if (per_row) scales.push_back(f32_to_bf16(fp8_scale(range.amax)));
    amax = std::max(amax, range.amax);
  }
  if (!per_row) scales.push_back(f32_to_bf16(fp8_scale(amax)));
  for (size_t r = 0; r < rows; ++r) {
    quantize_fp8(values.subspan(r * columns, columns), bf16_to_f32(scales[per_row ? r : 0]),
                 std::span(codes).subspan(r * columns, columns));
  }
  JEWEL_TRY(writer.write(output.tensor, 0, std::as_bytes(std::span(codes))));
  return writer.write(output.scale, 0, std::as_bytes(std::span(scales)));
}

Result<void> verify_piece(const Piece& piece, const Checkpoint& result, std::mutex& mutex,
                          std::vector<QuantizedTensor>& verified) {
  const PlannedTensor& planned = *piece.output->planned;
  const SafetensorsEntry* entry = result.files().find(planned.name).entry;
  if (entry == nullptr) return internal(fmt::format("tensor '{}' is not in the result", planned.name));
  if (planned.action == TensorAction::kCopy) {
    if (std::memcmp(piece.source().data(), entry->view.data + piece.begin, piece.bytes) == 0) {
      forget({entry->view.data + piece.begin, piece.bytes});
      return {};
    }
    return internal(fmt::format("tensor '{}' reads back differently than it was written; is the disk sound?",
                                planned.name));
  }
  const SafetensorsEntry* scale_entry = result.files().find(planned.name + "_scale").entry;
  if (scale_entry == nullptr)
    return internal(fmt::format("tensor '{}_scale' is not in the result", planned.name));
  const std::vector<float> scales = widen(scale_entry->view);
  const auto columns = static_cast<size_t>(planned.shape[1]);
  const std::span<const uint16_t> values = as_bf16(piece.output->source->view);
  const std::span<const uint8_t> codes(reinterpret_cast<const uint8_t*>(entry->view.data), entry->view.bytes);
  Fp8Error error;
  for (size_t r = 0; r < static_cast<size_t>(planned.shape[0]); ++r) {
    error.add(fp8_row_error(values.subspan(r * columns, columns), codes.subspan(r * columns, columns),
                            scales[scales.size() == 1 ? 0 : r]));
  }
  forget({entry->view.data, entry->view.bytes});
  const std::lock_guard lock(mutex);
  verified.push_back({planned.name, error});
  return {};
}

json::object quantization_config(const QuantizePlan& plan, const QuantizeOptions& options) {
  const bool per_row = options.strategy == ScaleStrategy::kChannel;
  json::array ignore;
  for (const std::string& module : plan.ignored_modules) ignore.emplace_back(module);
  const auto float8 = [](std::string_view strategy) {
    return json::object{{"num_bits", 8},
                        {"type", "float"},
                        {"symmetric", true},
                        {"strategy", strategy},
                        {"dynamic", false},
                        {"group_size", nullptr},
                        {"block_structure", nullptr},
                        {"actorder", nullptr},
                        {"observer", "memoryless_minmax"},
                        {"observer_kwargs", json::object()},
                        {"scale_dtype", nullptr},
                        {"zp_dtype", nullptr}};
  };
  return {
      {"quant_method", "compressed-tensors"},
      {"format", "float-quantized"},
      {"quantization_status", "compressed"},
      {"global_compression_ratio", nullptr},
      {"kv_cache_scheme", options.kv_scales.empty() ? json::value(nullptr) : json::value(float8("tensor"))},
      {"sparsity_config", json::object()},
      {"transform_config", json::object()},
      {"version", "0.15.0"},
      {"ignore", std::move(ignore)},
      {"config_groups",
       {{"group_0",
         {{"format", "float-quantized"},
          {"targets", json::array{"Linear"}},
          {"input_activations", nullptr},
          {"output_activations", nullptr},
          {"weights", float8(per_row ? "channel" : "tensor")}}}}}};
}

// Every file of the source but the weights and config.json, untouched.
Result<void> copy_other_files(const std::string& source, const std::string& target) {
  std::error_code code;
  for (const fs::directory_entry& entry : fs::directory_iterator(source, code)) {
    const std::string name = entry.path().filename().string();
    const bool weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    if (!entry.is_regular_file() || weights || name == "config.json" || name == "README.md") continue;
    fs::copy_file(entry.path(), fs::path(target) / name, code);
    if (code)
      return unavailable(fmt::format("{}: cannot be copied ({})", entry.path().string(), code.message()));
  }
  if (code) return unavailable(fmt::format("{}: cannot be listed ({})", source, code.message()));
  return {};
}

// The directory that is being built; removed unless it was put in place.
class Staging {
 public:
  static Result<std::unique_ptr<Staging>> create(const std::string& destination) {
    if (fs::exists(fs::symlink_status(destination))) {
      return invalid(fmt::format("{}: exists already; remove it or choose another name", destination));
    }
    std::unique_ptr<Staging> staging(new Staging);
    staging->destination_ = fs::absolute(destination).lexically_normal();
    if (!staging->destination_.has_filename()) staging->destination_ = staging->destination_.parent_path();
    std::string pattern = (staging->destination_.parent_path() /
                           ("." + staging->destination_.filename().string() + ".partial-XXXXXX"))
                              .string();
    if (::mkdtemp(pattern.data()) == nullptr) {
      return unavailable(
          fmt::format("{}: cannot be created beside its destination ({})", pattern, std::strerror(errno)));
    }
    staging->path_ = pattern;
    fs::permissions(pattern, fs::perms::owner_all | fs::perms::group_read | fs::perms::group_exec |
                                 fs::perms::others_read | fs::perms::others_exec);
    return staging;
  }
  ~Staging() {
    std::error_code ignored;
    if (!placed_) fs::remove_all(path_, ignored);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  std::string path() const { return path_.string(); }

  Result<void> put_in_place() {
    std::error_code code;
    fs::rename(path_, destination_, code);
    if (code)
      return unavailable(fmt::format("{}: cannot be renamed to {} ({})", path_.string(),
                                     destination_.string(), code.message()));
    placed_ = true;
    return sync_directory(destination_.parent_path().string());
  }

 private:
  Staging() = default;
  fs::path destination_;
  fs::path path_;
  bool placed_ = false;
};

}  // namespace

Result<QuantizePlan> plan_quantize(const std::string& source, const QuantizeOptions& options) {
  JEWEL_ASSIGN(const auto checkpoint, Checkpoint::open(source));
  return make_plan(*checkpoint, options);
}

std::string fp8_card_head(const QuantizeOptions& options, const QuantizePlan& plan) {
  return fmt::format(
      "# FP8 weights, made by Jewel {}\n\n"
      "{} linears of the text decoder are FP8 (E4M3, symmetric, one scale per {}, amax / 448); everything "
      "else is as in the\n"
      "BF16 source: vision and audio towers, embedders, embeddings, head, norms{}. Format: "
      "compressed-tensors\n"
      "`float-quantized`, weights only (W8A16).\n\n",
      JEWEL_VERSION, plan.n_quantized,
      options.strategy == ScaleStrategy::kChannel ? "output channel" : "tensor",
      options.ple_linears == PleLinears::kBf16 ? ", per-layer input linears" : "");
}

Result<QuantizeReport> quantize_checkpoint(const std::string& source, const std::string& destination,
                                           const QuantizeOptions& options, bool verify,
                                           const std::atomic<bool>& cancel, const QuantizeProgress& progress,
                                           const ModelCard& model_card) {
  JEWEL_ASSIGN(const auto checkpoint, Checkpoint::open(source));
  QuantizeReport report;
  JEWEL_ASSIGN(report.plan, make_plan(*checkpoint, options));
  report.source_file_bytes = checkpoint->files().file_bytes();
  JEWEL_ASSIGN(json::object config, read_json_object(source + "/config.json"));
  config["quantization_config"] = quantization_config(report.plan, options);

  JEWEL_ASSIGN(const auto staging, Staging::create(destination));
  const Layout layout = make_layout(*checkpoint, report.plan, options);
  const std::vector<Piece> pieces = cut_into_pieces(layout);
  const int n_threads = options.n_threads > 0 ? options.n_threads : usable_cores();

  const Clock::time_point start = Clock::now();
  JEWEL_ASSIGN(const auto writer,
               SafetensorsWriter::create(staging->path(), layout.tensors, options.shard_bytes));
  JEWEL_TRY(for_all_pieces(pieces, n_threads, cancel, "converting", progress,
                           [&](const Piece& piece) -> Result<void> {
                             if (piece.output->planned->action == TensorAction::kQuantize)
                               return quantize_piece(piece, options, *writer);
                             return writer->write(piece.output->tensor, piece.begin, piece.source());
                           }));
  for (const auto& [tensor, value] : layout.constants) {
    const uint16_t bits = f32_to_bf16(value);
    JEWEL_TRY(writer->write(tensor, 0, std::as_bytes(std::span(&bits, 1))));
  }
  JEWEL_TRY(copy_other_files(source, staging->path()));
  JEWEL_TRY(write_file(staging->path() + "/config.json", pretty_json(config)));
  JEWEL_TRY(writer->finish());
  report.convert_s = seconds_since(start);
  report.result_file_bytes = writer->file_bytes();

  if (verify) {
    const Clock::time_point verify_start = Clock::now();
    JEWEL_ASSIGN(const auto result, Checkpoint::open(staging->path()));
    std::mutex mutex;
    JEWEL_TRY(for_all_pieces(pieces, n_threads, cancel, "verifying", progress, [&](const Piece& piece) {
      return verify_piece(piece, *result, mutex, report.verified);
    }));
    std::ranges::sort(report.verified, {}, [](const QuantizedTensor& tensor) {
      return std::pair(tensor.error.sqnr_db(), tensor.name);
    });
    report.verify_s = seconds_since(verify_start);
  }
  JEWEL_ASSIGN(const std::string card, model_card(report, staging->path()));
  JEWEL_TRY(write_file(staging->path() + "/README.md", card));
  JEWEL_TRY(staging->put_in_place());
  return report;
}

}  // namespace jewel
