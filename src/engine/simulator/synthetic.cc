#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>

#include "backend/fake/fake_model.h"
#include "engine/simulator/trace.h"

namespace jewel {
namespace {

// Draws that are the same on every platform, which <random>'s distributions are not.
class Draws {
 public:
  explicit Draws(uint64_t seed) : state_(seed) {}
  double uniform() {  // (0, 1]
    state_ += 0x9e3779b97f4a7c15;
    return static_cast<double>((fake_mix(state_, 0) >> 11) + 1) * 0x1p-53;
  }
  double normal() {
    const double radius = std::sqrt(-2 * std::log(uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }
  double of(const LengthDistribution& d) {
    switch (d.kind) {
      case LengthDistribution::Kind::kFixed:
        return d.a;
      case LengthDistribution::Kind::kUniform:
        return d.a + uniform() * (d.b - d.a);
      case LengthDistribution::Kind::kExponential:
        return -d.a * std::log(uniform());
      case LengthDistribution::Kind::kLogNormal:
        return d.a * std::exp(d.b * normal());
    }
    return d.a;
  }
  int length(const LengthDistribution& d) {
    return static_cast<int>(std::clamp(std::round(of(d)), 1.0, 1e6));
  }

 private:
  uint64_t state_;
};

}  // namespace

Result<LengthDistribution> parse_lengths(std::string_view flag, std::string_view text) {
  const auto wrong = [&, whole = text] {
    return invalid(
        fmt::format("{}: found '{}', expected a number, uniform:LOW:HIGH, exp:MEAN or lognormal:MEDIAN:SIGMA",
                    flag, whole));
  };
  LengthDistribution d;
  int n_numbers = 1;
  const size_t colon = text.find(':');
  if (colon != std::string_view::npos) {
    const std::string_view name = text.substr(0, colon);
    if (name == "uniform") {
      d.kind = LengthDistribution::Kind::kUniform, n_numbers = 2;
    } else if (name == "exp") {
      d.kind = LengthDistribution::Kind::kExponential;
    } else if (name == "lognormal") {
      d.kind = LengthDistribution::Kind::kLogNormal, n_numbers = 2;
    } else {
      return wrong();
    }
    text.remove_prefix(colon + 1);
  }
  for (int i = 0; i < n_numbers; ++i) {
    double& number = i == 0 ? d.a : d.b;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || !(number >= 0 && number <= 1e6)) return wrong();
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    if (i + 1 < n_numbers) {
      if (!text.starts_with(':')) return wrong();
      text.remove_prefix(1);
    }
  }
  if (!text.empty() || (d.kind == LengthDistribution::Kind::kUniform && d.b < d.a)) return wrong();
  return d;
}

Result<Trace> synthetic_trace(const SyntheticTraffic& traffic) {
  if ((traffic.rate > 0) == (traffic.concurrency > 0))
    return invalid("expected either a rate or a concurrency, not both");
  Trace trace{.name = "synthetic"};
  Draws draws(traffic.seed);
  double arrival_s = 0;
  std::vector<std::string> last_of_client(static_cast<size_t>(std::max(traffic.concurrency, 1)));
  for (int conversation = 0; static_cast<int>(trace.requests.size()) < traffic.requests; ++conversation) {
    // Drawn for every conversation, so that a change of one option leaves the other draws alone.
    const double image_draw = draws.uniform(), which_draw = draws.uniform();
    if (traffic.rate > 0) arrival_s += -std::log(draws.uniform()) / traffic.rate;
    std::string& last = last_of_client[static_cast<size_t>(conversation) % last_of_client.size()];
    std::string previous;
    for (int turn = 0; turn < traffic.turns && static_cast<int>(trace.requests.size()) < traffic.requests;
         ++turn) {
      TraceRequest request{.id = fmt::format("{}/{}", conversation, turn + 1)};
      const double think_s = draws.of(traffic.think_s);
      if (turn > 0) {
        request.arrival_s = think_s;
        request.after = previous;
        request.prompt.push_back({.kind = TracePart::Kind::kHistory, .name = previous});
      } else {
        request.arrival_s = traffic.rate > 0 ? arrival_s : 0;
        if (traffic.rate <= 0) request.after = last;
        if (traffic.shared_tokens > 0)
          request.prompt.push_back(
              {.kind = TracePart::Kind::kShared, .name = "system", .tokens = traffic.shared_tokens});
        if (image_draw <= traffic.image_share) {
          const int which = traffic.n_images > 0
                                ? static_cast<int>(which_draw * traffic.n_images) % traffic.n_images
                                : conversation;
          request.prompt.push_back({.kind = TracePart::Kind::kImage,
                                    .name = fmt::format("image {}", which),
                                    .tokens = traffic.image_tokens});
        }
      }
      request.prompt.push_back({.tokens = draws.length(traffic.prompt_tokens)});
      request.max_tokens = draws.length(traffic.output_tokens);
      previous = request.id;
      trace.requests.push_back(std::move(request));
    }
    last = previous;
  }
  return trace;
}

}  // namespace jewel
