// Where a step's description lies: one block of page-locked memory that the host fills, its twin on the
// device, and the block that results come back in. All steps use the same places on the device (a stream
// keeps them apart), so a captured graph finds its inputs; host blocks come in a ring. Rows that decode are
// read from, and their tokens written to, the host's block by kernels; the rest is copied.
#pragma once

#include "backend/cuda/device.h"
#include "backend/cuda/kv_pools.h"
#include "backend/cuda/sampler.h"
#include "backend/cuda/step_ops.h"

namespace jewel::cuda {

struct StepSizes {
  int max_slots = 0;
  int max_rows = 0;  // prompt rows
  int max_updates = 0;
  int mask_words = 0;  // of one row's allowed mask
};

// What the host writes. Of rows that decode nothing is copied (BeginRows); prompts, and updates of page
// tables and masks, which most steps have none of, go by themselves.
struct StepInputs {
  explicit StepInputs(const StepSizes& sizes, std::byte* memory) {
    Carver carver(memory);
    const auto slots = static_cast<size_t>(sizes.max_slots) + 128, rows = static_cast<size_t>(sizes.max_rows);
    decode = carver.take<DecodeRow>(slots);
    prompt_begin = carver.used();
    ids = carver.take<int32_t>(rows);
    positions = carver.take<int32_t>(rows);
    row_slots = carver.take<int32_t>(rows);
    soft_rows = carver.take<const float*>(rows);
    chunk_rows = carver.take<int32_t>(slots + 1);
    asked = carver.take<int32_t>(rows);
    asked_ids = carver.take<int32_t>(rows);
    asked_positions = carver.take<int32_t>(rows);
    asked_slots = carver.take<int32_t>(rows);
    asked_sampled_at = carver.take<int32_t>(rows);
    asked_allowed = carver.take<const uint32_t*>(rows);
    asked_n_top = carver.take<int32_t>(rows);
    asked_next_ids = carver.take<int32_t>(rows);
    asked_prompt_n_top = carver.take<int32_t>(rows);
    prompt_end = carver.used();
    updates = carver.take<PageUpdate>(static_cast<size_t>(sizes.max_updates));
    masks =
        carver.take<uint32_t>(static_cast<size_t>(sizes.max_slots) * static_cast<size_t>(sizes.mask_words));
    bytes = carver.used();
  }

  DecodeRow* decode;
  PageUpdate* updates;
  int32_t *ids, *positions, *row_slots;
  const float** soft_rows;
  int32_t *chunk_rows, *asked, *asked_ids, *asked_positions, *asked_slots, *asked_sampled_at;
  const uint32_t** asked_allowed;
  int32_t *asked_n_top, *asked_next_ids, *asked_prompt_n_top;
  uint32_t* masks;
  size_t prompt_begin, prompt_end, bytes;
};

// What kernels make of StepInputs::decode, on the device.
struct StepRows {
  explicit StepRows(const StepSizes& sizes, std::byte* memory) {
    Carver carver(memory);
    const auto slots = static_cast<size_t>(sizes.max_slots) + 128;
    decode.ids = carver.take<int32_t>(slots);
    decode.positions = carver.take<int32_t>(slots);
    decode.slots = carver.take<int32_t>(slots);
    decode.sampled_at = carver.take<int32_t>(slots);
    decode.n_top = carver.take<int32_t>(slots);
    decode.allowed = carver.take<const uint32_t*>(slots);
    also_ids = carver.take<int32_t*>(1);
    bytes = carver.used();
  }

  DecodeRows decode;
  int32_t** also_ids;
  size_t bytes;
};

// What the device writes: of decode rows, then of asked rows.
struct StepOutputs {
  explicit StepOutputs(const StepSizes& sizes, std::byte* memory) {
    Carver carver(memory);
    const auto slots = static_cast<size_t>(sizes.max_slots) + 128, rows = static_cast<size_t>(sizes.max_rows);
    decode_ids = carver.take<int32_t>(slots);
    asked_ids = carver.take<int32_t>(rows);
    ids_bytes = carver.used();
    decode_logprobs = carver.take<RowLogprobs>(slots);
    asked_logprobs = carver.take<RowLogprobs>(rows);
    prompt_logprobs = carver.take<RowLogprobs>(rows);
    bytes = carver.used();
  }

  int32_t *decode_ids, *asked_ids;
  RowLogprobs *decode_logprobs, *asked_logprobs, *prompt_logprobs;
  size_t ids_bytes, bytes;
};

}  // namespace jewel::cuda
