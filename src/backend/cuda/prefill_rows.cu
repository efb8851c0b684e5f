#include "backend/cuda/prefill_rows.h"

#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/device_values.h"
#include "backend/cuda/row_store.h"

namespace jewel::cuda {
namespace {

// A row is read into registers once: 128 threads x kGroups x 4 columns.
constexpr int kThreads = 128;
constexpr int kMaxColumns = 8192;

bool fits(int columns, const ProductInputOut& input) {
  if (columns <= 0 || columns % 64 != 0 || columns > kMaxColumns) return false;
  if (input.form == InputForm::kNone) return true;
  return input.data != nullptr && input.stride >= columns && input.stride % 16 == 0 &&
         (input.form != InputForm::kF8 || input.scale != nullptr);
}

__device__ __forceinline__ float sum_of_squares(const float4& v) {
  return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
}

template <int kGroups>
__device__ __forceinline__ float inverse_rms(const float4 (&v)[kGroups], int columns, float eps,
                                             float* scratch) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kGroups; ++i) sum += sum_of_squares(v[i]);  // groups past the row are zero
  return 1.0f / sqrtf(block_reduce<kThreads, false>(sum, scratch) / static_cast<float>(columns) + eps);
}

template <int kGroups>
__global__ void __launch_bounds__(kThreads) embed_rows_kernel(const EmbedRows embed) {
  __shared__ float scratch[kThreads / 32];
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const int n = embed.hidden / 4;
  const float* soft = embed.soft_rows != nullptr ? embed.soft_rows[row] : nullptr;
  const __nv_bfloat16* table = embed.table + static_cast<int64_t>(embed.ids[row]) * embed.hidden;
  float4 v[kGroups];
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int group = static_cast<int>(threadIdx.x) + i * kThreads;
    if (group >= n) continue;
    if (soft != nullptr) {
      v[i] = reinterpret_cast<const float4*>(soft)[group];
    } else {
      v[i] = scaled(load_bf16x4(table + 4 * group), embed.scale);
    }
    reinterpret_cast<float4*>(embed.h + row * embed.hidden)[group] = v[i];
  }
  store_row<kThreads>(embed.input, row, embed.hidden, v, scratch);
}

template <int kGroups>
__global__ void __launch_bounds__(kThreads) residual_norm_kernel(const ResidualNorm norm) {
  __shared__ float scratch[kThreads / 32];
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const int n = norm.columns / 4;
  auto* h = reinterpret_cast<float4*>(norm.h + row * norm.columns);
  float4 v[kGroups] = {};
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int group = static_cast<int>(threadIdx.x) + i * kThreads;
    if (group < n) v[i] = h[group];
  }
  if (norm.x != nullptr) {
    float4 x[kGroups] = {};
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int group = static_cast<int>(threadIdx.x) + i * kThreads;
      if (group >= n) continue;
      x[i] = norm.x_is_bf16
                 ? load_bf16x4(static_cast<const __nv_bfloat16*>(norm.x) + row * norm.x_stride + 4 * group)
                 : reinterpret_cast<const float4*>(static_cast<const float*>(norm.x) +
                                                   row * norm.x_stride)[group];
    }
    const float scale = inverse_rms(x, norm.columns, norm.eps, scratch);
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int group = static_cast<int>(threadIdx.x) + i * kThreads;
      if (group >= n) continue;
      const float4 w = reinterpret_cast<const float4*>(norm.post_weight)[group];
      v[i].x = (v[i].x + x[i].x * scale * w.x) * norm.scalar;
      v[i].y = (v[i].y + x[i].y * scale * w.y) * norm.scalar;
      v[i].z = (v[i].z + x[i].z * scale * w.z) * norm.scalar;
      v[i].w = (v[i].w + x[i].w * scale * w.w) * norm.scalar;
      h[group] = v[i];
    }
  }
  if (norm.input.form == InputForm::kNone) return;
  if (norm.next_is_norm) {
    const float scale = inverse_rms(v, norm.columns, norm.eps, scratch);
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int group = static_cast<int>(threadIdx.x) + i * kThreads;
      if (group >= n) continue;
      const float4 w = norm.next_weight != nullptr ? reinterpret_cast<const float4*>(norm.next_weight)[group]
                                                   : float4{1, 1, 1, 1};
      v[i] = {v[i].x * scale * w.x, v[i].y * scale * w.y, v[i].z * scale * w.z, v[i].w * scale * w.w};
    }
  }
  store_row<kThreads>(norm.input, row, norm.columns, v, scratch);
}

// One layer of one row by a warp: width / 128 groups of 4 columns a lane (width 64: half of the lanes).
template <int kGroups>
struct LayerRow {
  float4 v[kGroups];

  __device__ __forceinline__ void load(const __nv_bfloat16* from, int width) {
    each_group(width, [&](int i, int column) { v[i] = load_bf16x4(from + column); });
  }
  __device__ __forceinline__ void load(const __half* from, float scale, int width) {
    each_group(width, [&](int i, int column) {
      v[i] = scaled(widened_f16x4(*reinterpret_cast<const uint2*>(from + column)), scale);
    });
  }

  // From a row of embed_tokens_per_layer to per-layer inputs.
  __device__ __forceinline__ void add(const PerLayerNorm& norm, const float* projection) {
    float4 c[kGroups] = {};
    float sum = 0;
    each_group(norm.width, [&](int i, int column) {
      c[i] = scaled(*reinterpret_cast<const float4*>(projection + column), norm.projection_scale);
      sum += sum_of_squares(c[i]);
    });
    const float scale =
        1.0f / sqrtf(block_reduce<32, false>(sum, nullptr) / static_cast<float>(norm.width) + norm.eps);
    constexpr float kCombine = 0.70710678118654752f;
    each_group(norm.width, [&](int i, int column) {
      const float4 w = *reinterpret_cast<const float4*>(norm.weight + column);
      v[i] = {(c[i].x * scale * w.x + v[i].x * norm.token_scale) * kCombine,
              (c[i].y * scale * w.y + v[i].y * norm.token_scale) * kCombine,
              (c[i].z * scale * w.z + v[i].z * norm.token_scale) * kCombine,
              (c[i].w * scale * w.w + v[i].w * norm.token_scale) * kCombine};
    });
  }

  template <class Do>
  static __device__ __forceinline__ void each_group(int width, Do&& act) {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int column = 4 * static_cast<int>(threadIdx.x % 32) + 128 * i;
      if (column < width) act(i, column);
    }
  }
};

constexpr int kLayerRows = 4;  // of a block: one a warp

template <int kGroups>
__global__ void __launch_bounds__(32 * kLayerRows) per_layer_table_kernel(const PerLayerTable table) {
  wait_for_previous();
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kLayerRows + threadIdx.x / 32;
  if (item >= static_cast<int64_t>(table.rows) * table.n_layers) return;
  const int64_t at = item * table.norm.width;
  LayerRow<kGroups> row;
  row.load(static_cast<const __nv_bfloat16*>(table.table) + at, table.norm.width);
  row.add(table.norm, table.c + at);
  row.each_group(table.norm.width, [&](int i, int column) {
    const float4 v = scaled(row.v[i], 1 / table.scale);
    const __half2 low = __floats2half2_rn(v.x, v.y), high = __floats2half2_rn(v.z, v.w);
    *reinterpret_cast<uint2*>(static_cast<__half*>(table.table) + at + column) = {
        reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high)};
  });
}

template <int kGroups>
__global__ void __launch_bounds__(32 * kLayerRows) per_layer_inputs_kernel(const PerLayerInputs inputs) {
  release_next_kernel();
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kLayerRows + threadIdx.x / 32;
  if (item >= static_cast<int64_t>(inputs.rows) * inputs.n_layers) return;
  const int width = inputs.norm.width;
  const int64_t id = inputs.ids[item / inputs.n_layers];
  const int64_t layer = inputs.first_layer + item % inputs.n_layers;
  float* c = inputs.c + item * width;
  // What the kernel ahead does not write, and may come over PCIe, is asked for before the wait.
  LayerRow<kGroups> row;
  if (id < 0) {
    row.load(inputs.pad + layer * width, width);
  } else {
    row.load(inputs.table + id * inputs.table_columns + layer * width, inputs.table_scale, width);
  }
  wait_for_last_kernel();
  if (id < 0) row.add(inputs.norm, c);
  row.each_group(width, [&](int i, int column) { *reinterpret_cast<float4*>(c + column) = row.v[i]; });
}

bool fits(const PerLayerNorm& norm) {
  return norm.width > 0 && norm.width % 64 == 0 && norm.width <= 512;
}

dim3 layer_row_blocks(int rows, int n_layers) {
  return static_cast<unsigned>((int64_t{rows} * n_layers + kLayerRows - 1) / kLayerRows);
}

__global__ void __launch_bounds__(kThreads) gather_rows_kernel(const GatherRows gather) {
  wait_for_previous();
  const auto* in = reinterpret_cast<const float4*>(gather.in + gather.rows[blockIdx.x] * gather.in_stride);
  auto* out = reinterpret_cast<float4*>(gather.out + static_cast<int64_t>(blockIdx.x) * gather.columns);
  for (int i = static_cast<int>(threadIdx.x); i < gather.columns / 4; i += kThreads) out[i] = in[i];
}

}  // namespace

// Launches kernel<groups> with the least number of groups of 512 columns that hold a row.
#define JEWEL_BY_COLUMNS(columns, kernel, rows, stream, task) \
  launch_dependent((columns) <= 512    ? kernel<1>            \
                   : (columns) <= 1024 ? kernel<2>            \
                   : (columns) <= 1536 ? kernel<3>            \
                   : (columns) <= 2560 ? kernel<5>            \
                   : (columns) <= 4096 ? kernel<8>            \
                                       : kernel<16>,          \
                   dim3(static_cast<unsigned>(rows)), kThreads, 0, stream, task)

cudaError_t launch_embed_rows(const EmbedRows& embed, cudaStream_t stream) {
  if (!fits(embed.hidden, embed.input)) return cudaErrorInvalidValue;
  if (embed.rows == 0) return cudaSuccess;
  return JEWEL_BY_COLUMNS(embed.hidden, embed_rows_kernel, embed.rows, stream, embed);
}

cudaError_t launch_residual_norm(const ResidualNorm& norm, cudaStream_t stream) {
  if (!fits(norm.columns, norm.input) || (norm.x != nullptr && norm.post_weight == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (norm.rows == 0) return cudaSuccess;
  return JEWEL_BY_COLUMNS(norm.columns, residual_norm_kernel, norm.rows, stream, norm);
}

#undef JEWEL_BY_COLUMNS

cudaError_t launch_per_layer_table(const PerLayerTable& table, cudaStream_t stream) {
  if (!fits(table.norm)) return cudaErrorInvalidValue;
  if (table.rows == 0 || table.n_layers == 0) return cudaSuccess;
  return launch_dependent(table.norm.width <= 256 ? per_layer_table_kernel<2> : per_layer_table_kernel<4>,
                          layer_row_blocks(table.rows, table.n_layers), 32 * kLayerRows, 0, stream, table);
}

cudaError_t launch_per_layer_inputs(const PerLayerInputs& inputs, cudaStream_t stream) {
  if (!fits(inputs.norm)) return cudaErrorInvalidValue;
  if (inputs.rows == 0 || inputs.n_layers == 0) return cudaSuccess;
  return launch_dependent(inputs.norm.width <= 256 ? per_layer_inputs_kernel<2> : per_layer_inputs_kernel<4>,
                          layer_row_blocks(inputs.rows, inputs.n_layers), 32 * kLayerRows, 0, stream, inputs);
}

cudaError_t launch_gather_rows(const GatherRows& gather, cudaStream_t stream) {
  if (gather.columns <= 0 || gather.columns % 4 != 0) return cudaErrorInvalidValue;
  if (gather.n == 0) return cudaSuccess;
  return launch_dependent(gather_rows_kernel, dim3(static_cast<unsigned>(gather.n)), kThreads, 0, stream,
                          gather);
}

}  // namespace jewel::cuda
