// What each operation of the model means, in plain loops over one row, summed in double. Nothing here is
// fast; the forward pass uses ops.h and the kernels, and the tests hold them to this file.
//
// Shapes are those of one token. Any thread may call.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace jewel::ref {

// y = x / sqrt(mean(x^2) + eps) * weight. The weight multiplies as stored (there is no 1 +); empty: no
// weight.
std::vector<float> rms_norm(std::span<const float> x, std::span<const float> weight, float eps);

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
float gelu_tanh(float x);

// Rotates pairs (i, i + n/2) of `x` by position * frequencies[i]; the angle is a float32 product.
void rope(std::span<float> x, int position, std::span<const float> frequencies);

// y[o] = sum over k of w[o, k] x[k]
std::vector<float> linear(std::span<const float> x, std::span<const float> w);

// softmax(q . k[j]) weighted sum of v[j], over the keys [0, n): k and v are [n, head_dim]. No scale, no
// softcap.
std::vector<float> attention(std::span<const float> q, std::span<const float> k, std::span<const float> v);

// cap * tanh(x / cap); cap 0: x
float softcap(float x, float cap);

}  // namespace jewel::ref
