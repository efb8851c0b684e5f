// The device's sampler against the CPU's, on the same logits.
#include <gtest/gtest.h>

#include <random>

#include "backend/cpu/kernels.h"
#include "backend/cpu/sampler.h"
#include "backend/cuda/device.h"
#include "backend/cuda/slot_sampling.h"
#include "needs_device.h"

namespace jewel::cuda {
namespace {

// True where there is a device.
bool have_device(std::string& reason) {
  const auto device = open_device(0);
  if (device.ok()) return true;
  reason = without_device(device.error().message);
  return false;
}

// One row a slot, as many rows as there are parameters.
std::vector<TokenId> sample_on_device(const std::vector<SamplingParams>& params,
                                      std::span<const TokenId> prompt, std::span<const TokenId> output,
                                      const std::vector<float>& logits, int vocab, int position) {
  const auto n = params.size();
  auto slots = SlotSamplings::make(static_cast<int>(n), vocab);
  JEWEL_CHECK(slots.ok(), "{}", slots.error().message);
  std::vector<int32_t> slot_of(n), positions(n, position - 1), ids(n, -7);
  for (size_t i = 0; i < n; ++i) {
    slot_of[i] = static_cast<int32_t>(i);
    (*slots)->begin(static_cast<SlotId>(i), params[i], prompt, output, nullptr);
  }
  const auto on_device = [](const auto& values) {
    auto buffer = DeviceBuffer::make(values.size() * sizeof(values[0]), "a test");
    JEWEL_CHECK(buffer.ok() && cudaMemcpy(buffer->data(), values.data(), buffer->bytes(),
                                          cudaMemcpyHostToDevice) == cudaSuccess);
    return std::move(buffer).value();
  };
  const DeviceBuffer device_logits = on_device(logits), device_slots = on_device(slot_of),
                     device_positions = on_device(positions), device_ids = on_device(ids);
  JEWEL_CHECK(launch_sample_rows({.logits = device_logits.as<float>(),
                                  .vocab = vocab,
                                  .n = static_cast<int>(n),
                                  .slots = device_slots.as<int32_t>(),
                                  .positions = device_positions.as<int32_t>(),
                                  .sampling = (*slots)->slots(),
                                  .ids = device_ids.as<int32_t>(),
                                  .last_tokens = (*slots)->last_tokens()},
                                 nullptr) == cudaSuccess);
  JEWEL_CHECK(cudaMemcpy(ids.data(), device_ids.data(), device_ids.bytes(), cudaMemcpyDeviceToHost) ==
              cudaSuccess);
  return ids;
}

class CudaSampler : public testing::TestWithParam<int> {};

TEST_P(CudaSampler, PicksWhatTheCpuPicks) {
  std::string reason;
  if (!have_device(reason)) GTEST_SKIP() << reason;
  const int vocab = GetParam();
  constexpr int kRows = 96;
  std::mt19937_64 random(11);
  std::normal_distribution<float> normal(0, 3);
  std::vector<SamplingParams> params(kRows);
  for (int i = 0; i < kRows; ++i) {
    SamplingParams& p = params[static_cast<size_t>(i)];
    p.seed = random();
    p.temperature = i % 8 == 0 ? 0 : 0.5 + 0.1 * (i % 7);
    p.top_k = i % 3 == 0 ? 0 : 1 << (i % 8);
    p.top_p = i % 4 == 0 ? 1 : 0.5 + 0.07 * (i % 7);
    p.min_p = i % 5 == 0 ? 0.02 : 0;
    if (i % 6 == 1) p.repetition_penalty = 1.2;
    if (i % 6 == 2) p.frequency_penalty = 0.7;
    if (i % 6 == 3) p.presence_penalty = -0.4;
    p.never = {3, 4};
    p.not_before = {5, 6, 7};
    p.not_before_position = i % 2 == 0 ? 1000 : 0;
    p.logit_bias = {{8, 4.0f}, {9, -100.0f}};
  }
  std::vector<TokenId> prompt(50), output(40);
  for (TokenId& id : prompt) id = static_cast<TokenId>(random() % static_cast<uint64_t>(vocab));
  for (TokenId& id : output) id = static_cast<TokenId>(random() % static_cast<uint64_t>(vocab));

  int different = 0, total = 0;
  for (int round = 0; round < 4; ++round) {
    std::vector<float> logits(static_cast<size_t>(kRows) * static_cast<size_t>(vocab));
    for (float& logit : logits)
      logit = round == 3 ? std::round(normal(random)) : normal(random);  // ties in the last
    const auto ids = sample_on_device(params, prompt, output, logits, vocab, 500 + round);
    for (int i = 0; i < kRows; ++i) {
      const Sampler sampler(params[static_cast<size_t>(i)], prompt, output);
      std::span<float> row(logits.data() + static_cast<size_t>(i) * static_cast<size_t>(vocab),
                           static_cast<size_t>(vocab));
      const auto wanted = sampler.sample(best_kernels(), row, 500 + round, {});
      ASSERT_TRUE(wanted.ok());
      different += ids[static_cast<size_t>(i)] != *wanted ? 1 : 0;
      if (params[static_cast<size_t>(i)].temperature == 0)
        EXPECT_EQ(ids[static_cast<size_t>(i)], *wanted) << "row " << i;
      ++total;
    }
  }
  // exp() differs in its last bits, so a number that falls on the edge between two tokens may go the other
  // way.
  std::printf("%d of %d tokens differ\n", different, total);
  EXPECT_LE(different, 1);
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, CudaSampler, testing::Values(100, 1280, 50'000, 262'144));

}  // namespace
}  // namespace jewel::cuda
