#include "bench/request_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <optional>

#include "bench/draws.h"
#include "bench/made_up.h"
#include "bench/set_file.h"
#include "client/data_url.h"
#include "image/budget.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr int kMaxTokens = 1'000'000;
constexpr int kShort = 8;  // words of calibrating requests
constexpr int kLong = 200;

Error wrong_set(const std::string& text, std::string_view what) {
  return invalid(
      fmt::format("--set: found '{}', {}; expected text:IN:OUT, image:BUDGET:IN:OUT or FILE.jsonl, "
                  "with IN and OUT as 512 or 100-600",
                  text, what),
      "set");
}

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t colon = text.find(':');
    parts.push_back(text.substr(0, colon));
    if (colon == std::string_view::npos) return parts;
    text.remove_prefix(colon + 1);
  }
}

std::optional<int> number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > kMaxTokens)
    return std::nullopt;
  return value;
}

std::optional<LengthRange> range(std::string_view text) {
  const size_t dash = text.find('-');
  const auto low = number(text.substr(0, dash));
  const auto high = dash == std::string_view::npos ? low : number(text.substr(dash + 1));
  if (!low || !high || *low > *high) return std::nullopt;
  return LengthRange{*low, *high};
}

json::value range_json(const LengthRange& lengths) {
  if (lengths.low == lengths.high) return lengths.low;
  return json::string(fmt::format("{}-{}, uniform", lengths.low, lengths.high));
}

json::object body_of(json::value content, int max_tokens, double temperature) {
  return {{"messages", json::array{json::object{{"role", "user"}, {"content", std::move(content)}}}},
          {"max_tokens", max_tokens},
          {"temperature", temperature}};
}

uint64_t seed_of(uint64_t seed, int run, int index) {
  return Draws(seed ^ Draws(static_cast<uint64_t>(run) << 32 | static_cast<uint64_t>(index)).bits()).bits();
}

}  // namespace

Result<RequestSet> RequestSet::parse(const std::string& text, const SetOptions& options) {
  RequestSet set;
  set.name_ = text;
  set.options_ = options;
  const bool image = text.starts_with("image:");
  if (!image && !text.starts_with("text:")) {
    if (!text.ends_with(".jsonl") && !std::filesystem::exists(text))
      return wrong_set(text, "which is neither a kind of made-up request nor a file");
    JEWEL_ASSIGN(set.lines_, read_set_file(text));
    set.name_ = std::filesystem::path(text).filename();
    return set;
  }
  const std::vector<std::string_view> parts = split(text);
  if (parts.size() != (image ? 4U : 3U))
    return wrong_set(text, fmt::format("which has {} parts", parts.size()));
  if (image) {
    set.image_budget_ = number(parts[1]).value_or(0);
    if (std::ranges::find(kSoftTokenBudgets, set.image_budget_) == std::end(kSoftTokenBudgets))
      return wrong_set(text, fmt::format("whose budget is '{}' (70, 140, 280, 560 or 1120)", parts[1]));
  }
  const auto input = range(parts[parts.size() - 2]);
  const auto output = range(parts.back());
  if (!input || !output) return wrong_set(text, "whose lengths are no numbers from 1 to 1,000,000");
  set.input_ = *input;
  set.output_ = *output;
  return set;
}

json::object RequestSet::describe() const {
  if (!made_up())
    return {
        {"name", name_}, {"requests", lines_.size()}, {"kind", "file"}, {"warm_cache", options_.warm_cache}};
  json::object about = {{"name", name_},
                        {"kind", image_budget_ > 0 ? "made-up picture and text" : "made-up text"},
                        {"input_tokens", range_json(input_)},
                        {"output_tokens", range_json(output_)},
                        {"seed", options_.seed},
                        {"tokens_per_word", tokens_per_word_},
                        {"tokens_around", tokens_around_}};
  if (image_budget_ > 0) about["image_tokens"] = image_budget_;
  return about;
}

Result<void> RequestSet::calibrate(const CountTokens& prompt_tokens) {
  const auto count = [&](int words) {
    return prompt_tokens(body_of(json::string(made_up_words(options_.seed, words)), 1, options_.temperature));
  };
  JEWEL_ASSIGN(const int few, count(kShort));
  JEWEL_ASSIGN(const int many, count(kLong));
  if (many <= few) {
    return invalid(
        fmt::format("--set {}: the server counts {} tokens for {} words and {} for {}; is its usage "
                    "right?",
                    name_, few, kShort, many, kLong));
  }
  tokens_per_word_ = static_cast<double>(many - few) / (kLong - kShort);
  tokens_around_ = few - kShort * tokens_per_word_;
  return {};
}

json::object RequestSet::request(int run, int index) const {
  if (made_up()) return made_up_request(run, index);
  json::object body = lines_[static_cast<size_t>(index) % lines_.size()];
  if (!body.contains("temperature")) body["temperature"] = options_.temperature;
  if (!options_.warm_cache && !body.contains("cache_salt"))
    body["cache_salt"] = fmt::format("jewel-bench-{}-{}", options_.seed, run);
  return body;
}

json::object RequestSet::made_up_request(int run, int index) const {
  Draws draws(seed_of(options_.seed, run, index));
  const int input = draws.between(input_.low, input_.high);
  const int output = draws.between(output_.low, output_.high);
  const double wanted = (input - tokens_around_) / tokens_per_word_;
  const int words = std::max(1, static_cast<int>(std::lround(wanted)));
  const json::string text(made_up_words(draws.bits(), words));
  json::value content = text;
  if (image_budget_ > 0) {
    content = json::array{image_part(made_up_picture(draws.bits(), image_budget_)),
                          json::object{{"type", "text"}, {"text", text}}};
  }
  json::object body = body_of(std::move(content), output, options_.temperature);
  body["ignore_eos"] = true;
  body["min_tokens"] = output;  // for servers that know one of the two
  if (image_budget_ > 0) body["mm_processor_kwargs"] = {{"max_soft_tokens", image_budget_}};
  return body;
}

}  // namespace jewel
