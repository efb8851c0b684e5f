// The CUDA backend against the CPU's, and bitwise against itself however the work is cut.
#include "backend/cuda/cuda_backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <optional>

#include "backend/cuda/device_rates.h"
#include "cuda_fixture.h"

namespace jewel {
namespace {

constexpr int kTokens = 107;  // crosses the window more than twice, ends inside a page

double distance(const Rows& a, const Rows& b) {
  double sum = 0, norm = 0;
  for (size_t r = 0; r < a.size(); ++r) {
    for (size_t i = 0; i < a[r].size(); ++i) {
      sum += std::pow(double{a[r][i]} - b[r][i], 2);
      norm += std::pow(double{b[r][i]}, 2);
    }
  }
  return std::sqrt(sum / norm);
}

// What float32 finds, and how far from it the CPU's BF16 is.
struct Reference {
  Rows wanted;
  double of_cpu;
  Reference(const RandomModel& model, const std::vector<TokenId>& tokens, DType kv) {
    CpuOptions exact{.dtype = DType::kF32, .kv_dtype = kv == DType::kBF16 ? DType::kF32 : kv, .max_slots = 2};
    CpuOptions bf16{.dtype = DType::kBF16, .kv_dtype = kv, .max_slots = 2};
    Driver reference(model, exact), cpu(model, bf16);
    wanted = reference.all_logprobs(tokens, 256);
    of_cpu = distance(cpu.all_logprobs(tokens, 256), wanted);
  }
};

TEST_P(CudaTest, AsCloseToFloat32AsTheCpu) {
  const auto model = model_for(GetParam());
  OPEN_OR_SKIP(cuda, *model);
  const auto tokens = random_tokens(model->config, kTokens, 7);
  const auto [wanted, of_cpu] = Reference(*model, tokens, GetParam().kv);
  const double of_cuda = distance(cuda.all_logprobs(tokens, 256), wanted);
  std::printf("distance from float32: cuda %.2e, cpu %.2e\n", of_cuda, of_cpu);
  EXPECT_LE(of_cuda, 1.5 * of_cpu);
  // The fast way, with the last row alone beyond the first shared layer.
  const Rows last{cuda.last_logprobs(tokens, 256)};
  EXPECT_LE(distance(last, {wanted.back()}), 2.5 * of_cpu);
}

TEST_P(CudaTest, ChunksDoNotMatter) {
  const auto model = model_for(GetParam());
  OPEN_OR_SKIP(cuda, *model);
  const auto tokens = random_tokens(model->config, kTokens, 8);
  const Rows whole = cuda.all_logprobs(tokens, 256);
  const std::vector<float> last = cuda.last_logprobs(tokens, 256);
  for (const int chunk : {1, 7, 16, 64, 106}) {
    EXPECT_EQ(cuda.all_logprobs(tokens, chunk), whole) << "chunks of " << chunk;
    EXPECT_EQ(cuda.last_logprobs(tokens, chunk), last) << "chunks of " << chunk;
  }
}

struct Life {
  std::vector<TokenId> ids;
  std::vector<float> logprobs;
  bool operator==(const Life&) const = default;
};

// Answers of `n` tokens to prompts of different lengths, decoded together.
std::vector<Life> decode_together(Driver& driver, const RandomModel& model, const std::vector<int>& which,
                                  int n, const std::function<void(SamplingParams&, int)>& change = {}) {
  std::vector<int> sequences;
  std::vector<std::vector<TokenId>> prompts;
  for (const int i : which) {
    SamplingParams params;
    params.seed = static_cast<uint64_t>(100 + i);
    params.n_logprobs = 0;
    params.temperature = i % 3 == 0 ? 0 : 0.9;
    if (i % 3 == 2) params.top_k = 8;
    if (change) change(params, i);
    prompts.push_back(random_tokens(model.config, 5 + 13 * (i % 7), static_cast<uint64_t>(20 + i)));
    sequences.push_back(driver.begin(params, prompts.back()));
  }
  std::vector<Life> lives(which.size());
  for (size_t s = 0; s < which.size(); ++s) {
    const StepResult result = driver.step({.sequence = sequences[s],
                                           .tokens = prompts[s],
                                           .soft_tokens = {},
                                           .sample = true,
                                           .allowed_tokens = {}});
    lives[s].ids.push_back(result.sampled[0].id);
    lives[s].logprobs.push_back(result.sampled[0].logprob.logprob);
  }
  for (int t = 1; t < n; ++t) {
    std::vector<Part> parts;
    for (const int sequence : sequences)
      parts.push_back(
          {.sequence = sequence, .tokens = {}, .soft_tokens = {}, .sample = true, .allowed_tokens = {}});
    const StepResult result = driver.step(parts);
    for (size_t s = 0; s < which.size(); ++s) {
      lives[s].ids.push_back(result.sampled[s].id);
      lives[s].logprobs.push_back(result.sampled[s].logprob.logprob);
    }
  }
  for (const int sequence : sequences) driver.end(sequence);
  return lives;
}

// Sequences decoded among 39, and alone or among few.
void expect_neighbours_do_not_matter(Driver& driver, const RandomModel& model, const char* what) {
  std::vector<int> all(39);
  std::iota(all.begin(), all.end(), 0);
  const std::vector<Life> together = decode_together(driver, model, all, 40);
  for (const std::vector<int>& few :
       {std::vector<int>{0}, {7}, {3, 5}, {1, 2, 4, 6}, {8, 9, 10, 11, 12, 13, 14, 15, 16}}) {
    const std::vector<Life> lives = decode_together(driver, model, few, 40);
    for (size_t i = 0; i < few.size(); ++i) {
      EXPECT_EQ(lives[i], together[static_cast<size_t>(few[i])])
          << "sequence " << few[i] << " among " << few.size() << what;
    }
  }
}

TEST_P(CudaTest, NeighboursDoNotMatter) {
  for (const bool wide : {false, true}) {
    const auto model = model_for(GetParam(), false, wide);
    OPEN_OR_SKIP(cuda, *model);
    expect_neighbours_do_not_matter(cuda, *model, wide ? ", wide" : "");
  }
}

class CudaFp8Test : public CudaTest {};

// A model whose norms leave more than FP16 holds: its activations are BF16 in all kernels. They are a power
// of two times those of the model without, so where these are BF16 too nothing else changes.
TEST_P(CudaFp8Test, NormsThatFp16HasNoRoomFor) {
  for (const bool wide : {false, true}) {
    const auto model = model_for(GetParam(), false, wide, 8192);
    OPEN_OR_SKIP(cuda, *model);
    const auto tokens = random_tokens(model->config, kTokens, 7);
    const Rows rows = cuda.all_logprobs(tokens, 256);
    const auto [wanted, of_cpu] = Reference(*model, tokens, GetParam().kv);
    EXPECT_LE(distance(rows, wanted), 1.5 * of_cpu) << (wide ? "wide" : "");
    if (GetParam().portable) {
      const auto plain = model_for(GetParam(), false, wide);
      OPEN_OR_SKIP(without, *plain);
      EXPECT_EQ(without.all_logprobs(tokens, 256), rows) << (wide ? "wide" : "");
    }
    expect_neighbours_do_not_matter(cuda, *model, wide ? ", wide" : "");
  }
}

// The per-layer table is stored divided by a power of two.
TEST_P(CudaFp8Test, PerLayerInputsThatFp16HasNoRoomFor) {
  const auto model = model_for(GetParam());
  for (float& weight : model->weights.per_layer_projection_norm) weight *= 1 << 17;
  OPEN_OR_SKIP(cuda, *model);
  const auto tokens = random_tokens(model->config, kTokens, 7);
  const Rows rows = cuda.all_logprobs(tokens, 256);
  const auto [wanted, of_cpu] = Reference(*model, tokens, GetParam().kv);
  EXPECT_LE(distance(rows, wanted), 1.5 * of_cpu);
}

// Weights, graphs and what kernels were allowed go with the context; all of it has to be made again.
TEST_P(CudaTest, GivenBackAndHadAgain) {
  const auto model = model_for(GetParam());
  const auto tokens = random_tokens(model->config, kTokens, 9);
  const std::vector<int> all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  Rows before;
  std::vector<Life> lives;
  {
    OPEN_OR_SKIP(cuda, *model);
    before = cuda.all_logprobs(tokens, 256);
    release_cuda_device(0);  // in use: nothing happens
    EXPECT_EQ(cuda.all_logprobs(tokens, 256), before);
    lives = decode_together(cuda, *model, all, 20);
  }
  for (int round = 0; round < 2; ++round) {
    release_cuda_device(0);
    OPEN_OR_SKIP(cuda, *model);
    EXPECT_EQ(cuda.all_logprobs(tokens, 256), before);
    EXPECT_EQ(decode_together(cuda, *model, all, 20), lives);
  }
}

TEST_P(CudaTest, WhereThePerLayerTableLiesDoesNotMatter) {
  const auto model = model_for(GetParam());
  const auto tokens = random_tokens(model->config, kTokens, 10);
  const std::vector<int> some = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  std::optional<Rows> rows;
  std::optional<std::vector<Life>> lives;
  for (const PleTable place : {PleTable::kDevice, PleTable::kHost}) {
    OPEN_OR_SKIP(cuda, *model, [&](CudaOptions& options) { options.ple = place; });
    const Rows found = cuda.all_logprobs(tokens, 256);
    const std::vector<Life> decoded = decode_together(cuda, *model, some, 20);
    EXPECT_EQ(found, rows.value_or(found));
    EXPECT_EQ(decoded, lives.value_or(decoded));
    rows = found, lives = decoded;
  }
}

TEST_P(CudaTest, SamplesAsTheCpu) {
  const auto model = model_for(GetParam());
  OPEN_OR_SKIP(cuda, *model);
  Driver cpu(*model, CpuOptions{.kv_dtype = GetParam().kv, .max_slots = 40, .max_step_tokens = 256}, 1024,
             1024);
  const auto change = [](SamplingParams& params, int i) {
    params.top_p = i % 2 == 0 ? 0.8 : 1;
    params.min_p = i % 5 == 0 ? 0.05 : 0;
    if (i % 4 == 1) params.repetition_penalty = 1.3;
    if (i % 4 == 2) params.frequency_penalty = 0.5;
    if (i % 4 == 3) params.presence_penalty = 0.5;
    params.never = {1, 2};
    params.not_before = {3, 4, 5};
    params.not_before_position = 30;
    params.logit_bias = {{7, 2.0f}, {8, -3.0f}};
  };
  const std::vector<int> all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const auto of_cuda = decode_together(cuda, *model, all, 30, change),
             of_cpu = decode_together(cpu, *model, all, 30, change);
  // Roundings differ, so a near tie may fall the other way, and the rest of that answer with it.
  int same = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    for (const TokenId id : of_cuda[i].ids) EXPECT_TRUE(id != 1 && id != 2);
    size_t t = 0;
    while (t < of_cuda[i].ids.size() && of_cuda[i].ids[t] == of_cpu[i].ids[t]) ++t;
    same += static_cast<int>(t);
  }
  std::printf("%d of %zu tokens before a first difference\n", same, all.size() * 30);
  EXPECT_GE(same, static_cast<int>(all.size() * 30 / 4));  // cuda_sampler_test compares on equal logits
}

TEST_P(CudaTest, MasksAndSteps) {
  const auto model = model_for(GetParam());
  OPEN_OR_SKIP(cuda, *model);
  const int sequence = cuda.begin({.temperature = 0});
  const auto prompt = random_tokens(model->config, 9, 3);
  std::vector<uint32_t> mask(2, 0);
  mask[1] = 1u << 9;  // 41 alone
  Part part{
      .sequence = sequence, .tokens = prompt, .soft_tokens = {}, .sample = true, .allowed_tokens = mask};
  EXPECT_EQ(cuda.step(part).sampled[0].id, 41);
  part.tokens = {};
  mask[1] = 1u << 3;
  part.allowed_tokens = mask;
  EXPECT_EQ(cuda.step(part).sampled[0].id, 35);
  cuda.end(sequence);
}

TEST_P(CudaTest, Images) {
  const auto model = model_for(GetParam(), true);
  OPEN_OR_SKIP(cuda, *model);
  Driver cpu(*model, CpuOptions{.kv_dtype = GetParam().kv, .max_slots = 2}, 64, 64);
  Driver exact(*model,
               CpuOptions{.dtype = DType::kF32,
                          .kv_dtype = GetParam().kv == DType::kBF16 ? DType::kF32 : GetParam().kv,
                          .max_slots = 2},
               64, 64);
  const ImagePatches image = random_image(model->config, 6, 9, 5);
  const auto logprobs = [&](Driver& driver) {
    const auto feature = driver.backend().encode_image(image);
    EXPECT_TRUE(feature.ok()) << feature.error().message;
    auto tokens = random_tokens(model->config, 20, 6);
    std::fill_n(tokens.begin() + 4, 6, RandomModel::kImageToken);
    const std::vector<SoftTokenRun> runs{{.feature = *feature, .row = 0, .offset = 4, .count = 6}};
    Rows rows = driver.all_logprobs(tokens, 256, runs);
    driver.backend().release_feature(*feature);
    return rows;
  };
  const Rows wanted = logprobs(exact);
  const double of_cpu = distance(logprobs(cpu), wanted), of_cuda = distance(logprobs(cuda), wanted);
  std::printf("distance from float32: cuda %.2e, cpu %.2e\n", of_cuda, of_cpu);
  EXPECT_LE(of_cuda, 1.5 * of_cpu);
}

TEST(CudaRates, AreThoseOfACard) {
  const auto rates = measure_cuda_rates(0, size_t{1} << 30);
  if (!rates.ok() && !device_required()) GTEST_SKIP() << rates.error().message;
  ASSERT_TRUE(rates.ok()) << rates.error().message;
  std::printf("figure %s: %.0f GB/s, %.0f TFLOP/s BF16, %.0f FP8\n", rates->how.c_str(),
              rates->bytes_per_s * 1e-9, rates->bf16_flop_per_s * 1e-12, rates->fp8_flop_per_s * 1e-12);
  EXPECT_GT(rates->bytes_per_s, 100e9);
  EXPECT_GT(rates->bf16_flop_per_s, 10e12);
  EXPECT_TRUE(rates->fp8_flop_per_s == 0 || rates->fp8_flop_per_s > 1.5 * rates->bf16_flop_per_s);
}

INSTANTIATE_TEST_SUITE_P(Modes, CudaTest, testing::ValuesIn(kModes),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Modes, CudaFp8Test, testing::Values(kModes[1], kModes[3]),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace jewel
