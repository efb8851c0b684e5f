#include "random_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <variant>

#include "base/check.h"
#include "model/tensors.h"

namespace jewel {
namespace {

constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;
constexpr int32_t kSumMean = 131070;  // of four uniform 16-bit integers: 4 * 65535 / 2
constexpr double kSumStd =
    37837.0;  // sqrt(4 * (65536^2 - 1) / 12), rounded; the rounding is part of the definition

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

constexpr uint64_t kFnvOffset = 0xcbf29ce484222325u;
constexpr uint64_t kFnvPrime = 0x100000001b3u;

uint64_t fnv1a64(std::string_view text) {
  uint64_t hash = kFnvOffset;
  for (char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * kFnvPrime;
  return hash;
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// Bounds that cut a few per cent: about two deviations of what the linear sees under the other rules.
double clip_bound(std::string_view name) {
  if (contains(name, ".o_proj.")) return 0.75;
  if (contains(name, ".down_proj.") || contains(name, ".ffw_layer_2.") || contains(name, ".linear_end."))
    return 1.0;
  return 2.0;
}

// q, k and v of a clipped attention share their input bounds, as do gate and up: published checkpoints do so.
std::string seed_name(std::string_view name) {
  std::string result(name);
  if (!name.ends_with(".input_min") && !name.ends_with(".input_max")) return result;
  constexpr std::pair<std::string_view, std::string_view> kShared[] = {
      {".k_proj.", ".q_proj."}, {".v_proj.", ".q_proj."}, {".up_proj.", ".gate_proj."}};
  for (const auto& [member, first] : kShared) {
    if (const size_t at = result.find(member); at != std::string::npos)
      result.replace(at, member.size(), first);
  }
  return result;
}

int64_t count_of(std::span<const int64_t> shape) {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  return count;
}

// Runs work(begin, end) over [0, count) in n_threads contiguous parts.
void in_parts(int64_t count, int n_threads, const std::function<void(int64_t, int64_t)>& work) {
  const int64_t part = std::max<int64_t>(1 << 16, (count + n_threads - 1) / n_threads);
  std::vector<std::thread> threads;
  for (int64_t begin = part; begin < count; begin += part) {
    threads.emplace_back([&work, begin, end = std::min(count, begin + part)] { work(begin, end); });
  }
  work(0, std::min(count, part));
  for (std::thread& thread : threads) thread.join();
}

// Fills one model's tensors; keeps the bytes in model.storage.
class Filler {
 public:
  Filler(RandomModel& model, uint64_t seed, RandomScheme scheme, int n_threads)
      : model_(model), seed_(seed), scheme_(scheme), n_threads_(n_threads) {
    // The smallest code whose value is nearest each bfloat16: quantizing is a look-up, exactly as a cast
    // would be.
    if (scheme != RandomScheme::kBF16) {
      fp8_of_bf16_.resize(1 << 16);
      for (uint32_t bits = 0; bits < 1 << 16; ++bits) {
        fp8_of_bf16_[bits] = f32_to_f8e4m3(bf16_to_f32(static_cast<uint16_t>(bits)));
      }
    }
  }

  void fill(const TensorSpec& spec) {
    if (std::holds_alternative<std::monostate>(spec.field)) return;
    if (auto* linear = std::get_if<LinearWeight*>(&spec.field)) {
      if (spec.quantizable && scheme_ != RandomScheme::kBF16) {
        quantize(spec, **linear);
      } else {
        (*linear)->weight = keep(spec, draw(spec));
      }
    } else if (auto* view = std::get_if<TensorView*>(&spec.field)) {
      **view = keep(spec, draw(spec));
    } else if (auto* norm = std::get_if<NormWeight*>(&spec.field)) {
      const std::vector<uint16_t> bits = draw(spec);
      (*norm)->resize(bits.size());
      std::transform(bits.begin(), bits.end(), (*norm)->begin(), bf16_to_f32);
    } else {
      *std::get<float*>(spec.field) = bf16_to_f32(draw(spec)[0]);
    }
  }

 private:
  std::vector<uint16_t> draw(const TensorSpec& spec) const {
    std::vector<uint16_t> bits(static_cast<size_t>(count_of(spec.shape)));
    in_parts(static_cast<int64_t>(bits.size()), n_threads_, [&](int64_t begin, int64_t end) {
      random_values(spec.name, spec.shape, seed_, begin,
                    std::span(bits).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    });
    return bits;
  }

  TensorView keep(const TensorSpec& spec, const std::vector<uint16_t>& bits) {
    std::vector<std::byte>& bytes = model_.storage.emplace_back(bits.size() * sizeof(uint16_t));
    std::memcpy(bytes.data(), bits.data(), bytes.size());
    return {DType::kBF16, spec.shape, bytes.data(), bytes.size()};
  }

  void quantize(const TensorSpec& spec, LinearWeight& linear) {
    const std::vector<uint16_t> bits = draw(spec);
    const int64_t rows = spec.shape[0];
    const int64_t columns = spec.shape[1];
    const int64_t group = scheme_ == RandomScheme::kFp8PerTensor ? rows : 1;  // rows under one scale
    std::vector<std::byte>& codes = model_.storage.emplace_back(bits.size());
    linear.scale.resize(static_cast<size_t>(rows / group));
    for (int64_t first = 0; first < rows; first += group) {
      // Among bfloat16 magnitudes, order of values is order of bits.
      uint16_t amax = 0;
      for (int64_t i = first * columns; i < (first + group) * columns; ++i) {
        amax = std::max<uint16_t>(amax, bits[static_cast<size_t>(i)] & 0x7fff);
      }
      linear.scale[static_cast<size_t>(first / group)] = round_to_bf16(bf16_to_f32(amax) / 448.0f);
    }
    in_parts(rows, n_threads_, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const float scale = linear.scale[static_cast<size_t>(row / group)];
        for (int64_t i = row * columns; i < (row + 1) * columns; ++i) {
          const float quotient = bf16_to_f32(bits[static_cast<size_t>(i)]) / scale;
          codes[static_cast<size_t>(i)] = static_cast<std::byte>(fp8_of_bf16_[f32_to_bf16(quotient)]);
        }
      }
    });
    linear.weight = {DType::kF8E4M3, spec.shape, codes.data(), codes.size()};
  }

  RandomModel& model_;
  const uint64_t seed_;
  const RandomScheme scheme_;
  const int n_threads_;
  std::vector<uint8_t> fp8_of_bf16_;
};

}  // namespace

RandomRule random_rule(std::string_view name, std::span<const int64_t> shape) {
  using enum RandomRule::Kind;
  std::string_view stem = name;
  if (stem.ends_with(".weight")) stem.remove_suffix(7);
  const std::string_view last = stem.substr(stem.rfind('.') + 1);
  const double fan_in = shape.size() >= 2 ? static_cast<double>(count_of(shape.subspan(1))) : 1.0;
  if (last == "layer_scalar") return {kUniform, 0.3, 0.6};
  if (last == "input_min" || last == "output_min")
    return {kUniform, -1.1 * clip_bound(name), 0.2 * clip_bound(name)};
  if (last == "input_max" || last == "output_max")
    return {kUniform, 0.9 * clip_bound(name), 0.2 * clip_bound(name)};
  if (last == "q_norm" || last == "k_norm") {
    return contains(name, "vision_tower") ? RandomRule{kGaussian, 0.5, 0.05}
                                          : RandomRule{kGaussian, 0.3, 0.03};
  }
  if (stem.ends_with("language_model.norm") || stem == "model.norm") return {kGaussian, 3.0, 0.3};
  if (last == "embed_tokens" || last == "embedding_projection")
    return {kGaussian, 0.0, 2.0 / std::sqrt(fan_in)};
  if (last == "embed_tokens_per_layer") return {kGaussian, 0.0, 0.0625};
  if (last == "position_embedding_table") return {kGaussian, 0.0, 0.5};
  if (last == "input_proj") return {kGaussian, 0.0, 2.0 / std::sqrt(fan_in)};
  if (shape.size() >= 2) return {kGaussian, 0.0, 1.0 / std::sqrt(fan_in)};
  if (last == "per_dim_scale" || last == "bias") return {kGaussian, 0.0, 0.1};
  return {kGaussian, 1.0, 0.1};
}

void random_values(std::string_view name, std::span<const int64_t> shape, uint64_t seed, int64_t begin,
                   std::span<uint16_t> out) {
  const RandomRule rule = random_rule(name, shape);
  const uint64_t state = mix(fnv1a64(seed_name(name)) + seed * kGamma);
  uint64_t counter = state + (static_cast<uint64_t>(begin) + 1) * kGamma;
  const float mean = static_cast<float>(rule.mean);
  if (rule.kind == RandomRule::Kind::kUniform) {
    const float width = static_cast<float>(rule.std);
    for (uint16_t& value : out) {
      const float u = static_cast<float>(mix(counter) >> 40) * 0x1p-24f;
      value = f32_to_bf16(mean + u * width);
      counter += kGamma;
    }
    return;
  }
  const float step = round_to_bf16(static_cast<float>(rule.std / kSumStd));
  for (uint16_t& value : out) {
    const uint64_t h = mix(counter);
    const int32_t sum =
        static_cast<int32_t>((h & 0xffff) + (h >> 16 & 0xffff) + (h >> 32 & 0xffff) + (h >> 48));
    value = f32_to_bf16(mean + static_cast<float>(sum - kSumMean) * step);
    counter += kGamma;
  }
}

void fill_random_weights(RandomModel& model, uint64_t seed, RandomScheme scheme, int n_threads) {
  Filler filler(model, seed, scheme, n_threads);
  for (const TensorSpec& spec : tensor_table(model.config, NamePrefix::kMultimodal, model.weights)) {
    if (spec.required) filler.fill(spec);
  }
  if (model.config.text.tie_word_embeddings) model.weights.lm_head.weight = model.weights.embed_tokens;
}

uint64_t random_tensor_digest(std::string_view name, std::span<const int64_t> shape, uint64_t seed) {
  const int64_t total = count_of(shape);
  uint64_t hash = kFnvOffset;
  std::vector<uint16_t> values(static_cast<size_t>(std::min<int64_t>(total, 4096)));
  for (int64_t begin : {int64_t{0}, std::max<int64_t>(0, total - 4096)}) {
    random_values(name, shape, seed, begin, values);
    for (uint16_t value : values) hash = (hash ^ value) * kFnvPrime;
  }
  return hash;
}

}  // namespace jewel
