// Prefill attention and qkv_post: against float64, chunks cut otherwise, times.
#pragma once

#include "cuda_attention_decode.h"

namespace {

__global__ void to_bf16(const float* in, __nv_bfloat16* out, size_t n) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
    out[i] = __float2bfloat16_rn(in[i]);
  }
}

// Prompts whose K and V are all in their pages, and the queries of all their positions, sequence after
// sequence.
struct PrefillCase {
  AttentionShape shape;
  KvFormat format;
  std::vector<int> lengths;
  Pages pages;
  DeviceArray<std::byte> pool;
  DeviceArray<int32_t> table;
  std::vector<int32_t> positions, slots, first_row;
  DeviceArray<__nv_bfloat16> q;

  PrefillCase(const AttentionShape& s, KvFormat f, const std::vector<int>& l, uint32_t seed)
      : shape(s),
        format(f),
        lengths(l),
        pages(l, s, seed, false),
        pool(static_cast<size_t>(pages.n_pages) * kv_page_bytes(s, f)),
        table(pages.table),
        positions(rows_of(l).first),
        slots(rows_of(l).second),
        q(positions.size() * static_cast<size_t>(s.n_heads * s.head_dim)) {
    int row = 0;
    for (int length : l) first_row.push_back(row), row += length;
    fill_gauss_kv<<<1024, 256>>>(pool.data, pool.n / kv_element_bytes(f), seed, f);
    DeviceArray<float> x(q.n);
    fill_gauss_f32<<<1024, 256>>>(x.data, x.n, seed + 1, 0.12f, 0);
    to_bf16<<<1024, 256>>>(x.data, q.data, x.n);
    CUDA(cudaDeviceSynchronize());
  }
  static std::pair<std::vector<int32_t>, std::vector<int32_t>> rows_of(const std::vector<int>& l) {
    std::vector<int32_t> p, s;
    for (size_t i = 0; i < l.size(); ++i) {
      for (int k = 0; k < l[i]; ++k) p.push_back(k), s.push_back(static_cast<int32_t>(i));
    }
    return {p, s};
  }
  KvLayer kv() const {
    return {.data = pool.data,
            .page_table = table.data,
            .max_pages = pages.max_pages,
            .format = format,
            .k_scale = format == KvFormat::kF8E4M3 ? 0.7f : 1.0f,
            .v_scale = format == KvFormat::kF8E4M3 ? 1.3f : 1.0f};
  }
  size_t width() const { return static_cast<size_t>(shape.n_heads * shape.head_dim); }
};

// One launch over some chunks: (sequence, from, to). Their rows lie in this order in a launch's q and out.
struct Chunk {
  int sequence, from, to;
};
void run_chunks(const PrefillCase& c, const std::vector<Chunk>& chunks, AttentionDesign design, Bits& all) {
  std::vector<int32_t> positions, slots, chunk_rows = {0};
  std::vector<int32_t> table = c.pages.table;
  for (const Chunk& k : chunks) {
    for (int p = k.from; p < k.to; ++p) positions.push_back(p), slots.push_back(k.sequence);
    chunk_rows.push_back(static_cast<int32_t>(positions.size()));
    // Pages behind the chunk's window are gone, those ahead of it not there yet.
    for (int page = 0; page < c.pages.max_pages; ++page) {
      const bool behind = c.shape.window > 0 && 16 * page + 15 < k.from - c.shape.window + 1;
      if (behind || 16 * page >= k.to) table[static_cast<size_t>(k.sequence * c.pages.max_pages + page)] = -1;
    }
  }
  const size_t rows = positions.size();
  positions.insert(positions.end(), 3, -1);  // padding
  slots.insert(slots.end(), 3, 0);
  DeviceArray<int32_t> positions_d(positions), slots_d(slots), chunk_rows_d(chunk_rows), table_d(table);
  DeviceArray<__nv_bfloat16> q(positions.size() * c.width()), out(positions.size() * c.width());
  q.fill_bytes(0xff);
  out.fill_bytes(0xff);
  size_t row = 0;
  for (const Chunk& k : chunks) {
    const auto n = static_cast<size_t>(k.to - k.from);
    CUDA(cudaMemcpy(
        q.data + row * c.width(),
        c.q.data + static_cast<size_t>(c.first_row[static_cast<size_t>(k.sequence)] + k.from) * c.width(),
        n * c.width() * 2, cudaMemcpyDeviceToDevice));
    row += n;
  }
  PrefillAttention p = {
      .shape = c.shape,
      .kv = c.kv(),
      .rows = {.positions = positions_d.data, .slots = slots_d.data, .n = static_cast<int>(positions.size())},
      .chunk_rows = chunk_rows_d.data,
      .n_chunks = static_cast<int>(chunks.size()),
      .q = q.data,
      .out = out.data};
  p.kv.page_table = table_d.data;
  CUDA(launch_prefill_attention(p, design, nullptr));
  CUDA(cudaDeviceSynchronize());
  const Bits got = out.host();
  row = 0;
  for (const Chunk& k : chunks) {
    const auto n = static_cast<size_t>(k.to - k.from);
    std::copy_n(got.begin() + static_cast<long>(row * c.width()), n * c.width(),
                all.begin() + static_cast<long>(
                                  static_cast<size_t>(c.first_row[static_cast<size_t>(k.sequence)] + k.from) *
                                  c.width()));
    row += n;
  }
  uint16_t pad;
  std::memcpy(&pad, &got[rows * c.width()], 2);
  expect(pad == 0xffff, "prefill wrote rows of padding");
}

void check_prefill(const ModelCase& model, KvFormat format, AttentionDesign design) {
  const std::string what = std::string("prefill ") + model.name + " " + name(format) + " " + name(design);
  const std::vector<int> lengths = {1, 15, 70, 600, 1100};
  PrefillCase c(model.shape, format, lengths, 11);
  const size_t n = c.positions.size() * c.width();
  Bits whole(n), cut(n);
  std::vector<Chunk> all;
  for (size_t i = 0; i < lengths.size(); ++i) all.push_back({static_cast<int>(i), 0, lengths[i]});
  run_chunks(c, all, design, whole);

  DeviceArray<int32_t> positions(c.positions), slots(c.slots);
  DeviceArray<double> out(n);
  const int blocks = 1056;
  DeviceArray<double> scores(static_cast<size_t>(blocks) * 1100);
  const Reference r = {
      .shape = c.shape,
      .kv = c.kv(),
      .rope = {},
      .norms = {},
      .rows = {.positions = positions.data, .slots = slots.data, .n = static_cast<int>(c.positions.size())},
      .qkv = nullptr,
      .qkv_stride = 0,
      .heads = nullptr,
      .out = out.data,
      .q_bf16 = c.q.data,
      .scores = scores.data,
      .max_context = 1100};
  reference_attention<<<blocks, 256>>>(r);
  CUDA(cudaDeviceSynchronize());
  const Error error = compare(whole, out.host());
  // P is rounded to 8 bits (BF16) or 11 (FP16), the output to 8.
  expect(error.relative < (format == KvFormat::kBF16 ? 2.6e-3 : 1.8e-3),
         what + ": error " + std::to_string(error.relative));

  const std::vector<std::vector<Chunk>> cuts = {{{4, 0, 13}, {3, 0, 64}},
                                                {{3, 64, 65}, {4, 13, 77}, {0, 0, 1}},
                                                {{2, 0, 33}, {4, 77, 640}, {3, 65, 577}, {1, 0, 15}},
                                                {{2, 33, 70}, {3, 577, 600}, {4, 640, 1099}},
                                                {{4, 1099, 1100}}};
  for (const auto& chunks : cuts) run_chunks(c, chunks, design, cut);
  size_t different = 0;
  for (size_t i = 0; i < n; ++i) different += std::memcmp(&whole[i], &cut[i], 2) != 0 ? 1 : 0;
  expect(different == 0, what + ": " + std::to_string(different) + " of " + std::to_string(n) +
                             " values depend on the chunks");
  std::printf("%-40s error %.2e\n", what.c_str(), error.relative);
}

void bench_prefill(const AttentionShape& shape, KvFormat format, AttentionDesign design, int sequences,
                   int length) {
  PrefillCase c(shape, format, std::vector<int>(static_cast<size_t>(sequences), length), 5);
  std::vector<int32_t> chunk_rows = {0};
  for (int i = 0; i < sequences; ++i) chunk_rows.push_back((i + 1) * length);
  DeviceArray<int32_t> positions(c.positions), slots(c.slots), chunks(chunk_rows);
  DeviceArray<__nv_bfloat16> out(c.q.n);
  const PrefillAttention p = {
      .shape = shape,
      .kv = c.kv(),
      .rows = {.positions = positions.data, .slots = slots.data, .n = static_cast<int>(c.positions.size())},
      .chunk_rows = chunks.data,
      .n_chunks = sequences,
      .q = c.q.data,
      .out = out.data};
  const double s =
      time_calls(5, 3, [&](int, cudaStream_t stream) { CUDA(launch_prefill_attention(p, design, stream)); });
  double keys = 0;
  for (int i = 0; i < length; ++i) keys += shape.window > 0 ? std::min(i + 1, shape.window) : i + 1;
  const double flops = 4.0 * keys * sequences * shape.n_heads * shape.head_dim;
  std::printf("prefill dim %d window %4d %s %-8s %2d x %5d: %8.1f us, %5.1f TFLOP/s of visible keys\n",
              shape.head_dim, shape.window, name(format), name(design), sequences, length, s * 1e6,
              flops / s * 1e-12);
}

void prefill_checks(const std::vector<AttentionDesign>& designs) {
  for (const ModelCase& model : kModels) {
    if (small && &model >= kModels + 2) break;
    for (KvFormat format : {KvFormat::kF8E4M3, KvFormat::kBF16}) {
      for (AttentionDesign design : designs) check_prefill(model, format, design);
    }
  }
}

// qkv_post of a step of 8,192 prompt tokens.
void bench_qkv_post(const AttentionShape& shape, double rate) {
  const int rows = 8192, stride = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
  PrefillCase c(shape, KvFormat::kF8E4M3, {2048, 2048, 2048, 2048}, 5);
  DeviceArray<int32_t> positions(c.positions), slots(c.slots);
  DeviceArray<float> qkv(static_cast<size_t>(rows) * static_cast<size_t>(stride)), norm(512),
      frequencies(rope_frequencies(shape));
  fill_gauss_f32<<<1024, 256>>>(qkv.data, qkv.n, 3, 1, 0);
  fill_gauss_f32<<<1, 256>>>(norm.data, norm.n, 3, 0.1f, 1);
  const QkvPost post = {
      .shape = shape,
      .kv = c.kv(),
      .rope = {.frequencies = frequencies.data, .n_rotating = static_cast<int>(frequencies.n)},
      .norms = {.q = norm.data, .k = norm.data, .eps = 1e-6f},
      .rows = {.positions = positions.data, .slots = slots.data, .n = rows},
      .qkv = qkv.data,
      .qkv_stride = stride,
      .owns_kv = true,
      .q = c.q.data};
  const double s = time_calls(5, 3, [&](int, cudaStream_t stream) { CUDA(launch_qkv_post(post, stream)); });
  const double bytes =
      rows * (4.0 * stride + shape.head_dim * (2.0 * shape.n_heads + 2.0 * shape.n_kv_heads));
  std::printf("qkv_post dim %d, 8192 rows: %.1f us, %.0f GB/s of %.0f\n", shape.head_dim, s * 1e6,
              bytes / s * 1e-9, rate * 1e-9);
}

void prefill_benches(const std::vector<AttentionDesign>& designs) {
  for (KvFormat format : {KvFormat::kF8E4M3, KvFormat::kBF16}) {
    for (AttentionDesign design : designs) {
      for (int model : {0, 1}) {
        bench_prefill(kModels[model].shape, format, design, 4, 2048);
        bench_prefill(kModels[model].shape, format, design, 1, 350);
        bench_prefill(kModels[model].shape, format, design, 1, 16384);
      }
    }
  }
  const double rate = read_rate();
  bench_qkv_post(kModels[0].shape, rate);
  bench_qkv_post(kModels[1].shape, rate);
}

}  // namespace
