// The vision encoder of the CUDA backend: correctness and speed, as a program of its own.
//
//   cuda_vision test [quick]  a small tower against plain loops in double, attention at full size against
//   FP32, images alone and
//                        in a batch bitwise the same, both designs
//   cuda_vision bench    milliseconds for E4B's tower, in a CUDA graph
//
// Weights and pixels are random; outputs are poisoned. Exit code 1 when a check fails.
#include <algorithm>
#include <cstring>
#include <string>

#include "backend/cuda/vision_attention.h"
#include "backend/cuda/vision_encoder.h"
#include "cuda_data.h"

namespace jewel::cuda {
namespace {

int failures = 0;
void expect(bool ok, const std::string& what) {
  if (ok) return;
  std::printf("FAIL: %s\n", what.c_str());
  ++failures;
}

// A linear's weights, natural on the host and packed on the device.
struct Linear {
  std::vector<float> w;
  Bounds input, output;
  ProductWeight device;
};

Linear make_linear(int out, int in, uint64_t seed, float limit) {
  Linear l;
  float* natural = allocate<float>(static_cast<int64_t>(out) * in);
  void* tiles = allocate<uint16_t>(static_cast<int64_t>(out) * in);
  const int64_t n = static_cast<int64_t>(out) * in;
  fill<<<blocks(n), 256>>>(natural, n, seed, false, 1.0f / std::sqrt(static_cast<float>(in)));
  pack_weight<<<blocks(n), 256>>>(natural, out, in, false, tiles);
  l.w = download<float>(natural, static_cast<size_t>(n));
  cudaFree(natural);
  l.input = {-limit, limit * 0.9f};
  l.output = {-limit * 1.1f, limit};
  std::vector<float2> clamp(static_cast<size_t>(out), float2{l.output.min, l.output.max});
  l.device = {
      .tiles = tiles, .format = WeightFormat::kBF16, .out = out, .in = in, .row_clamp = upload(clamp)};
  return l;
}

struct Vector {
  std::vector<float> host;
  const float* device = nullptr;
};
Vector make_vector(int n, uint64_t seed) {
  float* p = allocate<float>(n);
  fill<<<blocks(n), 256>>>(p, n, seed, false, 0.2f);
  std::vector<float> v = download<float>(p, static_cast<size_t>(n));
  for (float& value : v) value += 1;
  return {v, upload(v)};
}

struct Layer {
  Linear qkv, o, gate_up, down;
  Vector norms[4], q_norm, k_norm;
};

struct Tower {
  VisionShape shape;
  Linear patch, projection;
  std::vector<Layer> layers;
  std::vector<float> positions;
  VisionDeviceWeights device;

  explicit Tower(const VisionShape& s) : shape(s) {
    patch = make_linear(s.hidden, s.patch_values, 1, 1e30f);
    projection = make_linear(s.text_hidden, s.hidden, 2, 1e30f);
    const int64_t n = int64_t{2} * s.n_positions * s.hidden;
    float* natural = allocate<float>(n);
    fill<<<blocks(n), 256>>>(natural, n, 3, false, 0.3f);
    positions = download<float>(natural, static_cast<size_t>(n));
    cudaFree(natural);
    std::vector<__nv_bfloat16> bits;
    for (const float value : positions) bits.push_back(__float2bfloat16(value));
    device.positions = upload(bits);
    for (int i = 0; i < s.n_layers; ++i) {
      const auto seed = static_cast<uint64_t>(100 + 20 * i);
      Layer l{make_linear(3 * s.hidden, s.hidden, seed, 2), make_linear(s.hidden, s.hidden, seed + 1, 1.5f),
              make_linear(2 * s.intermediate, s.hidden, seed + 2, 2),
              make_linear(s.hidden, s.intermediate, seed + 3, 1)};
      for (int j = 0; j < 4; ++j) l.norms[j] = make_vector(s.hidden, seed + 4 + static_cast<uint64_t>(j));
      l.q_norm = make_vector(kVisionHeadDim, seed + 10), l.k_norm = make_vector(kVisionHeadDim, seed + 11);
      layers.push_back(std::move(l));
    }
    for (const Layer& l : layers) {
      device.layers.push_back({.qkv = l.qkv.device,
                               .o = l.o.device,
                               .gate_up = l.gate_up.device,
                               .down = l.down.device,
                               .qkv_input = l.qkv.input,
                               .o_input = l.o.input,
                               .gate_up_input = l.gate_up.input,
                               .down_input = l.down.input,
                               .input_layernorm = l.norms[0].device,
                               .post_attention_layernorm = l.norms[1].device,
                               .pre_feedforward_layernorm = l.norms[2].device,
                               .post_feedforward_layernorm = l.norms[3].device,
                               .q_norm = l.q_norm.device,
                               .k_norm = l.k_norm.device});
    }
    device.patch_projection = patch.device;
    device.embedding_projection = projection.device;
  }
};

// --- the tower in plain loops

using Rows = std::vector<std::vector<double>>;

std::vector<double> rms(const std::vector<double>& x, const std::vector<float>* weight) {
  double sum = 0;
  for (const double value : x) sum += value * value;
  const double scale = 1 / std::sqrt(sum / static_cast<double>(x.size()) + 1e-6);
  std::vector<double> y = x;
  for (size_t i = 0; i < x.size(); ++i) y[i] *= scale * (weight != nullptr ? (*weight)[i] : 1.0f);
  return y;
}

double bounded(double x, const Bounds& b) {
  return std::clamp<double>(x, b.min, b.max);
}

// The reference rounds where the encoder does (q and k too: scores of random weights are large, and their
// rounding alone moves the result by 2e-2), so that what remains is rounding that fell to the other side.
double rounded(double x) {
  return __bfloat162float(__float2bfloat16(static_cast<float>(x)));
}

std::vector<double> apply(const Linear& l, std::vector<double> x) {
  for (double& value : x) value = rounded(bounded(value, l.input));
  std::vector<double> y;
  for (size_t o = 0; o < l.w.size() / x.size(); ++o) {
    double sum = 0;
    for (size_t k = 0; k < x.size(); ++k) sum += l.w[o * x.size() + k] * x[k];
    y.push_back(bounded(sum, l.output));
  }
  return y;
}

double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

Rows reference(const Tower& tower, const VisionGrid& grid, const uint8_t* pixels) {
  const VisionShape& s = tower.shape;
  const auto n = static_cast<size_t>(grid.patches()), hidden = static_cast<size_t>(s.hidden);
  Rows h;
  for (size_t p = 0; p < n; ++p) {
    std::vector<double> x;
    for (int i = 0; i < s.patch_values; ++i) {
      x.push_back(2 *
                  (pixels[p * static_cast<size_t>(s.patch_values) + static_cast<size_t>(i)] / 255.0 - 0.5));
    }
    h.push_back(apply(tower.patch, x));
    const size_t px = p % static_cast<size_t>(grid.grid_w), py = p / static_cast<size_t>(grid.grid_w);
    for (size_t i = 0; i < hidden; ++i) {
      h[p][i] += tower.positions[px * hidden + i] +
                 tower.positions[(static_cast<size_t>(s.n_positions) + py) * hidden + i];
    }
  }
  for (const Layer& l : tower.layers) {
    Rows qkv;
    for (size_t p = 0; p < n; ++p) qkv.push_back(apply(l.qkv, rms(h[p], &l.norms[0].host)));
    const auto head_of = [&](size_t p, size_t which, size_t head) {
      const auto from = qkv[p].begin() + static_cast<int64_t>(which * hidden + head * 64);
      std::vector<double> x = rms({from, from + 64}, which == 0   ? &l.q_norm.host
                                                     : which == 1 ? &l.k_norm.host
                                                                  : nullptr);
      if (which == 2) {
        for (double& value : x) value = rounded(value);
        return x;
      }
      const std::vector<double> in = x;
      for (size_t i = 0; i < 64; ++i) {
        const size_t half = i / 32, j = i % 32;
        const double place = static_cast<double>(half == 0 ? p % static_cast<size_t>(grid.grid_w)
                                                           : p / static_cast<size_t>(grid.grid_w));
        const double angle = place * std::pow(100.0, -2.0 * static_cast<double>(j % 16) / 32);
        const double partner = j < 16 ? -in[i + 16] : in[i - 16];
        x[i] = rounded(in[i] * std::cos(angle) + partner * std::sin(angle));
      }
      return x;
    };
    Rows attended(n, std::vector<double>(hidden));
    for (size_t head = 0; head < static_cast<size_t>(s.n_heads); ++head) {
      Rows q, k, v;
      for (size_t p = 0; p < n; ++p) {
        q.push_back(head_of(p, 0, head)), k.push_back(head_of(p, 1, head)), v.push_back(head_of(p, 2, head));
      }
      for (size_t p = 0; p < n; ++p) {
        std::vector<double> scores;
        for (size_t j = 0; j < n; ++j) {
          double sum = 0;
          for (size_t i = 0; i < 64; ++i) sum += q[p][i] * k[j][i];
          scores.push_back(sum);
        }
        const double top = *std::max_element(scores.begin(), scores.end());
        double total = 0;
        for (double& score : scores) total += score = std::exp(score - top);
        for (size_t j = 0; j < n; ++j) {
          for (size_t i = 0; i < 64; ++i) attended[p][head * 64 + i] += scores[j] / total * v[j][i];
        }
      }
    }
    for (size_t p = 0; p < n; ++p) {
      const auto a = rms(apply(l.o, attended[p]), &l.norms[1].host);
      for (size_t i = 0; i < hidden; ++i) h[p][i] += a[i];
      const auto gate_up = apply(l.gate_up, rms(h[p], &l.norms[2].host));
      std::vector<double> wide;
      for (size_t f = 0; f < static_cast<size_t>(s.intermediate); ++f) {
        wide.push_back(gelu(gate_up[f / 8 * 16 + f % 8]) * gate_up[f / 8 * 16 + f % 8 + 8]);
      }
      const auto m = rms(apply(l.down, wide), &l.norms[3].host);
      for (size_t i = 0; i < hidden; ++i) h[p][i] += m[i];
    }
  }
  Rows soft;
  const size_t side = static_cast<size_t>(s.pooling), w = static_cast<size_t>(grid.grid_w);
  for (size_t y = 0; y < static_cast<size_t>(grid.grid_h) / side; ++y) {
    for (size_t x = 0; x < w / side; ++x) {
      std::vector<double> mean(hidden);
      for (size_t p = 0; p < side * side; ++p) {
        for (size_t i = 0; i < hidden; ++i) {
          mean[i] += h[(y * side + p / side) * w + x * side + p % side][i] /
                     static_cast<double>(side * side) * std::sqrt(static_cast<double>(hidden));
        }
      }
      soft.push_back(apply(tower.projection, rms(mean, nullptr)));
    }
  }
  return soft;
}

std::vector<uint8_t> random_pixels(size_t n, uint64_t seed) {
  std::vector<uint8_t> pixels;
  for (size_t i = 0; i < n; ++i) pixels.push_back(static_cast<uint8_t>(mix(seed * 1000003 + i)));
  return pixels;
}

std::vector<float> encode(const Tower& tower, std::span<const VisionGrid> grids,
                          const std::vector<uint8_t>& pixels, ProductDesign design) {
  const VisionEncoder encoder(tower.shape, tower.device, design);
  int patches = 0;
  for (const VisionGrid& grid : grids) patches += grid.patches();
  const size_t count = static_cast<size_t>(patches / 9 * tower.shape.text_hidden);
  const size_t workspace_bytes = encoder.workspace_bytes(patches);
  uint8_t* workspace = allocate<uint8_t>(static_cast<int64_t>(workspace_bytes));
  float* soft = allocate<float>(static_cast<int64_t>(count));
  CHECK(cudaMemset(workspace, 0xff, workspace_bytes));
  CHECK(cudaMemset(soft, 0xff, count * 4));
  uint8_t* d_pixels = upload(pixels);
  CHECK(encoder.encode(grids, d_pixels, soft, workspace, nullptr));
  CHECK(cudaDeviceSynchronize());
  std::vector<float> result = download<float>(soft, count);
  cudaFree(workspace), cudaFree(soft), cudaFree(d_pixels);
  return result;
}

double relative(const std::vector<float>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(got[i])) return HUGE_VAL;
    difference += (got[i] - want[i]) * (got[i] - want[i]), norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

void test_small(ProductDesign design, const char* name) {
  const Tower tower({.hidden = 192,
                     .intermediate = 512,
                     .n_layers = 2,
                     .n_heads = 3,
                     .patch_values = 768,
                     .n_positions = 64,
                     .text_hidden = 256});
  const VisionGrid grids[] = {{6, 9}, {15, 12}, {3, 3}};
  std::vector<uint8_t> all;
  std::vector<float> alone;
  for (const VisionGrid& grid : grids) {
    const auto pixels =
        random_pixels(static_cast<size_t>(grid.patches()) * 768, static_cast<uint64_t>(grid.grid_w));
    const std::vector<float> got = encode(tower, {&grid, 1}, pixels, design);
    std::vector<double> want;
    for (const auto& row : reference(tower, grid, pixels.data()))
      want.insert(want.end(), row.begin(), row.end());
    const double error = relative(got, want);
    std::printf("small tower, %s, %d x %d patches: error %.2e\n", name, grid.grid_h, grid.grid_w, error);
    expect(error < 1e-2, "small tower");
    all.insert(all.end(), pixels.begin(), pixels.end());
    alone.insert(alone.end(), got.begin(), got.end());
  }
  expect(encode(tower, grids, all, design) == alone, "an image's soft tokens depend on its batch");
}

// Row r of a head by plain FP32 loops, one block a row.
__global__ void plain_attention(const VisionAttention a, int n, const int* rows, float* out) {
  extern __shared__ float scores[];
  const int row = rows[blockIdx.x], head = static_cast<int>(blockIdx.y);
  const __nv_bfloat16* q = a.q + (static_cast<int64_t>(head) * n + row) * 64;
  for (int j = static_cast<int>(threadIdx.x); j < n; j += static_cast<int>(blockDim.x)) {
    float sum = 0;
    for (int i = 0; i < 64; ++i) {
      sum += __bfloat162float(q[i]) * __bfloat162float(a.k[(static_cast<int64_t>(head) * n + j) * 64 + i]);
    }
    scores[j] = sum;
  }
  __syncthreads();
  float top = -INFINITY, total = 0;
  for (int j = 0; j < n; ++j) top = fmaxf(top, scores[j]);
  for (int j = 0; j < n; ++j) total += expf(scores[j] - top);
  if (threadIdx.x >= 64) return;
  float sum = 0;
  for (int j = 0; j < n; ++j) {
    sum += expf(scores[j] - top) *
           __bfloat162float(a.v[(static_cast<int64_t>(head) * n + j) * 64 + threadIdx.x]);
  }
  out[(blockIdx.x * gridDim.y + blockIdx.y) * 64 + threadIdx.x] = sum / total;
}

void test_attention(int n, float sigma) {
  const int heads = 3;
  const int64_t count = static_cast<int64_t>(n) * heads * 64;
  float* natural = allocate<float>(count);
  __nv_bfloat16* qkv[3];
  for (int i = 0; i < 3; ++i) {
    qkv[i] = allocate<__nv_bfloat16>(count);
    fill<<<blocks(count), 256>>>(natural, count, 40 + static_cast<uint64_t>(i), false, i < 2 ? sigma : 1.0f);
    std::vector<__nv_bfloat16> bits;
    for (const float value : download<float>(natural, static_cast<size_t>(count)))
      bits.push_back(__float2bfloat16(value));
    CHECK(cudaMemcpy(qkv[i], bits.data(), bits.size() * 2, cudaMemcpyHostToDevice));
  }
  __nv_bfloat16* out = allocate<__nv_bfloat16>(count);
  CHECK(cudaMemset(out, 0xff, static_cast<size_t>(count) * 2));
  VisionImages images;
  images.n = 1, images.first[1] = n, images.grid_w[0] = n;
  const VisionAttention a{.q = qkv[0], .k = qkv[1], .v = qkv[2], .out = out, .n_heads = heads};
  CHECK(launch_vision_attention(a, images, nullptr));
  std::vector<int> rows;
  for (int i = 0; i < 20; ++i)
    rows.push_back(static_cast<int>(mix(static_cast<uint64_t>(i)) % static_cast<uint32_t>(n)));
  rows.push_back(n - 1);
  float* want = allocate<float>(static_cast<int64_t>(rows.size()) * heads * 64);
  CHECK(cudaFuncSetAttribute(plain_attention, cudaFuncAttributeMaxDynamicSharedMemorySize, 100000));
  plain_attention<<<dim3(static_cast<unsigned>(rows.size()), heads), 256, static_cast<size_t>(n) * 4>>>(
      a, n, upload(rows), want);
  CHECK(cudaDeviceSynchronize());
  const auto reference_rows = download<float>(want, rows.size() * heads * 64);
  const auto bits = download<uint16_t>(out, static_cast<size_t>(count));
  std::vector<float> got;
  for (const int row : rows) {
    for (int c = 0; c < heads * 64; ++c) {
      const auto slot = std::find(kProductOrder, kProductOrder + 16, c % 16) - kProductOrder;
      const uint32_t wide =
          static_cast<uint32_t>(bits[static_cast<size_t>(row * heads * 64 + c / 16 * 16 + slot)]) << 16;
      float value;
      std::memcpy(&value, &wide, 4);
      got.push_back(value);
    }
  }
  const double error = relative(got, {reference_rows.begin(), reference_rows.end()});
  std::printf("attention over %d patches, sigma %.1f: error %.2e\n", n, sigma, error);
  expect(error < 4e-3, "attention");
  cudaFree(natural), cudaFree(out), cudaFree(want);
  for (void* p : qkv) cudaFree(p);
}

void test(bool quick) {
  for (const int n : {9, 63, 64, 65, 130}) test_attention(n, 0.5f);
  if (!quick) {
    for (const int n : {2520, 10080}) test_attention(n, 0.5f);
    test_attention(2520, 1.2f);
  }
  test_small(ProductDesign::kSm90, "sm90");
  test_small(ProductDesign::kPortable, "portable");
  std::printf(failures == 0 ? "all passed\n" : "%d FAILED\n", failures);
}

// --- speed

template <class Launch>
double milliseconds(const Launch& launch) {
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  CHECK(launch(stream));
  CHECK(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  CHECK(launch(stream));
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    CHECK(cudaEventRecord(start, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(stop, stream));
    CHECK(cudaEventSynchronize(stop));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void bench() {
  const VisionShape shape{.hidden = 768,
                          .intermediate = 3072,
                          .n_layers = 16,
                          .n_heads = 12,
                          .patch_values = 768,
                          .n_positions = 1024,
                          .text_hidden = 2560};
  const Tower tower(shape);
  struct Work {
    const char* name;
    std::vector<VisionGrid> grids;
  };
  const Work works[] = {{"1 image of 70 tokens", {{21, 30}}},
                        {"1 image of 280 tokens", {{42, 60}}},
                        {"4 images of 280 tokens", std::vector<VisionGrid>(4, {42, 60})},
                        {"8 images of 280 tokens", std::vector<VisionGrid>(8, {42, 60})},
                        {"1 image of 1120 tokens", {{84, 120}}}};
  for (const ProductDesign design : {ProductDesign::kSm90, ProductDesign::kPortable}) {
    const VisionEncoder encoder(shape, tower.device, design);
    for (const Work& work : works) {
      int n = 0;
      double attention_flop = 0;
      VisionImages images;
      for (const VisionGrid& grid : work.grids) {
        images.grid_w[images.n] = grid.grid_w;
        images.first[++images.n] = n += grid.patches();
        attention_flop += 4.0 * grid.patches() * grid.patches() * shape.hidden;
      }
      const double linear_flop =
          2.0 * n * (16.0 * (4.0 * 768 * 768 + 3.0 * 768 * 3072) + 768.0 * 768) + 2.0 * n / 9 * 768 * 2560;
      void* workspace = allocate<uint8_t>(static_cast<int64_t>(encoder.workspace_bytes(n)));
      float* soft = allocate<float>(static_cast<int64_t>(n) / 9 * shape.text_hidden);
      uint8_t* pixels = upload(random_pixels(static_cast<size_t>(n) * 768, 5));
      const double all = milliseconds(
          [&](cudaStream_t s) { return encoder.encode(work.grids, pixels, soft, workspace, s); });
      const int64_t count = static_cast<int64_t>(n) * shape.hidden;
      __nv_bfloat16* heads = allocate<__nv_bfloat16>(4 * count);
      float* natural = allocate<float>(3 * count);
      fill<<<blocks(3 * count), 256>>>(natural, 3 * count, 8, false, 0.5f);
      pack_input<<<blocks(3 * count), 256>>>(natural, 3 * n, shape.hidden, false, heads);
      const VisionAttention a{.q = heads,
                              .k = heads + count,
                              .v = heads + 2 * count,
                              .out = heads + 3 * count,
                              .n_heads = shape.n_heads};
      const double attention = milliseconds([&](cudaStream_t s) {
        for (int i = 0; i < 16; ++i) {
          if (const cudaError_t error = launch_vision_attention(a, images, s); error != cudaSuccess)
            return error;
        }
        return cudaSuccess;
      });
      std::printf("%-8s %-22s %5d patches: %.3f ms, %.3f an image, %.0f TFLOP/s; attention %.3f ms, %.0f\n",
                  design == ProductDesign::kSm90 ? "sm90" : "portable", work.name, n, all,
                  all / static_cast<double>(work.grids.size()),
                  (linear_flop + 16 * attention_flop) / all * 1e-9, attention,
                  16 * attention_flop / attention * 1e-9);
      std::fflush(stdout);
      for (void* p : {workspace, static_cast<void*>(soft), static_cast<void*>(pixels),
                      static_cast<void*>(heads), static_cast<void*>(natural)}) {
        cudaFree(p);
      }
    }
  }
}

}  // namespace
}  // namespace jewel::cuda

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "test") {
    jewel::cuda::test(argc > 2 && std::string(argv[2]) == "quick");
    return jewel::cuda::failures == 0 ? 0 : 1;
  }
  if (mode == "bench") {
    jewel::cuda::bench();
    return 0;
  }
  std::fprintf(stderr, "usage: cuda_vision test [quick]|bench\n");
  return 2;
}
