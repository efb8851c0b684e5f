// The decode chain of E4B on a GPU: every product checked against float64 on random numbers, results compared
// bit by bit across numbers of rows, then the whole step (42 layers and head, real bytes and dependencies)
// timed as a CUDA graph at several numbers of rows, and each kind of kernel alone, beside the time that its
// bytes need at the read rate measured in the same run.
//
//   cuda_decode [check|time|kinds|all] [rows,rows,...] [--portable] [--bf16] [--keys N]
//
// --keys: how many keys each row has, 1 to 1024 (512). The server's graphs are made for 1024 and more.
#include <cuda_fp8.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "backend/cuda/decode_ple.h"
#include "backend/cuda/decode_step.h"

using namespace jewel::cuda;

namespace {

#define CUDA_OK(call)                                                                       \
  do {                                                                                      \
    const cudaError_t error_ = (call);                                                      \
    if (error_ != cudaSuccess) {                                                            \
      std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
      std::exit(1);                                                                         \
    }                                                                                       \
  } while (0)

template <class T>
T* device_array(size_t n) {
  void* p = nullptr;
  CUDA_OK(cudaMalloc(&p, n * sizeof(T)));
  CUDA_OK(cudaMemset(p, 0xff, n * sizeof(T)));  // NaN: what nobody writes is seen
  return static_cast<T*>(p);
}

__host__ __device__ inline uint32_t hash(uint64_t i) {
  i = (i + 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull;
  i = (i ^ (i >> 31)) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>((i ^ (i >> 30)) >> 16);
}
__device__ float gauss(uint64_t i) {
  const float u = (static_cast<float>(hash(2 * i)) + 1.0f) * 2.3283064e-10f,
              v = static_cast<float>(hash(2 * i + 1)) * 2.3283064e-10f;
  return sqrtf(-2.0f * __logf(u)) * __cosf(6.2831853f * v);
}
__global__ void fill_f8(uint8_t* out, size_t n, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
    out[i] = __nv_cvt_float_to_fp8(gauss(seed + i) * 90.0f, __NV_SATFINITE, __NV_E4M3);
  }
}
__global__ void fill_bf16(__nv_bfloat16* out, size_t n, uint64_t seed, float sigma) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
    out[i] = __float2bfloat16(gauss(seed + i) * sigma);
  }
}
__global__ void fill_f32(float* out, size_t n, uint64_t seed, float mean, float sigma) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
    out[i] = mean + gauss(seed + i) * sigma;
  }
}
uint64_t next_seed() {
  static uint64_t seed = 1;
  return (seed += uint64_t{1} << 36);
}
float* random_f32(size_t n, float mean, float sigma) {
  float* p = device_array<float>(n);
  fill_f32<<<256, 256>>>(p, n, next_seed(), mean, sigma);
  return p;
}
__nv_bfloat16* random_bf16(size_t n, float sigma) {
  auto* p = device_array<__nv_bfloat16>(n);
  fill_bf16<<<256, 256>>>(p, n, next_seed(), sigma);
  return p;
}
TiledWeight random_weight(int n, int k, TileFormat format) {
  const size_t count = static_cast<size_t>(n) * static_cast<size_t>(k);
  const float sigma = 1.0f / std::sqrt(static_cast<float>(k));
  if (format == TileFormat::kBF16) return {random_bf16(count, sigma), nullptr, n, k, format};
  auto* tiles = device_array<uint8_t>(count);
  fill_f8<<<1024, 256>>>(tiles, count, next_seed());
  return {tiles, random_f32(static_cast<size_t>(n), sigma / 90, sigma / 900), n, k, format};
}
size_t bytes_of(const TiledWeight& w) {
  return static_cast<size_t>(w.n) * static_cast<size_t>(w.k) * (w.format == TileFormat::kBF16 ? 2 : 1);
}

// --- references --------------------------------------------------------------------------------------------

__device__ double weight_at(const TiledWeight& w, int n, int k) {
  const int lane = n % 8 * 4 + k % 16 / 4, high = n % 16 / 8;
  if (w.format != TileFormat::kBF16) {
    const size_t tile = static_cast<size_t>(n / 16) * (w.k / 32) + k / 32;
    const uint8_t code =
        static_cast<const uint8_t*>(w.tiles)[tile * 512 + lane * 16 + high * 4 + k % 32 / 16 * 8 + k % 4];
    __nv_fp8_e4m3 value;
    value.__x = code;
    return static_cast<double>(static_cast<float>(value)) * static_cast<double>(w.row_scale[n]);
  }
  const size_t tile = static_cast<size_t>(n / 16) * (w.k / 16) + k / 16;
  return static_cast<double>(
      __bfloat162float(static_cast<const __nv_bfloat16*>(w.tiles)[tile * 256 + lane * 8 + high * 4 + k % 4]));
}
// out[row, n] = W x, x BF16 natural
__global__ void reference_product(TiledWeight w, const __nv_bfloat16* x, int rows, double* out) {
  const int n = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), row = static_cast<int>(blockIdx.y);
  if (n >= w.n) return;
  double sum = 0;
  for (int k = 0; k < w.k; ++k)
    sum += weight_at(w, n, k) * static_cast<double>(__bfloat162float(x[static_cast<size_t>(row) * w.k + k]));
  out[static_cast<size_t>(row) * w.n + n] = sum;
}
__global__ void to_order(XOrder order, float scale, const __nv_bfloat16* x, int rows, int k,
                         __nv_bfloat16* out) {
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < rows * k;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    __nv_bfloat16 value = x[i];
    if (is_f16(order)) {
      const __half f16 = __float2half_rn(__bfloat162float(value) / scale);
      value = __ushort_as_bfloat16(__half_as_ushort(f16));
    }
    out[x_index(order, i / k, i % k, rows, k)] = value;
  }
}
template <class T>
std::vector<T> to_host(const T* p, size_t n) {
  std::vector<T> out(n);
  CUDA_OK(cudaMemcpy(out.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
  return out;
}
double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}
float bf16_value(__nv_bfloat16 x) {
  uint16_t bits;
  std::memcpy(&bits, &x, 2);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

float f16_value(__nv_bfloat16 x) {
  __half value;
  std::memcpy(&value, &x, 2);
  return __half2float(value);
}

int failures = 0;
void report(const std::string& what, double error, double bound, bool bits) {
  const bool good = error <= bound && bits;  // NaN fails
  failures += !good;
  std::printf("%-64s |e|/|ref| %.2e (bound %.0e)  bits %s  %s\n", what.c_str(), error, bound,
              bits ? "equal" : "DIFFER", good ? "ok" : "FAIL");
}

// Whether tile_max holds the largest of each 16 of the logits [rows, n], on the device both.
bool tiles_right(const float* tile_max, const float* logits, int rows, int n) {
  const auto stride = static_cast<size_t>(logit_tile_stride(n)), width = static_cast<size_t>(n);
  const auto got = to_host(tile_max, static_cast<size_t>(rows) * stride),
             from = to_host(logits, static_cast<size_t>(rows) * width);
  bool right = true;
  for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
    for (size_t tile = 0; tile < width / 16; ++tile) {
      const auto first = from.begin() + static_cast<std::ptrdiff_t>(r * width + 16 * tile);
      right = right && got[r * stride + tile] == *std::max_element(first, first + 16);
    }
  }
  return right;
}

struct Result {
  std::vector<double> values;  // [rows, n]
  bool tiles_right = true;     // of logits
};
Result run_product(DecodeProduct p, const TiledWeight& w) {
  const int out_n = p.out_kind == DecodeOut::kGatedUp ? w.n / 2 : w.n;
  const int parts = p.out_kind == DecodeOut::kF32 ? product_splits(w.k) : 1;
  const size_t count = static_cast<size_t>(p.rows) * static_cast<size_t>(out_n);
  const bool half = p.out_kind == DecodeOut::kGatedUp || p.out_kind == DecodeOut::kGatedPle;
  void* out = device_array<float>(count * static_cast<size_t>(parts));
  p.w = w;
  p.out = out;
  const bool tiles = p.out_kind == DecodeOut::kLogits && p.rows <= kTileMaxRows;
  if (tiles) {
    p.tile_max =
        device_array<float>(static_cast<size_t>(p.rows) * static_cast<size_t>(logit_tile_stride(w.n)));
  }
  CUDA_OK(launch_decode_product(p, nullptr));
  CUDA_OK(cudaDeviceSynchronize());
  Result result;
  if (tiles) {
    result.tiles_right = tiles_right(p.tile_max, static_cast<const float*>(out), p.rows, w.n);
    CUDA_OK(cudaFree(p.tile_max));
  }
  result.values.resize(count);
  if (half) {
    const auto host = to_host(static_cast<const __nv_bfloat16*>(out), count);
    for (int r = 0; r < p.rows; ++r) {
      for (int i = 0; i < out_n; ++i) {
        const bool f16 = p.out_kind == DecodeOut::kGatedUp && is_f16(p.out_order);
        const __nv_bfloat16 bits = host[static_cast<size_t>(slot_order(r, i, p.rows, f16))];
        result.values[static_cast<size_t>(r) * out_n + i] =
            static_cast<double>(f16 ? f16_value(bits) / p.out_scale : bf16_value(bits));
      }
    }
  } else {
    const auto host = to_host(static_cast<const float*>(out), count * static_cast<size_t>(parts));
    for (size_t i = 0; i < count; ++i) {
      float sum = host[i];
      for (int s = 1; s < parts; ++s) sum += host[static_cast<size_t>(s) * count + i];
      result.values[i] = static_cast<double>(sum);
    }
  }
  CUDA_OK(cudaFree(out));
  return result;
}

double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double e = 0, n = 0;
  for (size_t i = 0; i < want.size(); ++i)
    e += (got[i] - want[i]) * (got[i] - want[i]), n += want[i] * want[i];
  return std::sqrt(e / n);
}

void check_product(int n, int k, TileFormat format, DecodeOut kind, bool natural,
                   const std::vector<int>& row_counts, bool portable) {
  const int most = *std::max_element(row_counts.begin(), row_counts.end());
  TiledWeight w = random_weight(n, k, format);
  if (format == TileFormat::kF8E4M3F16 && product_splits(k) > 1) w.x_scale = 8;
  __nv_bfloat16* x = random_bf16(static_cast<size_t>(most) * k, 1);
  auto* slots = device_array<__nv_bfloat16>(static_cast<size_t>(wide_rows(most)) * k);
  float* ple = random_f32(static_cast<size_t>(most) * n, 0, 1);
  auto* reference = device_array<double>(static_cast<size_t>(most) * n);
  reference_product<<<dim3(static_cast<unsigned>((n + 127) / 128), static_cast<unsigned>(most)), 128>>>(
      w, x, most, reference);
  const auto sums = to_host(reference, static_cast<size_t>(most) * n);
  const auto ple_host = to_host(ple, static_cast<size_t>(most) * n);
  const int out_n = kind == DecodeOut::kGatedUp ? n / 2 : n;
  std::vector<double> want(static_cast<size_t>(most) * out_n);
  for (int r = 0; r < most; ++r) {
    for (int i = 0; i < out_n; ++i) {
      const double* row = sums.data() + static_cast<size_t>(r) * n;
      const size_t at = static_cast<size_t>(r) * out_n + i;
      if (kind == DecodeOut::kF32) want[at] = row[i];
      if (kind == DecodeOut::kLogits) want[at] = 30 * std::tanh(row[i] / 30);
      if (kind == DecodeOut::kGatedPle)
        want[at] = gelu(row[i]) * static_cast<double>(ple_host[static_cast<size_t>(r) * n + i]);
      if (kind == DecodeOut::kGatedUp) want[at] = gelu(row[i / 8 * 16 + i % 8]) * row[i / 8 * 16 + i % 8 + 8];
    }
  }
  DecodeProduct p{.out_kind = kind,
                  .ple = ple,
                  .ple_stride = n,
                  .cap = kind == DecodeOut::kLogits ? 30.0f : 0,
                  .portable = portable};
  if (format == TileFormat::kF8E4M3F16) p.out_order = XOrder::kSlotsF16, p.out_scale = 0.125f;
  const auto run = [&](int rows, int first) {
    p.rows = rows;
    p.ple = ple + static_cast<size_t>(first) * n;
    const __nv_bfloat16* from = x + static_cast<size_t>(first) * k;
    p.x_order = natural ? XOrder::kNatural : x_order_of(w, rows, portable);
    if (!natural) to_order<<<256, 256>>>(p.x_order, w.x_scale, from, rows, k, slots);
    p.x = natural ? from : slots;
    return run_product(p, w);
  };
  std::vector<Result> alone(static_cast<size_t>(most));
  const int probes[] = {0, 1, most / 2, most - 1};
  for (int r : probes) {
    if (r < most && alone[static_cast<size_t>(r)].values.empty()) alone[static_cast<size_t>(r)] = run(1, r);
  }
  double error = 0;
  bool bits = true;
  std::string rows_list, differing;
  for (int rows : row_counts) {
    rows_list += (rows_list.empty() ? "" : ",") + std::to_string(rows);
    const Result got = run(rows, 0);
    if (!got.tiles_right) differing += " " + std::to_string(rows) + " (tile_max)";
    bits = bits && got.tiles_right;
    const double e =
        relative_error(got.values, {want.begin(), want.begin() + static_cast<int64_t>(rows) * out_n});
    if (!(e <= error)) error = e;
    for (int r : probes) {
      if (r >= rows) continue;
      const bool same = std::memcmp(got.values.data() + static_cast<size_t>(r) * out_n,
                                    alone[static_cast<size_t>(r)].values.data(),
                                    sizeof(double) * static_cast<size_t>(out_n)) == 0;
      if (!same) differing += " " + std::to_string(rows);
      bits = bits && same;
    }
  }
  const bool half = kind == DecodeOut::kGatedUp || kind == DecodeOut::kGatedPle;
  const char* formats[] = {" f8 ", " f8 f16 ", " bf16 "};
  const char* kinds[] = {"f32", "gated up", "gated ple", "logits"};
  report(std::to_string(n) + " x " + std::to_string(k) + formats[static_cast<int>(format)] +
             kinds[static_cast<int>(kind)] + (natural ? " natural" : "") + " rows " + rows_list + differing,
         error, half ? 3e-3 : 1e-5, bits);
  for (void* pointer : {const_cast<void*>(w.tiles), static_cast<void*>(const_cast<float*>(w.row_scale)),
                        static_cast<void*>(x), static_cast<void*>(slots), static_cast<void*>(ple),
                        static_cast<void*>(reference)})
    CUDA_OK(cudaFree(pointer));
}

// Residual update, norm and product, rows together and alone.
void check_norm(int hidden, int parts, bool pre, bool with_y, bool portable) {
  const int most = 100, n = 256;
  const size_t count = static_cast<size_t>(most) * hidden;
  float *h = random_f32(count, 0, 2), *post = random_f32(static_cast<size_t>(hidden), 1, 0.3f),
        *pre_w = random_f32(static_cast<size_t>(hidden), 1, 0.3f);
  float* y = random_f32(count * static_cast<size_t>(parts), 0.1f, 1);
  const TiledWeight w = random_weight(n, hidden, TileFormat::kF8E4M3);
  auto* scratch = device_array<__nv_bfloat16>(count);
  auto* packed = device_array<float>(count * static_cast<size_t>(parts));
  float* h_out = device_array<float>(count);
  const float scale = 0.7f, eps = 1e-6f;
  const auto hh = to_host(h, count), hy = to_host(y, count * static_cast<size_t>(parts)),
             hpost = to_host(post, static_cast<size_t>(hidden)),
             hpre = to_host(pre_w, static_cast<size_t>(hidden));
  std::vector<double> want_h(count), want_x(count);
  for (int r = 0; r < most; ++r) {
    std::vector<double> sum(static_cast<size_t>(hidden));
    double ss = 0, ss2 = 0;
    for (int i = 0; i < hidden; ++i) {
      for (int s = 0; s < parts; ++s)
        sum[i] +=
            static_cast<double>(hy[static_cast<size_t>(s) * count + static_cast<size_t>(r) * hidden + i]);
      ss += sum[i] * sum[i];
    }
    const double rms = 1 / std::sqrt(ss / hidden + 1e-6);
    for (int i = 0; i < hidden; ++i) {
      const size_t at = static_cast<size_t>(r) * hidden + i;
      want_h[at] = with_y ? (static_cast<double>(hh[at]) + sum[i] * rms * static_cast<double>(hpost[i])) *
                                static_cast<double>(scale)
                          : static_cast<double>(hh[at]);
      ss2 += want_h[at] * want_h[at];
    }
    const double rms2 = pre ? 1 / std::sqrt(ss2 / hidden + 1e-6) : 1;
    for (int i = 0; i < hidden; ++i)
      want_x[static_cast<size_t>(r) * hidden + i] =
          want_h[static_cast<size_t>(r) * hidden + i] * rms2 * (pre ? static_cast<double>(hpre[i]) : 1);
  }
  const auto run = [&](int rows, int first, std::vector<float>& h_got) {
    const size_t used = static_cast<size_t>(rows) * hidden, skip = static_cast<size_t>(first) * hidden;
    for (int s = 0; s < parts; ++s)
      CUDA_OK(cudaMemcpy(packed + static_cast<size_t>(s) * used, y + static_cast<size_t>(s) * count + skip,
                         used * 4, cudaMemcpyDeviceToDevice));
    DecodeProduct p{.rows = rows,
                    .norm = {.h = h + skip,
                             .y = with_y ? packed : nullptr,
                             .y_parts = parts,
                             .post_norm = post,
                             .scale = scale,
                             .h_out = h_out,
                             .pre_norm = pre ? pre_w : nullptr,
                             .eps = eps},
                    .x_scratch = scratch,
                    .portable = portable};
    Result result = run_product(p, w);
    h_got = to_host(h_out, used);
    return result;
  };
  std::vector<float> h_got, h_alone;
  const Result all = run(most, 0, h_got);
  // The product of the norm's own BF16 rows is checked elsewhere; here the norm.
  double e = 0;
  if (with_y) e = relative_error({h_got.begin(), h_got.end()}, want_h);
  const auto x = to_host(scratch, count);
  std::vector<double> x_values(count);
  for (int r = 0; r < most; ++r)
    for (int i = 0; i < hidden; ++i)
      x_values[static_cast<size_t>(r) * hidden + i] =
          static_cast<double>(bf16_value(x[static_cast<size_t>(slot_order(r, i, most))]));
  const double ex = relative_error(x_values, want_x);
  bool bits = true;
  for (int rows : {1, 2, 3, 4, 5, 8}) {
    for (int first : {0, 7}) {
      const Result got = run(rows, first, h_alone);
      bits = bits && std::memcmp(got.values.data(), all.values.data() + static_cast<size_t>(first) * n,
                                 static_cast<size_t>(rows) * n * sizeof(double)) == 0;
      if (with_y)
        bits = bits && std::memcmp(h_alone.data(), h_got.data() + static_cast<size_t>(first) * hidden,
                                   static_cast<size_t>(rows) * hidden * 4) == 0;
    }
  }
  report("norm hidden " + std::to_string(hidden) + " parts " + std::to_string(parts) + (pre ? " pre" : "") +
             (with_y ? " update" : "") + ": h",
         e, 1e-6, bits);
  report("  x in BF16", ex, 3e-3, bits);
  for (void* p : {static_cast<void*>(h), static_cast<void*>(post), static_cast<void*>(pre_w),
                  static_cast<void*>(y), const_cast<void*>(w.tiles), static_cast<void*>(scratch),
                  static_cast<void*>(packed), static_cast<void*>(h_out)})
    CUDA_OK(cudaFree(p));
}

// The per-layer-input block in one kernel against the three kernels in its stead, bit by bit.
void check_ple(int hidden) {
  const int most = kMaxDecodeRows;
  const auto columns = static_cast<size_t>(hidden);
  const TiledWeight gate = random_weight(256, hidden, TileFormat::kBF16),
                    up = random_weight(hidden, 256, TileFormat::kBF16);
  float *h = random_f32(most * columns, 0, 2), *ple = random_f32(size_t{256} * most, 0, 1);
  float *post = random_f32(columns, 1, 0.3f), *pre = random_f32(columns, 1, 0.3f);
  auto *x = device_array<__nv_bfloat16>(most * columns),
       *mid = device_array<__nv_bfloat16>(size_t{256} * most);
  auto* y = device_array<float>(most * columns);
  struct Out {
    float* h;
    __nv_bfloat16* x;
  } out[2];
  for (Out& o : out) o = {device_array<float>(most * columns), device_array<__nv_bfloat16>(most * columns)};
  bool equal = true;
  int checked = 0;
  // All numbers of rows up to 20, then one of each remainder of 16.
  for (int rows = 1; rows <= most && takes_ple(gate, up, rows); rows += rows < 20 ? 1 : 9) {
    checked = rows;
    const size_t used = static_cast<size_t>(rows) * columns;
    for (const Out& o : out) {
      CUDA_OK(cudaMemset(o.h, 0xff, most * columns * 4));
      CUDA_OK(cudaMemset(o.x, 0xff, most * columns * 2));
    }
    CUDA_OK(launch_decode_norm({.h = h}, rows, hidden, x, XOrder::kSlots, true, nullptr));
    DecodeNorm norm{.h = h, .y = y, .post_norm = post, .scale = 0.7f, .h_out = out[0].h, .pre_norm = pre};
    CUDA_OK(launch_decode_product({.w = gate,
                                   .rows = rows,
                                   .x = x,
                                   .out_kind = DecodeOut::kGatedPle,
                                   .out = mid,
                                   .ple = ple,
                                   .ple_stride = 256},
                                  nullptr));
    CUDA_OK(launch_decode_product({.w = up, .rows = rows, .x = mid, .out = y}, nullptr));
    CUDA_OK(launch_decode_norm(norm, rows, hidden, out[0].x, XOrder::kSlots, true, nullptr));
    norm.h_out = out[1].h;
    CUDA_OK(launch_decode_ple({.gate = gate,
                               .up = up,
                               .rows = rows,
                               .x = x,
                               .ple = ple,
                               .ple_stride = 256,
                               .norm = norm,
                               .x_out = out[1].x},
                              nullptr));
    const auto h0 = to_host(out[0].h, used), h1 = to_host(out[1].h, used);
    const auto x0 = to_host(out[0].x, used), x1 = to_host(out[1].x, used);
    equal = equal && std::isfinite(h0[used - 1]) && std::memcmp(h0.data(), h1.data(), used * 4) == 0 &&
            std::memcmp(x0.data(), x1.data(), used * 2) == 0;
  }
  for (void* p :
       {const_cast<void*>(gate.tiles), const_cast<void*>(up.tiles), static_cast<void*>(h),
        static_cast<void*>(ple), static_cast<void*>(post), static_cast<void*>(pre), static_cast<void*>(x),
        static_cast<void*>(mid), static_cast<void*>(y), static_cast<void*>(out[0].h),
        static_cast<void*>(out[0].x), static_cast<void*>(out[1].h), static_cast<void*>(out[1].x)})
    CUDA_OK(cudaFree(p));
  if (checked == 0) {
    std::printf("no cluster of 16 blocks on this device: PLE in one kernel is not used\n");
  } else {
    report("PLE block in one, hidden " + std::to_string(hidden) + ", rows 1 to " + std::to_string(checked), 0,
           0, equal);
  }
}

void check(bool portable) {
  const std::vector<int> rows = {1, 3, 8, 16, 17, 32, 64, 100, 128};
  const auto f8 = TileFormat::kF8E4M3, f16 = TileFormat::kF8E4M3F16, bf = TileFormat::kBF16;
  for (TileFormat f : {f8, f16, bf}) {
    check_product(3072, 2560, f, DecodeOut::kF32, false, rows, portable);
    check_product(2560, 2048, f, DecodeOut::kF32, false, rows, portable);
    check_product(2560, 4096, f, DecodeOut::kF32, false, rows, portable);
    if (f != f16) check_product(2560, 2048, f, DecodeOut::kF32, true, rows, portable);
    if (f != f16) check_product(2560, 4096, f, DecodeOut::kF32, true, rows, portable);
    check_product(20480, 2560, f, DecodeOut::kGatedUp, false, rows, portable);
    check_product(2560, 10240, f, DecodeOut::kF32, false, rows, portable);
    check_product(256, 2560, f, DecodeOut::kGatedPle, false, rows, portable);
    check_product(2560, 256, f, DecodeOut::kF32, false, rows, portable);
    check_product(8192, 2560, f, DecodeOut::kLogits, false, rows, portable);
    check_product(20480, 2560, f, DecodeOut::kLogits, false, rows, portable);
    check_product(1536, 12288, f, DecodeOut::kF32, false, rows, portable);
    check_product(1536, 6144, f, DecodeOut::kF32, false, rows, portable);
    check_product(2560, 1536, f, DecodeOut::kF32, false, rows, portable);
    check_product(12288, 1536, f, DecodeOut::kGatedUp, false, rows, portable);
    check_product(8192, 4096, f, DecodeOut::kF32, false, rows, portable);
    check_product(1024, 192, f, DecodeOut::kF32, false, rows, portable);
    check_product(768, 192, f, DecodeOut::kGatedUp, false, rows, portable);
    check_product(192, 384, f, DecodeOut::kF32, false, rows, portable);
    if (f != f16) check_product(192, 512, f, DecodeOut::kF32, true, rows, portable);
    check_product(64, 192, f, DecodeOut::kGatedPle, false, rows, portable);
    check_product(192, 64, f, DecodeOut::kF32, false, rows, portable);
    check_product(1280, 192, f, DecodeOut::kLogits, false, rows, portable);
  }
  check_norm(2560, 1, true, true, portable);
  check_norm(2560, 4, false, true, portable);
  check_norm(2560, 4, true, true, portable);
  check_norm(2560, 1, true, false, portable);
  check_norm(1536, 4, true, true, portable);
  check_norm(192, 1, true, true, portable);
  if (!portable) check_ple(2560), check_ple(1536);
  std::printf("%d failures\n", failures);
}

// --- the chain ---------------------------------------------------------------------------------------------

double median_ms(cudaStream_t stream, cudaGraphExec_t graph, int replays, int samples = 9) {
  cudaEvent_t a, b;
  CUDA_OK(cudaEventCreate(&a));
  CUDA_OK(cudaEventCreate(&b));
  for (int i = 0; i < 3; ++i) CUDA_OK(cudaGraphLaunch(graph, stream));
  std::vector<double> ms;
  for (int s = 0; s < samples; ++s) {
    CUDA_OK(cudaEventRecord(a, stream));
    for (int i = 0; i < replays; ++i) CUDA_OK(cudaGraphLaunch(graph, stream));
    CUDA_OK(cudaEventRecord(b, stream));
    CUDA_OK(cudaEventSynchronize(b));
    float t = 0;
    CUDA_OK(cudaEventElapsedTime(&t, a, b));
    ms.push_back(static_cast<double>(t) / replays);
  }
  std::sort(ms.begin(), ms.end());
  return ms[ms.size() / 2];
}
double time_graph(const std::function<void(cudaStream_t)>& enqueue, int replays = 20) {
  static cudaStream_t stream = [] {
    cudaStream_t s;
    CUDA_OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    return s;
  }();
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  enqueue(stream);
  CUDA_OK(cudaStreamEndCapture(stream, &graph));
  CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
  const double ms = median_ms(stream, exec, replays);
  CUDA_OK(cudaGraphExecDestroy(exec));
  CUDA_OK(cudaGraphDestroy(graph));
  return ms;
}

__global__ void read_all(const uint4* p, size_t n, uint32_t* out) {
  uint32_t x = 0;
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  for (; i + 7 * stride < n; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) v[u] = __ldcs(p + i + static_cast<size_t>(u) * stride);
#pragma unroll
    for (int u = 0; u < 8; ++u) x ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (x == 0x12345678u) *out = x;
}

struct Model {
  std::vector<DecodeLayer> layers;
  TiledWeight head_f8, head_bf16;
  float* final_norm;
  size_t layer_bytes = 0;
};

constexpr int kHidden = 2560, kLayers = 42, kMaxRows = 128, kPagesPerRow = 64;

Model make_e4b(TileFormat body, bool portable) {
  Model m;
  float* freq = random_f32(256, 0, 0.1f);
  std::vector<int32_t> table(static_cast<size_t>(kMaxRows) * kPagesPerRow);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  auto* page_table = device_array<int32_t>(table.size());
  CUDA_OK(cudaMemcpy(page_table, table.data(), table.size() * 4, cudaMemcpyHostToDevice));
  const auto norm = [] { return random_f32(kHidden, 1, 0.1f); };
  for (int i = 0; i < kLayers; ++i) {
    const bool full = i % 6 == 5, owns = i < 24;
    const int dim = full ? 512 : 256;
    DecodeLayer l;
    // As for a model's weights where FP16 has room for the activations (device_weights.cc).
    const TileFormat bounded = body == TileFormat::kF8E4M3 && !portable ? TileFormat::kF8E4M3F16 : body;
    l.qkv = random_weight((8 + (owns ? 4 : 0)) * dim, kHidden, bounded);
    l.o = random_weight(kHidden, 8 * dim, bounded);
    l.gate_up = random_weight(20480, kHidden, bounded);
    l.down = random_weight(kHidden, 10240, bounded);
    if (bounded == TileFormat::kF8E4M3F16) l.down.x_scale = 4;
    l.ple_gate = random_weight(256, kHidden, TileFormat::kBF16);
    l.ple_up = random_weight(kHidden, 256, TileFormat::kBF16);
    l.input_norm = norm(), l.post_attention_norm = norm(), l.pre_feedforward_norm = norm();
    l.post_feedforward_norm = norm(), l.post_ple_norm = norm();
    l.layer_scalar = 0.5f;
    l.attention = {.n_heads = 8, .n_kv_heads = 2, .head_dim = dim, .window = full ? 0 : 512};
    l.owns_kv = owns;
    l.rope = {.frequencies = freq, .n_rotating = full ? 64 : 128};
    l.head_norms = {.q = random_f32(512, 1, 0.1f), .k = random_f32(512, 1, 0.1f), .eps = 1e-6f};
    if (owns) {
      const size_t bytes = kv_page_bytes(l.attention, KvFormat::kF8E4M3) * table.size();
      auto* pages = device_array<uint8_t>(bytes);
      fill_f8<<<1024, 256>>>(pages, bytes, next_seed());
      l.kv = {.data = reinterpret_cast<std::byte*>(pages),
              .page_table = page_table,
              .max_pages = kPagesPerRow,
              .format = KvFormat::kF8E4M3,
              .k_scale = 1.0f / 90,
              .v_scale = 1.0f / 90};
    } else {
      l.kv = m.layers[full ? 23 : 22].kv;
    }
    for (const TiledWeight* w : {&l.qkv, &l.o, &l.gate_up, &l.down, &l.ple_gate, &l.ple_up})
      m.layer_bytes += bytes_of(*w);
    m.layers.push_back(l);
  }
  m.head_f8 = random_weight(262144, kHidden, portable ? TileFormat::kF8E4M3 : TileFormat::kF8E4M3F16);
  m.head_bf16 = random_weight(262144, kHidden, TileFormat::kBF16);
  m.final_norm = norm();
  return m;
}

struct Bench {
  Model model;
  DecodeStep step;
  float* tile_max = device_array<float>(size_t{kTileMaxRows} * logit_tile_stride(262144));
  double read_rate = 0;  // bytes per ms

  // Each row has `keys` keys, its own included.
  Bench(TileFormat body, bool portable, int keys) : model(make_e4b(body, portable)) {
    const size_t r = kMaxRows;
    step.hidden = kHidden;
    step.layers = model.layers;
    step.max_context = static_cast<int>(std::bit_ceil(static_cast<unsigned>(keys)));
    step.attention_design = portable ? AttentionDesign::kPortable : AttentionDesign::kSm90;
    step.per_layer_inputs = random_f32(r * kLayers * 256, 0, 1);
    step.per_layer_stride = kLayers * 256;
    step.final_norm = model.final_norm;
    step.softcap = 30;
    step.logits = device_array<float>(r * 262144);
    std::vector<int32_t> positions(r), slots(r);
    for (size_t i = 0; i < r; ++i) positions[i] = keys - 1, slots[i] = static_cast<int32_t>(i);
    auto *p = device_array<int32_t>(r), *s = device_array<int32_t>(r);
    CUDA_OK(cudaMemcpy(p, positions.data(), r * 4, cudaMemcpyHostToDevice));
    CUDA_OK(cudaMemcpy(s, slots.data(), r * 4, cudaMemcpyHostToDevice));
    step.rows = {.positions = p, .slots = s, .n = 1};
    step.portable = portable;
    DecodeBuffers& b = step.buffers;
    b.h[0] = random_f32(r * kHidden, 0, 1);
    b.h[1] = device_array<float>(r * kHidden);
    b.y = device_array<float>(4 * r * kHidden);
    b.qkv = device_array<float>(r * 6144);
    b.attended = device_array<__nv_bfloat16>(r * 4096);
    b.x = device_array<__nv_bfloat16>(r * kHidden);
    b.wide = device_array<__nv_bfloat16>(r * 10240);
    b.ple_mid = device_array<__nv_bfloat16>(r * 256);
    size_t workspace = 0;
    for (const DecodeLayer& l : model.layers)
      workspace =
          std::max(workspace, decode_attention_workspace(l.attention, kMaxRows, step.attention_design));
    b.attention_workspace = device_array<uint8_t>(workspace);
    CUDA_OK(cudaMemset(b.attention_workspace, 0, workspace));
    b.attention_workspace_rows = kMaxRows;
    auto* sink = device_array<uint32_t>(1);
    CUDA_OK(cudaDeviceSynchronize());
    const size_t head_vectors = bytes_of(model.head_bf16) / 16;
    read_rate = static_cast<double>(head_vectors * 16) / time_graph([&](cudaStream_t stream) {
                  read_all<<<132 * 8, 256, 0, stream>>>(static_cast<const uint4*>(model.head_bf16.tiles),
                                                        head_vectors, sink);
                });
    std::printf("read rate %.3f TB/s (1.34 GB)\n", read_rate / 1e9);
  }

  void set_rows(int rows) {
    step.rows.n = rows;
    step.tile_max = rows <= kTileMaxRows ? tile_max : nullptr;
  }

  void run_steps(const std::vector<int>& row_counts) {
    for (bool bf16_head : {false, true}) {
      step.head = bf16_head ? model.head_bf16 : model.head_f8;
      for (int rows : row_counts) {
        set_rows(rows);
        const double ms = time_graph([&](cudaStream_t s) { CUDA_OK(launch_decode_step(step, s)); });
        const double floor = static_cast<double>(model.layer_bytes + bytes_of(step.head)) / read_rate;
        std::printf("step rows %3d head %s: %.3f ms, weights' floor %.3f, %.0f tok/s\n", rows,
                    bf16_head ? "bf16" : "f8", ms, floor, rows / ms * 1e3);
      }
    }
    step.head = model.head_f8;
    const auto logits = to_host(step.logits, 262144);
    double sum = 0;
    for (float v : logits) sum += static_cast<double>(v) * static_cast<double>(v);
    std::printf("logits rms %.4f\n", std::sqrt(sum / 262144));
  }

  // Rows of the step among few and among many others, bit by bit: all rows of steps of up to eight, up to 16
  // of larger ones, against those of a step of 16, whose kernels are none of few rows.
  void check_bits(const std::vector<int>& row_counts) {
    step.head = model.head_f8;
    const auto logits = [&](int rows) {
      set_rows(rows);
      CUDA_OK(cudaMemset(step.logits, 0xff, static_cast<size_t>(rows) * 262144 * 4));
      // h[0] is overwritten by the step (layers alternate): give every run the same start.
      fill_f32<<<256, 256>>>(step.buffers.h[0], static_cast<size_t>(kMaxRows) * kHidden, 77, 0, 1);
      CUDA_OK(launch_decode_step(step, nullptr));
      return to_host(step.logits, static_cast<size_t>(std::min(rows, 16)) * 262144);
    };
    const auto among_16 = logits(16);
    for (int rows : row_counts) {
      const auto again = logits(rows);
      report("step: all rows of " + std::to_string(rows), std::isfinite(again.back()) ? 0 : NAN, 0,
             std::memcmp(among_16.data(), again.data(), again.size() * 4) == 0 &&
                 (step.tile_max == nullptr || tiles_right(step.tile_max, step.logits, rows, 262144)));
    }
  }

  void run_kinds(int rows) {
    DecodeBuffers& b = step.buffers;
    struct Kind {
      const char* name;
      TiledWeight DecodeLayer::* w;
      DecodeOut out;
      bool norm, update, pre;
    };
    const Kind kinds[] = {
        {"norm + qkv", &DecodeLayer::qkv, DecodeOut::kF32, true, true, true},
        {"o", &DecodeLayer::o, DecodeOut::kF32, false, false, false},
        {"norm + gate-up", &DecodeLayer::gate_up, DecodeOut::kGatedUp, true, true, true},
        {"down", &DecodeLayer::down, DecodeOut::kF32, false, false, false},
        {"update + PLE gate", &DecodeLayer::ple_gate, DecodeOut::kGatedPle, true, true, false},
        {"PLE up", &DecodeLayer::ple_up, DecodeOut::kF32, false, false, false}};
    std::printf("rows %d, each kind alone, 42 in a row\n%-20s %9s %9s %9s\n", rows, "kernel", "floor ms",
                "ms", "us over");
    const auto line = [&](const char* name, double bytes, double ms, int n) {
      std::printf("%-20s %9.3f %9.3f %9.2f\n", name, bytes / read_rate, ms,
                  (ms - bytes / read_rate) / n * 1e3);
    };
    double total = 0;
    for (const Kind& kind : kinds) {
      size_t bytes = 0;
      for (const DecodeLayer& l : model.layers) bytes += bytes_of(l.*kind.w);
      const double ms = time_graph([&](cudaStream_t s) {
        for (int i = 0; i < kLayers; ++i) {
          const DecodeLayer& l = model.layers[static_cast<size_t>(i)];
          DecodeProduct p{.w = l.*kind.w,
                          .rows = rows,
                          .out_kind = kind.out,
                          .ple = step.per_layer_inputs,
                          .ple_stride = step.per_layer_stride,
                          .portable = step.portable};
          if (kind.norm) {
            p.norm = {.h = b.h[i % 2],
                      .y = b.y,
                      .y_parts = kind.pre ? 1 : 4,
                      .post_norm = l.post_ple_norm,
                      .scale = 0.5f,
                      .h_out = b.h[1 - i % 2],
                      .pre_norm = kind.pre ? l.input_norm : nullptr};
            p.x_scratch = b.x;
          } else {
            p.x_order = x_order_of(p.w, rows, step.portable);
            p.x = kind.w == &DecodeLayer::o ? b.attended : kind.w == &DecodeLayer::down ? b.wide : b.ple_mid;
          }
          p.out = kind.out == DecodeOut::kGatedUp    ? b.wide
                  : kind.out == DecodeOut::kGatedPle ? b.ple_mid
                  : kind.norm                        ? static_cast<void*>(b.qkv)
                                                     : b.y;
          CUDA_OK(launch_decode_product(p, s));
        }
      });
      total += ms;
      line(kind.name, static_cast<double>(bytes), ms, kLayers);
    }
    if (!step.portable && takes_ple(model.layers[0].ple_gate, model.layers[0].ple_up, rows)) {
      size_t bytes = 0;
      for (const DecodeLayer& l : model.layers) bytes += bytes_of(l.ple_gate) + bytes_of(l.ple_up);
      const double ms = time_graph([&](cudaStream_t s) {
        for (size_t i = 0; i < model.layers.size(); ++i) {
          const DecodeLayer& l = model.layers[i];
          CUDA_OK(launch_decode_ple({.gate = l.ple_gate,
                                     .up = l.ple_up,
                                     .rows = rows,
                                     .x = b.wide,
                                     .ple = step.per_layer_inputs,
                                     .ple_stride = step.per_layer_stride,
                                     .norm = {.h = b.h[i % 2],
                                              .post_norm = l.post_ple_norm,
                                              .scale = 0.5f,
                                              .h_out = b.h[1 - i % 2],
                                              .pre_norm = l.input_norm},
                                     .x_out = b.x},
                                    s));
        }
      });
      line("PLE block in one", static_cast<double>(bytes), ms, kLayers);
    }
    const double attention = time_graph([&](cudaStream_t s) {
      for (const DecodeLayer& l : model.layers) {
        CUDA_OK(launch_decode_attention({.shape = l.attention,
                                         .kv = l.kv,
                                         .rope = l.rope,
                                         .norms = l.head_norms,
                                         .rows = {step.rows.positions, step.rows.slots, rows},
                                         .qkv = b.qkv,
                                         .qkv_stride = l.qkv.n,
                                         .owns_kv = l.owns_kv,
                                         .max_context = step.max_context,
                                         .out = b.attended,
                                         .out_order = x_order_of(l.o, rows, step.portable),
                                         .workspace = b.attention_workspace,
                                         .workspace_rows = kMaxRows},
                                        step.attention_design, s));
      }
    });
    line("attention", 0, attention, kLayers);
    for (const TiledWeight& head : {model.head_f8, model.head_bf16}) {
      const double ms = time_graph([&](cudaStream_t s) {
        CUDA_OK(launch_decode_product({.w = head,
                                       .rows = rows,
                                       .norm = {.h = b.h[0],
                                                .y = b.y,
                                                .post_norm = model.final_norm,
                                                .h_out = b.h[1],
                                                .pre_norm = model.final_norm},
                                       .x_scratch = b.x,
                                       .out_kind = DecodeOut::kLogits,
                                       .out = step.logits,
                                       .cap = 30,
                                       .portable = step.portable},
                                      s));
      });
      line(head.format == TileFormat::kBF16 ? "head bf16" : "head f8", static_cast<double>(bytes_of(head)),
           ms, 1);
      if (head.format == TileFormat::kF8E4M3) total += ms;
    }
    std::printf("%-20s %9s %9.3f\n", "sum (f8 head)", "", total + attention);
  }
};

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::string what = argc > 1 ? argv[1] : "all";
  std::vector<int> rows = {1, 2, 4, 8, 16, 32, 64, 100};
  bool portable = false;
  int keys = 512;
  TileFormat body = TileFormat::kF8E4M3;
  for (int i = 2; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--portable") {
      portable = true;
    } else if (arg == "--bf16") {
      body = TileFormat::kBF16;
    } else if (arg == "--keys" && i + 1 < argc) {
      keys = std::clamp(std::atoi(argv[++i]), 1, 16 * kPagesPerRow);
    } else {
      rows.clear();
      for (const char* p = argv[i]; *p != 0;) {
        char* end;
        rows.push_back(static_cast<int>(std::strtol(p, &end, 10)));
        p = *end == ',' ? end + 1 : end;
      }
    }
  }
  if (what == "check" || what == "all") check(portable);
  if (what != "check") {
    Bench bench(body, portable, keys);
    if (what != "kinds") {
      bench.check_bits({1, 2, 3, 4, 5, 6, 7, 8, 9, 32, 64, 100, 128});
      bench.run_steps(rows);
    }
    if (what != "time") {
      for (int r : rows) {
        bench.run_kinds(r);
      }
    }
  }
  return failures == 0 ? 0 : 1;
}
