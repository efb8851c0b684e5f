#include "backend/cuda/features.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "backend/cuda/product_weight.h"
#include "backend/cuda/vision_encoder.h"

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
  EncodedFeatures(const ModelConfig& config, const DeviceVision& vision, bool portable)
      : shape_(shape_of(config)),
        encoder_(shape_, device_weights(vision), portable ? ProductDesign::kPortable : ProductDesign::kSm90) {
  }

  Result<FeatureId> encode(const ImagePatches& patches, cudaStream_t stream) override {
    const int n = patches.grid_h * patches.grid_w, pooling = shape_.pooling;
    const size_t bytes = static_cast<size_t>(n) * static_cast<size_t>(shape_.patch_values);
    if (patches.grid_h <= 0 || patches.grid_w <= 0 || patches.grid_h % pooling != 0 ||
        patches.grid_w % pooling != 0 || patches.pixels.size() != bytes) {
      return invalid(
          fmt::format("image: a grid of {} x {} patches with {} bytes; expected multiples of {} and {} bytes",
                      patches.grid_w, patches.grid_h, patches.pixels.size(), pooling, bytes));
    }
    if (std::max(patches.grid_h, patches.grid_w) > shape_.n_positions) {
      return too_large(
          fmt::format("image: a grid of {} x {} patches passes the {} positions of the model's table; use a "
                      "smaller token budget or a less extreme shape",
                      patches.grid_w, patches.grid_h, shape_.n_positions));
    }
    const size_t workspace = encoder_.workspace_bytes(n);
    if (workspace_.bytes() < workspace) {
      JEWEL_CUDA_TRY(cudaStreamSynchronize(stream), "waiting for steps");
      workspace_ = {};
      JEWEL_ASSIGN(workspace_, DeviceBuffer::make(workspace, "the vision tower"));
    }
    const int tokens = n / (pooling * pooling);
    const size_t soft_bytes =
        static_cast<size_t>(tokens) * static_cast<size_t>(shape_.text_hidden) * sizeof(float);
    void *pixels = nullptr, *soft = nullptr;
    JEWEL_CUDA_TRY(cudaMallocAsync(&soft, soft_bytes, stream), "memory for soft tokens");
    JEWEL_CUDA_TRY(cudaMallocAsync(&pixels, bytes, stream), "memory for an image");
    JEWEL_CUDA_TRY(cudaMemcpyAsync(pixels, patches.pixels.data(), bytes, cudaMemcpyHostToDevice, stream),
                   "sending an image");
    const VisionGrid grid{.grid_h = patches.grid_h, .grid_w = patches.grid_w};
    JEWEL_CUDA_TRY(encoder_.encode({&grid, 1}, static_cast<const uint8_t*>(pixels), static_cast<float*>(soft),
                                   workspace_.data(), stream),
                   "the vision tower");
    JEWEL_CUDA_TRY(cudaFreeAsync(pixels, stream), "an image's memory");
    features_[next_] = {static_cast<float*>(soft), tokens};
    return next_++;
  }

  void release(FeatureId feature, cudaStream_t stream) override {
    const auto it = features_.find(feature);
    JEWEL_CHECK(it != features_.end(), "feature {} is not held", feature);
    cudaFreeAsync(it->second.values, stream);
    features_.erase(it);
  }

  float* rows(FeatureId feature, int row, int count) const override {
    const auto it = features_.find(feature);
    JEWEL_CHECK(it != features_.end(), "feature {} is not held", feature);
    JEWEL_CHECK(row >= 0 && count >= 0 && row <= it->second.n - count, "rows {} + {} of a feature of {}", row,
                count, it->second.n);
    return it->second.values + static_cast<int64_t>(row) * shape_.text_hidden;
  }

 private:
  struct Soft {
    float* values = nullptr;
    int n = 0;
  };

  VisionShape shape_;
  VisionEncoder encoder_;
  DeviceBuffer workspace_;
  std::map<FeatureId, Soft> features_;
  FeatureId next_ = 1;
};

}  // namespace

Result<std::unique_ptr<Features>> Features::make(const ModelConfig& config, const DeviceVision& vision,
                                                 bool portable) {
  const VisionConfig& v = *config.vision;
  if (v.head_dim != 64 || v.hidden_size % 64 != 0 || v.intermediate_size % 64 != 0 ||
      v.patch_values() % 64 != 0) {
    return unsupported(
        fmt::format("config: a vision tower of {} heads of {}; the CUDA backend expects head_dim 64 and "
                    "widths in multiples of 64; use --device cpu",
                    v.n_heads, v.head_dim));
  }
  return std::unique_ptr<Features>(std::make_unique<EncodedFeatures>(config, vision, portable));
}

}  // namespace jewel::cuda
