// The compressed-tensors schemes that Jewel loads: FP8 E4M3 weights, symmetric, one scale per tensor or per
// output row.
//
// Read from config.json's quantization_config. Format names "float-quantized" and "naive-quantized" mean the
// same tensors: X.weight F8_E4M3 [out, in] beside X.weight_scale (F32, BF16 or F16; [], [1], [out] or [out,
// 1]).
#pragma once

#include <boost/json/object.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/weights.h"

namespace jewel {

enum class ScaleStrategy : uint8_t { kTensor, kChannel };

struct QuantizationConfig {
  std::string format;  // as written
  ScaleStrategy strategy = ScaleStrategy::kTensor;
  bool dynamic_activations = false;  // the checkpoint asks for FP8 activations, scaled per token at run time
  bool static_activations = false;   // calibrated input scales
  bool fp8_kv_cache = false;
  std::vector<std::string> ignore;
};

// `quantization` is the value of config.json's key of that name.
Result<QuantizationConfig> parse_quantization_config(const boost::json::object& quantization,
                                                     const std::string& file);

// The scale beside an FP8 weight of `out` rows, widened: one value, or one per row. Values must be finite and
// positive.
Result<std::vector<float>> read_weight_scale(const TensorView& scale, int64_t out, const std::string& where);

// All values of a small BF16, F16 or F32 tensor in float32.
std::vector<float> widen(const TensorView& tensor);

}  // namespace jewel
