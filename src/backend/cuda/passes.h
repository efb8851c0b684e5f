// The two forward passes of a step: prompt rows through the layers that own K and V, and decode rows (and the
// asked rows of prompts) through all the rest. Each enqueues on a stream and keeps its activations in buffers
// of its own, sized once.
//
// Which pass computes a position follows from its phase alone (backend.h): prompt rows never meet a decode
// kernel below the first shared layer, and above it every row is a decode row.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/device_weights.h"
#include "backend/cuda/kv_pools.h"
#include "backend/cuda/stage_view.h"
#include "backend/cuda/step_ops.h"

namespace jewel::cuda {

// What both passes read. All of it outlives them.
struct PassContext {
  const ModelConfig& config;
  const DeviceWeights& weights;
  const KvPools& pools;
  const StageView& stages;
  bool portable = false;     // the kernels of sm_80 and sm_89
  bool prefill_fp8 = false;  // FP8 activations in prompts, where the weights are FP8
};

// Rows of prompts, as device arrays.
struct PromptRows {
  int n = 0;
  const int32_t* ids = nullptr;             // negative: a soft token; pad at other placeholders
  const float* const* soft_rows = nullptr;  // [n], null entries: no soft token; null: none at all
  const int32_t* positions = nullptr;
  const int32_t* slots = nullptr;
  const int32_t* chunk_rows = nullptr;  // [n_chunks + 1]
  int n_chunks = 0;
  const int32_t* asked = nullptr;  // [n_asked] rows whose logits are wanted
  int n_asked = 0;
};

class PromptPass {
 public:
  static Result<std::unique_ptr<PromptPass>> make(const PassContext& context, int max_rows, int max_asked);
  virtual ~PromptPass() = default;

  virtual Result<void> enqueue(const PromptRows& rows, cudaStream_t stream) = 0;
  // Of the asked rows, [n_asked, hidden]: their embeddings, where there is any soft token, and their residual
  // streams before the first shared layer.
  virtual const float* asked_embeddings() const = 0;
  virtual const float* asked_residuals() const = 0;
};

// Rows that decode, or asked rows of prompts; at most kMaxDecodeRows.
struct TailRows {
  int n = 0;
  const int32_t* ids = nullptr;        // negative: a soft token
  const int32_t* positions = nullptr;  // negative: a row of padding
  const int32_t* slots = nullptr;
  int max_context = 0;  // no row stands at or beyond it
  // Asked rows: [n, hidden]; null: rows begin at layer 0 with what launch_begin_rows() left.
  const float* residuals = nullptr;
  const float* soft_embeddings = nullptr;  // of asked rows, [n, hidden], where an id is negative
  float* logits = nullptr;                 // [n, vocab]
  float* tile_max = nullptr;               // DecodeStep's
};

class TailPass {
 public:
  static Result<std::unique_ptr<TailPass>> make(const PassContext& context, int max_rows);
  virtual ~TailPass() = default;

  // Fills in what launch_begin_rows() reads and leaves, before an enqueue() of begin.n rows.
  virtual void describe(BeginRows& begin) const = 0;
  virtual Result<void> enqueue(const TailRows& rows, cudaStream_t stream) = 0;
};

// Shared by both.
struct PerLayerCall {
  const PassContext& context;
  float* c = nullptr;  // [n, n_layers * P]: the projections of soft tokens, in place
  const int32_t* ids = nullptr;
  int n = 0;
  int first_layer = 0;
  int n_layers = 0;
};
cudaError_t enqueue_per_layer_inputs(const PerLayerCall& call, cudaStream_t stream);
cudaError_t enqueue_gather(const float* in, int columns, const int32_t* rows, int n, float* out,
                           cudaStream_t stream);

}  // namespace jewel::cuda
