// Images run in batches and on a stream of their own, beside steps. Whatever they meet there, each must come
// out bitwise as if it had been alone.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "cuda_fixture.h"

namespace jewel {
namespace {

class CudaImageTest : public CudaTest {
 protected:
  struct Prompt {
    std::vector<TokenId> tokens;
    std::vector<SoftTokenRun> runs;
  };

  std::vector<ImagePatches> images_of(const std::vector<std::array<int, 2>>& grids) const {
    std::vector<ImagePatches> images;
    for (const auto& [h, w] : grids) images.push_back(random_image(model_->config, h, w, 30 + images.size()));
    return images;
  }

  // Of an image's last soft tokens: what the model makes of it tells their bits.
  Prompt prompt(FeatureId feature, const ImagePatches& image) const {
    const int pooling = model_->config.vision->pooling_kernel_size;
    const int n = image.grid_h * image.grid_w / (pooling * pooling), count = std::min(n, 12);
    Prompt prompt{.tokens = random_tokens(model_->config, 20, 6), .runs = {}};
    std::fill_n(prompt.tokens.begin() + 4, count, RandomModel::kImageToken);
    prompt.runs.push_back({.feature = feature, .row = n - count, .offset = 4, .count = count});
    return prompt;
  }

  Rows rows_of(Driver& driver, FeatureId feature, const ImagePatches& image) const {
    const Prompt p = prompt(feature, image);
    return driver.all_logprobs(p.tokens, 256, p.runs);
  }

  static FeatureId encode(Driver& driver, const ImagePatches& image) {
    const auto feature = driver.backend().encode_image(image);
    EXPECT_TRUE(feature.ok()) << feature.error().message;
    return feature.ok() ? *feature : 0;
  }

  std::vector<Rows> alone(Driver& driver, const std::vector<ImagePatches>& images) const {
    std::vector<Rows> rows;
    for (const ImagePatches& image : images) {
      const FeatureId feature = encode(driver, image);
      rows.push_back(rows_of(driver, feature, image));
      driver.backend().release_feature(feature);
    }
    return rows;
  }

  // All of them before the first step.
  std::vector<Rows> together(Driver& driver, const std::vector<ImagePatches>& images) const {
    std::vector<FeatureId> features;
    for (const ImagePatches& image : images) features.push_back(encode(driver, image));
    std::vector<Rows> rows(images.size());
    for (size_t i = images.size(); i-- > 0;) rows[i] = rows_of(driver, features[i], images[i]);
    for (const FeatureId feature : features) driver.backend().release_feature(feature);
    return rows;
  }

  const std::unique_ptr<RandomModel> model_ = model_for(GetParam(), true);
};

// Three times each: launched, captured, from the graph. The batch needs more memory than an image alone, and
// graphs of before must not be used with it.
TEST_P(CudaImageTest, TogetherAsAlone) {
  OPEN_OR_SKIP(cuda, *model_);
  const auto images = images_of({{6, 9}, {3, 3}, {12, 6}, {6, 9}, {9, 9}, {3, 12}});
  const auto wanted = alone(cuda, images);
  for (size_t i = 1; i < images.size(); ++i) EXPECT_NE(wanted[i], wanted[0]) << "image " << i;
  for (int round = 0; round < 2; ++round) EXPECT_EQ(alone(cuda, images), wanted) << "alone, " << round;
  for (int round = 0; round < 3; ++round) EXPECT_EQ(together(cuda, images), wanted) << "together, " << round;
  EXPECT_EQ(alone(cuda, images), wanted);
}

// More images, and more patches, than a batch holds.
TEST_P(CudaImageTest, ABurst) {
  OPEN_OR_SKIP(cuda, *model_);
  std::vector<std::array<int, 2>> grids;
  for (int i = 0; i < 40; ++i) grids.push_back({3 + 3 * (i % 5), 3 + 3 * (i % 7)});
  for (const size_t at : {size_t{5}, size_t{20}, size_t{30}, size_t{40}}) {
    grids.insert(grids.begin() + static_cast<std::ptrdiff_t>(at), {63, 63});
  }
  const auto images = images_of(grids);
  const auto wanted = alone(cuda, images);
  for (int round = 0; round < 2; ++round) EXPECT_EQ(together(cuda, images), wanted) << "round " << round;
}

// A sequence decodes in every step; images are read in the step that starts them, or in the one after.
TEST_P(CudaImageTest, BesideDecoding) {
  OPEN_OR_SKIP(cuda, *model_);
  constexpr int kSteps = 24;
  std::vector<std::array<int, 2>> grids;
  for (int t = 0; t < kSteps; ++t) grids.push_back({6 + 3 * (t % 3), t % 4 == 0 ? 45 : 9});
  const auto images = images_of(grids);
  const auto wanted = alone(cuda, images);
  const auto start = random_tokens(model_->config, 9, 3);

  const auto decode = [&](const std::function<std::vector<Part>(int)>& others) {
    const int sequence = cuda.begin({.temperature = 0, .n_logprobs = 0}, start);
    std::vector<std::pair<TokenId, float>> life;
    for (int t = -1; t < kSteps; ++t) {
      std::vector<Part> parts(1);
      parts[0].sequence = sequence;
      if (t < 0) parts[0].tokens = start;
      parts[0].sample = true;
      if (t >= 0) std::ranges::move(others(t), std::back_inserter(parts));
      const StepResult result = cuda.step(parts);
      life.emplace_back(result.sampled.at(0).id, result.sampled[0].logprob.logprob);
      for (size_t i = 1; i < parts.size(); ++i) {
        Rows rows;
        for (const auto& top : result.prompt_logprobs.at(i - 1).top) rows.push_back(by_id(top));
        const auto image = static_cast<size_t>(t) + i - parts.size() + 1;
        EXPECT_EQ(rows, wanted[image]) << "image " << image << " in step " << t;
        cuda.end(parts[i].sequence);
      }
    }
    cuda.end(sequence);
    return life;
  };

  const auto life = decode([](int) { return std::vector<Part>(); });
  std::vector<FeatureId> features;
  std::vector<Prompt> prompts;
  const auto life_beside = decode([&](int t) {
    std::vector<Part> parts;
    if (t % 2 == 0) prompts.clear();
    features.push_back(encode(cuda, images[static_cast<size_t>(t)]));
    prompts.push_back(prompt(features.back(), images[static_cast<size_t>(t)]));
    if (t % 2 == 0) return parts;  // started here, read in the next step
    for (const Prompt& p : prompts) {
      Part part;
      part.sequence = cuda.begin({}, p.tokens);
      part.tokens = p.tokens;
      part.soft_tokens = p.runs;
      part.n_prompt_logprobs = model_->config.text.vocab_size;
      parts.push_back(std::move(part));
    }
    return parts;
  });
  EXPECT_EQ(life_beside, life);
  for (const FeatureId feature : features) cuda.backend().release_feature(feature);
}

TEST_P(CudaImageTest, ReleasedUnused) {
  OPEN_OR_SKIP(cuda, *model_);
  const auto images = images_of({{6, 9}, {9, 9}, {3, 9}, {6, 6}, {9, 12}, {3, 3}, {12, 3}});
  const auto wanted = alone(cuda, images);
  for (int round = 0; round < 3; ++round) {
    std::vector<FeatureId> features;
    for (size_t i = 0; i < 3; ++i) features.push_back(encode(cuda, images[i]));
    cuda.backend().release_feature(features[1]);  // before it was started
    for (size_t i = 3; i < 6; ++i) features.push_back(encode(cuda, images[i]));
    EXPECT_EQ(rows_of(cuda, features[0], images[0]), wanted[0]);
    cuda.backend().release_feature(features[4]);  // a step has waited for it, none has read it
    features.push_back(encode(cuda, images[6]));
    const int sequence = cuda.begin({.temperature = 0});
    Part part;
    part.sequence = sequence;
    const auto tokens = random_tokens(model_->config, 9, 3);
    part.tokens = tokens;
    cuda.step(part);
    cuda.end(sequence);
    cuda.backend().release_feature(features[6]);  // started, and no step has waited for it
    for (const size_t i : {size_t{2}, size_t{3}, size_t{5}}) {
      EXPECT_EQ(rows_of(cuda, features[i], images[i]), wanted[i]) << "image " << i << ", round " << round;
    }
    for (const size_t i : {0, 2, 3, 5}) cuda.backend().release_feature(features[i]);
  }
}

TEST_P(CudaImageTest, BadOnesAmidGoodOnes) {
  OPEN_OR_SKIP(cuda, *model_);
  const auto images = images_of({{6, 9}, {9, 6}});
  const auto wanted = alone(cuda, images);
  const FeatureId first = encode(cuda, images[0]);
  ImagePatches cut = images[1];
  cut.pixels.pop_back();
  for (const ImagePatches& bad : {cut, random_image(model_->config, 5, 6, 1), ImagePatches{}}) {
    const auto feature = cuda.backend().encode_image(bad);
    ASSERT_FALSE(feature.ok());
    EXPECT_EQ(feature.error().code, ErrorCode::kInvalid) << feature.error().message;
  }
  const int side = model_->config.vision->position_embedding_size / 3 * 3 + 3;
  const auto wide = cuda.backend().encode_image(random_image(model_->config, 3, side, 1));
  ASSERT_FALSE(wide.ok());
  EXPECT_EQ(wide.error().code, ErrorCode::kTooLarge) << wide.error().message;
  const FeatureId second = encode(cuda, images[1]);
  EXPECT_EQ(rows_of(cuda, first, images[0]), wanted[0]);
  EXPECT_EQ(rows_of(cuda, second, images[1]), wanted[1]);
  for (const FeatureId feature : {first, second}) cuda.backend().release_feature(feature);
}

// All of the device's memory but crumbs.
class Hog {
 public:
  Hog() {
    for (size_t bytes = size_t{1} << 36; bytes >= size_t{1} << 16; bytes /= 2) {
      void* taken = nullptr;
      while (cudaMalloc(&taken, bytes) == cudaSuccess) taken_.push_back(taken);
    }
    cudaGetLastError();
  }
  ~Hog() {
    for (void* taken : taken_) cudaFree(taken);
  }
  Hog(const Hog&) = delete;
  Hog& operator=(const Hog&) = delete;

 private:
  std::vector<void*> taken_;
};

TEST_P(CudaImageTest, WithoutMemoryForOne) {
  OPEN_OR_SKIP(cuda, *model_);
  const auto images = images_of({{6, 9}, {63, 63}});
  const Rows wanted = alone(cuda, {images[0]})[0];
  // It stays: what the refused one leaves behind must not touch it.
  const FeatureId small = encode(cuda, images[0]);
  EXPECT_EQ(rows_of(cuda, small, images[0]), wanted);
  {
    const Hog hog;
    const auto large = cuda.backend().encode_image(images[1]);
    ASSERT_FALSE(large.ok());
    EXPECT_NE(large.error().message.find("vision tower"), std::string::npos) << large.error().message;
  }
  EXPECT_EQ(rows_of(cuda, small, images[0]), wanted);
  EXPECT_EQ(alone(cuda, images), together(cuda, images));
  cuda.backend().release_feature(small);
}

TEST_P(CudaImageTest, GivenBackAndHadAgain) {
  const auto images = images_of({{6, 9}, {3, 3}, {6, 9}});
  std::vector<Rows> before;
  for (int round = 0; round < 3; ++round) {
    {
      OPEN_OR_SKIP(cuda, *model_);
      for (int i = 0; i < 3; ++i) {
        if (before.empty()) before = alone(cuda, images);
        EXPECT_EQ(together(cuda, images), before) << "round " << round;
      }
    }
    release_cuda_device(0);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, CudaImageTest, testing::ValuesIn(kModes),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace jewel
