#include "backend/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"

namespace jewel {
namespace {

constexpr int kKeyBlock = 64;    // keys between two updates of the running softmax; whole pages
constexpr int kQueryBlock = 16;  // queries that share a block of keys while it is in the cache
constexpr int kHeadBlock = 4;    // query heads of one KV head that one piece of work takes
static_assert(kKeyBlock % kPageTokens == 0);

struct Work {
  const QuerySpan* span;
  int first_query;  // in the span
  int n_queries;
  int first_head;
  int n_heads;
};

// The running softmax of one query and its heads: sum of p, sum of p * v, and the maximum that p is relative
// to.
struct Running {
  float* max;  // [heads]
  float* sum;  // [heads]
  float* out;  // [heads, head_dim]
};

class Worker {
 public:
  Worker(const Compute& compute, const KvCache& cache, const AttentionLayer& layer, const Matrix& q,
         const Matrix& out)
      : kernels_(*compute.kernels), cache_(cache), layer_(layer), q_(q), out_(out) {}

  void run(const Work& work) const {
    const int64_t dim = layer_.head_dim;
    thread_local Buffer<float> buffer;
    const int64_t n_scores = int64_t{kHeadBlock} * kKeyBlock, max_rows = int64_t{kQueryBlock} * kHeadBlock;
    float* scores = buffer.resize(n_scores + max_rows * (dim + 2));
    float* max = scores + n_scores;
    float* sum = max + max_rows;
    float* values = sum + max_rows;
    const int64_t rows = int64_t{work.n_queries} * work.n_heads;
    std::fill_n(max, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(sum, rows, 0.0f);
    std::fill_n(values, rows * dim, 0.0f);
    const auto running = [&](int query) {
      const int64_t r = int64_t{query} * work.n_heads;
      return Running{max + r, sum + r, values + r * dim};
    };

    const int first = work.span->position + work.first_query;
    const int last = first + work.n_queries - 1;
    for (int block = first_key(first) / kKeyBlock * kKeyBlock; block <= last; block += kKeyBlock) {
      for (int query = 0; query < work.n_queries; ++query) {
        const int position = first + query;
        const int begin = std::max(block, first_key(position));
        const int end = std::min(block + kKeyBlock, position + 1);
        if (begin < end) add_keys(work, query, begin, end, scores, running(query));
      }
    }

    for (int query = 0; query < work.n_queries; ++query) {
      const Running r = running(query);
      float* out = out_.row(row_of(work, query)) + work.first_head * dim;
      for (int head = 0; head < work.n_heads; ++head) {
        const float scale = cache_.v_scale(layer_.kv_layer) / r.sum[head];
        for (int i = 0; i < dim; ++i) out[head * dim + i] = r.out[head * dim + i] * scale;
      }
    }
  }

 private:
  int first_key(int position) const {
    return layer_.window > 0 ? std::max(0, position - layer_.window + 1) : 0;
  }
  static int64_t row_of(const Work& work, int query) { return work.span->row + work.first_query + query; }

  // Calls body(page, place, n) for the parts of pages that hold positions [begin, end).
  template <typename Body>
  static void for_pages(const Work& work, int begin, int end, Body body) {
    for (int position = begin; position < end;) {
      const int place = position % kPageTokens;
      const int n = std::min(kPageTokens - place, end - position);
      body(work.span->pages[static_cast<size_t>(position / kPageTokens)], place, n);
      position += n;
    }
  }

  // Values are read in narrow columns, which the hardware does not see as a stream: ask for them while K is
  // at work.
  static void fetch_ahead(const std::byte* bytes, int64_t n) {
    for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(bytes + i, 0, 2);
  }

  void add_keys(const Work& work, int query, int begin, int end, float* scores,
                const Running& running) const {
    const int64_t dim = layer_.head_dim;
    const int kv_head = work.first_head / (layer_.n_heads / layer_.n_kv_heads);
    const int64_t place_bytes = dim * format_bytes(cache_.format());
    const int n_keys = end - begin;

    DotTile dot{.x = q_.row(row_of(work, query)) + work.first_head * dim,
                .x_stride = dim,
                .rows = work.n_heads,
                .w_stride = dim,
                .k = dim,
                .y = scores,
                .y_stride = kKeyBlock};
    for_pages(work, begin, end, [&](PageId page, int place, int n) {
      dot.w = cache_.keys(layer_.kv_layer, page, kv_head) + place * place_bytes;
      dot.outputs = n;
      kernels_.dot_f32[static_cast<int>(cache_.format())](dot);
      dot.y += n;
      if (query == 0) fetch_ahead(cache_.values(layer_.kv_layer, page, kv_head), kPageTokens * place_bytes);
    });

    const float k_scale = cache_.k_scale(layer_.kv_layer);
    for (int head = 0; head < work.n_heads; ++head) {
      float* s = scores + int64_t{head} * kKeyBlock;
      for (int i = 0; i < n_keys; ++i) s[i] *= k_scale;
      const float max = std::max(running.max[head], kernels_.max(s, n_keys));
      if (max > running.max[head]) {
        const float shrink = std::exp(running.max[head] - max);  // 0 the first time
        running.sum[head] *= shrink;
        for (int i = 0; i < dim; ++i) running.out[head * dim + i] *= shrink;
        running.max[head] = max;
      }
      running.sum[head] += kernels_.exp_sum(s, n_keys, max);
    }

    WeightedSum sum{.p = scores,
                    .p_stride = kKeyBlock,
                    .rows = work.n_heads,
                    .v_stride = dim,
                    .columns = dim,
                    .sum = running.out,
                    .sum_stride = dim};
    for_pages(work, begin, end, [&](PageId page, int place, int n) {
      sum.v = cache_.values(layer_.kv_layer, page, kv_head) + place * place_bytes;
      sum.keys = n;
      kernels_.weighted_sum[static_cast<int>(cache_.format())](sum);
      sum.p += n;
    });
  }

  const Kernels& kernels_;
  const KvCache& cache_;
  const AttentionLayer& layer_;
  const Matrix& q_;
  const Matrix& out_;
};

}  // namespace

void attention(const Compute& compute, const KvCache& cache, const AttentionLayer& layer,
               std::span<const QuerySpan> spans, const Matrix& q, const Matrix& out) {
  JEWEL_CHECK(layer.head_dim % 16 == 0, "head_dim {}", layer.head_dim);
  const int group = layer.n_heads / layer.n_kv_heads;
  std::vector<Work> work;
  for (const QuerySpan& span : spans) {
    for (int query = 0; query < span.n; query += kQueryBlock) {
      for (int head = 0; head < layer.n_heads;) {
        const int left_of_group = group - head % group;
        const int n_heads = std::min(kHeadBlock, left_of_group);
        work.push_back({&span, query, std::min(kQueryBlock, span.n - query), head, n_heads});
        head += n_heads;
      }
    }
  }
  const Worker worker(compute, cache, layer, q, out);
  compute.pool->parallel_for(static_cast<int64_t>(work.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) worker.run(work[static_cast<size_t>(i)]);
  });
}

}  // namespace jewel
