// The large products of the CUDA backend: correctness and speed. A program of its own, so that a GPU machine
// without the tree's libraries can run it:
//
//   cuda_prefill test [portable] [quick]  every form, shape and width of tile against FP64; rows bitwise the
//   same for any count cuda_prefill bench [rows…]   TFLOP/s of E4B's shapes; buffers rotate through more than
//   the L2
//
// Data are random Gaussian numbers made on the device; outputs are poisoned before each run. Exit code 1 when
// a check fails.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "backend/cuda/prefill_product.h"
#include "backend/cuda/prefill_product_task.h"
#include "backend/cuda/prefill_rows.h"
#include "backend/cuda/quantize_rows.h"
#include "cuda_data.h"

namespace jewel::cuda {
namespace {

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
  int* d_sample = upload(sample);
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
    // Products are exact; each of the K / 16 steps of a chain may lose half of FP32's last bit, all in one
    // direction. BF16 results round by up to 2^-9, 1.7e-3 in the norm. Sums of the FP8 tensor cores keep
    // about 14 bits: measured 1.9e-3 at K = 10,240, 1.4e-4 with promotion.
    const double chain = 2e-6 + c.in / 16 * 0x1p-24;
    const double bound = (form == ProductOut::kF32 ? chain : 3e-3) + (c.is_fp8_input() ? 2.5e-3 : 0);
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

void test(bool portable, bool quick) {
  constexpr ProductKind kKinds[] = {ProductKind::kW8A16, ProductKind::kW16A16, ProductKind::kW8A8};
  for (const ProductKind kind : kKinds) {
    const std::vector<Path> paths = portable ? std::vector<Path>{Path::kPortable}
                                    : kind == ProductKind::kW8A8
                                        ? std::vector<Path>{Path::kWidth, Path::kPromoted, Path::kChosen}
                                        : std::vector<Path>{Path::kWidth, Path::kChosen};
    for (const Path path : paths) {
      if (!quick) test_case({kind, 2560, 2560}, 300, path);
      test_case({kind, 336, 192}, 150, path);  // half pairs, an odd number of tiles
      test_case({kind, 64, 64}, 131, path);
      if (path == Path::kWidth || quick) continue;
      test_case({kind, 3072, 2560}, 2048, path);
      test_case({kind, 2560, 10240}, 513, path);
      test_case({kind, 2560, 256}, 130, path);
      test_case({kind, 256, 2560}, 2048, path);
    }
  }
  std::printf(failures == 0 ? "all passed\n" : "%d FAILED\n", failures);
}

// --- rows

double half_value(uint16_t bits) {
  return static_cast<double>(__half2float(__half(__half_raw{bits})));
}
double bf16_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}
double e4m3_value(uint8_t bits) {
  __nv_fp8_e4m3 value;
  value.__x = bits;
  return static_cast<float>(value);
}

// What a row kernel stored as a product's input, in natural order.
std::vector<double> stored_input(const ProductInputOut& out, int rows, int columns) {
  const auto n = static_cast<size_t>(rows) * static_cast<size_t>(columns);
  std::vector<double> values(n);
  if (out.form == InputForm::kF32) {
    const auto raw = download<float>(out.data, n);
    std::copy(raw.begin(), raw.end(), values.begin());
  } else if (out.form == InputForm::kF8) {
    const auto raw = download<uint8_t>(out.data, n);
    const auto scale = download<float>(out.scale, static_cast<size_t>(rows));
    for (size_t i = 0; i < n; ++i) values[i] = e4m3_value(raw[i]) * scale[i / static_cast<size_t>(columns)];
  } else {
    const auto raw = download<uint16_t>(out.data, n);
    for (size_t i = 0; i < n; ++i)
      values[i / 16 * 16 + static_cast<size_t>(kProductOrder[i % 16])] = bf16_value(raw[i]);
  }
  return values;
}

double relative(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(got[i])) return HUGE_VAL;
    difference += (got[i] - want[i]) * (got[i] - want[i]), norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

// Half a step of BF16 is 2^-9 of a value at most, 1.7e-3 in the norm; of E4M3 2^-4, 2.6e-2 in the norm for
// Gaussian rows.
double bound_of(InputForm form) {
  return form == InputForm::kF32 ? 1e-6 : form == InputForm::kF8 ? 3.2e-2 : 2e-3;
}

std::vector<double> rms(const double* x, int columns, double eps) {
  double sum = 0;
  for (int i = 0; i < columns; ++i) sum += x[i] * x[i];
  std::vector<double> y(x, x + columns);
  for (double& value : y) value /= std::sqrt(sum / columns + eps);
  return y;
}

void test_rows(int rows, int columns, InputForm form) {
  const auto n = static_cast<size_t>(rows) * static_cast<size_t>(columns);
  float *x = allocate<float>(static_cast<int64_t>(n)), *h = allocate<float>(static_cast<int64_t>(n));
  float *post = allocate<float>(columns), *next = allocate<float>(columns), *scale = allocate<float>(rows);
  void* input = allocate<float>(static_cast<int64_t>(n));
  fill<<<blocks(static_cast<int64_t>(n)), 256>>>(x, static_cast<int64_t>(n), 1, false, 2.0f);
  fill<<<blocks(static_cast<int64_t>(n)), 256>>>(h, static_cast<int64_t>(n), 2, false, 3.0f);
  fill<<<blocks(columns), 256>>>(post, columns, 3, false, 1.0f);
  fill<<<blocks(columns), 256>>>(next, columns, 4, false, 1.0f);
  const auto hx = download<float>(x, n), hh = download<float>(h, n);
  const auto hpost = download<float>(post, static_cast<size_t>(columns)),
             hnext = download<float>(next, static_cast<size_t>(columns));
  CHECK(cudaMemset(input, 0xff, n * 4));
  ResidualNorm r;
  r.x = x, r.x_stride = columns, r.post_weight = post, r.h = h, r.scalar = 0.37f, r.next_weight = next;
  r.input = {.form = form, .data = input, .stride = columns, .scale = scale, .min = -1.5f, .max = 2.0f};
  r.rows = rows, r.columns = columns, r.eps = 1e-6f;
  CHECK(launch_residual_norm(r, nullptr));
  std::vector<double> want_h(n), want_input(n);
  for (int row = 0; row < rows; ++row) {
    const size_t at = static_cast<size_t>(row) * static_cast<size_t>(columns);
    const std::vector<double> xr(hx.begin() + static_cast<int64_t>(at),
                                 hx.begin() + static_cast<int64_t>(at) + columns);
    const auto y = rms(xr.data(), columns, 1e-6);
    for (size_t i = 0; i < static_cast<size_t>(columns); ++i)
      want_h[at + i] = (hh[at + i] + y[i] * hpost[i]) * 0.37f;
    const auto z = rms(want_h.data() + at, columns, 1e-6);
    for (size_t i = 0; i < static_cast<size_t>(columns); ++i) {
      want_input[at + i] = std::clamp(z[i] * hnext[i], -1.5, 2.0);
    }
  }
  const auto got_h = download<float>(h, n);
  const double h_error = relative({got_h.begin(), got_h.end()}, want_h);
  const double input_error = relative(stored_input(r.input, rows, columns), want_input);
  expect(h_error < 1e-6 && input_error < bound_of(form), "residual norm, " + std::to_string(columns) +
                                                             " columns: " + std::to_string(h_error) + " " +
                                                             std::to_string(input_error));
  std::printf("residual norm %4d x %5d form %d: h %.1e, input %.1e\n", rows, columns, static_cast<int>(form),
              h_error, input_error);

  // The same rows from BF16 in product order, quantized.
  void *ordered = allocate<uint16_t>(static_cast<int64_t>(n)),
       *quantized = allocate<uint8_t>(static_cast<int64_t>(n));
  pack_input<<<blocks(static_cast<int64_t>(n)), 256>>>(x, rows, columns, false, ordered);
  CHECK(launch_quantize_rows(
      {.x = ordered, .x_stride = columns, .rows = rows, .columns = columns, .out = quantized, .scale = scale},
      nullptr));
  const ProductInputOut as_input{
      .form = InputForm::kF8, .data = quantized, .stride = columns, .scale = scale};
  const double q_error = relative(stored_input(as_input, rows, columns), {hx.begin(), hx.end()});
  expect(q_error > 1e-2 && q_error < bound_of(InputForm::kF8), "quantize rows: " + std::to_string(q_error));
  for (void* p : {static_cast<void*>(x), static_cast<void*>(h), static_cast<void*>(post),
                  static_cast<void*>(next), static_cast<void*>(scale), input, ordered, quantized}) {
    cudaFree(p);
  }
}

// The table of a small vocabulary, and rows of tokens and soft tokens.
void test_per_layer_inputs(int rows, int layers, int width) {
  constexpr int kVocab = 50, kFirstLayer = 2, kPad = 7;
  constexpr float kScale = 4;
  const int all_layers = layers + kFirstLayer + 3, columns = layers * width,
            table_columns = all_layers * width;
  const int64_t n = int64_t{rows} * columns, nt = int64_t{kVocab} * table_columns;
  float *c = allocate<float>(n), *projections = allocate<float>(nt), *natural = allocate<float>(nt),
        *weight = allocate<float>(width);
  fill<<<blocks(n), 256>>>(c, n, 5, false, 40.0f);
  fill<<<blocks(nt), 256>>>(projections, nt, 4, false, 40.0f);
  fill<<<blocks(nt), 256>>>(natural, nt, 6, false, 0.1f);
  fill<<<blocks(width), 256>>>(weight, width, 7, false, 1.0f);
  const auto hc = download<float>(c, static_cast<size_t>(n)),
             hp = download<float>(projections, static_cast<size_t>(nt)),
             ht = download<float>(natural, static_cast<size_t>(nt)),
             hw = download<float>(weight, static_cast<size_t>(width));
  std::vector<uint16_t> bits;
  for (const float value : ht) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    bits.push_back(static_cast<uint16_t>(wide >> 16));  // fill() made BF16 values
  }
  const auto combined = [&](const float* projection, const float* token, std::vector<double>& to) {
    std::vector<double> x;
    for (int i = 0; i < width; ++i) x.push_back(projection[i] * 0.02f);
    const auto y = rms(x.data(), width, 1e-6);
    for (int i = 0; i < width; ++i) {
      to.push_back((y[static_cast<size_t>(i)] * hw[static_cast<size_t>(i)] + token[i] * 16) / M_SQRT2);
    }
  };
  const PerLayerNorm norm{
      .weight = weight, .projection_scale = 0.02f, .token_scale = 16, .width = width, .eps = 1e-6f};
  uint16_t* table = upload(bits);
  const auto* pad = reinterpret_cast<__nv_bfloat16*>(
      upload(std::vector(bits.begin() + kPad * table_columns, bits.begin() + (kPad + 1) * table_columns)));
  CHECK(launch_per_layer_table({.norm = norm,
                                .c = projections,
                                .table = table,
                                .scale = kScale,
                                .rows = kVocab,
                                .n_layers = all_layers},
                               nullptr));
  std::vector<double> want_table;
  for (int64_t at = 0; at < nt; at += width) combined(hp.data() + at, ht.data() + at, want_table);
  std::vector<double> got_table;
  for (const uint16_t value : download<uint16_t>(table, static_cast<size_t>(nt)))
    got_table.push_back(kScale * half_value(value));
  const double table_error = relative(got_table, want_table);

  std::vector<int32_t> ids;
  for (int i = 0; i < rows; ++i) {
    ids.push_back(i % 3 == 1 ? -1 : static_cast<int32_t>(mix(static_cast<uint64_t>(i)) % kVocab));
  }
  CHECK(launch_per_layer_inputs({.norm = norm,
                                 .c = c,
                                 .ids = upload(ids),
                                 .table = reinterpret_cast<__half*>(table),
                                 .table_scale = kScale,
                                 .pad = pad,
                                 .table_columns = table_columns,
                                 .rows = rows,
                                 .first_layer = kFirstLayer,
                                 .n_layers = layers},
                                nullptr));
  std::vector<double> want;
  for (int item = 0; item < rows * layers; ++item) {
    const int id = ids[static_cast<size_t>(item / layers)], layer = kFirstLayer + item % layers;
    const auto at = static_cast<std::ptrdiff_t>((id < 0 ? kPad : id) * table_columns + layer * width);
    if (id < 0) {
      combined(hc.data() + item * width, ht.data() + at, want);
    } else {
      want.insert(want.end(), got_table.begin() + at, got_table.begin() + at + width);
    }
  }
  const auto got = download<float>(c, static_cast<size_t>(n));
  const double error = relative({got.begin(), got.end()}, want);
  expect(table_error < 3e-4 && error < 1e-6,
         "per-layer inputs: " + std::to_string(table_error) + ", " + std::to_string(error));
  std::printf("per-layer table, inputs %d x %d x %d: %.1e, %.1e\n", rows, layers, width, table_error, error);
}

void test_embed(int rows, int hidden) {
  const int vocab = 60;
  const int64_t nt = static_cast<int64_t>(vocab) * hidden;
  float *natural = allocate<float>(nt), *soft = allocate<float>(hidden * 3),
        *h = allocate<float>(static_cast<int64_t>(rows) * hidden);
  fill<<<blocks(nt), 256>>>(natural, nt, 8, false, 1.0f);
  fill<<<blocks(hidden * 3), 256>>>(soft, hidden * 3, 9, false, 1.0f);
  const auto ht = download<float>(natural, static_cast<size_t>(nt)),
             hs = download<float>(soft, static_cast<size_t>(hidden * 3));
  std::vector<uint16_t> bits;
  for (const float value : ht) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    bits.push_back(static_cast<uint16_t>(wide >> 16));
  }
  std::vector<int32_t> ids;
  std::vector<const float*> softs;
  std::vector<double> want;
  for (int i = 0; i < rows; ++i) {
    ids.push_back(i * 7 % vocab);
    softs.push_back(i % 5 == 3 ? soft + i % 3 * hidden : nullptr);
    for (int j = 0; j < hidden; ++j) {
      want.push_back(i % 5 == 3 ? hs[static_cast<size_t>(i % 3 * hidden + j)]
                                : ht[static_cast<size_t>(ids.back() * hidden + j)] * 50.5);
    }
  }
  EmbedRows e;
  void* input = allocate<uint16_t>(static_cast<int64_t>(rows) * hidden);
  e.ids = upload(ids), e.soft_rows = upload(softs),
  e.table = reinterpret_cast<const __nv_bfloat16*>(upload(bits));
  e.scale = 50.5f, e.rows = rows, e.hidden = hidden, e.h = h;
  e.input = {.form = InputForm::kBF16ProductOrder, .data = input, .stride = hidden};
  CHECK(launch_embed_rows(e, nullptr));
  const auto got = download<float>(h, want.size());
  const double error = relative({got.begin(), got.end()}, want),
               input_error = relative(stored_input(e.input, rows, hidden), want);
  expect(error < 1e-7 && input_error < 2e-3, "embeddings: " + std::to_string(error));
  std::printf("embeddings %d x %d: %.1e, input %.1e\n", rows, hidden, error, input_error);
}

void test_all_rows() {
  for (const int columns : {64, 192, 768, 1536, 2560, 4096, 8192}) {
    for (const InputForm form : {InputForm::kBF16ProductOrder, InputForm::kF8, InputForm::kF32}) {
      test_rows(37, columns, form);
    }
  }
  test_per_layer_inputs(29, 24, 256);
  test_per_layer_inputs(3, 6, 64);
  test_embed(17, 2560);
  test_embed(17, 192);
}

double seconds_of(const std::function<void()>& launch) {
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int n = 0; n < 7; ++n) {
    CHECK(cudaEventRecord(start));
    for (int i = 0; i < 10; ++i) launch();
    CHECK(cudaEventRecord(stop));
    CHECK(cudaEventSynchronize(stop));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    times.push_back(ms / 10);
  }
  std::sort(times.begin(), times.end());
  return times[3] * 1e-3;
}

// GB/s of the row kernels at E4B's width; one set of buffers, as in a step, where they partly stay in the L2.
void bench_rows(int rows) {
  const int hidden = 2560, wide = 10240;
  const int64_t n = static_cast<int64_t>(rows) * hidden, nw = static_cast<int64_t>(rows) * wide;
  float *x = allocate<float>(n), *h = allocate<float>(n), *w = allocate<float>(hidden),
        *scale = allocate<float>(rows);
  void *input = allocate<uint16_t>(nw), *quantized = allocate<uint8_t>(nw);
  fill<<<blocks(n), 256>>>(x, n, 1, false, 1.0f);
  fill<<<blocks(n), 256>>>(h, n, 2, false, 1.0f);
  fill<<<blocks(hidden), 256>>>(w, hidden, 3, false, 1.0f);
  for (const InputForm form : {InputForm::kBF16ProductOrder, InputForm::kF8}) {
    ResidualNorm r;
    r.x = x, r.x_stride = hidden, r.post_weight = w, r.h = h, r.next_weight = w;
    r.input = {.form = form, .data = input, .stride = hidden, .scale = scale};
    r.rows = rows, r.columns = hidden, r.eps = 1e-6f;
    const double s = seconds_of([&] { CHECK(launch_residual_norm(r, nullptr)); });
    std::printf("residual norm %5d rows, %s: %.1f us, %.0f GB/s\n", rows,
                form == InputForm::kF8 ? "fp8" : "bf16", s * 1e6,
                static_cast<double>(n) * (form == InputForm::kF8 ? 13 : 14) / s * 1e-9);
  }
  const double s = seconds_of([&] {
    CHECK(launch_quantize_rows(
        {.x = input, .x_stride = wide, .rows = rows, .columns = wide, .out = quantized, .scale = scale},
        nullptr));
  });
  std::printf("quantize rows %5d x %d: %.1f us, %.0f GB/s\n", rows, wide, s * 1e6,
              static_cast<double>(nw) * 3 / s * 1e-9);
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
  float* scale = upload(ones);
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

// bf16: results in BF16 where E4B's shapes say FP32.
void bench(const std::vector<int>& row_counts, bool widths, bool portable, bool bf16) {
  for (const ProductKind kind : {ProductKind::kW8A16, ProductKind::kW16A16, ProductKind::kW8A8}) {
    for (const int rows : row_counts) {
      for (Shape s : kE4b) {
        if (bf16 && s.form == ProductOut::kF32) s.form = ProductOut::kBF16;
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
  const std::string mode = argc > 1 ? argv[1] : "";
  std::vector<int> rows;
  bool portable = false, widths = false, quick = false, bf16 = false;
  for (int i = 2; i < argc; ++i) {
    if (std::string(argv[i]) == "portable")
      portable = true;
    else if (std::string(argv[i]) == "quick")
      quick = true;
    else if (std::string(argv[i]) == "bf16")
      bf16 = true;
    else if (std::string(argv[i]) == "widths")
      widths = true;
    else
      rows.push_back(std::atoi(argv[i]));
  }
  if (mode == "test") {
    test_all_rows();
    test(portable, quick);
    return failures == 0 ? 0 : 1;
  }
  if (mode == "bench") {
    for (const int n : rows.empty() ? std::vector<int>{2048} : rows) bench_rows(n);
    bench(rows.empty() ? std::vector<int>{2048} : rows, widths, portable, bf16);
    return 0;
  }
  std::fprintf(stderr, "usage: cuda_prefill test|bench [portable] [quick] [widths] [bf16] [rows...]\n");
  return 2;
}
