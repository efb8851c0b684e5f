#include "backend/cuda/per_layer_table.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/cuda/product_weight.h"
#include "backend/cuda/tiles.h"
#include "model/dtype.h"

namespace jewel::cuda {
namespace {

constexpr std::string_view kDoing = "the per-layer table";

// By which FP16 has room for all per-layer inputs: |RMS(c; w)| <= sqrt(width) |w|. 1 for any model that was
// trained.
Result<float> scale_of_table(const TextConfig& text, const DeviceWeights& weights) {
  constexpr float kLargestF16 = 65'504, kMostScale = 0x1p100f;
  const PerLayerNorm norm = per_layer_norm(text, weights);
  const auto width = static_cast<size_t>(norm.width);
  JEWEL_ASSIGN(const DeviceBuffer buffer, DeviceBuffer::make(sizeof(uint32_t), kDoing));
  auto* device_bits = buffer.as<uint32_t>();
  JEWEL_CUDA_TRY(cudaMemset(device_bits, 0, sizeof(uint32_t)), kDoing);
  JEWEL_CUDA_TRY(
      launch_largest_magnitude(weights.per_layer_table, int64_t{text.vocab_size} * per_layer_columns(text),
                               device_bits, nullptr),
      kDoing);
  uint32_t bits = 0;
  std::vector<float> values(width);
  JEWEL_CUDA_TRY(cudaMemcpy(&bits, device_bits, sizeof(bits), cudaMemcpyDeviceToHost), kDoing);
  JEWEL_CUDA_TRY(cudaMemcpy(values.data(), norm.weight, width * sizeof(float), cudaMemcpyDeviceToHost),
                 kDoing);
  float most = 0;
  for (const float value : values) most = std::max(most, std::abs(value));
  const float bound = std::sqrt(static_cast<float>(width)) * most +
                      norm.token_scale * bf16_to_f32(static_cast<uint16_t>(bits));
  float scale = 1;
  while (scale < kMostScale && bound > kLargestF16 * scale) scale *= 2;
  return scale;
}

}  // namespace

float embedding_scale(const TextConfig& text) {
  return round_to_bf16(std::sqrt(static_cast<float>(text.hidden_size)));
}

PerLayerNorm per_layer_norm(const TextConfig& text, const DeviceWeights& weights) {
  const int p = text.hidden_size_per_layer_input;
  return {.weight = weights.per_layer_projection_norm,
          .projection_scale = 1.0f / std::sqrt(static_cast<float>(text.hidden_size)),
          .token_scale = round_to_bf16(std::sqrt(static_cast<float>(p))),
          .width = p,
          .eps = text.rms_norm_eps};
}

Result<void> make_per_layer_table(const TextConfig& text, bool portable, DeviceWeights& weights) {
  JEWEL_ASSIGN(weights.per_layer_scale, scale_of_table(text, weights));
  constexpr int kRows = 2048;  // at a time
  const int hidden = text.hidden_size, columns = per_layer_columns(text);
  constexpr size_t kSize = kRows;
  JEWEL_ASSIGN(const DeviceBuffer ids, DeviceBuffer::make(kSize * sizeof(int32_t), kDoing));
  JEWEL_ASSIGN(const DeviceBuffer h,
               DeviceBuffer::make(kSize * sizeof(float) * static_cast<size_t>(hidden), kDoing));
  JEWEL_ASSIGN(const DeviceBuffer x,
               DeviceBuffer::make(kSize * sizeof(__nv_bfloat16) * static_cast<size_t>(hidden), kDoing));
  JEWEL_ASSIGN(const DeviceBuffer c,
               DeviceBuffer::make(kSize * sizeof(float) * static_cast<size_t>(columns), kDoing));
  std::vector<int32_t> host_ids(kRows);
  std::iota(host_ids.begin(), host_ids.end(), 0);
  JEWEL_CUDA_TRY(
      cudaMemcpy(ids.data(), host_ids.data(), host_ids.size() * sizeof(int32_t), cudaMemcpyHostToDevice),
      kDoing);

  JEWEL_ASSIGN(const Stream stream, Stream::make());
  for (int first = 0; first < text.vocab_size; first += kRows) {
    const int rows = std::min(kRows, text.vocab_size - first);
    JEWEL_CUDA_TRY(launch_embed_rows(
                       {.ids = ids.as<int32_t>(),
                        .table = weights.embed_tokens + int64_t{first} * hidden,
                        .scale = embedding_scale(text),
                        .rows = rows,
                        .hidden = hidden,
                        .h = h.as<float>(),
                        .input = {.form = InputForm::kBF16ProductOrder, .data = x.data(), .stride = hidden}},
                       stream.get()),
                   kDoing);
    JEWEL_CUDA_TRY(
        launch_prefill_product({.weight = product_weight(weights.per_layer_model_projection),
                                .x = x.data(),
                                .x_stride = hidden,
                                .rows = rows,
                                .out = c.data(),
                                .out_stride = columns},
                               portable ? ProductDesign::kPortable : ProductDesign::kSm90, stream.get()),
        kDoing);
    JEWEL_CUDA_TRY(launch_per_layer_table({.norm = per_layer_norm(text, weights),
                                           .c = c.as<float>(),
                                           .table = weights.per_layer_table + int64_t{first} * columns,
                                           .scale = weights.per_layer_scale,
                                           .rows = rows,
                                           .n_layers = text.n_layers},
                                          stream.get()),
                   kDoing);
  }
  JEWEL_CUDA_TRY(cudaStreamSynchronize(stream.get()), kDoing);
  return {};
}

}  // namespace jewel::cuda
