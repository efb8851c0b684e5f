// Tests and times of the CUDA attention kernels, stand-alone: every result against float64 on random Gaussian
// data, the promises of bitwise sameness, then times in graphs over buffers beyond L2, beside the measured
// read rate of the card. Exit status 1 when a check fails.
//
//   cuda_attention [check] [bench]        both when nothing is named
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

// --- decode ---

// Data of one decode test: rows of several contexts, one slot each.
struct DecodeCase {
  AttentionShape shape;
  KvFormat format;
  std::vector<int> contexts;
  Pages pages;
  DeviceArray<std::byte> pool;
  DeviceArray<int32_t> table, positions, slots;
  DeviceArray<float> frequencies, q_norm, k_norm, qkv;
  int stride;

  DecodeCase(const AttentionShape& s, KvFormat f, const std::vector<int>& c, uint32_t seed)
      : shape(s),
        format(f),
        contexts(c),
        pages(c, s, seed),
        pool(static_cast<size_t>(pages.n_pages) * kv_page_bytes(s, f)),
        table(pages.table),
        positions(positions_of(c)),
        slots(slots_of(c)),
        frequencies(rope_frequencies(s)),
        q_norm(static_cast<size_t>(s.head_dim)),
        k_norm(static_cast<size_t>(s.head_dim)),
        qkv(c.size() * static_cast<size_t>((s.n_heads + 2 * s.n_kv_heads) * s.head_dim)),
        stride((s.n_heads + 2 * s.n_kv_heads) * s.head_dim) {
    fill_gauss_kv<<<1024, 256>>>(pool.data, pool.n / kv_element_bytes(f), seed, f);
    fill_gauss_f32<<<1, 256>>>(q_norm.data, q_norm.n, seed + 1, 0.02f, 0.12f);
    fill_gauss_f32<<<1, 256>>>(k_norm.data, k_norm.n, seed + 2, 0.1f, 1.0f);
    fill_gauss_f32<<<64, 256>>>(qkv.data, qkv.n, seed + 3, 1.7f, 0);
    CUDA(cudaDeviceSynchronize());
  }
  static std::vector<int32_t> positions_of(const std::vector<int>& contexts) {
    std::vector<int32_t> p;
    for (int c : contexts) p.push_back(c - 1);
    return p;
  }
  static std::vector<int32_t> slots_of(const std::vector<int>& contexts) {
    std::vector<int32_t> s;
    for (size_t i = 0; i < contexts.size(); ++i) s.push_back(static_cast<int32_t>(i));
    return s;
  }
  KvLayer kv() const {
    return {.data = pool.data,
            .page_table = table.data,
            .max_pages = pages.max_pages,
            .format = format,
            .k_scale = format == KvFormat::kF8E4M3 ? 0.7f : 1.0f,
            .v_scale = format == KvFormat::kF8E4M3 ? 1.3f : 1.0f};
  }
  DecodeAttention launch(void* out, void* workspace, int workspace_rows) const {
    return {
        .shape = shape,
        .kv = kv(),
        .rope = {.frequencies = frequencies.data, .n_rotating = static_cast<int>(frequencies.n)},
        .norms = {.q = q_norm.data, .k = k_norm.data, .eps = 1e-6f},
        .rows = {.positions = positions.data, .slots = slots.data, .n = static_cast<int>(contexts.size())},
        .qkv = qkv.data,
        .qkv_stride = stride,
        .owns_kv = true,
        .prepared = false,
        .max_context = *std::max_element(contexts.begin(), contexts.end()),
        .out = out,
        .workspace = workspace,
        .workspace_rows = workspace_rows};
  }
};

double stored_host(const std::vector<std::byte>& bytes, size_t i, KvFormat f) {
  if (f == KvFormat::kBF16) {
    uint16_t b;
    std::memcpy(&b, &bytes[2 * i], 2);
    const uint32_t w = static_cast<uint32_t>(b) << 16;
    float x;
    std::memcpy(&x, &w, 4);
    return x;
  }
  const int code = static_cast<int>(bytes[i]), e = code >> 3 & 15, m = code & 7;
  const double v = e == 0 ? std::ldexp(m, -9) : std::ldexp(8 + m, e - 10);
  return (code & 0x80) != 0 ? -v : v;
}

// The newest K and V lie within half a step (and float32's noise) of the float64 values.
void check_newest(const DecodeCase& c, const std::vector<double>& heads, const std::string& what) {
  const AttentionShape& s = c.shape;
  const size_t page_bytes = kv_page_bytes(s, c.format);
  double worst = 0;
  for (size_t row = 0; row < c.contexts.size(); ++row) {
    const int position = c.contexts[row] - 1;
    const int page =
        c.pages.table[row * static_cast<size_t>(c.pages.max_pages) + static_cast<size_t>(position / 16)];
    std::vector<std::byte> bytes(page_bytes);
    CUDA(cudaMemcpy(bytes.data(), c.pool.data + static_cast<size_t>(page) * page_bytes, page_bytes,
                    cudaMemcpyDeviceToHost));
    for (int part = 0; part < 2; ++part) {
      const double scale = part == 0 ? c.kv().k_scale : c.kv().v_scale;
      for (int head = 0; head < s.n_kv_heads; ++head) {
        for (int i = 0; i < s.head_dim; ++i) {
          const size_t at =
              static_cast<size_t>(((part * s.n_kv_heads + head) * 16 + position % 16) * s.head_dim + i);
          const double got = stored_host(bytes, at, c.format);
          const size_t h = row * static_cast<size_t>(s.n_heads + 2 * s.n_kv_heads) +
                           static_cast<size_t>(s.n_heads + part * s.n_kv_heads + head);
          const double want = heads[h * static_cast<size_t>(s.head_dim) + static_cast<size_t>(i)] / scale;
          const int mantissa = c.format == KvFormat::kBF16 ? 8 : 4;
          const double step = std::ldexp(1.0, std::max(std::ilogb(std::max(std::abs(want), 1e-30)),
                                                       c.format == KvFormat::kBF16 ? -100 : -6) +
                                                  1 - mantissa);
          worst = std::max(worst, std::abs(got - want) / step);
        }
      }
    }
  }
  expect(worst < 0.501, what + ": newest K, V off by " + std::to_string(worst) + " steps");
}

void run_reference(const DecodeCase& c, std::vector<double>& heads, std::vector<double>& out) {
  const size_t rows = c.contexts.size();
  DeviceArray<double> heads_d(rows * static_cast<size_t>(c.stride)),
      out_d(rows * static_cast<size_t>(c.shape.n_heads * c.shape.head_dim));
  const int longest = *std::max_element(c.contexts.begin(), c.contexts.end());
  const int blocks = 128;
  DeviceArray<double> scores(static_cast<size_t>(blocks) * static_cast<size_t>(longest));
  const DecodeAttention p = c.launch(nullptr, nullptr, 0);
  const Reference r = {.shape = c.shape,
                       .kv = p.kv,
                       .rope = p.rope,
                       .norms = p.norms,
                       .rows = p.rows,
                       .qkv = p.qkv,
                       .qkv_stride = p.qkv_stride,
                       .heads = heads_d.data,
                       .out = out_d.data,
                       .q_bf16 = nullptr,
                       .scores = scores.data,
                       .max_context = longest};
  reference_heads<<<dim3(static_cast<unsigned>(c.shape.n_heads + 2 * c.shape.n_kv_heads),
                         static_cast<unsigned>(rows)),
                    128>>>(r);
  reference_attention<<<blocks, 256>>>(r);
  CUDA(cudaDeviceSynchronize());
  heads = heads_d.host();
  out = out_d.host();
}

__global__ void count_different(const uint4* a, const uint4* b, size_t n, int* count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
    if (a[i].x != b[i].x || a[i].y != b[i].y || a[i].z != b[i].z || a[i].w != b[i].w) atomicAdd(count, 1);
  }
}
bool equal_bytes(const DeviceArray<std::byte>& a, const DeviceArray<std::byte>& b) {
  DeviceArray<int> count(1);
  count.fill_bytes(0);
  count_different<<<1024, 256>>>(reinterpret_cast<const uint4*>(a.data),
                                 reinterpret_cast<const uint4*>(b.data), a.n / 16, count.data);
  return count.host()[0] == 0;
}

using Bits = std::vector<__nv_bfloat16>;
bool same(const Bits& a, const Bits& b, size_t a_from, size_t b_from, size_t n) {
  return std::memcmp(a.data() + a_from, b.data() + b_from, n * 2) == 0;
}

void check_decode(const ModelCase& model, KvFormat format, AttentionDesign design) {
  const std::string what = std::string("decode ") + model.name + " " + name(format) + " " + name(design);
  const std::vector<int> contexts = {1, 15, 16, 17, 130, 511, 512, 513, 1025, 3500, 4097, 16384, 131072};
  DecodeCase c(model.shape, format, contexts, 7);
  const size_t width = static_cast<size_t>(model.shape.n_heads * model.shape.head_dim);
  const int n = static_cast<int>(contexts.size());
  DeviceArray<std::byte> workspace(decode_attention_workspace(model.shape, n, design));
  workspace.fill_bytes(0);
  DeviceArray<__nv_bfloat16> out(width * static_cast<size_t>(n));
  out.fill_bytes(0xff);
  const DecodeAttention p = c.launch(out.data, workspace.data, n);
  CUDA(launch_decode_attention(p, design, nullptr));
  CUDA(cudaDeviceSynchronize());
  const Bits batch = out.host();

  std::vector<double> heads, want;
  run_reference(c, heads, want);
  check_newest(c, heads, what);
  const Error error = compare(batch, want);
  double worst_row = 0;
  for (size_t row = 0; row < contexts.size(); ++row) {
    const Bits got(batch.begin() + static_cast<long>(row * width),
                   batch.begin() + static_cast<long>((row + 1) * width));
    const std::vector<double> ref(want.begin() + static_cast<long>(row * width),
                                  want.begin() + static_cast<long>((row + 1) * width));
    const double e = compare(got, ref).relative;
    worst_row = std::max(worst_row, e);
    if (!(e < 2.1e-3)) std::printf("  context %d: %.3g\n", contexts[row], e);
  }
  // One rounding to BF16 alone is 1.7e-3 of Gaussian values.
  expect(worst_row < 2.1e-3, what + ": row error " + std::to_string(worst_row));

  // Again: the workspace was left as it should be found, and the page written holds the same.
  for (int round = 0; round < 3; ++round) {
    out.fill_bytes(0xff);
    CUDA(launch_decode_attention(p, design, nullptr));
    expect(same(out.host(), batch, 0, 0, batch.size()), what + ": not the same when repeated");
  }
  // Layers that borrow K and V, and rows prepared by qkv_post, read the newest position from its page.
  {
    DecodeAttention borrowed = p;
    borrowed.owns_kv = false;
    out.fill_bytes(0xff);
    CUDA(launch_decode_attention(borrowed, design, nullptr));
    expect(same(out.host(), batch, 0, 0, batch.size()), what + ": borrowed K and V");
    DeviceArray<float> q(width * static_cast<size_t>(n));
    QkvPost post = {.shape = c.shape,
                    .kv = c.kv(),
                    .rope = p.rope,
                    .norms = p.norms,
                    .rows = p.rows,
                    .qkv = p.qkv,
                    .format = QkvFormat::kF32,
                    .qkv_stride = p.qkv_stride,
                    .owns_kv = true,
                    .q = nullptr,
                    .q_f32 = q.data};
    DeviceArray<std::byte> before(c.pool.n);
    CUDA(cudaMemcpy(before.data, c.pool.data, c.pool.n, cudaMemcpyDeviceToDevice));
    CUDA(launch_qkv_post(post, nullptr));
    CUDA(cudaDeviceSynchronize());
    expect(equal_bytes(before, c.pool), what + ": qkv_post writes other K and V than the decode kernel");
    DecodeAttention prepared = p;
    prepared.prepared = true;
    prepared.qkv = q.data;
    prepared.qkv_stride = static_cast<int>(width);
    out.fill_bytes(0xff);
    CUDA(launch_decode_attention(prepared, design, nullptr));
    expect(same(out.host(), batch, 0, 0, batch.size()), what + ": prepared rows");
  }
  // Alone, in another grid, with padding beside it; then with other pages.
  std::vector<int> other(contexts.rbegin(), contexts.rend());
  Pages other_pages(contexts, model.shape, 1234);
  DeviceArray<std::byte> other_pool(c.pool.n);
  other_pool.fill_bytes(0x7f);
  const size_t page_bytes = kv_page_bytes(model.shape, format);
  for (size_t i = 0; i < c.pages.table.size(); ++i) {
    if (c.pages.table[i] < 0) continue;
    CUDA(cudaMemcpyAsync(other_pool.data + static_cast<size_t>(other_pages.table[i]) * page_bytes,
                         c.pool.data + static_cast<size_t>(c.pages.table[i]) * page_bytes, page_bytes,
                         cudaMemcpyDeviceToDevice));
  }
  DeviceArray<int32_t> other_table(other_pages.table);
  for (size_t row = 0; row < contexts.size(); ++row) {
    const std::vector<int32_t> positions = {-1, contexts[row] - 1}, slots = {0, static_cast<int32_t>(row)};
    DeviceArray<int32_t> positions_d(positions), slots_d(slots);
    DeviceArray<float> qkv(static_cast<size_t>(2 * c.stride));
    qkv.fill_bytes(0xff);
    CUDA(cudaMemcpy(qkv.data + c.stride, c.qkv.data + row * static_cast<size_t>(c.stride),
                    static_cast<size_t>(c.stride) * 4, cudaMemcpyDeviceToDevice));
    for (int round = 0; round < 5; ++round) {  // 2 to 4: several runs a block
      DecodeAttention one = p;
      one.runs_a_block = 1 << std::max(0, round - 1);
      one.rows = {.positions = positions_d.data, .slots = slots_d.data, .n = 2};
      one.qkv = qkv.data;
      one.max_context = round % 2 == 0 ? contexts[row] : 131072;
      if (round == 1) one.kv.data = other_pool.data, one.kv.page_table = other_table.data;
      out.fill_bytes(0xff);
      CUDA(launch_decode_attention(one, design, nullptr));
      expect(same(out.host(), batch, width, row * width, width),
             what + (round == 0 ? ": alone, context " : ": on other pages, context ") +
                 std::to_string(contexts[row]));
    }
  }
  std::printf("%-40s error %.2e, worst row %.2e\n", what.c_str(), error.relative, worst_row);
}

void bench_decode(const AttentionShape& shape, KvFormat format, AttentionDesign design, int batch,
                  int context, double rate, int runs = 0) {
  constexpr int kCalls = 42;
  const size_t page_bytes = kv_page_bytes(shape, format);
  const int seen = shape.window > 0 ? std::min(shape.window, context) : context;
  const std::vector<int> contexts(static_cast<size_t>(batch), context);
  DecodeCase c(shape, format, contexts, 3);
  const size_t set_bytes = static_cast<size_t>(c.pages.n_pages) * page_bytes;
  // Sets of pages in turn, together three times the L2 cache or one a call.
  const int sets = static_cast<int>(std::min<size_t>(kCalls, (size_t{160} << 20) / set_bytes + 1));
  DeviceArray<std::byte> pool(set_bytes * static_cast<size_t>(sets));
  fill_gauss_kv<<<1024, 256>>>(pool.data, pool.n / kv_element_bytes(format), 5, format);
  DeviceArray<std::byte> workspace(decode_attention_workspace(shape, batch, design));
  workspace.fill_bytes(0);
  DeviceArray<__nv_bfloat16> out(static_cast<size_t>(batch * shape.n_heads * shape.head_dim));
  const double s = time_calls(kCalls, 9, [&](int i, cudaStream_t stream) {
    DecodeAttention p = c.launch(out.data, workspace.data, batch);
    p.kv.data = pool.data + static_cast<size_t>(i % sets) * set_bytes;
    p.max_context = std::max(4096, context);
    p.runs_a_block = runs;
    CUDA(launch_decode_attention(p, design, stream));
  });
  const double bytes = static_cast<double>(batch) * seen * 2 * shape.n_kv_heads * shape.head_dim *
                       static_cast<double>(kv_element_bytes(format));
  std::printf(
      "decode dim %d window %4d %s %-8s batch %3d context %6d: %7.2f us, floor %6.2f, %5.0f GB/s of %.0f\n",
      shape.head_dim, shape.window, name(format), name(design), batch, context, s * 1e6, bytes / rate * 1e6,
      bytes / s * 1e-9, rate * 1e-9);
}
// One launch of the sm_90 kernel on a full batch, for a profiler.
void profile_decode(int dim, int batch, int context, int runs) {
  const AttentionDesign design = AttentionDesign::kSm90;
  const AttentionShape shape = kModels[dim == 256 ? 0 : 1].shape;
  DecodeCase c(shape, KvFormat::kF8E4M3, std::vector<int>(static_cast<size_t>(batch), context), 3);
  DeviceArray<std::byte> workspace(decode_attention_workspace(shape, batch, design));
  workspace.fill_bytes(0);
  DeviceArray<__nv_bfloat16> out(static_cast<size_t>(batch * shape.n_heads * shape.head_dim));
  for (int i = 0; i < 3; ++i) {
    DecodeAttention p = c.launch(out.data, workspace.data, batch);
    p.runs_a_block = runs;
    CUDA(launch_decode_attention(p, design, nullptr));
    CUDA(cudaDeviceSynchronize());
  }
}
#include "cuda_attention_prefill.inc"

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 4096);
  const auto asked = [&](const char* what) {
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], what) == 0) return true;
    }
    return argc == 1;
  };
  cudaDeviceProp device;
  CUDA(cudaGetDeviceProperties(&device, 0));
  std::vector<AttentionDesign> designs = {AttentionDesign::kPortable};
  if (device.major >= 9) designs.push_back(AttentionDesign::kSm90);
  std::printf("%s, sm_%d%d\n", device.name, device.major, device.minor);
  if (argc == 6 && std::strcmp(argv[1], "profile") == 0) {
    profile_decode(std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]));
    return 0;
  }
  if (asked("decode_check")) {
    for (const ModelCase& model : kModels) {
      for (KvFormat format : {KvFormat::kF8E4M3, KvFormat::kBF16}) {
        for (AttentionDesign design : designs) check_decode(model, format, design);
      }
    }
  }
  if (asked("decode_bench")) {
    const double rate = read_rate();
    for (KvFormat format : {KvFormat::kF8E4M3, KvFormat::kBF16}) {
      for (AttentionDesign design : designs) {
        for (int batch : {1, 8, 32, 100}) bench_decode(kModels[0].shape, format, design, batch, 1024, rate);
        for (int batch : {1, 8, 32, 100}) {
          for (int context : {512, 3500, 16384}) {
            if (batch * context <= 32 * 16384 && !(batch == 100 && context > 3500)) {
              bench_decode(kModels[1].shape, format, design, batch, context, rate);
            }
          }
        }
      }
    }
  }
  if (argc > 1 && asked("decode_runs")) {
    const double rate = read_rate();
    for (int runs : {1, 2, 4, 8}) {
      std::printf("%d runs a block\n", runs);
      for (int batch : {4, 8, 16, 32, 64, 100}) {
        bench_decode(kModels[0].shape, KvFormat::kF8E4M3, AttentionDesign::kSm90, batch, 1024, rate, runs);
        bench_decode(kModels[1].shape, KvFormat::kF8E4M3, AttentionDesign::kSm90, batch, 512, rate, runs);
        if (batch == 8 || batch == 32)
          bench_decode(kModels[1].shape, KvFormat::kF8E4M3, AttentionDesign::kSm90, batch, 3500, rate, runs);
      }
    }
  }
  if (asked("prefill_check")) prefill_checks(designs);
  if (asked("prefill_bench")) prefill_benches(designs);
  std::printf(failures == 0 ? "all checks passed\n" : "%d CHECKS FAILED\n", failures);
  return failures == 0 ? 0 : 1;
}
