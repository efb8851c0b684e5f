// From the bytes of a picture file to what a backend encodes: decode, choose the size, resize, cut into
// patches. This is the one call that the rest of the program makes into this folder. Pure function, callable
// from any thread.
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "base/result.h"
#include "image/budget.h"
#include "image/decode.h"
#include "model/config.h"

namespace jewel {

struct PreparedImage {
  TargetSize size;  // resized; size.soft_tokens placeholders stand for it in the prompt
  ImagePatches patches;
  int original_height = 0;  // upright, before the resize
  int original_width = 0;
};

// `max_soft_tokens`: one of kSoftTokenBudgets, or kAutoBudget.
// Errors are decode_image's and target_size's (a wrong max_soft_tokens names that field), and kInvalid for a
// shape that needs a coordinate beyond the model's position table.
Result<PreparedImage> prepare_image(std::span<const uint8_t> bytes, int max_soft_tokens,
                                    const ImageLimits& limits, const VisionConfig& config);

}  // namespace jewel
