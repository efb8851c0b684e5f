#include "engine/simulator/cost_model.h"

#include <fmt/format.h>

#include <array>
#include <charconv>

namespace jewel {
namespace {

struct Key {
  std::string_view name;
  double CostModel::* field;
  double unit;
};

constexpr std::array kKeys = {
    Key{"fixed_ms", &CostModel::fixed_s, 1e-3},
    Key{"row_us", &CostModel::decode_row_s, 1e-6},
    Key{"token_us", &CostModel::prefill_token_s, 1e-6},
    Key{"image_ms", &CostModel::image_s, 1e-3},
    Key{"context_ns", &CostModel::context_token_s, 1e-9},
    Key{"copy_gb_s", &CostModel::copy_bytes_per_s, 1e9},
    Key{"host_us", &CostModel::host_s, 1e-6},
};

}  // namespace

double CostModel::step_s(const StepWork& work) const {
  return fixed_s + work.decode_rows * decode_row_s + work.prefill_tokens * prefill_token_s +
         work.images * image_s + static_cast<double>(work.decode_context_tokens) * context_token_s;
}

std::span<const CostModel> cost_presets() {
  static const std::array<CostModel, 2> presets = {
      // 1.65 ms + 28.5 us a row is 1.68, 1.88, 2.56 and 4.5 ms at 1, 8, 32 and 100 rows. A context token is 8
      // KiB of FP8 K and V at 4.56 TB/s. 50 us is the bar for the scheduler at 256 sequences.
      CostModel{.name = "h200",
                .source =
                    "budget for E4B in FP8 on an H200 (decode 1.7 ms at batch 1, 4.5 ms at 100; prefill "
                    "80k tok/s; 6 ms an image), not measured",
                .fixed_s = 1.65e-3,
                .decode_row_s = 28.5e-6,
                .prefill_token_s = 12.5e-6,
                .image_s = 6e-3,
                .context_token_s = 1.8e-9,
                .copy_bytes_per_s = 25e9,
                .host_s = 50e-6},
      // One row alone is 146 ms (6.85 tok/s); what of it a second row would add was not measured: taken as a
      // prompt token's 14.1 ms (70.7 tok/s). 4.03 s an image of 266 soft tokens.
      CostModel{.name = "cpu-2-cores",
                .source = "measured for E4B in FP8 on 2 Zen 4 cores (decode 6.85 tok/s at batch 1, prefill "
                          "70.7 tok/s, 4.03 s an image); rows beyond the first are assumed",
                .fixed_s = 132e-3,
                .decode_row_s = 14.1e-3,
                .prefill_token_s = 14.1e-3,
                .image_s = 4.03,
                .context_token_s = 0,
                .copy_bytes_per_s = 10e9,
                .host_s = 50e-6}};
  return presets;
}

Result<CostModel> parse_cost_model(std::string_view text) {
  CostModel model{.name = "custom", .source = "given on the command line"};
  for (bool first = true; !text.empty(); first = false) {
    const std::string_view item = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), item.size() + 1));
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos) {
      std::string names;
      bool found = false;
      for (const CostModel& preset : cost_presets()) {
        names += (names.empty() ? "" : ", ") + preset.name;
        if (preset.name == item && first) model = preset, found = true;
      }
      if (!found)
        return invalid(
            fmt::format("--cost: found '{}', expected one of {} (first), or KEY=NUMBER", item, names));
      continue;
    }
    const std::string_view name = item.substr(0, equals), value = item.substr(equals + 1);
    std::string names;
    const Key* key = nullptr;
    for (const Key& known : kKeys) {
      names += fmt::format("{}{}", names.empty() ? "" : ", ", known.name);
      if (known.name == name) key = &known;
    }
    if (key == nullptr) return invalid(fmt::format("--cost: found '{}', expected one of {}", name, names));
    double number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc{} || end != value.data() + value.size() || !(number >= 0 && number < 1e9))
      return invalid(fmt::format("--cost: {}: found '{}', expected a number from 0 to 1e9", name, value));
    model.*key->field = number * key->unit;
    if (model.name != "custom" && !model.name.ends_with("(changed)")) model.name += " (changed)";
  }
  return model;
}

}  // namespace jewel
