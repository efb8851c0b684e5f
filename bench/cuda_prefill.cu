// The large products of the CUDA backend: correctness and speed. A program of its own, so that a GPU machine
// without the tree's libraries can run it:
//
//   cuda_prefill test            every form, shape and width of tile against FP64; rows bitwise the same for
//   any count cuda_prefill bench [rows…]   TFLOP/s of E4B's shapes; buffers rotate through more than the L2
//
// Data are random Gaussian numbers made on the device; outputs are poisoned before each run. Exit code 1 when
// a check fails.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "backend/cuda/prefill_product.h"
#include "backend/cuda/prefill_product_kernel.h"

namespace jewel::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) check((call), #call)

__host__ __device__ inline uint32_t mix(uint64_t x) {
  x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull, x ^= x >> 33;
  return static_cast<uint32_t>(x);
}
__device__ inline float gaussian(uint64_t seed, uint64_t i) {
  const float u = (static_cast<float>(mix(seed * 0x9e3779b97f4a7c15ull + 2 * i) >> 8) + 0.5f) / 16777216.0f;
  const float v = static_cast<float>(mix(seed * 0x9e3779b97f4a7c15ull + 2 * i + 1) >> 8) / 16777216.0f;
  return sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * v);
}

// Natural [rows, columns], FP32 values that the format holds exactly.
__global__ void fill(float* x, int64_t n, uint64_t seed, bool fp8, float sigma) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= n) return;
  const float value = gaussian(seed, i) * sigma;
  x[i] = fp8 ? static_cast<float>(__nv_fp8_e4m3(value)) : __bfloat162float(__float2bfloat16(value));
}

__global__ void pack_weight(const float* w, int out, int in, bool fp8, void* tiles) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= static_cast<int64_t>(out) * in) return;
  const int row = static_cast<int>(i / in), k = static_cast<int>(i % in);
  if (fp8) {
    const int64_t tile = static_cast<int64_t>(row / 16) * (in / 32) + k / 32;
    const int lane = row % 8 * 4 + k % 16 / 4, byte = k % 32 / 16 * 8 + row % 16 / 8 * 4 + k % 4;
    static_cast<__nv_fp8_e4m3*>(tiles)[tile * 512 + lane * 16 + byte] = __nv_fp8_e4m3(w[i]);
  } else {
    const int64_t tile = static_cast<int64_t>(row / 16) * (in / 16) + k / 16;
    const int lane = row % 8 * 4 + k % 16 / 4, at = row % 16 / 8 * 4 + k % 4;
    static_cast<__nv_bfloat16*>(tiles)[tile * 256 + lane * 8 + at] = __float2bfloat16(w[i]);
  }
}

__constant__ int kOrder[16];

__global__ void pack_input(const float* x, int64_t rows, int in, bool fp8, void* out) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= rows * in) return;
  const int k = static_cast<int>(i % in);
  if (fp8) {
    static_cast<__nv_fp8_e4m3*>(out)[i] = __nv_fp8_e4m3(x[i]);
  } else {
    static_cast<__nv_bfloat16*>(out)[i] = __float2bfloat16(x[i / in * in + k / 16 * 16 + kOrder[k % 16]]);
  }
}

// sums[s, o] in FP64 for sampled rows, and sum of |products| for the bound of the error.
__global__ void reference(const float* x, const float* w, const int* sample, int in, int out, double* sums) {
  const int o = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (o >= out) return;
  const float* xr = x + static_cast<int64_t>(sample[blockIdx.y]) * in;
  double sum = 0;
  for (int k = 0; k < in; ++k)
    sum += static_cast<double>(xr[k]) * static_cast<double>(w[static_cast<int64_t>(o) * in + k]);
  sums[static_cast<int64_t>(blockIdx.y) * out + o] = sum;
}

template <class T>
T* allocate(int64_t n) {
  void* p = nullptr;
  CHECK(cudaMalloc(&p, static_cast<size_t>(n) * sizeof(T)));
  return static_cast<T*>(p);
}
unsigned blocks(int64_t n) {
  return static_cast<unsigned>((n + 255) / 256);
}

struct Case {
  ProductKind kind;
  int out, in;
  bool is_fp8_weight() const { return kind != ProductKind::kW16A16; }
  bool is_fp8_input() const { return kind == ProductKind::kW8A8; }
};
const char* name_of(ProductKind kind) {
  return kind == ProductKind::kW8A16 ? "w8a16" : kind == ProductKind::kW16A16 ? "w16a16" : "w8a8";
}

// Everything a product needs, natural and packed.
struct Data {
  Case c;
  int rows;
  float *x, *w, *row_scale, *x_scale, *factor;
  float2* clamp;
  void *tiles, *input;
  std::vector<float> h_scale, h_x_scale, h_factor;
  std::vector<float2> h_clamp;

  Data(const Case& shape, int n_rows, uint64_t seed) : c(shape), rows(n_rows) {
    const int64_t nx = static_cast<int64_t>(rows) * c.in, nw = static_cast<int64_t>(c.out) * c.in;
    x = allocate<float>(nx), w = allocate<float>(nw);
    tiles = allocate<uint16_t>(nw), input = allocate<uint16_t>(nx);
    fill<<<blocks(nx), 256>>>(x, nx, seed, c.is_fp8_input(), c.is_fp8_input() ? 100.0f : 1.0f);
    fill<<<blocks(nw), 256>>>(w, nw, seed + 1, c.is_fp8_weight(), c.is_fp8_weight() ? 100.0f : 0.05f);
    pack_input<<<blocks(nx), 256>>>(x, rows, c.in, c.is_fp8_input(), input);
    pack_weight<<<blocks(nw), 256>>>(w, c.out, c.in, c.is_fp8_weight(), tiles);
    const double size = std::sqrt(c.in) * (c.is_fp8_input() ? 100 : 1) * (c.is_fp8_weight() ? 100 : 0.05);
    for (int i = 0; i < c.out; ++i) {
      h_scale.push_back(static_cast<float>((1 + 0.5 * std::sin(i)) / size));
      h_clamp.push_back({-0.9f - 0.1f * static_cast<float>(i % 7), 1.1f});
    }
    for (int i = 0; i < rows; ++i) h_x_scale.push_back(1.0f + 0.25f * static_cast<float>(std::cos(i)));
    for (int64_t i = 0; i < static_cast<int64_t>(rows) * c.out; ++i) {
      h_factor.push_back(static_cast<float>(mix(static_cast<uint64_t>(i)) % 1000) / 500.0f - 1.0f);
    }
    row_scale = upload(h_scale), x_scale = upload(h_x_scale), clamp = upload(h_clamp),
    factor = upload(h_factor);
  }
  ~Data() {
    for (void* p : {static_cast<void*>(x), static_cast<void*>(w), tiles, input, static_cast<void*>(row_scale),
                    static_cast<void*>(x_scale), static_cast<void*>(clamp), static_cast<void*>(factor)}) {
      cudaFree(p);
    }
  }
  Data(const Data&) = delete;
  Data& operator=(const Data&) = delete;
  template <class T>
  static T* upload(const std::vector<T>& v) {
    T* p = allocate<T>(static_cast<int64_t>(v.size()));
    CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
  }

  PrefillProduct product(ProductOut form, void* out, int first_row, int n) const {
    PrefillProduct p;
    p.weight = {.tiles = tiles,
                .format = c.is_fp8_weight() ? WeightFormat::kF8E4M3 : WeightFormat::kBF16,
                .out = c.out,
                .in = c.in,
                .row_scale = row_scale,
                .row_clamp = clamp};
    p.x =
        static_cast<const char*>(input) + static_cast<int64_t>(first_row) * c.in * (c.is_fp8_input() ? 1 : 2);
    p.x_scale = c.is_fp8_input() ? x_scale + first_row : nullptr;
    p.x_stride = c.in;
    p.rows = n;
    p.form = form;
    p.out = out;
    p.out_stride = form == ProductOut::kGateUp ? c.out / 2 : c.out;
    p.factor = factor + static_cast<int64_t>(first_row) * c.out;
    p.factor_stride = c.out;
    p.out_min = -0.5f, p.out_max = 0.75f;
    return p;
  }
};

enum class Path : uint8_t { kChosen, kWidth, kPromoted, kPortable };

cudaError_t launch(const PrefillProduct& p, Path path, int width) {
  switch (path) {
    case Path::kChosen:
      return launch_prefill_product(p, ProductDesign::kSm90, nullptr);
    case Path::kPortable:
      return launch_prefill_product(p, ProductDesign::kPortable, nullptr);
    case Path::kPromoted:
      return launch_sm90_w8a8(p, width, true, nullptr);
    case Path::kWidth:
      break;
  }
  if (p.x_scale != nullptr) return launch_sm90_w8a8(p, width, false, nullptr);
  return p.weight.format == WeightFormat::kF8E4M3 ? launch_sm90_w8a16(p, width, nullptr)
                                                  : launch_sm90_w16a16(p, width, nullptr);
}

double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

double value_at(const std::vector<uint8_t>& bytes, ProductOut form, int64_t i) {
  if (form == ProductOut::kF32) return reinterpret_cast<const float*>(bytes.data())[i];
  const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(bytes.data())[i]) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

constexpr ProductOut kForms[] = {ProductOut::kF32, ProductOut::kBF16, ProductOut::kBF16ProductOrder,
                                 ProductOut::kGateUp, ProductOut::kGeluTimes};
const char* const kFormNames[] = {"f32", "bf16", "bf16-order", "gate-up", "gelu-times"};

// All rows once by `path`; returns the bytes.
std::vector<uint8_t> run(const Data& d, ProductOut form, Path path, int width, int first_row, int n) {
  const int columns = form == ProductOut::kGateUp ? d.c.out / 2 : d.c.out;
  const size_t row_bytes = static_cast<size_t>(columns) * (form == ProductOut::kF32 ? 4 : 2);
  const size_t guard = row_bytes * 3;
  uint8_t* out = allocate<uint8_t>(static_cast<int64_t>(row_bytes * static_cast<size_t>(n) + guard));
  CHECK(cudaMemset(out, 0xff, row_bytes * static_cast<size_t>(n) + guard));
  CHECK(launch(d.product(form, out, first_row, n), path, width));
  CHECK(cudaDeviceSynchronize());
  std::vector<uint8_t> bytes(row_bytes * static_cast<size_t>(n) + guard);
  CHECK(cudaMemcpy(bytes.data(), out, bytes.size(), cudaMemcpyDeviceToHost));
  cudaFree(out);
  for (size_t i = row_bytes * static_cast<size_t>(n); i < bytes.size(); ++i) {
    if (bytes[i] != 0xff) {
      std::printf("FAIL: wrote past the last row, byte %zu\n", i - row_bytes * static_cast<size_t>(n));
      std::exit(1);
    }
  }
  bytes.resize(row_bytes * static_cast<size_t>(n));
  return bytes;
}

// Relative error in the norm, over sampled rows.
double error_of(const Data& d, const std::vector<uint8_t>& bytes, ProductOut form) {
  std::vector<int> sample;
  for (int i = 0; i < d.rows; i += std::max(1, d.rows / 24)) sample.push_back(i);
  sample.push_back(d.rows - 1);
  int* d_sample = Data::upload(sample);
  double* d_sums = allocate<double>(static_cast<int64_t>(sample.size()) * d.c.out);
  reference<<<dim3(blocks(d.c.out), static_cast<unsigned>(sample.size())), 256>>>(d.x, d.w, d_sample, d.c.in,
                                                                                  d.c.out, d_sums);
  std::vector<double> sums(sample.size() * static_cast<size_t>(d.c.out));
  CHECK(cudaMemcpy(sums.data(), d_sums, sums.size() * 8, cudaMemcpyDeviceToHost));
  cudaFree(d_sums), cudaFree(d_sample);
  const int columns = form == ProductOut::kGateUp ? d.c.out / 2 : d.c.out;
  double difference = 0, norm = 0;
  for (size_t s = 0; s < sample.size(); ++s) {
    const int r = sample[s];
    const auto sum = [&](int o) {
      const auto at = static_cast<size_t>(o);
      const double v = sums[s * static_cast<size_t>(d.c.out) + at] * d.h_scale[at] *
                       (d.c.is_fp8_input() ? d.h_x_scale[static_cast<size_t>(r)] : 1);
      return std::clamp<double>(v, d.h_clamp[at].x, d.h_clamp[at].y);
    };
    for (int slot = 0; slot < columns; ++slot) {
      const bool ordered = form != ProductOut::kF32 && form != ProductOut::kBF16;
      const int o = ordered ? slot / 16 * 16 + kProductOrder[slot % 16] : slot;
      double want = 0;
      if (form == ProductOut::kGateUp) {
        const int gate = o / 8 * 16 + o % 8;
        want = std::clamp(gelu(sum(gate)) * sum(gate + 8), -0.5, 0.75);
      } else if (form == ProductOut::kGeluTimes) {
        want = gelu(sum(o)) *
               d.h_factor[static_cast<size_t>(r) * static_cast<size_t>(d.c.out) + static_cast<size_t>(o)];
      } else {
        want = sum(o);
      }
      const double got = value_at(bytes, form, static_cast<int64_t>(r) * columns + slot);
      difference += (got - want) * (got - want);
      norm += want * want;
      if (!std::isfinite(got)) return HUGE_VAL;
    }
  }
  return std::sqrt(difference / norm);
}

int failures = 0;

void expect(bool ok, const std::string& what) {
  if (!ok) {
    std::printf("FAIL: %s\n", what.c_str());
    ++failures;
  }
}

std::vector<int> widths_of(Path path) {
  if (path == Path::kWidth) return {64, 128, 160, 192, 256};
  if (path == Path::kPromoted) return {64, 128, 160};
  return {0};
}

void test_case(const Case& c, int rows, Path path) {
  const Data d(c, rows, static_cast<uint64_t>(c.out) * 31 + static_cast<uint64_t>(c.in));
  for (int f = 0; f < 5; ++f) {
    const ProductOut form = kForms[f];
    const bool wide_groups = form != ProductOut::kF32 && form != ProductOut::kBF16;
    if (wide_groups && c.out % 32 != 0) continue;
    // FP32 sums of exact products: 2^-24 per addition, far below 1e-5; BF16 rounds by up to 2^-9, 1.7e-3 in
    // the norm. The FP8 tensor cores keep fewer bits in their sums: measured 2e-4 to 1e-3 without promotion.
    const double bound = (form == ProductOut::kF32 ? 1e-5 : 3e-3) + (c.is_fp8_input() ? 2e-3 : 0);
    std::vector<uint8_t> first;
    double error = 0;
    for (const int width : widths_of(path)) {
      const std::vector<uint8_t> bytes = run(d, form, path, width, 0, rows);
      if (first.empty()) {
        first = bytes;
        error = error_of(d, bytes, form);
        expect(error < bound,
               std::string(name_of(c.kind)) + " " + kFormNames[f] + ": error " + std::to_string(error));
      }
      expect(bytes == first, "width " + std::to_string(width) + " differs in its bits");
      const size_t row_bytes = first.size() / static_cast<size_t>(rows);
      for (const int n : {1, 7, 64, 130}) {
        const int at = std::min(17, rows - n);
        if (at < 0) continue;
        const std::vector<uint8_t> part = run(d, form, path, width, at, n);
        expect(std::memcmp(part.data(), first.data() + row_bytes * static_cast<size_t>(at), part.size()) == 0,
               std::to_string(n) + " rows differ from the same rows among " + std::to_string(rows));
      }
    }
    std::printf("%-7s %5d x %5d, %4d rows, %-10s %s error %.2e\n", name_of(c.kind), c.out, c.in, rows,
                kFormNames[f],
                path == Path::kChosen     ? "chosen  "
                : path == Path::kWidth    ? "widths  "
                : path == Path::kPromoted ? "promoted"
                                          : "portable",
                error);
  }
}

void test(bool portable) {
  constexpr ProductKind kKinds[] = {ProductKind::kW8A16, ProductKind::kW16A16, ProductKind::kW8A8};
  for (const ProductKind kind : kKinds) {
    const std::vector<Path> paths = portable ? std::vector<Path>{Path::kPortable}
                                    : kind == ProductKind::kW8A8
                                        ? std::vector<Path>{Path::kWidth, Path::kPromoted, Path::kChosen}
                                        : std::vector<Path>{Path::kWidth, Path::kChosen};
    for (const Path path : paths) {
      test_case({kind, 2560, 2560}, 300, path);
      test_case({kind, 336, 192}, 150, path);  // half pairs, an odd number of tiles
      test_case({kind, 64, 64}, 131, path);
      if (path == Path::kWidth) continue;
      test_case({kind, 3072, 2560}, 2048, path);
      test_case({kind, 2560, 10240}, 513, path);
      test_case({kind, 2560, 256}, 130, path);
      test_case({kind, 256, 2560}, 2048, path);
    }
  }
  std::printf(failures == 0 ? "all passed\n" : "%d FAILED\n", failures);
}

// --- speed

double seconds_per_launch(const Case& c, int rows, ProductOut form, Path path, int width) {
  // As many copies of weights and inputs as pass 128 MB.
  const int64_t weight_bytes = static_cast<int64_t>(c.out) * c.in * (c.is_fp8_weight() ? 1 : 2);
  const int64_t input_bytes = static_cast<int64_t>(rows) * c.in * (c.is_fp8_input() ? 1 : 2);
  const int copies =
      static_cast<int>(std::clamp<int64_t>((128 << 20) / (weight_bytes + input_bytes), 1, 8)) + 1;
  std::vector<std::pair<void*, void*>> buffers;
  float* natural = allocate<float>(std::max<int64_t>(static_cast<int64_t>(c.out), rows) * c.in);
  for (int i = 0; i < copies; ++i) {
    void* tiles = allocate<uint8_t>(weight_bytes);
    void* input = allocate<uint8_t>(input_bytes);
    const int64_t nw = static_cast<int64_t>(c.out) * c.in, nx = static_cast<int64_t>(rows) * c.in;
    fill<<<blocks(nw), 256>>>(natural, nw, 7 + static_cast<uint64_t>(i), c.is_fp8_weight(),
                              c.is_fp8_weight() ? 100.0f : 0.02f);
    pack_weight<<<blocks(nw), 256>>>(natural, c.out, c.in, c.is_fp8_weight(), tiles);
    fill<<<blocks(nx), 256>>>(natural, nx, 99 + static_cast<uint64_t>(i), c.is_fp8_input(),
                              c.is_fp8_input() ? 100.0f : 1.0f);
    pack_input<<<blocks(nx), 256>>>(natural, rows, c.in, c.is_fp8_input(), input);
    buffers.emplace_back(tiles, input);
  }
  cudaFree(natural);
  void* out = allocate<float>(static_cast<int64_t>(rows) * c.out);
  std::vector<float> ones(static_cast<size_t>(std::max(rows, c.out)), 1e-4f);
  float* scale = Data::upload(ones);
  float* factor = allocate<float>(form == ProductOut::kGeluTimes ? static_cast<int64_t>(rows) * c.out : 1);
  const auto once = [&](int i) {
    PrefillProduct p;
    const auto& [tiles, input] = buffers[static_cast<size_t>(i % copies)];
    p.weight = {.tiles = tiles,
                .format = c.is_fp8_weight() ? WeightFormat::kF8E4M3 : WeightFormat::kBF16,
                .out = c.out,
                .in = c.in,
                .row_scale = scale};
    p.x = input;
    p.x_scale = c.is_fp8_input() ? scale : nullptr;
    p.x_stride = c.in;
    p.rows = rows;
    p.form = form;
    p.out = out;
    p.out_stride = form == ProductOut::kGateUp ? c.out / 2 : c.out;
    p.factor = factor;
    p.factor_stride = c.out;
    CHECK(launch(p, path, width));
  };
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  const double flop = 2.0 * rows * c.out * c.in;
  const int launches = static_cast<int>(std::clamp(1.2e13 / flop, 4.0, 400.0));  // about 20 ms
  for (int i = 0; i < 4; ++i) once(i);
  for (int n = 0; n < 3; ++n) {
    CHECK(cudaEventRecord(start));
    for (int i = 0; i < launches; ++i) once(i);
    CHECK(cudaEventRecord(stop));
    CHECK(cudaEventSynchronize(stop));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    times.push_back(ms / static_cast<float>(launches));
  }
  for (const auto& [tiles, input] : buffers) cudaFree(tiles), cudaFree(input);
  cudaFree(out), cudaFree(scale), cudaFree(factor);
  cudaEventDestroy(start), cudaEventDestroy(stop);
  std::sort(times.begin(), times.end());
  return times[1] * 1e-3;
}

struct Shape {
  const char* name;
  int out, in;
  ProductOut form;
};
constexpr Shape kE4b[] = {
    {"qkv sliding", 3072, 2560, ProductOut::kF32},   {"qkv full", 6144, 2560, ProductOut::kF32},
    {"o sliding", 2560, 2048, ProductOut::kF32},     {"o full", 2560, 4096, ProductOut::kF32},
    {"gate-up", 20480, 2560, ProductOut::kGateUp},   {"down", 2560, 10240, ProductOut::kF32},
    {"PLE gate", 256, 2560, ProductOut::kGeluTimes}, {"PLE up", 2560, 256, ProductOut::kF32},
    {"PLE project", 10752, 2560, ProductOut::kF32}};

void bench(const std::vector<int>& row_counts, bool widths, bool portable) {
  for (const ProductKind kind : {ProductKind::kW8A16, ProductKind::kW16A16, ProductKind::kW8A8}) {
    for (const int rows : row_counts) {
      for (const Shape& s : kE4b) {
        const Case c{kind, s.out, s.in};
        const double flop = 2.0 * rows * s.out * s.in;
        const double chosen =
            seconds_per_launch(c, rows, s.form, portable ? Path::kPortable : Path::kChosen, 0);
        std::printf("%-7s %5d rows %-12s %5d x %5d  %8.1f us %6.0f TFLOP/s", name_of(kind), rows, s.name,
                    s.out, s.in, chosen * 1e6, flop / chosen * 1e-12);
        if (widths) {
          for (const int width : widths_of(Path::kWidth)) {
            std::printf("  %d:%.0f", width,
                        flop / seconds_per_launch(c, rows, s.form, Path::kWidth, width) * 1e-12);
          }
          if (kind == ProductKind::kW8A8) {
            for (const int width : widths_of(Path::kPromoted)) {
              std::printf("  p%d:%.0f", width,
                          flop / seconds_per_launch(c, rows, s.form, Path::kPromoted, width) * 1e-12);
            }
          }
        }
        std::printf("\n");
        std::fflush(stdout);
      }
    }
  }
}

}  // namespace
}  // namespace jewel::cuda

int main(int argc, char** argv) {
  using namespace jewel::cuda;
  CHECK(cudaMemcpyToSymbol(kOrder, kProductOrder, sizeof(kProductOrder)));
  const std::string mode = argc > 1 ? argv[1] : "";
  std::vector<int> rows;
  bool portable = false, widths = false;
  for (int i = 2; i < argc; ++i) {
    if (std::string(argv[i]) == "portable")
      portable = true;
    else if (std::string(argv[i]) == "widths")
      widths = true;
    else
      rows.push_back(std::atoi(argv[i]));
  }
  if (mode == "test") {
    test(portable);
    return failures == 0 ? 0 : 1;
  }
  if (mode == "bench") {
    bench(rows.empty() ? std::vector<int>{2048} : rows, widths, portable);
    return 0;
  }
  std::fprintf(stderr, "usage: cuda_prefill test|bench [portable] [widths] [rows...]\n");
  return 2;
}
