// The layers and head of a decode step of one row as one persistent kernel (sm_90): the second design beside
// the chain of decode_step.h, over the same weights, pages and buffers' formats. An experiment: measured, not
// kept, and with one race not yet found (docs/cuda-persistent.md). Only bench/cuda_persistent.cu uses it.
//
// One block per multiprocessor. A producer thread streams the block's share of every stage's weights, known
// in advance, into a ring in shared memory that goes on filling while the consumers wait for a stage's input.
// Every block keeps the residual stream (in registers) and computes each norm itself; stages hand over
// through L2, with one counter per stage.
//
// Order of sums, which follows from the shapes alone: K is cut into runs of 160 (128 in o_proj) that a warp
// adds up by mma.m16n8k16, the two halves of every 32 apart, a block adds its 16 warps' sums in order;
// down_proj comes in two halves of K, the PLE gate in eight parts, which readers add in order.
//
// All pointers are device pointers. The state must be zeroed once; launches that share it run one at a time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/cuda/decode_step.h"

namespace jewel::cuda {

// One layer as the kernel reads it, in device memory. Fields as in DecodeLayer.
struct PersistentLayer {
  const uint8_t* qkv;  // fragment tiles
  const uint8_t* o;
  const uint8_t* gate_up;
  const uint8_t* down;
  const uint8_t* ple_gate;
  const uint8_t* ple_up;
  const float* qkv_scale;  // [rows]
  const float* o_scale;
  const float* gate_up_scale;
  const float* down_scale;
  const float* input_norm;
  const float* post_attention_norm;
  const float* pre_feedforward_norm;
  const float* post_feedforward_norm;
  const float* post_ple_norm;
  const float* q_norm;
  const float* k_norm;
  uint8_t* kv;
  const int32_t* page_table;
  float layer_scalar;
  float k_scale;
  float v_scale;
  int32_t qkv_tiles;  // tiles of 16 rows
  int32_t head_dim;
  int32_t window;
  int32_t owns_kv;
};

struct PersistentStep {
  const PersistentLayer* layers = nullptr;  // device
  int n_layers = 0;
  const uint8_t* head = nullptr;
  const float* head_scale = nullptr;
  const float* final_norm = nullptr;
  int head_tiles = 0;
  float softcap = 0;
  float eps = 1e-6f;
  const float* h = nullptr;             // [hidden]
  const float* per_layer = nullptr;     // [n_layers, 256]
  const int32_t* position = nullptr;    // [1]
  const float* rope_sliding = nullptr;  // [positions, 2, 128]: cosines, sines
  const float* rope_full = nullptr;     // [positions, 2, 256]
  float* logits = nullptr;              // [16 * head_tiles]
  void* state = nullptr;                // persistent_state_bytes()
  int in_flight = 6;                    // chunks of 10 KB not yet landed, per block
  long long* trace = nullptr;           // measurement only: [blocks, n_layers, 16] clocks
  int skip = 0;                         // measurement only: 1 no attention, 2 no waiting for other blocks
};

size_t persistent_state_bytes();
cudaError_t launch_persistent_step(const PersistentStep& step, cudaStream_t stream);

}  // namespace jewel::cuda
