// The whole forward pass: against the plain reference, and bitwise against itself however the work is cut.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "driver.h"
#include "reference_forward.h"

namespace jewel {
namespace {

// Crosses the sliding window of 40 more than twice, ends inside a page.
constexpr int kTokens = 107;

struct Mode {
  CpuIsa isa;
  DType dtype;
  DType kv_dtype;
};

std::vector<Mode> all_modes() {
  std::vector<Mode> modes;
  for (CpuIsa isa : runnable_isas()) {
    for (DType dtype : {DType::kBF16, DType::kF32}) {
      for (DType kv_dtype : {DType::kBF16, DType::kF8E4M3, DType::kF32})
        modes.push_back({isa, dtype, kv_dtype});
    }
  }
  return modes;
}

CpuOptions options_for(const Mode& mode, int n_threads = 2) {
  CpuOptions options;
  options.isa = mode.isa;
  options.dtype = mode.dtype;
  options.kv_dtype = mode.kv_dtype;
  options.n_threads = n_threads;
  options.max_slots = 8;
  options.max_step_tokens = 1024;
  return options;
}

std::string mode_name(const testing::TestParamInfo<Mode>& info) {
  std::string name = std::string(isa_name(info.param.isa)) + "_" + std::string(dtype_name(info.param.dtype)) +
                     "_kv_" + std::string(dtype_name(info.param.kv_dtype));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

Rows log_softmax(Rows logits) {
  for (auto& row : logits) {
    const double max = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (float value : row) sum += std::exp(value - max);
    for (float& value : row) value = static_cast<float>(value - max - std::log(sum));
  }
  return logits;
}

// The logits of every position, as the observer sees them.
Rows observed_logits(Driver& driver, std::span<const TokenId> tokens,
                     std::span<const SoftTokenRun> soft_tokens = {}) {
  Rows logits;
  driver.backend().observe_stages([&](Stage stage, int, std::span<float> values, int rows, int columns) {
    if (stage != Stage::kLogits) return;
    for (int r = 0; r < rows; ++r) {
      logits.emplace_back(values.begin() + r * columns, values.begin() + (r + 1) * columns);
    }
  });
  driver.all_logprobs(tokens, 1024, soft_tokens);
  driver.backend().observe_stages({});
  return logits;
}

// --- Against the reference
// ---------------------------------------------------------------------------------------

struct WeightsCase {
  const char* name;
  RandomModelOptions options;
};
void PrintTo(const WeightsCase& weights, std::ostream* out) {
  *out << weights.name;
}

std::vector<WeightsCase> weight_cases() {
  using Scale = RandomModelOptions::Scale;
  RandomModelOptions wide;  // E4B's head dims
  wide.head_dim = 256, wide.global_head_dim = 512, wide.n_layers = 6, wide.n_kv_shared_layers = 2;
  RandomModelOptions no_extras;
  no_extras.per_layer_input = 0, no_extras.n_kv_shared_layers = 0, no_extras.softcap = 0;
  RandomModelOptions one_kv_head;
  one_kv_head.n_heads = 8, one_kv_head.n_kv_heads = 1, one_kv_head.double_wide_mlp = true;
  RandomModelOptions odd_widths;
  odd_widths.hidden_size = 100, odd_widths.intermediate_size = 77, odd_widths.per_layer_input = 19,
  odd_widths.vocab_size = 131;
  return {{"bf16", {}},
          {"f32", {.weight_dtype = DType::kF32}},
          {"fp8", {.weight_dtype = DType::kF8E4M3}},
          {"fp8_tensor_scale", {.weight_dtype = DType::kF8E4M3, .scale = Scale::kTensor}},
          {"fp8_row_scale", {.weight_dtype = DType::kF8E4M3, .scale = Scale::kRow}},
          {"e4b_heads", wide},
          {"no_shared_kv_no_per_layer_inputs_no_softcap", no_extras},
          {"one_kv_head_double_wide", one_kv_head},
          {"odd_widths", odd_widths}};
}

class Weights : public testing::TestWithParam<WeightsCase> {};

// Nothing is rounded in kF32 with an F32 cache, so what is left is float32 sums against double ones.
TEST_P(Weights, F32IsTheReference) {
  const auto model = random_model(GetParam().options);
  const auto tokens = random_tokens(model->config, kTokens, 3);
  const Rows expected = reference_logits(*model, tokens);
  for (CpuIsa isa : runnable_isas()) {
    Driver driver(*model, options_for({isa, DType::kF32, DType::kF32}));
    EXPECT_LE(relative_error(observed_logits(driver, tokens), expected), 1e-5) << isa_name(isa);
    // Without the observer, in uneven chunks: the same up to the log-softmax.
    EXPECT_LE(relative_error(driver.all_logprobs(tokens, 13), log_softmax(expected)), 1e-5) << isa_name(isa);
  }
}

// In kBF16 the inputs of a product are rounded, each by 2^-9 / sqrt(3) = 1.1e-3 of itself on average, which
// moves the product by about as much. A layer chains some 2.5 products in each of its 3 blocks; 8 layers of
// independent errors give sqrt(60) * 1.1e-3 = 8.7e-3, and rounding K and V adds to that. Twice that is a
// mistake.
TEST_P(Weights, Bf16IsNear) {
  const auto model = random_model(GetParam().options);
  const auto tokens = random_tokens(model->config, kTokens, 3);
  const Rows expected = reference_logits(*model, tokens);
  for (CpuIsa isa : runnable_isas()) {
    Driver driver(*model, options_for({isa, DType::kBF16, DType::kBF16}));
    const double error = relative_error(observed_logits(driver, tokens), expected);
    EXPECT_LE(error, 2e-2) << isa_name(isa);
    EXPECT_GE(error, 1e-4) << "nothing was rounded: " << isa_name(isa);
  }
}

INSTANTIATE_TEST_SUITE_P(Forward, Weights, testing::ValuesIn(weight_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Forward, ImageAndPlaceholdersMatchTheReference) {
  RandomModelOptions o;
  o.vision = true;
  const auto model = random_model(o);
  const ImagePatches image = random_image(model->config, 9, 12, 4);
  const Rows soft_tokens = reference_soft_tokens(*model, image);
  ASSERT_EQ(soft_tokens.size(), 12u);
  auto tokens = random_tokens(model->config, 60, 5);
  std::fill_n(tokens.begin() + 20, 12, RandomModel::kImageToken);
  tokens[50] = RandomModel::kAudioToken;  // a placeholder without a feature: pad everywhere
  const std::vector<ReferenceImage> images = {{20, soft_tokens}};
  const Rows expected = reference_logits(*model, tokens, images);
  for (CpuIsa isa : runnable_isas()) {
    Driver driver(*model, options_for({isa, DType::kF32, DType::kF32}));
    const auto feature = driver.backend().encode_image(image);
    ASSERT_TRUE(feature.ok());
    const std::vector<SoftTokenRun> run = {{*feature, 0, 20, 12}};
    EXPECT_LE(relative_error(observed_logits(driver, tokens, run), expected), 1e-5) << isa_name(isa);
    // An image may be cut by chunks.
    EXPECT_LE(relative_error(driver.all_logprobs(tokens, 7, run), log_softmax(expected)), 1e-5)
        << isa_name(isa);
    driver.backend().release_feature(*feature);
  }
}

// --- Bitwise
// -----------------------------------------------------------------------------------------------------

class Bitwise : public testing::TestWithParam<Mode> {};

TEST_P(Bitwise, ChunkedIsUnchunkedIsOneTokenAtATime) {
  const auto model = random_model({.weight_dtype = DType::kF8E4M3, .scale = RandomModelOptions::Scale::kRow});
  const auto tokens = random_tokens(model->config, kTokens, 7);
  Driver driver(*model, options_for(GetParam()));
  const auto whole = driver.all_logprobs(tokens, 1024);
  ASSERT_EQ(whole.size(), tokens.size());
  for (int chunk : {1, 15, 16, 40}) {
    EXPECT_EQ(driver.all_logprobs(tokens, chunk), whole) << "chunks of " << chunk;
    EXPECT_EQ(driver.last_logprobs(tokens, chunk), whole.back()) << "sampled, chunks of " << chunk;
  }
}

TEST_P(Bitwise, ThreadsAndPagesDoNotMatter) {
  const auto model = random_model({});
  const auto tokens = random_tokens(model->config, kTokens, 8);
  const auto expected = Driver(*model, options_for(GetParam(), 1)).all_logprobs(tokens, 33);
  for (int n_threads : {2, 3}) {
    Driver driver(*model, options_for(GetParam(), n_threads), 40, 12, static_cast<uint64_t>(n_threads) * 100);
    // Other sequences first, so that pages are old ones.
    driver.all_logprobs(random_tokens(model->config, 90, 9), 20);
    EXPECT_EQ(driver.all_logprobs(tokens, 33), expected) << n_threads << " threads";
  }
}

TEST_P(Bitwise, BatchOfEightIsEachAlone) {
  const auto model = random_model({});
  const int vocab = model->config.text.vocab_size;
  Driver batched(*model, options_for(GetParam()), 80, 80);
  Driver alone(*model, options_for(GetParam()), 80, 80, 2);
  constexpr int kSequences = 8, kSteps = 6;
  std::vector<std::vector<TokenId>> prompts;
  std::vector<SamplingParams> params(kSequences);
  for (int i = 0; i < kSequences; ++i) {
    prompts.push_back(random_tokens(model->config, 3 + 17 * i, static_cast<uint64_t>(20 + i)));
    SamplingParams& p = params[static_cast<size_t>(i)];
    p.seed = static_cast<uint64_t>(i);
    p.temperature = i % 3 == 0 ? 0 : 1.2;
    p.top_k = i % 2 == 0 ? 40 : 0;
    p.top_p = 0.9;
    p.repetition_penalty = 1.1;
    p.n_logprobs = vocab;
  }
  using Steps = std::vector<SampledToken>;
  const auto expect_same = [](const Steps& a, const Steps& b, int sequence) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].id, b[i].id) << "sequence " << sequence << ", step " << i;
      EXPECT_EQ(by_id(a[i].top), by_id(b[i].top)) << "sequence " << sequence << ", step " << i;
    }
  };

  // Alone: the prompt in one chunk, then token by token, the tokens passed by value.
  std::vector<Steps> expected(kSequences);
  for (int i = 0; i < kSequences; ++i) {
    const auto& prompt = prompts[static_cast<size_t>(i)];
    const int sequence = alone.begin(params[static_cast<size_t>(i)], prompt);
    Steps& steps = expected[static_cast<size_t>(i)];
    Part part;
    part.sequence = sequence;
    part.tokens = prompt;
    part.sample = true;
    steps.push_back(alone.step(part).sampled.at(0));
    for (int s = 1; s < kSteps; ++s) {
      const TokenId last = steps.back().id;
      part.tokens = {&last, 1};
      steps.push_back(alone.step(part).sampled.at(0));
    }
    alone.end(sequence);
  }

  // Together: prompts in chunks of 30 beside rows that already decode, the tokens left in the backend.
  std::vector<int> sequences;
  for (int i = 0; i < kSequences; ++i) {
    sequences.push_back(batched.begin(params[static_cast<size_t>(i)], prompts[static_cast<size_t>(i)]));
  }
  std::vector<Steps> got(kSequences);
  std::vector<size_t> done(kSequences);
  while (std::any_of(got.begin(), got.end(), [](const Steps& s) { return s.size() < kSteps; })) {
    std::vector<Part> parts;
    std::vector<size_t> sampled;
    for (size_t i = 0; i < kSequences; ++i) {
      if (got[i].size() >= kSteps) continue;
      Part part;
      part.sequence = sequences[i];
      const size_t rest = prompts[i].size() - done[i];
      part.tokens = std::span<const TokenId>(prompts[i]).subspan(done[i], std::min<size_t>(rest, 30));
      done[i] += part.tokens.size();
      part.sample = done[i] == prompts[i].size();
      if (part.sample) sampled.push_back(i);
      parts.push_back(part);
    }
    const StepResult result = batched.step(parts);
    ASSERT_EQ(result.sampled.size(), sampled.size());
    for (size_t i = 0; i < sampled.size(); ++i) got[sampled[i]].push_back(result.sampled[i]);
  }
  for (int i = 0; i < kSequences; ++i)
    expect_same(got[static_cast<size_t>(i)], expected[static_cast<size_t>(i)], i);
}

TEST_P(Bitwise, PagesMovedThroughTheHost) {
  const auto model = random_model({});
  const auto tokens = random_tokens(model->config, 80, 11);
  Driver driver(*model, options_for(GetParam()));
  const auto expected = driver.last_logprobs(tokens, 1024);
  SamplingParams params;
  params.temperature = 0;
  params.n_logprobs = model->config.text.vocab_size;
  const int sequence = driver.begin(params);
  Part part;
  part.sequence = sequence;
  part.tokens = std::span<const TokenId>(tokens).first(59);
  driver.step(part);
  driver.move_pages(sequence);
  part.tokens = std::span<const TokenId>(tokens).subspan(59);
  part.sample = true;
  EXPECT_EQ(by_id(driver.step(part).sampled.at(0).top), expected);
}

INSTANTIATE_TEST_SUITE_P(Forward, Bitwise, testing::ValuesIn(all_modes()), mode_name);

// More rows than one pass through a layer takes (256).
TEST(Forward, LongChunkIsShortChunks) {
  const auto model = random_model({.n_layers = 5, .n_kv_shared_layers = 2, .weight_dtype = DType::kF8E4M3});
  const auto tokens = random_tokens(model->config, 700, 12);
  for (CpuIsa isa : runnable_isas()) {
    Driver driver(*model, options_for({isa, DType::kBF16, DType::kF8E4M3}));
    EXPECT_EQ(driver.all_logprobs(tokens, 1024), driver.all_logprobs(tokens, 100)) << isa_name(isa);
  }
}

// What a norm's weights are multiplied by and the scales behind it divided by, if a power of two, is nobody's
// rounding.
TEST(Forward, PowersOfTwoMoveBetweenNormAndScales) {
  RandomModelOptions o{.weight_dtype = DType::kF8E4M3, .scale = RandomModelOptions::Scale::kRow};
  const auto model = random_model(o);
  o.norm_factor = 8192;
  const auto moved = random_model(o);
  ASSERT_GT(moved->weights.layers[0].input_layernorm[0], 1000);
  const auto tokens = random_tokens(model->config, 70, 13);
  for (CpuIsa isa : runnable_isas()) {
    Driver driver(*model, options_for({isa, DType::kBF16, DType::kF8E4M3}));
    Driver of_moved(*moved, options_for({isa, DType::kBF16, DType::kF8E4M3}));
    EXPECT_EQ(of_moved.all_logprobs(tokens, 32), driver.all_logprobs(tokens, 32)) << isa_name(isa);
  }
}

// --- Stages
// ------------------------------------------------------------------------------------------------------

TEST(Forward, ObserverSeesEveryStageInOrder) {
  const auto model = random_model({.vision = true});
  const TextConfig& text = model->config.text;
  Driver driver(*model, options_for({runnable_isas().back(), DType::kBF16, DType::kBF16}));
  std::vector<std::tuple<Stage, int, int, int>> seen;
  driver.backend().observe_stages(
      [&](Stage stage, int layer, std::span<float> values, int rows, int columns) {
        EXPECT_EQ(values.size(), static_cast<size_t>(rows) * static_cast<size_t>(columns));
        seen.emplace_back(stage, layer, rows, columns);
      });
  ASSERT_TRUE(driver.backend().encode_image(random_image(model->config, 6, 3, 1)).ok());
  const std::vector<std::tuple<Stage, int, int, int>> vision = {{Stage::kVisionPatchEmbed, -1, 18, 64},
                                                                {Stage::kVisionLayer, 0, 18, 64},
                                                                {Stage::kVisionLayer, 1, 18, 64},
                                                                {Stage::kVisionPool, -1, 2, 64},
                                                                {Stage::kVisionProject, -1, 2, 128}};
  EXPECT_EQ(seen, vision);
  seen.clear();

  driver.last_logprobs(random_tokens(model->config, 21, 1), 1024);
  std::vector<std::tuple<Stage, int, int, int>> expected = {{Stage::kEmbed, -1, 21, 128},
                                                            {Stage::kPerLayerInputs, -1, 21, 8 * 32}};
  for (int i = 0; i < text.n_layers; ++i) {
    const LayerConfig& c = text.layers[static_cast<size_t>(i)];
    const int rows = c.owns_kv ? 21 : 1;  // fast prefill
    const int q = text.n_heads * c.head_dim, kv = c.n_kv_heads * c.head_dim;
    expected.emplace_back(Stage::kAttnNorm, i, rows, 128);
    if (c.owns_kv) expected.emplace_back(Stage::kK, i, rows, kv);
    if (c.owns_kv) expected.emplace_back(Stage::kV, i, rows, kv);
    expected.emplace_back(Stage::kQ, i, rows, q);
    expected.emplace_back(Stage::kAttention, i, rows, q);
    for (Stage stage : {Stage::kAttnResidual, Stage::kMlpResidual, Stage::kLayer})
      expected.emplace_back(stage, i, rows, 128);
  }
  expected.emplace_back(Stage::kFinalNorm, -1, 1, 128);
  expected.emplace_back(Stage::kLogits, -1, 1, 300);
  EXPECT_EQ(seen, expected);
}

// What the observer leaves is what the pass goes on with: the stages of one run, fed into a run over other
// tokens.
TEST(Forward, ObserverMayOverwrite) {
  const auto model = random_model({});
  const auto a = random_tokens(model->config, 21, 1), b = random_tokens(model->config, 21, 2);
  for (Stage fed :
       {Stage::kEmbed, Stage::kK, Stage::kV, Stage::kQ, Stage::kAttention, Stage::kLayer, Stage::kLogits}) {
    Driver driver(*model, options_for({runnable_isas().back(), DType::kF32, DType::kF32}));
    std::vector<std::vector<float>> recorded;
    driver.backend().observe_stages([&](Stage stage, int, std::span<float> values, int, int) {
      if (stage == fed) recorded.emplace_back(values.begin(), values.end());
    });
    const auto of_a = driver.last_logprobs(a, 1024);
    size_t next = 0;
    std::vector<std::vector<float>> computed;
    driver.backend().observe_stages([&](Stage stage, int, std::span<float> values, int, int) {
      if (stage == fed) std::copy(recorded.at(next).begin(), recorded.at(next).end(), values.begin()), ++next;
    });
    const auto fed_b = driver.last_logprobs(b, 1024);
    EXPECT_EQ(next, recorded.size());
    driver.backend().observe_stages({});
    const auto of_b = driver.last_logprobs(b, 1024);
    EXPECT_NE(fed_b, of_b) << stage_name(fed);
    if (fed == Stage::kLogits || fed == Stage::kLayer) {
      EXPECT_EQ(fed_b, of_a) << stage_name(fed);
    }
  }
}

// --- Errors
// ------------------------------------------------------------------------------------------------------

TEST(Forward, ImageBeyondThePositionTableIsAnError) {
  const auto model = random_model({.vision = true, .position_embedding_size = 12});
  Driver driver(*model, options_for({CpuIsa::kPortable, DType::kF32, DType::kF32}));
  EXPECT_TRUE(driver.backend().encode_image(random_image(model->config, 3, 12, 1)).ok());
  const auto result = driver.backend().encode_image(random_image(model->config, 3, 15, 1));
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.error().message.find("15 x 3"), std::string::npos) << result.error().message;
  EXPECT_NE(result.error().message.find("12 positions"), std::string::npos) << result.error().message;
}

TEST(Forward, UnsupportedOptionsAreErrors) {
  const auto model = random_model({});
  EXPECT_FALSE(make_cpu_backend(model->config, model->weights, {.dtype = DType::kF16}).ok());
  EXPECT_FALSE(make_cpu_backend(model->config, model->weights, {.kv_dtype = DType::kU8}).ok());
  ModelConfig odd = model->config;
  odd.text.layers[1].head_dim = 40;
  EXPECT_FALSE(make_cpu_backend(odd, model->weights, {}).ok());
  auto backend = make_cpu_backend(model->config, model->weights, {});
  ASSERT_TRUE(backend.ok());
  EXPECT_FALSE((*backend)->encode_image({}).ok());
  // 2^31 pages of this model are more than any machine has.
  EXPECT_FALSE((*backend)->allocate_kv({.n_full_pages = 2147483647, .n_sliding_pages = 2147483647}).ok());
}

TEST(ForwardDeathTest, TheEnginesMistakesStopTheProgram) {
  const auto model = random_model({});
  CpuOptions options = options_for({CpuIsa::kPortable, DType::kF32, DType::kF32}, 1);
  options.max_step_tokens = 8;
  auto made = make_cpu_backend(model->config, model->weights, options);
  ASSERT_TRUE(made.ok());
  Backend& backend = **made;
  ASSERT_TRUE(backend.allocate_kv({.n_full_pages = 2, .n_sliding_pages = 2}).ok());
  backend.begin_sequence(0, {}, {}, {});
  const auto tokens = random_tokens(model->config, 9, 1);
  const std::vector<PageId> pages = {0, 1}, wrong = {2}, none = {kNoPage};
  const auto submit = [&](int slot, int n, const std::vector<PageId>& full,
                          const std::vector<PageId>& sliding) {
    StepChunk chunk;
    chunk.slot = slot;
    chunk.tokens = std::span<const TokenId>(tokens).first(static_cast<size_t>(n));
    chunk.full_pages = full;
    chunk.sliding_pages = sliding;
    backend.submit(std::span(&chunk, 1));
  };
  EXPECT_DEATH(submit(0, 9, pages, pages), "9 tokens in a step of at most 8");
  EXPECT_DEATH(submit(1, 1, pages, pages), "slot 1 has no sequence");
  EXPECT_DEATH(submit(9, 1, pages, pages), "slot 9 of 8");
  EXPECT_DEATH(submit(0, 1, wrong, pages), "full page 2 at entry 0, of 2");
  EXPECT_DEATH(submit(0, 1, pages, none), "sliding page -1");
  EXPECT_DEATH(submit(0, 1, {}, pages), "0 full pages");
  EXPECT_DEATH(submit(0, 0, pages, pages), "sampled nothing");
  EXPECT_DEATH(backend.release_feature(7), "feature 7 is not held");
  EXPECT_DEATH((void)backend.collect(), "no step was submitted");
}

}  // namespace
}  // namespace jewel
