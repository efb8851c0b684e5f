// Products of decode rows (1 to 128 of them) with weights in fragment tiles, and what is fused to them: the
// residual update and norm in front, the activation behind. Declared here, chained in decode_step.h.
//
// A row's result is bitwise the same for any number of rows and any neighbours: K is cut into
// product_splits(k) parts by the grid, each part into eight runs of tiles by the warps of a block, each run
// is added up in the order of k by mma.m16n8k16, runs and parts are added in order.
//
// Activations between a kernel of this file and the next product are "slot order", [k / 32][rows][32], BF16
// or FP16 as the weights want them, where the 32 values of a row stand so that a lane finds its part of the B
// operand in 16 bytes; slot_order() says where k stands. `x_order` says which order an input has.
//
// All pointers are device pointers, 16-byte aligned. Launchers enqueue and return; any thread, one stream at
// a time. With `overlap` a kernel is launched by programmatic dependent launch (sm_90) and fetches its
// weights before it waits for the kernel ahead of it; every kernel waits, so writes happen in stream order.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/cuda/host_device.h"

namespace jewel::cuda {

// How weights are stored, and as what they are multiplied. The sums of kF8E4M3F16 are those of FP8 weights
// and FP16 activations: exact weights, activations with eleven significant bits where BF16 has eight, and a
// quarter of the instructions that BF16 from E4M3 takes. Only for inputs that FP16 has room for (65,504).
enum class TileFormat : uint8_t { kF8E4M3, kF8E4M3F16, kBF16 };

// W [n, k] in fragment tiles: FP8 [n/16][k/32][32 lanes][16 bytes], BF16 [n/16][k/16][32 lanes][16 bytes].
struct TiledWeight {
  const void* tiles = nullptr;
  const float* row_scale = nullptr;  // [n], in the order of the tiles' rows; null: 1
  int n = 0;                         // a multiple of 16
  int k = 0;                         // a multiple of 64
  TileFormat format = TileFormat::kBF16;
  float x_scale = 1;  // a power of two by which activations come divided, so that FP16 has room for them
};

constexpr int kMaxDecodeRows = 128;

// Into how many parts of K the sums of a product come: only the longest rows are cut (down_proj).
constexpr int product_splits(int k) {
  return k >= 6144 ? 4 : 1;
}

// Where element (row, k) of an activation [rows, k] stands in slot order (unsigned and 32 bits wide, since
// every kernel computes it: an activation has far fewer elements). Of four values in a row the middle
// two change places, as BF16 from E4M3 leaves them; FP16 from E4M3 leaves them as they are.
JEWEL_HOST_DEVICE constexpr int64_t slot_order(int row, int k, int rows, bool f16 = false) {
  const auto column = static_cast<uint32_t>(k), r = static_cast<uint32_t>(row), k32 = column % 32,
             four = f16 ? k32 % 4 : k32 % 2 * 2 + k32 % 4 / 2;
  return (column / 32 * static_cast<uint32_t>(rows) + r) * 32 + k32 % 16 / 4 * 8 + k32 / 16 * 4 + four;
}

// Where element (row, k) of an activation [rows, k] stands in "wide order", which wgmma reads from shared
// memory: BF16 [k / 16][even k, odd k][rows][8] (FP16: [first two of four k, last two]), rows rounded up to
// a multiple of 8; nobody looks at what the rows without a meaning hold.
JEWEL_HOST_DEVICE constexpr int wide_rows(int rows) {
  return (rows + 7) / 8 * 8;
}
JEWEL_HOST_DEVICE constexpr int64_t wide_order(int row, int k, int rows, bool f16 = false) {
  const auto column = static_cast<uint32_t>(k), r = static_cast<uint32_t>(row),
             part = f16 ? column % 4 / 2 : column % 2,
             in_part = f16 ? column % 16 / 4 * 2 + column % 2 : column % 16 / 2;
  return ((column / 16 * 2 + part) * static_cast<uint32_t>(wide_rows(rows)) + r) * 8 + in_part;
}

// natural: BF16 [rows, k]. An activation in another order takes wide_rows(rows) rows of memory.
enum class XOrder : uint8_t { kSlots, kNatural, kWide, kSlotsF16, kWideF16 };
JEWEL_HOST_DEVICE constexpr bool is_f16(XOrder order) {
  return order == XOrder::kSlotsF16 || order == XOrder::kWideF16;
}

JEWEL_HOST_DEVICE constexpr bool is_wide(XOrder order) {
  return order == XOrder::kWide || order == XOrder::kWideF16;
}

JEWEL_HOST_DEVICE constexpr int64_t x_index(XOrder order, int row, int k, int rows, int n_columns) {
  return order == XOrder::kNatural ? int64_t{row} * n_columns + k
         : is_wide(order)          ? wide_order(row, k, rows, is_f16(order))
                                   : slot_order(row, k, rows, is_f16(order));
}

// The order in which a product with `w` takes its input from whoever can write any.
XOrder x_order_of(const TiledWeight& w, int rows, bool portable);

// h_out = (h + RMS(sum of y's parts) * post_norm) * scale, row by row; then x = RMS(h_out) * pre_norm.
// h_out and h are different buffers.
struct DecodeNorm {
  const float* h = nullptr;  // [rows, hidden]
  const float* y = nullptr;  // [y_parts][rows, hidden]; null: h_out = h, and h_out is not written
  int y_parts = 1;
  const float* post_norm = nullptr;  // [hidden]
  float scale = 1;                   // the layer's scalar, where the update ends a layer
  float* h_out = nullptr;            // [rows, hidden]
  const float* pre_norm = nullptr;   // [hidden]; null: x = h_out
  float eps = 1e-6f;
};

enum class DecodeOut : uint8_t {
  kF32,       // out: float [product_splits(k)][rows, n], every split apart
  kGatedUp,   // rows of W: 8 of gate, 8 of up, in turn. out: in out_order [n / 2], gelu_tanh(gate) * up *
              // out_scale
  kGatedPle,  // out: BF16 slot order [n], gelu_tanh(sum) * ple[row * ple_stride + column]
  kLogits,    // out: float [rows, n], cap * tanh(sum / cap); cap 0: the sum. tile_max: of each 16 the largest
};

// How many rows of logits may have tile_max. With more the head would take as much longer as sampling gains.
inline constexpr int kTileMaxRows = 32;
// Floats from one row of tile_max to the next: of n logits, in tiles of 16.
JEWEL_HOST_DEVICE constexpr int logit_tile_stride(int n) {
  return (n + 63) / 64 * 4;
}

// Part of a later product's weights: `count` times `bytes` (a multiple of 128), `stride` bytes apart.
struct WeightsAhead {
  const void* from = nullptr;
  int64_t stride = 0;
  int bytes = 0, count = 0;
};

// Pages of K and V that the attention behind the product will read: of each row the first `pages` from the
// first that its window has, as far as the row's position. What attention_types.h says of them.
struct KeysAhead {
  const std::byte* data = nullptr;
  const int32_t* page_table = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* slots = nullptr;
  int max_pages = 0, page_bytes = 0, window = 0;
  int pages = 0;
};

struct DecodeProduct {
  TiledWeight w;
  int rows = 0;  // 1 to kMaxDecodeRows
  // The input: x, in an order of the weights' kind, or, where x is null, what `norm` makes, by way of
  // x_scratch: 16-bit values [wide_rows(rows), k].
  const void* x = nullptr;
  XOrder x_order = XOrder::kSlots;
  DecodeNorm norm;
  void* x_scratch = nullptr;

  DecodeOut out_kind = DecodeOut::kF32;
  void* out = nullptr;
  XOrder out_order = XOrder::kSlots;  // of kGatedUp: what the next product takes
  float out_scale = 1;                // of kGatedUp: 1 / its x_scale
  const float* ple = nullptr;
  int64_t ple_stride = 0;
  float cap = 0;
  float* tile_max =
      nullptr;  // of kLogits, up to kTileMaxRows: [rows, logit_tile_stride(n)]; null: not wanted

  bool overlap = true;  // programmatic dependent launch, where the device has it
  // Above 8 rows: the next kernel may start only behind this one's wait. For a product with a norm behind it,
  // which lets the kernel after it start at once.
  bool late_release = false;
  // Brought into L2 while the kernel waits for its input, where out_kind is kF32 and the device has kernels
  // that wait, or, by decode_product_wide.cu, when all of W is asked for; changes no result. keys: up to 8
  // rows.
  WeightsAhead ahead;
  KeysAhead keys;
  bool portable = false;  // the path of sm_80 and sm_89 even on sm_90
};

// One product; where its input is a norm, two kernels. (A norm in every block of the product was slower, even
// for one row: docs/cuda-decode.md.)
cudaError_t launch_decode_product(const DecodeProduct& product, cudaStream_t stream);

// The residual update and norm alone; x may be null (only h_out is wanted), else in any order but natural.
cudaError_t launch_decode_norm(const DecodeNorm& norm, int rows, int hidden, void* x, XOrder x_order,
                               bool overlap, cudaStream_t stream);

}  // namespace jewel::cuda
