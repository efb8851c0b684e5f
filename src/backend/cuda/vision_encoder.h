// The vision tower on the device: uint8 patches of one or several images to soft tokens. The arithmetic is
// cpu/vision.h's: inputs of products, probabilities and V rounded to BF16, all else FP32; q and k are rounded
// too, as in the reference. Clipped linears' bounds hold on inputs and outputs. Attention is within each
// image, in both directions.
//
// encode() only launches kernels on `stream`, on memory given by the caller, and can be captured in a graph
// for a fixed list of shapes. A patch's result depends on its own image alone, bitwise: not on the others of
// the batch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/cuda/prefill_product.h"

namespace jewel::cuda {

struct VisionShape {
  int hidden = 0;        // a multiple of 64
  int intermediate = 0;  // a multiple of 64
  int n_layers = 0;
  int n_heads = 0;       // head_dim is 64
  int patch_values = 0;  // patch_size^2 * 3, a multiple of 64
  int pooling = 3;
  int n_positions = 0;  // rows of the table of positions, for each axis
  int text_hidden = 0;
  float rms_norm_eps = 1e-6f;
  float rope_theta = 100;
};

struct Bounds {
  float min = -3.4e38f;
  float max = 3.4e38f;
};

// Device pointers. Weights are BF16 fragment tiles (or FP8 ones with scales), row_clamp = the outputs'
// bounds.
struct VisionDeviceLayer {
  ProductWeight qkv;      // rows of q, k, v: [3 * hidden, hidden]
  ProductWeight o;        // [hidden, hidden]
  ProductWeight gate_up;  // 8 + 8 rows interleaved: [2 * intermediate, hidden]
  ProductWeight down;     // [hidden, intermediate]
  Bounds qkv_input, o_input, gate_up_input, down_input;
  const float* input_layernorm = nullptr;  // [hidden]
  const float* post_attention_layernorm = nullptr;
  const float* pre_feedforward_layernorm = nullptr;
  const float* post_feedforward_layernorm = nullptr;
  const float* q_norm = nullptr;  // [64]
  const float* k_norm = nullptr;
};

struct VisionDeviceWeights {
  ProductWeight patch_projection;            // [hidden, patch_values]
  const __nv_bfloat16* positions = nullptr;  // [2, n_positions, hidden]: x, then y
  std::vector<VisionDeviceLayer> layers;
  ProductWeight embedding_projection;  // [text_hidden, hidden]
};

struct VisionGrid {
  int grid_h = 0;  // patches; multiples of pooling
  int grid_w = 0;
  int patches() const { return grid_h * grid_w; }
  bool operator==(const VisionGrid&) const = default;
};

class VisionEncoder {
 public:
  VisionEncoder(const VisionShape& shape, const VisionDeviceWeights& weights, ProductDesign design)
      : shape_(shape), weights_(weights), design_(design) {}

  // Bytes of device memory that encode() needs for images with this many patches in all.
  size_t workspace_bytes(int n_patches) const;

  // pixels: uint8 [sum of patches, patch_values], image after image. soft_tokens: FP32 [sum of soft tokens,
  // text_hidden]. `workspace` is 256-byte aligned. At most kMaxImages images a call; grids must have been
  // checked (multiples of pooling, no side longer than n_positions).
  static constexpr int kMaxImages = 32;  // the table of images is a kernel parameter
  cudaError_t encode(std::span<const VisionGrid> images, const uint8_t* pixels, float* soft_tokens,
                     void* workspace, cudaStream_t stream) const;

 private:
  VisionShape shape_;
  VisionDeviceWeights weights_;
  ProductDesign design_;
};

}  // namespace jewel::cuda
