// A block takes a row, its warps the row's heads in turn; cosines and sines are computed once a warp. Bound
// by its bytes: E4B sliding reads 12 heads x 1 KB and writes 4 KB of q and 1 KB of pages a row.
#include "backend/cuda/qkv_post.h"

#include "backend/cuda/attention_device.h"

namespace jewel::cuda {
namespace {

using namespace device;

constexpr int kWarps = 4;

// Where K of a KV head and position lies; V lies `v_offset` behind.
template <KvFormat F, int DIM>
struct PagePlace {
  static constexpr size_t kRowBytes = DIM * (F == KvFormat::kF8E4M3 ? 1 : 2);
  std::byte* k;  // of KV head 0
  size_t v_offset;

  __device__ PagePlace(const KvLayer& kv, int n_kv_heads, int slot, int position) {
    const auto page = static_cast<size_t>(kv.page_table[int64_t{slot} * kv.max_pages + position / 16]);
    v_offset = static_cast<size_t>(n_kv_heads) * 16 * kRowBytes;
    k = kv.data + page * 2 * v_offset + static_cast<size_t>(position % 16) * kRowBytes;
  }
  __device__ std::byte* row(int kv_head, bool is_v) const {
    return k + static_cast<size_t>(kv_head) * 16 * kRowBytes + (is_v ? v_offset : 0);
  }
};

template <typename In, KvFormat F, int DIM>
__global__ void __launch_bounds__(kWarps * 32) qkv_post_kernel(const __grid_constant__ QkvPost p) {
  const int row = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int position = p.rows.positions[row];
  if (position < 0) return;
  HeadRotation<DIM> rotation;
  rotation.set(p.rope, position, lane);
  const int n_q = p.shape.n_heads, n_kv = p.shape.n_kv_heads;
  const int n_heads = n_q + (p.owns_kv ? 2 * n_kv : 0);
  const In* x = static_cast<const In*>(p.qkv) + int64_t{row} * p.qkv_stride;
  for (int i = warp; i < n_heads; i += kWarps) {
    const bool is_q = i < n_q, is_v = i >= n_q + n_kv;
    Head<DIM> head, weight;
    head.load(x + i * DIM, lane);
    if (is_v) {
      weight.fill(1.0f);
    } else {
      weight.load(is_q ? p.norms.q : p.norms.k, lane);
    }
    head.norm(weight, p.norms.eps);
    if (!is_v) head.rotate(rotation);

    const int kv_head = is_q ? 0 : (i - n_q) % n_kv;
    const int64_t at = is_q ? (int64_t{row} * n_q + i) * DIM : (int64_t{row} * n_kv + kv_head) * DIM;
    float* f32 = is_q ? p.q_f32 : is_v ? p.v_f32 : p.k_f32;
    if (f32 != nullptr) {
      head.for_fours(lane, [&](int index, const float(&four)[4]) {
        *reinterpret_cast<float4*>(f32 + at + index) = make_float4(four[0], four[1], four[2], four[3]);
      });
    }
    if (is_q && p.q != nullptr) {
      auto* q = static_cast<__nv_bfloat16*>(p.q) + at;
      head.for_fours(lane, [&](int index, const float(&four)[4]) {
        *reinterpret_cast<uint2*>(q + index) =
            make_uint2(pack_bf16(four[0], four[1]), pack_bf16(four[2], four[3]));
      });
    }
    if (!is_q && p.kv.data != nullptr) {
      std::byte* out = PagePlace<F, DIM>(p.kv, n_kv, p.rows.slots[row], position).row(kv_head, is_v);
      const float inverse_scale = 1.0f / (is_v ? p.kv.v_scale : p.kv.k_scale);
      head.for_fours(
          lane, [&](int index, const float(&four)[4]) { store_kv4<F>(out, index, four, inverse_scale); });
    }
  }
}

bool known(const AttentionShape& shape) {
  return (shape.head_dim == 256 || shape.head_dim == 512) && shape.n_heads > 0 && shape.n_kv_heads > 0;
}

template <typename In, KvFormat F>
void launch(const QkvPost& p, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(p.rows.n);
  if (p.shape.head_dim == 256) {
    qkv_post_kernel<In, F, 256><<<blocks, kWarps * 32, 0, stream>>>(p);
  } else {
    qkv_post_kernel<In, F, 512><<<blocks, kWarps * 32, 0, stream>>>(p);
  }
}
template <typename In>
void launch(const QkvPost& p, cudaStream_t stream) {
  if (p.kv.format == KvFormat::kF8E4M3) {
    launch<In, KvFormat::kF8E4M3>(p, stream);
  } else {
    launch<In, KvFormat::kBF16>(p, stream);
  }
}

}  // namespace

cudaError_t launch_qkv_post(const QkvPost& post, cudaStream_t stream) {
  if (!known(post.shape)) return cudaErrorInvalidValue;
  if (post.rows.n == 0) return cudaSuccess;
  if (post.format == QkvFormat::kF32) {
    launch<float>(post, stream);
  } else {
    launch<__nv_bfloat16>(post, stream);
  }
  return cudaGetLastError();
}

}  // namespace jewel::cuda
