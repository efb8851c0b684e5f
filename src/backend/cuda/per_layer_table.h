// What the layers take of a token besides its embedding, worked out once for the whole vocabulary.
//
// Per-layer inputs are (RMS(P E[id]) + embed_tokens_per_layer[id] sqrt(P)) / sqrt(2) with P =
// per_layer_model_projection ("per-layer embeddings" of the reference): of a text token nothing but its id
// goes into them. So loading replaces each row of embed_tokens_per_layer by them, in FP16, and a step reads a
// row where it would read the projection's weights (55 MB of E4B) and the row. Soft tokens have embeddings of
// their own: they are projected in the step and take the row of pad, which is kept.
#pragma once

#include "backend/cuda/device_weights.h"
#include "backend/cuda/prefill_rows.h"

namespace jewel::cuda {

// Of a row of the table.
inline int per_layer_columns(const TextConfig& text) {
  return text.n_layers * text.hidden_size_per_layer_input;
}

// What embeddings of tokens are multiplied by.
float embedding_scale(const TextConfig& text);

PerLayerNorm per_layer_norm(const TextConfig& text, const DeviceWeights& weights);

// Replaces the rows of weights.per_layer_table, by the products of prompts, and sets their scale; waits until
// it is done. Needs 130 MB of device memory meanwhile (E4B).
Result<void> make_per_layer_table(const TextConfig& text, bool portable, DeviceWeights& weights);

}  // namespace jewel::cuda
