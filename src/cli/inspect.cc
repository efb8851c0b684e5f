// jewel inspect MODEL: what a checkpoint consists of, and what a token costs. --tokens and --render show
// prompts.

#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <boost/json/value_from.hpp>
#include <map>

#include "base/log.h"
#include "checkpoint/checkpoint.h"
#include "cli/commands.h"
#include "cli/model_directory.h"
#include "model/json_reader.h"
#include "model/json_text.h"
#include "model/tensors.h"
#include "text/prompt.h"

namespace jewel {

namespace json = boost::json;

namespace {

struct InspectFlags {
  std::string model;
  std::string revision;
  std::string tokens;
  std::string render_file;
  bool tokens_given = false;
  bool think = false;
  bool json = false;
};

struct PartSize {
  int64_t tensors = 0;
  int64_t parameters = 0;
  int64_t bytes = 0;
  int64_t bytes_per_token = 0;  // read for each decoded token
};

struct Inventory {
  std::map<Part, PartSize> parts;
  PartSize total;
  std::map<std::string, int64_t> linears_by_dtype;
  int64_t kv_full_values = 0;     // K and V values per token kept by full-attention layers
  int64_t kv_sliding_values = 0;  // … by sliding layers, for the tokens inside the window
};

Inventory take_inventory(const Checkpoint& checkpoint) {
  const TextConfig& text = checkpoint.config().text;
  Inventory inventory;
  ModelWeights unused;
  for (const TensorSpec& spec : tensor_table(checkpoint.config(), checkpoint.prefix(), unused)) {
    const SafetensorsEntry* entry = checkpoint.files().find(spec.name).entry;
    if (entry == nullptr) continue;
    const SafetensorsEntry* scale = checkpoint.files().find(spec.name + "_scale").entry;
    PartSize size{.tensors = 1, .parameters = 1, .bytes = static_cast<int64_t>(entry->view.bytes)};
    for (const int64_t dimension : spec.shape) size.parameters *= dimension;
    if (scale != nullptr) size.bytes += static_cast<int64_t>(scale->view.bytes);
    const bool inert = std::holds_alternative<std::monostate>(spec.field);
    const bool decoder = spec.part != Part::kVision;
    if (decoder && !inert) {
      // Of an embedding table a token needs one row; the tied head reads the whole embedding again.
      const bool table = spec.kind == TensorKind::kEmbedding;
      size.bytes_per_token = table ? size.bytes / spec.shape[0] : size.bytes;
      if (spec.part == Part::kEmbeddings && text.tie_word_embeddings) size.bytes_per_token += size.bytes;
    }
    if (spec.kind == TensorKind::kLinear && decoder && !inert)
      ++inventory.linears_by_dtype[entry->dtype_name];
    for (PartSize* sum : {&inventory.parts[spec.part], &inventory.total}) {
      sum->tensors += size.tensors;
      sum->parameters += size.parameters;
      sum->bytes += size.bytes;
      sum->bytes_per_token += size.bytes_per_token;
    }
  }
  for (const LayerConfig& layer : text.layers) {
    if (!layer.owns_kv) continue;
    const int64_t values = int64_t{2} * layer.n_kv_heads * layer.head_dim;
    (layer.type == LayerType::kFull ? inventory.kv_full_values : inventory.kv_sliding_values) += values;
  }
  return inventory;
}

std::string scheme_text(const Checkpoint& checkpoint) {
  if (!checkpoint.quantization()) return "none (BF16 or F32 weights)";
  const QuantizationConfig& quantization = *checkpoint.quantization();
  std::string text =
      fmt::format("compressed-tensors {}: FP8 E4M3 weights, one scale per {}", quantization.format,
                  quantization.strategy == ScaleStrategy::kTensor ? "tensor" : "channel");
  if (quantization.dynamic_activations) text += ", asks for dynamic FP8 activations";
  if (quantization.static_activations) text += ", asks for static FP8 activations";
  if (quantization.fp8_kv_cache) text += ", FP8 KV cache";
  return text;
}

json::object inventory_as_json(const Checkpoint& checkpoint, const Inventory& inventory) {
  const auto size_json = [](const PartSize& size) {
    return json::object{{"tensors", size.tensors},
                        {"parameters", size.parameters},
                        {"bytes", size.bytes},
                        {"bytes_per_token", size.bytes_per_token}};
  };
  const TextConfig& text = checkpoint.config().text;
  json::object parts;
  for (const auto& [part, size] : inventory.parts) parts[part_name(part)] = size_json(size);
  return {{"model", checkpoint.directory()},
          {"model_type", checkpoint.config().model_type},
          {"quantization", scheme_text(checkpoint)},
          {"layers", text.n_layers},
          {"layers_with_kv", text.first_shared_layer()},
          {"hidden_size", text.hidden_size},
          {"vocab_size", text.vocab_size},
          {"sliding_window", text.sliding_window},
          {"max_position_embeddings", text.max_position_embeddings},
          {"max_soft_tokens", checkpoint.processor().max_soft_tokens},
          {"file_bytes", checkpoint.files().file_bytes()},
          {"parts", std::move(parts)},
          {"total", size_json(inventory.total)},
          {"kv_bytes_per_token",
           {{"bf16", {{"full", inventory.kv_full_values * 2}, {"sliding", inventory.kv_sliding_values * 2}}},
            {"fp8", {{"full", inventory.kv_full_values}, {"sliding", inventory.kv_sliding_values}}}}},
          {"notes", json::value_from(checkpoint.notes())}};
}

void print_inventory(const Checkpoint& checkpoint, const Inventory& inventory) {
  const TextConfig& text = checkpoint.config().text;
  int full = 0;
  for (const LayerConfig& layer : text.layers) full += layer.type == LayerType::kFull ? 1 : 0;
  fmt::print("{}: {}, {} on disk\n", checkpoint.directory(), checkpoint.config().model_type,
             human_bytes(static_cast<double>(checkpoint.files().file_bytes())));
  fmt::print("quantization: {}\n", scheme_text(checkpoint));
  fmt::print(
      "decoder: {} layers ({} sliding over {} tokens, {} full), {} with K and V of their own; hidden {}, "
      "vocabulary {}, context {}\n",
      text.n_layers, text.n_layers - full, text.sliding_window, full, text.first_shared_layer(),
      text.hidden_size, text.vocab_size, text.max_position_embeddings);
  if (checkpoint.config().vision) {
    fmt::print("images: vision tower of {} layers, {} soft tokens by default\n",
               checkpoint.config().vision->n_layers, checkpoint.processor().max_soft_tokens);
  } else {
    fmt::print("images: no vision tower\n");
  }
  fmt::print("\n{:<22}{:>9}{:>16}{:>12}{:>18}\n", "part", "tensors", "parameters", "bytes",
             "bytes per token");
  const auto row = [](std::string_view name, const PartSize& size) {
    fmt::print("{:<22}{:>9}{:>16}{:>12}{:>18}\n", name, size.tensors, size.parameters,
               human_bytes(static_cast<double>(size.bytes)),
               human_bytes(static_cast<double>(size.bytes_per_token)));
  };
  for (const auto& [part, size] : inventory.parts) row(part_name(part), size);
  row("all", inventory.total);
  fmt::print("\nKV per token: {} + {} inside the window in BF16; {} + {} in FP8\n",
             human_bytes(static_cast<double>(inventory.kv_full_values * 2)),
             human_bytes(static_cast<double>(inventory.kv_sliding_values * 2)),
             human_bytes(static_cast<double>(inventory.kv_full_values)),
             human_bytes(static_cast<double>(inventory.kv_sliding_values)));
  std::string kinds;
  for (const auto& [dtype, count] : inventory.linears_by_dtype)
    kinds += fmt::format("{}{} {}", kinds.empty() ? "" : ", ", count, dtype);
  fmt::print("decoder linears: {}\n", kinds);
}

int show_tokens(const InspectFlags& flags, const std::string& directory) {
  auto prompts = PromptBuilder::load(directory);
  if (!prompts.ok()) return report(prompts.error());
  const auto ids = prompts->tokenizer().encode(flags.tokens, SpecialTokens::kParse);
  if (!ids.ok()) return report(ids.error());
  if (flags.json) {
    fmt::print("{}\n", json_line(json::object{{"token_ids", json::value_from(*ids)}}));
    return kExitDone;
  }
  for (const TokenId id : *ids) {
    const bool byte = prompts->tokenizer().kind(id) == Tokenizer::Kind::kByte;
    const std::string_view piece = prompts->tokenizer().token_bytes(id);
    fmt::print("{:>8}  {}\n", id,
               byte ? fmt::format("<0x{:02X}>", static_cast<uint8_t>(piece[0]))
                    : json::serialize(json::string(piece)));
  }
  return kExitDone;
}

int show_rendering(const InspectFlags& flags, const std::string& directory) {
  auto prompts = PromptBuilder::load(directory);
  if (!prompts.ok()) return report(prompts.error());
  auto request = read_json_object(flags.render_file);
  if (!request.ok()) return report(request.error());
  JsonReader reader(*request, flags.render_file);
  const json::array* messages = reader.optional_array("messages");
  const json::array* tools = reader.optional_array("tools");
  if (!reader.failed() && messages == nullptr)
    reader.fail("messages", "missing, expected an array of chat messages");
  if (reader.failed()) return report(reader.error());
  RenderOptions options;
  if (flags.think) options.enable_thinking = true;
  const auto text = prompts->render(*messages, tools != nullptr ? *tools : json::array(), options);
  if (!text.ok()) return report(text.error());
  fmt::print("{}", *text);
  return kExitDone;
}

int inspect(const InspectFlags& flags) {
  const bool prompts_only = flags.tokens_given || !flags.render_file.empty();
  const auto directory = model_directory(flags.model, flags.revision,
                                         prompts_only ? ModelPart::kWithoutWeights : ModelPart::kAll);
  if (!directory.ok()) return report(directory.error());
  if (flags.tokens_given) return show_tokens(flags, *directory);
  if (!flags.render_file.empty()) return show_rendering(flags, *directory);
  const auto checkpoint = Checkpoint::open(*directory);
  if (!checkpoint.ok()) return report(checkpoint.error());
  const Inventory inventory = take_inventory(**checkpoint);
  if (flags.json) {
    fmt::print("{}\n", json_line(inventory_as_json(**checkpoint, inventory)));
    return kExitDone;
  }
  print_inventory(**checkpoint, inventory);
  for (const std::string& note : (*checkpoint)->notes()) log().info("{}", note);
  return kExitDone;
}

}  // namespace

Command add_inspect_command(CLI::App& app) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* inspect_app =
      app.add_subcommand("inspect", "Shows what a checkpoint consists of and what a token costs");
  inspect_app->footer(
      "Examples:\n"
      "  jewel inspect models/jewel-demo\n"
      "  jewel inspect models/jewel-demo --tokens \"Hello, <|turn>world\"\n"
      "  jewel inspect models/jewel-demo --render request.json     {\"messages\": […], \"tools\": […]}");
  inspect_app->add_option("MODEL", flags->model, kModelHelp)->required();
  inspect_app->add_option("--revision", flags->revision, kRevisionHelp);
  CLI::Option* tokens = inspect_app->add_option("--tokens", flags->tokens,
                                                "Print the token ids of this text; control tokens count");
  CLI::Option* render = inspect_app
                            ->add_option("--render", flags->render_file,
                                         "Print the prompt that a chat request (JSON file) becomes")
                            ->check(CLI::ExistingFile);
  render->excludes(tokens);
  inspect_app->add_flag("--think", flags->think, "With --render: as if thinking were asked for");
  inspect_app->add_flag("--json", flags->json, "Print one JSON object");
  return [flags, tokens] {
    flags->tokens_given = tokens->count() > 0;
    return inspect(*flags);
  };
}

}  // namespace jewel
