// The model's weights on the device, laid out for the kernels, and how they get there.
//
// Linear weights are fragment tiles (tiles.h), one copy for decode and prefill; the embedding table is plain
// BF16 rows; the per-layer table (per_layer_table.h) lies on the device or in page-locked host memory that
// kernels read directly. Norms and scales are float32. Loading maps nothing twice: worker threads copy the
// mapped files through small page-locked buffers, each on its own stream, and kernels lay the rows out.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "backend/cuda/device.h"
#include "model/config.h"
#include "model/weights.h"

namespace jewel::cuda {

struct DeviceLinear {
  const void* tiles = nullptr;
  const float* row_scale = nullptr;   // [n] in the tiles' row order; null: 1
  const float2* row_clamp = nullptr;  // [n] bounds of the outputs of clipped linears; null: none
  int n = 0;                          // 0: absent
  int k = 0;
  bool fp8 = false;
  // Of what it multiplies: a power of two by which FP16 has room for every value; 0: none is known.
  float f16_scale = 0;

  size_t bytes() const { return static_cast<size_t>(n) * static_cast<size_t>(k) * (fp8 ? 1 : 2); }
  // Rows [first, first + count) as a matrix of their own; both multiples of 16.
  DeviceLinear rows(int first, int count) const;
};

struct DeviceLayer {
  DeviceLinear qkv;      // q, and below it k and v where the layer owns them
  DeviceLinear o;        // o_proj
  DeviceLinear gate_up;  // 8 rows of gate_proj, 8 of up_proj, in turn
  DeviceLinear down;
  DeviceLinear ple_gate;
  DeviceLinear ple_up;
  const float* input_norm = nullptr;
  const float* post_attention_norm = nullptr;
  const float* pre_feedforward_norm = nullptr;
  const float* post_feedforward_norm = nullptr;
  const float* post_ple_norm = nullptr;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float layer_scalar = 1;
  float k_scale = 1;
  float v_scale = 1;
};

struct DeviceBounds {
  float min = 0;
  float max = 0;
};

struct DeviceVisionLayer {
  DeviceLinear qkv, o, gate_up, down;
  DeviceBounds qkv_input, o_input, gate_up_input, down_input;
  const float* input_norm = nullptr;
  const float* post_attention_norm = nullptr;
  const float* pre_feedforward_norm = nullptr;
  const float* post_feedforward_norm = nullptr;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
};

struct DeviceVision {
  DeviceLinear patch_projection;
  const __nv_bfloat16* positions = nullptr;  // [2, n_positions, hidden]
  std::vector<DeviceVisionLayer> layers;
  DeviceLinear embedding_projection;
};

enum class PlePlace : uint8_t { kAuto, kDevice, kHost };

struct LoadOptions {
  bool head_fp8 = false;  // the head in FP8 with a scale a row, made while loading
  PlePlace ple = PlePlace::kAuto;
  size_t wanted_free_bytes = 0;  // kAuto: the table goes to the device if this much stays free
  bool portable = false;         // the per-layer table by the kernels of sm_80 and sm_89
  int n_threads = 8;
  std::function<void(size_t done, size_t total)> progress;
};

class DeviceWeights {
 public:
  // Unsupported: float32 weights (--dtype float32 is the CPU's), shapes that the tiles cannot hold.
  static Result<std::unique_ptr<DeviceWeights>> load(const ModelConfig& config, const ModelWeights& weights,
                                                     const LoadOptions& options);
  ~DeviceWeights();
  DeviceWeights(const DeviceWeights&) = delete;
  DeviceWeights& operator=(const DeviceWeights&) = delete;

  const __nv_bfloat16* embed_tokens = nullptr;  // [vocab, hidden]
  __half* per_layer_table = nullptr;  // [vocab_per_layer, layers * P]: tokens' per-layer inputs divided by
  float per_layer_scale = 1;          // this, a power of two
  __nv_bfloat16* pad_per_layer = nullptr;  // [layers * P]: the row of pad of embed_tokens_per_layer
  bool ple_on_device = true;
  DeviceLinear per_layer_model_projection;
  const float* per_layer_projection_norm = nullptr;
  std::vector<DeviceLayer> layers;
  const float* norm = nullptr;
  DeviceLinear lm_head;
  std::optional<DeviceVision> vision;
  const float* rope_full = nullptr;  // frequencies, the rotating ones
  int n_rope_full = 0;
  const float* rope_sliding = nullptr;
  int n_rope_sliding = 0;

  size_t device_bytes() const { return memory_.bytes(); }
  size_t host_bytes() const { return host_table_bytes_; }

 private:
  class Loader;
  DeviceWeights() = default;
  Result<void> scale_down_inputs(int hidden_size);
  Result<void> put_ple_on_host(const TensorView& table, int n_threads);

  DeviceBuffer memory_;
  void* host_table_ = nullptr;  // page-locked
  size_t host_table_bytes_ = 0;
};

}  // namespace jewel::cuda
