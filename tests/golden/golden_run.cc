#include "golden_run.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "base/check.h"
#include "digest.h"

namespace jewel {
namespace {

constexpr SlotId kSlot = 0;
constexpr int kMaxTokens = 1024;
constexpr int kPages = kMaxTokens / kPageTokens;

bool is_vision(Stage stage) {
  return stage <= Stage::kVisionProject;
}

// Pages in an order of their own: nothing may depend on their being in a row.
std::vector<PageId> shuffled_pages() {
  std::vector<PageId> pages(kPages);
  for (int i = 0; i < kPages; ++i) pages[static_cast<size_t>(i)] = (i * 29 + 11) % kPages;
  return pages;
}

std::vector<SoftTokenRun> soft_tokens_within(const ModelConfig& config, const GoldenPrompt& prompt, int begin,
                                             int end) {
  if (!prompt.feature) return {};
  const TokenId image = config.image_token_id.value();
  const auto first =
      static_cast<int>(std::find(prompt.ids.begin(), prompt.ids.end(), image) - prompt.ids.begin());
  const auto count = static_cast<int>(std::count(prompt.ids.begin(), prompt.ids.end(), image));
  const int from = std::max(first, begin);
  const int to = std::min(first + count, end);
  if (from >= to) return {};
  return {{.feature = *prompt.feature, .row = from - first, .offset = from - begin, .count = to - from}};
}

}  // namespace

GoldenModel GoldenModel::of(const GoldenFile& golden, const std::string& demo_directory,
                            RandomScheme scheme) {
  GoldenModel model;
  if (!golden.manifest().contains("seed")) {
    auto checkpoint = Checkpoint::open(demo_directory);
    JEWEL_CHECK(checkpoint.ok(), "{}", checkpoint.error().message);
    auto file = MappedFile::open(demo_directory + "/model.safetensors");
    JEWEL_CHECK(file.ok(), "{}", file.error().message);
    const std::string found = digest_of_words(
        {reinterpret_cast<const uint8_t*>(file.value().bytes().data()), file.value().bytes().size()});
    const auto& expected = golden.manifest().at("model_digest").as_string();
    JEWEL_CHECK(
        found == std::string_view(expected),
        "{} is not the model of the golden ({}, expected {}); run tools/goldens/capture.py demo again",
        demo_directory, found, std::string_view(expected));
    model.checkpoint = std::move(checkpoint.value());
    return model;
  }
  auto config = parse_model_config(golden.manifest().at("config").as_object(), "the golden's config");
  JEWEL_CHECK(config.ok(), "{}", config.error().message);
  model.random = std::make_unique<RandomModel>();
  model.random->config = std::move(config.value());
  fill_random_weights(*model.random, static_cast<uint64_t>(golden.manifest().at("seed").as_int64()), scheme,
                      2);
  return model;
}

std::unique_ptr<Backend> golden_backend(const ModelConfig& config, const ModelWeights& weights, DType dtype,
                                        std::optional<CpuIsa> isa) {
  CpuOptions options;
  options.dtype = dtype;
  options.kv_dtype = dtype;
  options.isa = isa;
  auto backend = make_cpu_backend(config, weights, options);
  if (isa && !backend.ok()) return nullptr;
  JEWEL_CHECK(backend.ok(), "{}", backend.error().message);
  auto allocated = backend.value()->allocate_kv({.n_full_pages = kPages, .n_sliding_pages = kPages});
  JEWEL_CHECK(allocated.ok(), "{}", allocated.error().message);
  return std::move(backend.value());
}

StageTap::StageTap(const GoldenFile& golden, std::string prefix, StageMode mode)
    : golden_(golden), prefix_(std::move(prefix)), mode_(mode) {
  if (mode == StageMode::kCompare) {
    case_ = &golden.find_case(prefix_);
  } else {
    all_rows_.resize(kMaxTokens);
    std::iota(all_rows_.begin(), all_rows_.end(), 0);
  }
}

void StageTap::expect_chunk(int position, int n_tokens) {
  position_ = position;
  n_tokens_ = n_tokens;
}

StageObserver StageTap::observer() {
  return [this](Stage stage, int layer, std::span<float> values, int rows, int columns) {
    see(stage, layer, values, rows, columns);
  };
}

const std::vector<int>& StageTap::kept_rows(Stage stage) const {
  if (mode_ == StageMode::kFeed) return all_rows_;
  if (stage == Stage::kVisionPatchEmbed || stage == Stage::kVisionLayer) return case_->vision_rows;
  return is_vision(stage) ? case_->soft_rows : case_->rows;
}

const GoldenArray& StageTap::array(const std::string& name) {
  const auto found = arrays_.find(name);
  return found != arrays_.end() ? found->second : arrays_.emplace(name, golden_.array(name)).first->second;
}

StageError& StageTap::error_of(Stage stage, int layer) {
  for (StageError& error : errors_) {
    if (error.stage == stage && error.layer == layer) return error;
  }
  return errors_.emplace_back(StageError{.stage = stage, .layer = layer});
}

void StageTap::see(Stage stage, int layer, std::span<float> values, int rows, int columns) {
  const std::string key = GoldenFile::key(prefix_, stage, layer);
  const std::string name = mode_ == StageMode::kFeed ? key + "/output" : key;
  JEWEL_CHECK(golden_.contains(name), "the golden lacks stage {} of layer {}", stage_name(stage), layer);
  const GoldenArray& expected = array(name);
  // Vision stages see the whole image. Decoder stages see the chunk, or only its last row where the others
  // are skipped.
  const int first = is_vision(stage) ? 0 : position_ + n_tokens_ - rows;
  StageError& error = error_of(stage, layer);
  const std::vector<int>& kept = kept_rows(stage);
  for (int i = 0; i < expected.rows; ++i) {
    const int row = kept[static_cast<size_t>(i)] - first;
    if (row < 0 || row >= rows) continue;
    const float* found = values.data() + static_cast<int64_t>(row) * columns;
    ++error.rows;
    for (int j = 0; j < expected.columns; ++j) {
      const float reference = expected.row(i)[static_cast<size_t>(j)];
      const float difference = found[sampled_column(i, j, expected.columns, columns)] - reference;
      error.difference += static_cast<double>(difference) * difference;
      error.reference += static_cast<double>(reference) * reference;
      // Also catches NaN, which max() would drop.
      if (!(std::abs(difference) <= error.max_abs)) error.max_abs = std::abs(difference);
    }
  }
  if (mode_ != StageMode::kFeed || stage == Stage::kLogits) return;
  const GoldenArray& input = array(key + "/input");
  JEWEL_CHECK(input.columns == columns && first + rows <= input.rows,
              "stage {} of layer {} has {} x {} values", stage_name(stage), layer, rows, columns);
  std::copy_n(input.row(first).data(), static_cast<int64_t>(rows) * columns, values.data());
}

std::vector<std::string> StageTap::unseen(bool vision) const {
  std::vector<std::string> result;
  const int n_layers = static_cast<int>(errors_.size());
  for (int s = 0; s < kStageCount; ++s) {
    const auto stage = static_cast<Stage>(s);
    if (is_vision(stage) && !vision) continue;
    for (int layer = -1; layer < n_layers; ++layer) {
      const std::string key = GoldenFile::key(prefix_, stage, layer);
      if (!golden_.contains(mode_ == StageMode::kFeed ? key + "/output" : key)) continue;
      const bool seen = std::any_of(errors_.begin(), errors_.end(), [&](const StageError& e) {
        return e.stage == stage && e.layer == layer && e.rows > 0;
      });
      if (!seen) result.push_back(key);
    }
  }
  return result;
}

std::vector<TokenId> run_prompt(Backend& backend, const ModelConfig& config, const GoldenPrompt& prompt,
                                StageTap* tap) {
  JEWEL_CHECK(prompt.ids.size() <= kMaxTokens, "golden prompt of {} tokens", prompt.ids.size());
  SamplingParams params;
  params.temperature = 0;
  const std::vector<PageId> pages = shuffled_pages();
  backend.begin_sequence(kSlot, params, prompt.ids, {});
  std::vector<TokenId> sampled;
  int begin = 0;
  for (const int end : prompt.chunk_ends) {
    const std::vector<SoftTokenRun> soft = soft_tokens_within(config, prompt, begin, end);
    StepChunk chunk;
    chunk.slot = kSlot;
    chunk.position = begin;
    chunk.tokens =
        std::span(prompt.ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    chunk.soft_tokens = soft;
    chunk.full_pages = pages;
    chunk.sliding_pages = pages;
    chunk.sample = true;
    if (tap) tap->expect_chunk(begin, end - begin);
    backend.submit(std::span(&chunk, 1));
    auto result = backend.collect();
    JEWEL_CHECK(result.ok(), "{}", result.error().message);
    sampled.push_back(result.value().sampled.at(0).id);
    begin = end;
  }
  backend.end_sequence(kSlot);
  return sampled;
}

StageTap run_case(Backend& backend, const ModelConfig& config, const GoldenFile& golden,
                  const GoldenCase& golden_case, Chunking chunking) {
  StageTap tap(golden, golden_case.name, StageMode::kCompare);
  backend.observe_stages(tap.observer());
  GoldenPrompt prompt{.ids = golden_case.ids, .chunk_ends = {}, .feature = {}};
  if (chunking == Chunking::kAtKeptRows) {
    for (const int row : golden_case.rows) prompt.chunk_ends.push_back(row + 1);
  } else {
    prompt.chunk_ends.push_back(static_cast<int>(golden_case.ids.size()));
  }
  if (golden_case.grid_h > 0) {
    auto patches = golden_patches(golden, golden_case, config);
    JEWEL_CHECK(patches.ok(), "{}", patches.error().message);
    auto feature = backend.encode_image(patches.value());
    JEWEL_CHECK(feature.ok(), "{}", feature.error().message);
    prompt.feature = feature.value();
  }
  run_prompt(backend, config, prompt, &tap);
  if (prompt.feature) backend.release_feature(*prompt.feature);
  backend.observe_stages({});
  return tap;
}

StageTap run_fed(Backend& backend, const ModelConfig& config, const GoldenFile& golden, Chunking chunking) {
  StageTap tap(golden, "forced", StageMode::kFeed);
  backend.observe_stages(tap.observer());
  const boost::json::object& forced = golden.manifest().at("forced").as_object();
  const std::vector<int> grid = int_list(forced.at("grid"));
  auto feature = backend.encode_image(
      {.grid_h = grid.at(0), .grid_w = grid.at(1), .pixels = golden.bytes("forced/pixels")});
  JEWEL_CHECK(feature.ok(), "{}", feature.error().message);
  backend.release_feature(feature.value());
  GoldenPrompt prompt;
  prompt.ids = int_list(forced.at("ids"));
  const int n = static_cast<int>(prompt.ids.size());
  for (int end = chunking == Chunking::kWhole ? n : 1; end <= n; ++end) prompt.chunk_ends.push_back(end);
  run_prompt(backend, config, prompt, &tap);
  backend.observe_stages({});
  return tap;
}

std::string stage_table(const std::vector<StageError>& errors, double tolerance) {
  std::string text = fmt::format("{:<22} {:>5} {:>12} {:>12} {:>5}  verdict\n", "stage", "layer",
                                 "relative L2", "max |diff|", "rows");
  const StageError* first = nullptr;
  for (const StageError& error : errors) {
    if (error.rows == 0) continue;
    const bool good = error.relative() <= tolerance;
    if (!good && !first) first = &error;
    text += fmt::format("{:<22} {:>5} {:>12.3e} {:>12.3e} {:>5}  {}\n", stage_name(error.stage),
                        error.layer < 0 ? "-" : std::to_string(error.layer), error.relative(), error.max_abs,
                        error.rows, good ? "ok" : "DEPARTS");
  }
  if (!first) return text + fmt::format("no stage departs by more than {:.1e}\n", tolerance);
  const std::string where = first->layer < 0 ? "" : fmt::format(" of layer {}", first->layer);
  return text + fmt::format("first departure: {}{}, {:.3e} > {:.1e}\n", stage_name(first->stage), where,
                            first->relative(), tolerance);
}

const StageError& worst_stage(const std::vector<StageError>& errors) {
  JEWEL_CHECK(!errors.empty(), "no stage was compared");
  // A NaN is the worst of all.
  return *std::max_element(errors.begin(), errors.end(), [](const StageError& a, const StageError& b) {
    return !std::isnan(a.relative()) && (std::isnan(b.relative()) || a.relative() < b.relative());
  });
}

const StageError& error_of_stage(const std::vector<StageError>& errors, Stage stage) {
  for (const StageError& error : errors) {
    if (error.stage == stage && error.rows > 0) return error;
  }
  JEWEL_CHECK(false, "stage {} was not compared", stage_name(stage));
}

}  // namespace jewel
