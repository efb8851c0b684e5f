// Decode attention: against float64, the promises of bitwise sameness, times.
#pragma once

#include "cuda_attention_data.h"

namespace {

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

// Rows of up to 1,024 keys among others, up to so many that other kernels have them; what lies in a page
// behind a row's position is not a number. alone: [contexts, width].
void check_among(const DecodeCase& c, AttentionDesign design, const Bits& alone, const std::string& what) {
  const size_t width = static_cast<size_t>(c.shape.n_heads * c.shape.head_dim),
               stride = static_cast<size_t>(c.stride);
  const size_t page_bytes = kv_page_bytes(c.shape, c.format);
  const size_t row_bytes = static_cast<size_t>(c.shape.head_dim) * kv_element_bytes(c.format);
  DeviceArray<std::byte> pool(c.pool.n);
  CUDA(cudaMemcpy(pool.data, c.pool.data, c.pool.n, cudaMemcpyDeviceToDevice));
  std::vector<size_t> sources;
  for (size_t row = 0; row < c.contexts.size(); ++row) {
    if (c.contexts[row] > 1024) continue;
    sources.push_back(row);
    const auto position = static_cast<size_t>(c.contexts[row] - 1);
    const int page = c.pages.table[row * static_cast<size_t>(c.pages.max_pages) + position / 16];
    for (size_t head = 0; head < static_cast<size_t>(2 * c.shape.n_kv_heads); ++head) {  // of K, then of V
      const size_t next = head * 16 + position % 16 + 1;
      CUDA(cudaMemset(pool.data + static_cast<size_t>(page) * page_bytes + next * row_bytes, 0xff,
                      (head * 16 + 16 - next) * row_bytes));
    }
  }
  for (const size_t rows : {size_t{8}, size_t{24}, size_t{64}}) {
    std::vector<int32_t> positions, slots;
    DeviceArray<float> qkv(rows * stride);
    for (size_t row = 0; row < rows; ++row) {
      const size_t source = sources[row % sources.size()];
      positions.push_back(c.contexts[source] - 1), slots.push_back(static_cast<int32_t>(source));
      CUDA(cudaMemcpy(qkv.data + row * stride, c.qkv.data + source * stride, stride * sizeof(float),
                      cudaMemcpyDeviceToDevice));
    }
    DeviceArray<int32_t> positions_d(positions), slots_d(slots);
    const int n = static_cast<int>(rows);
    DeviceArray<std::byte> workspace(decode_attention_workspace(c.shape, n, design));
    workspace.fill_bytes(0);
    DeviceArray<__nv_bfloat16> out(rows * width);
    out.fill_bytes(0xff);
    DecodeAttention p = c.launch(out.data, workspace.data, n);
    p.kv.data = pool.data;
    p.rows = {.positions = positions_d.data, .slots = slots_d.data, .n = n};
    p.qkv = qkv.data;
    p.max_context = 1024;
    CUDA(launch_decode_attention(p, design, nullptr));
    const Bits got = out.host();
    for (size_t row = 0; row < rows; ++row) {
      const size_t source = sources[row % sources.size()];
      expect(
          same(got, alone, row * width, source * width, width),
          what + ": among " + std::to_string(rows) + " rows, context " + std::to_string(c.contexts[source]));
    }
  }
}

void check_decode(const ModelCase& model, KvFormat format, AttentionDesign design) {
  const std::string what = std::string("decode ") + model.name + " " + name(format) + " " + name(design);
  const std::vector<int> contexts = small
                                        ? std::vector<int>{1, 17, 513, 700, 1100}
                                        : std::vector<int>{1,   15,   16,   17,   130,  511,  512,   513,
                                                           600, 1000, 1024, 1025, 3500, 4097, 16384, 131072};
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
  check_among(c, design, batch, what);
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

}  // namespace
