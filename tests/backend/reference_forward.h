// The whole model once more, as plainly as it can be said: a whole sequence at once, no cache, no batch, no
// pages, one row and one head at a time over the loops of ops_ref.h. What the backend computes is compared to
// this.
#pragma once

#include <span>
#include <vector>

#include "random_model.h"

namespace jewel {

using Rows = std::vector<std::vector<float>>;

// Soft tokens replace the embeddings from `position` on.
struct ReferenceImage {
  int position = 0;
  Rows soft_tokens;
};

// Logits of every position.
Rows reference_logits(const RandomModel& model, std::span<const TokenId> tokens,
                      std::span<const ReferenceImage> images = {});
Rows reference_soft_tokens(const RandomModel& model, const ImagePatches& patches);

// |a - b| / |b|, L2 over all values.
double relative_error(const Rows& a, const Rows& b);

}  // namespace jewel
