#include "backend/cuda/prefill_product.h"

#include <algorithm>
#include <climits>

#include "backend/cuda/prefill_product_task.h"

namespace jewel::cuda {
namespace {

constexpr int kGroupTokens = 2048;

bool fits(const PrefillProduct& p) {
  const int out_columns = p.form == ProductOut::kGateUp ? p.weight.out / 2 : p.weight.out;
  const int out_multiple = p.form == ProductOut::kF32 || p.form == ProductOut::kBF16 ? 16 : 32;
  return p.rows >= 0 && p.weight.out > 0 && p.weight.out % out_multiple == 0 && p.weight.in > 0 &&
         p.weight.in % 64 == 0 && p.x_stride >= p.weight.in &&
         p.x_stride % (p.x_scale != nullptr ? 16 : 8) == 0 && p.out_stride >= out_columns &&
         p.out_stride % (p.form == ProductOut::kF32 ? 4 : 8) == 0 &&
         (p.form != ProductOut::kGeluTimes || p.factor != nullptr) &&
         (p.x_scale == nullptr || p.weight.format == WeightFormat::kF8E4M3);
}

int compute_capability() {
  static const int capability = [] {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    return 10 * major + minor;
  }();
  return capability;
}

// The width of tiles that ends soonest: waves of clusters times the work of a tile, with a little for its
// start and end. The sums do not depend on it.
int tile_tokens(const PrefillProduct& p, std::initializer_list<int> widths) {
  const int pairs = (p.weight.out + kProductOutputs - 1) / kProductOutputs;
  const int clusters = multiprocessors() / 2;
  int best = 0, best_cost = INT_MAX;
  for (const int width : widths) {
    const int tiles = pairs * ((p.rows + width - 1) / width);
    const int cost = (tiles + clusters - 1) / clusters * (width + 16);
    if (cost <= best_cost) best = width, best_cost = cost;
  }
  return best;
}

struct MapOf {
  const void* data;
  CUtensorMapDataType type;
  int64_t columns, rows, row_bytes;
  int box_columns, box_rows;
  CUtensorMapSwizzle swizzle;
};

// Under a microsecond of host time, so that maps need not be kept beside the buffers. What lies outside of
// the matrix reads as zeros.
cudaError_t make_map(const MapOf& of, CUtensorMap* map) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(entry)
                                                                        : nullptr;
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(of.columns), static_cast<cuuint64_t>(of.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(of.row_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(of.box_columns), static_cast<cuuint32_t>(of.box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = encode(map, of.type, 2, const_cast<void*>(of.data), sizes, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, of.swizzle,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

int multiprocessors() {
  static const int count = [] {
    int device = 0, n = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device);
    return n;
  }();
  return count;
}

cudaError_t make_token_map(const PrefillProduct& product, int box_rows, CUtensorMap* map) {
  const bool fp8 = product.x_scale != nullptr;
  return make_map({.data = product.x,
                   .type = fp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                   .columns = product.weight.in,
                   .rows = product.rows,
                   .row_bytes = product.x_stride * (fp8 ? 1 : 2),
                   .box_columns = fp8 ? 128 : 64,
                   .box_rows = box_rows,
                   .swizzle = CU_TENSOR_MAP_SWIZZLE_128B},
                  map);
}

cudaError_t make_weight_map(const PrefillProduct& product, int row_tile_bytes, CUtensorMap* map) {
  const int64_t bytes = int64_t{product.weight.in} * (product.weight.format == WeightFormat::kBF16 ? 32 : 16);
  return make_map(
      {.data = product.weight.tiles,
       .type = row_tile_bytes == 1024 ? CU_TENSOR_MAP_DATA_TYPE_INT32 : CU_TENSOR_MAP_DATA_TYPE_INT64,
       .columns = bytes / (row_tile_bytes / 256),
       .rows = product.weight.out / 16,
       .row_bytes = bytes,
       .box_columns = 256,
       .box_rows = 8,
       .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE},
      map);
}

ProductTask make_task(const PrefillProduct& p, int tokens) {
  ProductTask task{};
  task.tiles = static_cast<const std::byte*>(p.weight.tiles);
  task.out = p.weight.out;
  task.in = p.weight.in;
  task.rows = p.rows;
  task.out_pairs = (p.weight.out + kProductOutputs - 1) / kProductOutputs;
  task.token_tiles = (p.rows + tokens - 1) / tokens;
  task.group = kGroupTokens / tokens;
  task.row_scale = p.weight.row_scale;
  task.row_clamp = p.weight.row_clamp;
  task.x_scale = p.x_scale;
  task.form = p.form;
  task.result = p.out;
  task.result_stride = p.out_stride;
  task.factor = p.factor;
  task.factor_stride = p.factor_stride;
  task.out_min = p.out_min;
  task.out_max = p.out_max;
  return task;
}

cudaError_t launch_prefill_product(const PrefillProduct& product, ProductDesign design, cudaStream_t stream) {
  if (!fits(product)) return cudaErrorInvalidValue;
  if (product.rows == 0) return cudaSuccess;
  const bool fp8 = product.x_scale != nullptr;
  if (design == ProductDesign::kPortable) {
    if (compute_capability() < (fp8 ? 89 : 80)) return cudaErrorNotSupported;
    return launch_portable_product(product, stream);
  }
  if (compute_capability() != 90) return cudaErrorNotSupported;
  if (fp8) return launch_sm90_w8a8(product, tile_tokens(product, {64, 128, 160, 192, 256}), false, stream);
  const int tokens = tile_tokens(product, {64, 128, 160, 192, 256});
  return product.weight.format == WeightFormat::kF8E4M3 ? launch_sm90_w8a16(product, tokens, stream)
                                                        : launch_sm90_w16a16(product, tokens, stream);
}

}  // namespace jewel::cuda
