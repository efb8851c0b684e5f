// What the tests and benchmarks of the CUDA attention kernels share: random data made on the device, float64
// references, sequences with pages in random order, timing of calls in a graph. For one translation unit
// each.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/attention_decode.h"
#include "backend/cuda/attention_prefill.h"
#include "backend/cuda/qkv_post.h"

namespace {

using namespace jewel::cuda;

int failures = 0;
bool small = false;  // few and short cases, for compute-sanitizer

void check_cuda(cudaError_t error, const char* what, int line) {
  if (error == cudaSuccess) return;
  std::printf("FAIL line %d: %s: %s\n", line, what, cudaGetErrorString(error));
  std::exit(1);
}
#define CUDA(call) check_cuda(call, #call, __LINE__)

template <typename T>
struct DeviceArray {
  T* data = nullptr;
  size_t n = 0;
  explicit DeviceArray(size_t count) : n(count) {
    CUDA(cudaMalloc(&data, std::max<size_t>(1, n) * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) {
    CUDA(cudaMemcpy(data, host.data(), n * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceArray(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data); }
  std::vector<T> host() const {
    std::vector<T> out(n);
    CUDA(cudaMemcpy(out.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
  }
  void fill_bytes(int byte) { CUDA(cudaMemset(data, byte, n * sizeof(T))); }
};

// --- random data made on the device: a hash, then Box-Muller ---

__device__ uint32_t hash32(uint64_t x) {
  x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull, x ^= x >> 33;
  return static_cast<uint32_t>(x);
}
__device__ float gauss(uint64_t seed, uint64_t i) {
  const float u = (static_cast<float>(hash32(seed * 0x9e3779b97f4a7c15ull + 2 * i)) + 1.0f) * 2.3283064e-10f;
  const float v = static_cast<float>(hash32(seed * 0x9e3779b97f4a7c15ull + 2 * i + 1)) * 2.3283064e-10f;
  return sqrtf(-2.0f * logf(fminf(u, 1.0f))) * cospif(2.0f * v);
}
__global__ void fill_gauss_f32(float* out, size_t n, uint64_t seed, float scale, float shift) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
    out[i] = gauss(seed, i) * scale + shift;
  }
}
__global__ void fill_gauss_kv(std::byte* out, size_t n, uint64_t seed, KvFormat format) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
    const float x = gauss(seed, i);
    if (format == KvFormat::kF8E4M3) {
      reinterpret_cast<uint8_t*>(out)[i] = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
    } else {
      reinterpret_cast<__nv_bfloat16*>(out)[i] = __float2bfloat16_rn(x);
    }
  }
}

// --- float64 references ---

__device__ double stored(const std::byte* p, size_t i, KvFormat format) {
  if (format == KvFormat::kBF16) return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(p)[i]);
  const auto code = reinterpret_cast<const uint8_t*>(p)[i];
  const int e = code >> 3 & 15, m = code & 7;
  const double v = e == 0 ? ldexp(static_cast<double>(m), -9) : ldexp(static_cast<double>(8 + m), e - 10);
  return (code & 0x80) != 0 ? -v : v;
}
__device__ size_t kv_index(const AttentionShape& s, int place, int head) {
  return (static_cast<size_t>(head) * 16 + place) * s.head_dim;
}

struct Reference {
  AttentionShape shape;
  KvLayer kv;
  Rope rope;
  HeadNorms norms;
  AttentionRows rows;
  const float* qkv;
  int qkv_stride;
  double* heads;                // [rows, n_heads + 2 n_kv_heads, head_dim]: normed and rotated
  double* out;                  // [rows, n_heads, head_dim]
  const __nv_bfloat16* q_bf16;  // null: q from `heads`
  double* scores;               // scratch [blocks, max_context]
  int max_context;
};

// One block a head: RMS norm and rotation of raw rows.
__global__ void reference_heads(Reference r) {
  const int row = blockIdx.y, head = blockIdx.x, dim = r.shape.head_dim;
  const int position = r.rows.positions[row];
  if (position < 0) return;
  const float* x = r.qkv + static_cast<size_t>(row) * r.qkv_stride + head * dim;
  double* y = r.heads + (static_cast<size_t>(row) * gridDim.x + head) * dim;
  const bool is_q = head < r.shape.n_heads, is_v = head >= r.shape.n_heads + r.shape.n_kv_heads;
  __shared__ double total;
  if (threadIdx.x == 0) {
    double sum = 0;
    for (int i = 0; i < dim; ++i) sum += static_cast<double>(x[i]) * x[i];
    total = sum;
  }
  __syncthreads();
  const double scale = 1 / sqrt(total / dim + static_cast<double>(r.norms.eps));
  const float* w = is_q ? r.norms.q : r.norms.k;
  for (int i = threadIdx.x; i < dim / 2; i += blockDim.x) {
    double a = x[i] * scale, b = x[i + dim / 2] * scale;
    if (!is_v) a *= w[i], b *= w[i + dim / 2];
    if (!is_v && i < r.rope.n_rotating) {
      const float angle = static_cast<float>(position) * r.rope.frequencies[i];
      const double c = cos(static_cast<double>(angle)), s = sin(static_cast<double>(angle));
      const double a1 = a * c - b * s;
      b = b * c + a * s;
      a = a1;
    }
    y[i] = a, y[i + dim / 2] = b;
  }
}

__global__ void reference_attention(Reference r) {
  const int dim = r.shape.head_dim, group = r.shape.n_heads / r.shape.n_kv_heads;
  double* scores = r.scores + static_cast<size_t>(blockIdx.x) * r.max_context;
  __shared__ double reduce[256];
  for (int unit = blockIdx.x; unit < r.rows.n * r.shape.n_heads; unit += gridDim.x) {
    const int row = unit / r.shape.n_heads, head = unit % r.shape.n_heads, kv_head = head / group;
    const int position = r.rows.positions[row];
    if (position < 0) continue;
    const int first = r.shape.window > 0 ? max(0, position - r.shape.window + 1) : 0;
    const int32_t* table = r.kv.page_table + static_cast<size_t>(r.rows.slots[row]) * r.kv.max_pages;
    const size_t page_elements = size_t{2} * 16 * r.shape.n_kv_heads * dim;
    const size_t element = r.kv.format == KvFormat::kBF16 ? 2 : 1;
    double top = -INFINITY;
    for (int key = first + threadIdx.x; key <= position; key += blockDim.x) {
      const std::byte* page = r.kv.data + static_cast<size_t>(table[key / 16]) * page_elements * element;
      const size_t at = kv_index(r.shape, key % 16, kv_head);
      double s = 0;
      for (int i = 0; i < dim; ++i) {
        const size_t qi = (static_cast<size_t>(row) * r.shape.n_heads + head) * dim + i;
        const double q =
            r.q_bf16 != nullptr
                ? static_cast<double>(__bfloat162float(r.q_bf16[qi]))
                : r.heads[(static_cast<size_t>(row) * (r.shape.n_heads + 2 * r.shape.n_kv_heads) + head) *
                              dim +
                          i];
        s += q * stored(page, at + i, r.kv.format);
      }
      s *= r.kv.k_scale;
      scores[key - first] = s;
      top = fmax(top, s);
    }
    reduce[threadIdx.x] = top;
    __syncthreads();
    for (int i = 0; i < 256; ++i) top = fmax(top, reduce[i]);
    __syncthreads();
    double sum = 0;
    for (int key = first + threadIdx.x; key <= position; key += blockDim.x) {
      scores[key - first] = exp(scores[key - first] - top);
      sum += scores[key - first];
    }
    reduce[threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < 256; ++i) sum += reduce[i];
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
      double o = 0;
      for (int key = first; key <= position; ++key) {
        const std::byte* page = r.kv.data + static_cast<size_t>(table[key / 16]) * page_elements * element;
        o += scores[key - first] *
             stored(page, page_elements / 2 + kv_index(r.shape, key % 16, kv_head) + i, r.kv.format);
      }
      r.out[static_cast<size_t>(unit) * dim + i] = o / sum * r.kv.v_scale;
    }
    __syncthreads();
  }
}

// --- set-up shared by tests ---

struct ModelCase {
  const char* name;
  AttentionShape shape;
};
const ModelCase kModels[] = {{"E4B sliding", {8, 2, 256, 512}},  {"E4B full", {8, 2, 512, 0}},
                             {"E2B sliding", {8, 1, 256, 512}},  {"E2B full", {8, 1, 512, 0}},
                             {"demo sliding", {2, 1, 256, 128}}, {"demo full", {2, 1, 512, 0}}};

std::vector<float> rope_frequencies(const AttentionShape& s) {
  const bool full = s.head_dim == 512;
  std::vector<float> f;
  for (int i = 0; i < (full ? 64 : s.head_dim / 2); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(s.head_dim);
    f.push_back(1.0f / static_cast<float>(std::pow(full ? 1e6 : 1e4, static_cast<double>(exponent))));
  }
  return f;
}

const char* name(KvFormat f) {
  return f == KvFormat::kBF16 ? "bf16" : "fp8";
}
const char* name(AttentionDesign d) {
  return d == AttentionDesign::kSm90 ? "sm90" : "portable";
}

struct Error {
  double relative, worst;
};
Error compare(const std::vector<__nv_bfloat16>& got, const std::vector<double>& want) {
  double diff = 0, norm = 0, worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = static_cast<double>(__bfloat162float(got[i])) - want[i];
    diff += d * d, norm += want[i] * want[i];
    worst = std::max(worst, std::isnan(d) ? INFINITY : std::abs(d));
  }
  return {std::isnan(diff) ? INFINITY : std::sqrt(diff / norm), worst};
}

void expect(bool ok, const std::string& what) {
  if (!ok) ++failures, std::printf("FAIL %s\n", what.c_str());
}

// Sequences with pages handed out in random order. Pages behind a window, and those a sequence has not got,
// are -1 in the table.
struct Pages {
  std::vector<int32_t> table;
  int max_pages = 0;
  int n_pages = 0;
  Pages(const std::vector<int>& contexts, const AttentionShape& s, uint32_t seed,
        bool drop_behind_window = true) {
    const int longest = *std::max_element(contexts.begin(), contexts.end());
    max_pages = longest / 16 + 2;
    table.assign(contexts.size() * static_cast<size_t>(max_pages), -1);
    std::vector<size_t> wanted;
    for (size_t c = 0; c < contexts.size(); ++c) {
      const int first = s.window > 0 && drop_behind_window ? std::max(0, contexts[c] - s.window) / 16 : 0;
      for (int p = first; p <= (contexts[c] - 1) / 16; ++p)
        wanted.push_back(c * static_cast<size_t>(max_pages) + static_cast<size_t>(p));
    }
    n_pages = static_cast<int>(wanted.size());
    std::mt19937 random(seed);
    std::shuffle(wanted.begin(), wanted.end(), random);
    for (size_t i = 0; i < wanted.size(); ++i) table[wanted[i]] = static_cast<int32_t>(i);
  }
};

double seconds_of(cudaStream_t stream, cudaGraphExec_t graph, int repeats) {
  cudaEvent_t a, b;
  CUDA(cudaEventCreate(&a));
  CUDA(cudaEventCreate(&b));
  std::vector<double> times;
  for (int i = 0; i < repeats + 2; ++i) {
    CUDA(cudaEventRecord(a, stream));
    CUDA(cudaGraphLaunch(graph, stream));
    CUDA(cudaEventRecord(b, stream));
    CUDA(cudaStreamSynchronize(stream));
    float ms = 0;
    CUDA(cudaEventElapsedTime(&ms, a, b));
    if (i >= 2) times.push_back(ms * 1e-3);
  }
  CUDA(cudaEventDestroy(a));
  CUDA(cudaEventDestroy(b));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Median seconds of one call in a graph of n calls.
double time_calls(int n, int repeats, const std::function<void(int, cudaStream_t)>& call) {
  cudaStream_t stream;
  CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < n; ++i) call(i, stream);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA(cudaStreamEndCapture(stream, &graph));
  CUDA(cudaGraphInstantiate(&exec, graph, 0));
  const double s = seconds_of(stream, exec, repeats) / n;
  CUDA(cudaGraphExecDestroy(exec));
  CUDA(cudaGraphDestroy(graph));
  CUDA(cudaStreamDestroy(stream));
  return s;
}

__global__ void read_all(const uint4* in, size_t n, uint4* out) {
  uint4 x = make_uint4(0, 0, 0, 0);
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  for (; i + 3 * stride < n; i += 4 * stride) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = __ldcs(in + i + j * stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) x.x ^= v[j].x, x.y ^= v[j].y, x.z ^= v[j].z, x.w ^= v[j].w;
  }
  if (x.x == 0x12345678 && x.y == 0x9abcdef0) *out = x;
}
double read_rate() {
  const size_t bytes = size_t{2} << 30;
  DeviceArray<uint4> buffer(bytes / 16);
  fill_gauss_f32<<<1024, 256>>>(reinterpret_cast<float*>(buffer.data), bytes / 4, 99, 1, 0);
  DeviceArray<uint4> out(1);
  return bytes / time_calls(4, 5, [&](int, cudaStream_t s) {
           read_all<<<132 * 8, 512, 0, s>>>(buffer.data, buffer.n, out.data);
         });
}

}  // namespace
