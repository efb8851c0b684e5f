// From the raw products of q, k and v to what attention reads, for prompt rows (decode rows have it inside
// attention_decode.h): q = RoPE(RMS(q; w)), k the same and to its page, v = RMS(v) and to its page. FP8 pages
// get value / scale, rounded to nearest even and clamped to +-448, as the CPU backend writes them.
//
// The parts can be had apart for passes that show stages to an observer: with q_f32, k_f32 and v_f32 the
// values are also (or, without pages, only) written as float32.
#pragma once

#include "backend/cuda/attention_types.h"

namespace jewel::cuda {

enum class QkvFormat : uint8_t { kF32, kBF16 };

struct QkvPost {
  AttentionShape shape;
  KvLayer kv;  // data null: K and V are not stored
  Rope rope;
  HeadNorms norms;
  AttentionRows rows;
  const void* qkv = nullptr;  // [rows, stride]: q, then, if owns_kv, k and v
  QkvFormat format = QkvFormat::kF32;
  int qkv_stride = 0;
  bool owns_kv = false;
  void* q = nullptr;       // BF16 [rows, n_heads * head_dim]; may be null
  float* q_f32 = nullptr;  // the same in float32; may be null
  float* k_f32 = nullptr;  // [rows, n_kv_heads * head_dim]; may be null
  float* v_f32 = nullptr;
};

cudaError_t launch_qkv_post(const QkvPost& post, cudaStream_t stream);

}  // namespace jewel::cuda
