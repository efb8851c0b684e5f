#include "backend/cpu/ops_ref.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace jewel::ref {

std::vector<float> rms_norm(std::span<const float> x, std::span<const float> weight, float eps) {
  double squares = 0;
  for (float value : x) squares += static_cast<double>(value) * value;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  std::vector<float> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = static_cast<float>(x[i] * scale * (weight.empty() ? 1.0 : static_cast<double>(weight[i])));
  }
  return y;
}

float gelu_tanh(float x) {
  const double wide = x;
  const double u = std::sqrt(2 / std::numbers::pi) * (wide + 0.044715 * wide * wide * wide);
  return static_cast<float>(0.5 * wide * (1 + std::tanh(u)));
}

void rope(std::span<float> x, int position, std::span<const float> frequencies) {
  const size_t half = x.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const double angle = static_cast<float>(position) * frequencies[i];
    const double c = std::cos(angle), s = std::sin(angle);
    const double a = x[i], b = x[i + half];
    x[i] = static_cast<float>(a * c - b * s);
    x[i + half] = static_cast<float>(b * c + a * s);
  }
}

std::vector<float> linear(std::span<const float> x, std::span<const float> w) {
  std::vector<float> y(w.size() / x.size());
  for (size_t o = 0; o < y.size(); ++o) {
    double sum = 0;
    for (size_t k = 0; k < x.size(); ++k) sum += static_cast<double>(w[o * x.size() + k]) * x[k];
    y[o] = static_cast<float>(sum);
  }
  return y;
}

std::vector<float> attention(std::span<const float> q, std::span<const float> k, std::span<const float> v) {
  const size_t dim = q.size(), n = k.size() / dim;
  std::vector<double> p(n);
  for (size_t j = 0; j < n; ++j) {
    for (size_t i = 0; i < dim; ++i) p[j] += static_cast<double>(q[i]) * k[j * dim + i];
  }
  const double max = *std::max_element(p.begin(), p.end());
  double sum = 0;
  for (double& value : p) sum += value = std::exp(value - max);
  std::vector<float> out(dim);
  for (size_t i = 0; i < dim; ++i) {
    double mean = 0;
    for (size_t j = 0; j < n; ++j) mean += p[j] * v[j * dim + i];
    out[i] = static_cast<float>(mean / sum);
  }
  return out;
}

float softcap(float x, float cap) {
  if (cap == 0) return x;
  return static_cast<float>(cap * std::tanh(static_cast<double>(x) / cap));
}

}  // namespace jewel::ref
