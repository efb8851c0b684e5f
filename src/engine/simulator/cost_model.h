// What a step costs, as a sum: for comparing scheduling policies without the device.
//
//   seconds = fixed + decode rows * row + prompt tokens * token + images * image + context tokens * context
//
// A decode row's context tokens are the positions it attends to in full layers. A linear model is wrong in
// the small (kernels come in tiles) and right where schedulers differ: who shares a step with whom.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "backend/fake/fake_backend.h"
#include "base/result.h"

namespace jewel {

struct CostModel {
  std::string name;
  std::string source;  // where the numbers are from: measured, or a budget
  double fixed_s = 0;
  double decode_row_s = 0;
  double prefill_token_s = 0;
  double image_s = 0;
  double context_token_s = 0;
  double copy_bytes_per_s = 0;  // pages to the host and back; 0 = free
  double host_s = 0;            // the host's part of a step; beside the device's when it runs ahead

  double step_s(const StepWork& work) const;
};

std::span<const CostModel> cost_presets();

// A preset's name, or one with numbers changed: "h200", "h200,row_us=20,image_ms=4",
// "fixed_ms=5,row_us=30,token_us=12". Keys: fixed_ms, row_us, token_us, image_ms, context_ns, copy_gb_s,
// host_us. Errors: kInvalid, names the key.
Result<CostModel> parse_cost_model(std::string_view text);

}  // namespace jewel
