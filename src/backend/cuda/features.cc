#include "backend/cuda/features.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <vector>

#include "backend/cuda/product_weight.h"
#include "backend/cuda/vision_batch.h"

namespace jewel::cuda {
namespace {

Bounds bounds(const DeviceBounds& b) {
  return {.min = b.min, .max = b.max};
}

VisionDeviceWeights device_weights(const DeviceVision& vision) {
  VisionDeviceWeights out{.patch_projection = product_weight(vision.patch_projection),
                          .positions = vision.positions,
                          .embedding_projection = product_weight(vision.embedding_projection)};
  for (const DeviceVisionLayer& layer : vision.layers) {
    out.layers.push_back({.qkv = product_weight(layer.qkv),
                          .o = product_weight(layer.o),
                          .gate_up = product_weight(layer.gate_up),
                          .down = product_weight(layer.down),
                          .qkv_input = bounds(layer.qkv_input),
                          .o_input = bounds(layer.o_input),
                          .gate_up_input = bounds(layer.gate_up_input),
                          .down_input = bounds(layer.down_input),
                          .input_layernorm = layer.input_norm,
                          .post_attention_layernorm = layer.post_attention_norm,
                          .pre_feedforward_layernorm = layer.pre_feedforward_norm,
                          .post_feedforward_layernorm = layer.post_feedforward_norm,
                          .q_norm = layer.q_norm,
                          .k_norm = layer.k_norm});
  }
  return out;
}

VisionShape shape_of(const ModelConfig& config) {
  const VisionConfig& v = *config.vision;
  return {.hidden = v.hidden_size,
          .intermediate = v.intermediate_size,
          .n_layers = v.n_layers,
          .n_heads = v.n_heads,
          .patch_values = v.patch_values(),
          .pooling = v.pooling_kernel_size,
          .n_positions = v.position_embedding_size,
          .text_hidden = config.text.hidden_size,
          .rms_norm_eps = v.rms_norm_eps,
          .rope_theta = static_cast<float>(v.rope_theta)};
}

class EncodedFeatures final : public Features {
 public:
  EncodedFeatures(const ModelConfig& config, const DeviceVision& vision, bool portable, bool graphs)
      : shape_(shape_of(config)),
        batch_(shape_, device_weights(vision), portable ? ProductDesign::kPortable : ProductDesign::kSm90,
               graphs) {}

  ~EncodedFeatures() override {
    for (const auto& [id, soft] : features_) cudaFreeAsync(soft.values, stream_.get());
    cudaStreamSynchronize(stream_.get());  // copies may still read the pixels
  }

  Result<void> open() {
    JEWEL_ASSIGN(stream_, Stream::make(StreamPriority::kLow));
    JEWEL_ASSIGN(done_, Event::make(false));
    for (Pixels& pixels : pixels_) {
      JEWEL_ASSIGN(pixels.sent, Event::make(true));
    }
    // Soft tokens are mostly freed on the step's stream. To use such memory again at once, the pool would
    // make images wait for the steps before; it shall take other memory instead.
    int device = 0, allow = 0;
    cudaMemPool_t pool = nullptr;
    JEWEL_CUDA_TRY(cudaGetDevice(&device), "asking for the device");
    JEWEL_CUDA_TRY(cudaDeviceGetDefaultMemPool(&pool, device), "memory for soft tokens");
    JEWEL_CUDA_TRY(cudaMemPoolSetAttribute(pool, cudaMemPoolReuseAllowInternalDependencies, &allow),
                   "memory for soft tokens");
    return {};
  }

  Result<FeatureId> add(const ImagePatches& patches) override {
    JEWEL_TRY(check(patches));
    const VisionGrid grid{.grid_h = patches.grid_h, .grid_w = patches.grid_w};
    const int n = grid.patches();
    if (waiting_.ids.size() == VisionEncoder::kMaxImages || waiting_.n_patches + n > VisionBatch::kMaxPatches)
      start();
    // Memory for the batch with this image, or, where there is too little, for this image alone behind it.
    if (!batch_.reserve(waiting_.n_patches + n, stream_.get()).ok()) {
      start();
      JEWEL_TRY(batch_.reserve(n, stream_.get()));
    }
    Pixels& pixels = pixels_[static_cast<size_t>(n_started_) % pixels_.size()];
    if (waiting_.ids.empty()) JEWEL_TRY(make_room(pixels, n));
    Soft soft{.n = n / (shape_.pooling * shape_.pooling), .batch = n_started_, .failed = {}};
    void* values = nullptr;
    JEWEL_CUDA_TRY(cudaMallocAsync(&values, soft_values(soft) * sizeof(float), stream_.get()),
                   "memory for soft tokens");
    soft.values = static_cast<float*>(values);
    std::ranges::copy(patches.pixels, pixels.memory.as<uint8_t>() + patch_bytes(waiting_.n_patches));
    waiting_.ids.push_back(next_);
    waiting_.grids.push_back(grid);
    waiting_.n_patches += n;
    features_.emplace(next_, std::move(soft));
    return next_++;
  }

  void start() override {
    if (waiting_.ids.empty()) return;
    const Waiting images = std::exchange(waiting_, {});
    const auto enqueued = enqueue(images, pixels_[static_cast<size_t>(n_started_++) % pixels_.size()]);
    if (enqueued.ok()) return;
    for (const FeatureId id : images.ids) features_.at(id).failed = enqueued.error();
  }

  Result<void> await(std::span<const FeatureId> features, cudaStream_t stream) override {
    for (const FeatureId id : features) {
      const Soft& soft = held(id);
      if (soft.failed) return *soft.failed;
      JEWEL_CHECK(soft.batch < n_started_, "feature {} was not started", id);
      if (soft.batch < n_awaited_) continue;
      JEWEL_CUDA_TRY(cudaStreamWaitEvent(stream, done_.get()), "waiting for images");
      n_awaited_ = soft.batch + 1;
    }
    return {};
  }

  void release(FeatureId feature, cudaStream_t stream) override {
    // An image that nobody wants any more runs with its batch: rare, and its pixels lie among the others'.
    if (held(feature).batch == n_started_) start();
    const Soft& soft = held(feature);
    // Where the last use was enqueued: steps read only what `stream` has waited for.
    cudaFreeAsync(soft.values, soft.batch < n_awaited_ ? stream : stream_.get());
    features_.erase(feature);
  }

  float* rows(FeatureId feature, int row, int count) const override {
    const Soft& soft = held(feature);
    JEWEL_CHECK(row >= 0 && count >= 0 && row <= soft.n - count, "rows {} + {} of a feature of {}", row,
                count, soft.n);
    return soft.values + static_cast<int64_t>(row) * shape_.text_hidden;
  }

 private:
  struct Soft {
    float* values = nullptr;
    int n = 0;
    int64_t batch = 0;
    std::optional<Error> failed;
  };
  struct Waiting {
    std::vector<FeatureId> ids;
    std::vector<VisionGrid> grids;
    int n_patches = 0;
  };
  struct Pixels {
    PinnedBuffer memory;
    Event sent;  // may be overwritten
  };

  Result<void> check(const ImagePatches& patches) const {
    const int n = patches.grid_h * patches.grid_w, pooling = shape_.pooling;
    if (patches.grid_h <= 0 || patches.grid_w <= 0 || patches.grid_h % pooling != 0 ||
        patches.grid_w % pooling != 0 || patches.pixels.size() != patch_bytes(n)) {
      return invalid(
          fmt::format("image: a grid of {} x {} patches with {} bytes; expected multiples of {} and {} bytes",
                      patches.grid_w, patches.grid_h, patches.pixels.size(), pooling, patch_bytes(n)));
    }
    if (std::max(patches.grid_h, patches.grid_w) > shape_.n_positions) {
      return too_large(
          fmt::format("image: a grid of {} x {} patches passes the {} positions of the model's table; use a "
                      "smaller token budget or a less extreme shape",
                      patches.grid_w, patches.grid_h, shape_.n_positions));
    }
    return {};
  }

  // For a batch that begins with an image of `n_patches`.
  Result<void> make_room(Pixels& pixels, int n_patches) const {
    JEWEL_CUDA_TRY(cudaEventSynchronize(pixels.sent.get()), "sending images");
    const size_t bytes = patch_bytes(std::max(n_patches, VisionBatch::kMaxPatches));
    if (pixels.memory.bytes() < bytes) {
      JEWEL_ASSIGN(pixels.memory, PinnedBuffer::make(bytes));
    }
    return {};
  }

  Result<void> enqueue(const Waiting& images, const Pixels& pixels) {
    const cudaStream_t stream = stream_.get();
    JEWEL_TRY(batch_.enqueue(images.grids, pixels.memory.data(), pixels.sent.get(), stream));
    const float* from = batch_.soft_tokens();
    for (const FeatureId id : images.ids) {
      const Soft& soft = held(id);
      JEWEL_CUDA_TRY(cudaMemcpyAsync(soft.values, from, soft_values(soft) * sizeof(float),
                                     cudaMemcpyDeviceToDevice, stream),
                     "keeping soft tokens");
      from += soft_values(soft);
    }
    JEWEL_CUDA_TRY(cudaEventRecord(done_.get(), stream), "ending a batch of images");
    return {};
  }

  const Soft& held(FeatureId feature) const {
    const auto it = features_.find(feature);
    JEWEL_CHECK(it != features_.end(), "feature {} is not held", feature);
    return it->second;
  }
  size_t patch_bytes(int n_patches) const {
    return static_cast<size_t>(n_patches) * static_cast<size_t>(shape_.patch_values);
  }
  size_t soft_values(const Soft& soft) const {
    return static_cast<size_t>(soft.n) * static_cast<size_t>(shape_.text_hidden);
  }

  VisionShape shape_;
  Stream stream_;  // of the images
  VisionBatch batch_;
  // Of the batch that images join, and of the one before. A burst of more batches waits here, and with it the
  // step's rows that decode: for one tower each, from the fourth batch on.
  std::array<Pixels, 2> pixels_;
  Event done_;  // of the last batch started
  Waiting waiting_;
  int64_t n_started_ = 0;  // batches
  int64_t n_awaited_ = 0;  // of them the step's stream has waited for
  std::map<FeatureId, Soft> features_;
  FeatureId next_ = 1;
};

}  // namespace

Result<std::unique_ptr<Features>> Features::make(const ModelConfig& config, const DeviceVision& vision,
                                                 bool portable, bool graphs) {
  const VisionConfig& v = *config.vision;
  if (v.head_dim != 64 || v.hidden_size % 64 != 0 || v.intermediate_size % 64 != 0 ||
      v.patch_values() % 64 != 0) {
    return unsupported(
        fmt::format("config: a vision tower of {} heads of {}; the CUDA backend expects head_dim 64 and "
                    "widths in multiples of 64; use --device cpu",
                    v.n_heads, v.head_dim));
  }
  auto features = std::make_unique<EncodedFeatures>(config, vision, portable, graphs);
  JEWEL_TRY(features->open());
  return std::unique_ptr<Features>(std::move(features));
}

}  // namespace jewel::cuda
