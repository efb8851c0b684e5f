#include "bench/model_work.h"

#include <algorithm>

namespace jewel {
namespace {

double parameters(const TensorView& tensor) {
  double count = tensor.present() ? 1 : 0;
  for (const int64_t dimension : tensor.shape) count *= static_cast<double>(dimension);
  return count;
}

struct Sum {
  double bytes = 0;
  double flop = 0;
  void add(const LinearWeight& linear) {
    if (!linear.present()) return;
    bytes += static_cast<double>(linear.weight.bytes + linear.scale.size() * sizeof(float));
    flop += 2 * parameters(linear.weight);
  }
};

Sum layer_sum(const DecoderLayerWeights& layer) {
  Sum sum;
  for (const LinearWeight* linear :
       {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.o_proj, &layer.gate_proj, &layer.up_proj,
        &layer.down_proj, &layer.per_layer_input_gate, &layer.per_layer_projection})
    sum.add(*linear);
  return sum;
}

double row_bytes(const TensorView& table) {
  return table.present() ? static_cast<double>(table.bytes) / static_cast<double>(table.shape[0]) : 0;
}

}  // namespace

ModelWork work_of(const Checkpoint& checkpoint, const HeldWeights& held) {
  const ModelWeights& weights = checkpoint.weights();
  ModelWork work;
  Sum sum;
  if (!held.per_layer_table) sum.add(weights.per_layer_model_projection);
  const size_t owning = static_cast<size_t>(checkpoint.config().text.first_shared_layer());
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const Sum layer = layer_sum(weights.layers[i]);
    sum.bytes += layer.bytes;
    sum.flop += layer.flop;
    if (i + 1 == owning) work.prefill_flop = sum.flop;
  }
  sum.add(weights.lm_head);
  if (held.head_fp8)
    sum.bytes += parameters(weights.lm_head.weight) - static_cast<double>(weights.lm_head.weight.bytes);
  work.decode_flop = sum.flop;
  work.decode_bytes = sum.bytes + row_bytes(weights.embed_tokens) + row_bytes(weights.embed_tokens_per_layer);
  return work;
}

double least_step_s(const ModelWork& work, const Rates& rates, double rows) {
  if (!work.known() || !rates.known()) return 0;
  return std::max(work.decode_bytes / rates.bytes_per_s, rows * work.decode_flop / rates.flop_per_s);
}

double least_prompt_s(const ModelWork& work, const Rates& rates, double tokens) {
  if (!work.known() || !rates.known()) return 0;
  return tokens * work.prefill_flop / rates.prompt_rate();
}

}  // namespace jewel
