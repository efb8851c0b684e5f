#include "backend/cuda/vision_encoder.h"

#include <algorithm>
#include <cmath>

#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/prefill_rows.h"
#include "backend/cuda/row_store.h"
#include "backend/cuda/vision_attention.h"

namespace jewel::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPairs = kVisionHeadDim / 4;  // of each axis

struct Frequencies {
  float of[kPairs];
};

// f_i = theta^(-2i / 32), as cpu/vision.cc computes them.
Frequencies axis_frequencies(float theta) {
  Frequencies frequencies{};
  for (int i = 0; i < kPairs; ++i) {
    frequencies.of[i] = 1.0f / std::pow(theta, static_cast<float>(2 * i) / static_cast<float>(2 * kPairs));
  }
  return frequencies;
}

struct PatchPlace {
  int x, y, image;
};
__device__ __forceinline__ PatchPlace place_of(const VisionImages& images, int patch) {
  int image = 0;
  while (patch >= images.first[image + 1]) ++image;
  const int within = patch - images.first[image];
  return {within % images.grid_w[image], within / images.grid_w[image], image};
}

// 2 (p / 255 - 1/2) in BF16, product order; a thread takes a group of 16.
__global__ void __launch_bounds__(kThreads)
    patch_input_kernel(const uint8_t* pixels, int64_t groups, uint4* out) {
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= groups) return;
  const uint4 bytes = reinterpret_cast<const uint4*>(pixels)[i];
  const auto pair = [](uint32_t word, int at) {
    const auto value = [word](int byte) {
      return 2.0f * (static_cast<float>(word >> (8 * byte) & 0xff) * (1.0f / 255.0f) - 0.5f);
    };
    return pack_bf16(value(at), value(at + 1));
  };
  out[2 * i] = make_uint4(pair(bytes.x, 0), pair(bytes.y, 0), pair(bytes.z, 0), pair(bytes.w, 0));
  out[2 * i + 1] = make_uint4(pair(bytes.x, 2), pair(bytes.y, 2), pair(bytes.z, 2), pair(bytes.w, 2));
}

// h += T[0][x] + T[1][y]
__global__ void __launch_bounds__(kThreads)
    add_positions_kernel(float* h, const __nv_bfloat16* table, int n_positions, int hidden,
                         const __grid_constant__ VisionImages images) {
  wait_for_previous();
  const PatchPlace place = place_of(images, static_cast<int>(blockIdx.x));
  const __nv_bfloat16* tx = table + static_cast<int64_t>(place.x) * hidden;
  const __nv_bfloat16* ty = table + (static_cast<int64_t>(n_positions) + place.y) * hidden;
  float* row = h + static_cast<int64_t>(blockIdx.x) * hidden;
  for (int i = static_cast<int>(threadIdx.x); i < hidden; i += kThreads) {
    row[i] += __bfloat162float(tx[i]) + __bfloat162float(ty[i]);
  }
}

// From the products of q, k and v [patches, 3 * heads * 64] to BF16 [3][heads][patches][64]: norms, and for q
// and k the rotation of the first half of a head by the column, of the second by the row. Lane l of a warp
// holds values l and l + 32 of a head; its partner in both halves is lane l ^ 16.
__global__ void __launch_bounds__(kThreads)
    vision_heads_kernel(const float* qkv, int n_heads, const float* q_norm, const float* k_norm, float eps,
                        const Frequencies frequencies, __nv_bfloat16* out,
                        const __grid_constant__ VisionImages images) {
  wait_for_previous();
  const int patch = static_cast<int>(blockIdx.x), warp = static_cast<int>(threadIdx.x / 32),
            lane = static_cast<int>(threadIdx.x % 32);
  const PatchPlace place = place_of(images, patch);
  const float frequency = frequencies.of[lane % kPairs];
  float sin_x, cos_x, sin_y, cos_y;
  sincosf(static_cast<float>(place.x) * frequency, &sin_x, &cos_x);
  sincosf(static_cast<float>(place.y) * frequency, &sin_y, &cos_y);
  if (lane < kPairs) sin_x = -sin_x, sin_y = -sin_y;
  const int patches = images.first[images.n];
  for (int item = warp; item < 3 * n_heads; item += kThreads / 32) {
    const int which = item / n_heads;
    const float* in = qkv + (static_cast<int64_t>(patch) * 3 * n_heads + item) * kVisionHeadDim;
    float a = in[lane], b = in[lane + 32];
    const float sum = block_reduce<32, false>(a * a + b * b, nullptr);
    const float scale = 1.0f / sqrtf(sum / static_cast<float>(kVisionHeadDim) + eps);
    a *= scale, b *= scale;
    if (which < 2) {
      const float* weight = which == 0 ? q_norm : k_norm;
      a *= weight[lane], b *= weight[lane + 32];
      const float other_a = __shfl_xor_sync(0xffffffffu, a, 16),
                  other_b = __shfl_xor_sync(0xffffffffu, b, 16);
      a = a * cos_x + other_a * sin_x;
      b = b * cos_y + other_b * sin_y;
    }
    __nv_bfloat16* to = out + (static_cast<int64_t>(item) * patches + patch) * kVisionHeadDim;
    to[lane] = __float2bfloat16(a);
    to[lane + 32] = __float2bfloat16(b);
  }
}

// A block makes one soft token's input: the mean of its cell of patches times sqrt(hidden), normalized
// without a weight.
template <int kGroups>
__global__ void __launch_bounds__(kThreads)
    pool_kernel(const float* h, int hidden, int side, float eps, const ProductInputOut out,
                const __grid_constant__ VisionImages images) {
  __shared__ float scratch[kThreads / 32];
  wait_for_previous();
  const int cell = static_cast<int>(blockIdx.x);
  int image = 0;
  while (cell >= images.first_cell[image + 1]) ++image;
  const int within = cell - images.first_cell[image], grid_w = images.grid_w[image], cells_w = grid_w / side;
  const int64_t corner = images.first[image] + within / cells_w * side * grid_w + within % cells_w * side;
  const float patches = static_cast<float>(side * side), scale = sqrtf(static_cast<float>(hidden));
  float4 v[kGroups] = {};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int group = static_cast<int>(threadIdx.x) + i * kThreads;
    if (group >= hidden / 4) continue;
    for (int p = 0; p < side * side; ++p) {
      const int64_t patch = corner + p / side * grid_w + p % side;
      const float4 in = reinterpret_cast<const float4*>(h + patch * hidden)[group];
      v[i].x += in.x / patches, v[i].y += in.y / patches, v[i].z += in.z / patches, v[i].w += in.w / patches;
    }
    v[i] = {v[i].x * scale, v[i].y * scale, v[i].z * scale, v[i].w * scale};
    sum += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
  }
  const float inverse =
      1.0f / sqrtf(block_reduce<kThreads, false>(sum, scratch) / static_cast<float>(hidden) + eps);
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    v[i] = {v[i].x * inverse, v[i].y * inverse, v[i].z * inverse, v[i].w * inverse};
  }
  store_row<kThreads>(out, cell, hidden, v, scratch);
}

size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

// The caller's memory, cut into what a pass needs.
struct Workspace {
  float* h;              // [patches, hidden]
  float* sums;           // [patches, max(3 hidden, ...)]: products in FP32
  __nv_bfloat16* input;  // [patches, max(hidden, patch_values)]: a product's input
  __nv_bfloat16* heads;  // [3][heads][patches][64]
  __nv_bfloat16* wide;   // [patches, intermediate]
  size_t bytes;

  Workspace(const VisionShape& shape, int n_patches, void* memory) {
    const auto n = static_cast<size_t>(n_patches), hidden = static_cast<size_t>(shape.hidden);
    auto* at = static_cast<std::byte*>(memory);
    const auto take = [&](auto*& pointer, size_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
      at += aligned(count * sizeof(*pointer));
    };
    take(h, n * hidden);
    take(sums, n * 3 * hidden);
    take(input, n * static_cast<size_t>(std::max(shape.hidden, shape.patch_values)));
    take(heads, n * 3 * hidden);
    take(wide, n * static_cast<size_t>(shape.intermediate));
    bytes = static_cast<size_t>(at - static_cast<std::byte*>(memory));
  }
};

#define JEWEL_CUDA_TRY(call) \
  if (const cudaError_t error = (call); error != cudaSuccess) return error

// One call's passes: what a layer's steps share.
struct Pass {
  const VisionShape& shape;
  ProductDesign design;
  VisionImages images;
  Workspace at;
  int n;  // patches
  cudaStream_t stream;

  cudaError_t product(const ProductWeight& weight, const void* x, int x_stride, int rows, ProductOut form,
                      void* out, int out_stride, const Bounds& bounds = {}) const {
    PrefillProduct p;
    p.weight = weight;
    p.x = x;
    p.x_stride = x_stride;
    p.rows = rows;
    p.form = form;
    p.out = out;
    p.out_stride = out_stride;
    p.out_min = bounds.min;
    p.out_max = bounds.max;
    return launch_prefill_product(p, design, stream);
  }

  ProductInputOut input_within(const Bounds& bounds) const {
    return {.form = InputForm::kBF16ProductOrder,
            .data = at.input,
            .stride = shape.hidden,
            .min = bounds.min,
            .max = bounds.max};
  }

  // h += RMS(sums; post), then the next product's input RMS(h; next); post null: only the latter; next null:
  // only the former.
  cudaError_t norm(const float* post, const float* next, const Bounds& bounds) const {
    ResidualNorm r;
    r.x = post != nullptr ? at.sums : nullptr;
    r.x_stride = shape.hidden;
    r.post_weight = post;
    r.h = at.h;
    r.next_weight = next;
    if (next != nullptr) r.input = input_within(bounds);
    r.rows = n;
    r.columns = shape.hidden;
    r.eps = shape.rms_norm_eps;
    return launch_residual_norm(r, stream);
  }

  cudaError_t embed(const VisionDeviceWeights& weights, const uint8_t* pixels) const {
    const int64_t groups = static_cast<int64_t>(n) * shape.patch_values / 16;
    JEWEL_CUDA_TRY(launch_dependent(patch_input_kernel,
                                    dim3(static_cast<unsigned>((groups + kThreads - 1) / kThreads)), kThreads,
                                    0, stream, pixels, groups, reinterpret_cast<uint4*>(at.input)));
    JEWEL_CUDA_TRY(product(weights.patch_projection, at.input, shape.patch_values, n, ProductOut::kF32, at.h,
                           shape.hidden));
    return launch_dependent(add_positions_kernel, dim3(static_cast<unsigned>(n)), kThreads, 0, stream, at.h,
                            weights.positions, shape.n_positions, shape.hidden, images);
  }

  // The input of q, k and v is ready; leaves that of the next layer (or nothing, after the last).
  cudaError_t layer(const VisionDeviceLayer& w, const VisionDeviceLayer* next) const {
    const int hidden = shape.hidden;
    JEWEL_CUDA_TRY(product(w.qkv, at.input, hidden, n, ProductOut::kF32, at.sums, 3 * hidden));
    JEWEL_CUDA_TRY(launch_dependent(vision_heads_kernel, dim3(static_cast<unsigned>(n)), kThreads, 0, stream,
                                    at.sums, shape.n_heads, w.q_norm, w.k_norm, shape.rms_norm_eps,
                                    axis_frequencies(shape.rope_theta), at.heads, images));
    const int64_t third = static_cast<int64_t>(n) * hidden;
    JEWEL_CUDA_TRY(launch_vision_attention({.q = at.heads,
                                            .k = at.heads + third,
                                            .v = at.heads + 2 * third,
                                            .out = at.input,
                                            .n_heads = shape.n_heads,
                                            .min = w.o_input.min,
                                            .max = w.o_input.max},
                                           images, stream));
    JEWEL_CUDA_TRY(product(w.o, at.input, hidden, n, ProductOut::kF32, at.sums, hidden));
    JEWEL_CUDA_TRY(norm(w.post_attention_layernorm, w.pre_feedforward_layernorm, w.gate_up_input));
    JEWEL_CUDA_TRY(product(w.gate_up, at.input, hidden, n, ProductOut::kGateUp, at.wide, shape.intermediate,
                           w.down_input));
    JEWEL_CUDA_TRY(product(w.down, at.wide, shape.intermediate, n, ProductOut::kF32, at.sums, hidden));
    return norm(w.post_feedforward_layernorm, next != nullptr ? next->input_layernorm : nullptr,
                next != nullptr ? next->qkv_input : Bounds{});
  }

  cudaError_t project(const VisionDeviceWeights& weights, float* soft_tokens) const {
    const int cells = images.first_cell[images.n];
    const ProductInputOut out = input_within({});
    JEWEL_CUDA_TRY(launch_dependent(shape.hidden <= 1024 ? pool_kernel<2> : pool_kernel<8>,
                                    dim3(static_cast<unsigned>(cells)), kThreads, 0, stream, at.h,
                                    shape.hidden, shape.pooling, shape.rms_norm_eps, out, images));
    return product(weights.embedding_projection, at.input, shape.hidden, cells, ProductOut::kF32, soft_tokens,
                   shape.text_hidden);
  }
};

}  // namespace

size_t VisionEncoder::workspace_bytes(int n_patches) const {
  return Workspace(shape_, n_patches, nullptr).bytes;
}

cudaError_t VisionEncoder::encode(std::span<const VisionGrid> grids, const uint8_t* pixels,
                                  float* soft_tokens, void* workspace, cudaStream_t stream) const {
  if (grids.empty() || grids.size() > kMaxImages || shape_.hidden != shape_.n_heads * kVisionHeadDim ||
      shape_.hidden > 4096) {
    return cudaErrorInvalidValue;
  }
  VisionImages images;
  for (const VisionGrid& grid : grids) {
    const int i = images.n++;
    images.grid_w[i] = grid.grid_w;
    images.first[i + 1] = images.first[i] + grid.patches();
    images.first_cell[i + 1] = images.first_cell[i] + grid.patches() / (shape_.pooling * shape_.pooling);
  }
  const int n = images.first[images.n];
  const Pass pass{shape_, design_, images, Workspace(shape_, n, workspace), n, stream};
  JEWEL_CUDA_TRY(pass.embed(weights_, pixels));
  JEWEL_CUDA_TRY(
      pass.norm(nullptr, weights_.layers.front().input_layernorm, weights_.layers.front().qkv_input));
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    JEWEL_CUDA_TRY(
        pass.layer(weights_.layers[i], i + 1 < weights_.layers.size() ? &weights_.layers[i + 1] : nullptr));
  }
  return pass.project(weights_, soft_tokens);
}

#undef JEWEL_CUDA_TRY

}  // namespace jewel::cuda
