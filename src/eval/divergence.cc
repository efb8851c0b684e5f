#include "eval/divergence.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace jewel {
namespace {

double full_kl(std::span<const float> p, std::span<const float> q) {
  double sum = 0;
  for (size_t v = 0; v < p.size(); ++v) {
    const double chance = std::exp(static_cast<double>(p[v]));
    if (chance > 0) sum += chance * (static_cast<double>(p[v]) - static_cast<double>(q[v]));
  }
  return std::max(sum, 0.0);
}

std::optional<float> logprob_of(const TokenOdds& odds, int64_t id) {
  if (id == odds.id) return odds.logprob;
  const auto found = std::ranges::find(odds.top, id, &std::pair<int64_t, float>::first);
  if (found == odds.top.end()) return std::nullopt;
  return found->second;
}

double coarse_kl(const TokenOdds& p, const TokenOdds& q) {
  double sum = 0, p_rest = 1, q_rest = 1;
  const auto add = [&](int64_t id, double log_p) {
    const auto log_q = logprob_of(q, id);
    if (!log_q) return;
    const double chance = std::exp(log_p);
    sum += chance * (log_p - static_cast<double>(*log_q));
    p_rest -= chance;
    q_rest -= std::exp(static_cast<double>(*log_q));
  };
  for (const auto& [id, logprob] : p.top) add(id, logprob);
  if (std::ranges::find(p.top, p.id, &std::pair<int64_t, float>::first) == p.top.end()) add(p.id, p.logprob);
  // What float logarithms leave of a sum that is 1 is noise; a Q without a rest gets that noise, so the term
  // stays finite.
  constexpr double kNoise = 1e-6;
  if (p_rest > kNoise) sum += p_rest * std::log(p_rest / std::max(q_rest, kNoise));
  return std::max(sum, 0.0);
}

int64_t likeliest(const TokenOdds& odds) {
  return odds.rank == 1 || odds.top.empty() ? odds.id : odds.top.front().first;
}

}  // namespace

TokenDivergence token_divergence(const TokenOdds& base, const TokenOdds& candidate,
                                 std::span<const float> base_full, std::span<const float> candidate_full) {
  const bool full = !base_full.empty() && base_full.size() == candidate_full.size();
  return {full ? full_kl(base_full, candidate_full) : coarse_kl(base, candidate),
          likeliest(base) == likeliest(candidate)};
}

Result<void> DivergenceSum::add(const std::string& id, const TextOdds& base, const TextOdds& candidate) {
  const auto same = [](const TokenOdds& a, const TokenOdds& b) { return a.id == b.id; };
  if (!std::ranges::equal(base.tokens, candidate.tokens, same)) {
    return invalid(fmt::format("{}: base reads {} tokens and candidate {}, not the same ones; divergence "
                               "needs models of one tokenizer",
                               id, base.tokens.size(), candidate.tokens.size()),
                   "text");
  }
  const bool full = base.vocab > 0 && base.vocab == candidate.vocab;
  Text text;
  for (size_t i = 0; i < base.tokens.size(); ++i) {
    const auto row = [&](const TextOdds& odds) {
      return full ? std::span(odds.full).subspan(i * odds.vocab, odds.vocab) : std::span<const float>();
    };
    const TokenDivergence one =
        token_divergence(base.tokens[i], candidate.tokens[i], row(base), row(candidate));
    kls_.push_back(static_cast<float>(one.kl));
    text.kl += one.kl;
    ++text.tokens;
    agreed_ += one.agrees ? 1 : 0;
    base_logprob_ += base.tokens[i].logprob;
    candidate_logprob_ += candidate.tokens[i].logprob;
  }
  exact_ = exact_ && full;
  if (text.tokens > 0) texts_.push_back(text);
  return {};
}

Divergence DivergenceSum::result(int resamples, uint64_t seed) const {
  Divergence out{.tokens = tokens(), .exact = exact_, .kls = kls_};
  if (kls_.empty()) return out;
  const auto n = static_cast<double>(kls_.size());
  for (const Text& text : texts_) out.mean_kl += text.kl / n;
  std::vector<float> sorted = kls_;
  std::ranges::sort(sorted);
  out.kl_p99 = sorted[static_cast<size_t>(std::ceil(0.99 * n)) - 1];
  out.kl_most = sorted.back();
  out.agreement = static_cast<double>(agreed_) / n;
  out.base_perplexity = std::exp(-base_logprob_ / n);
  out.candidate_perplexity = std::exp(-candidate_logprob_ / n);
  // A text's mean is the ratio of two sums, so the ratio's bootstrap serves here too.
  std::vector<TaskScore> ratios;
  ratios.reserve(texts_.size());
  for (const Text& text : texts_)
    ratios.push_back({.base = static_cast<double>(text.tokens), .candidate = text.kl});
  out.kl_interval =
      recovery_interval(ratios, resamples, seed).value_or(RecoveryInterval{out.mean_kl, out.mean_kl});
  return out;
}

}  // namespace jewel
