// Portable kernels: plain C++ over eight lanes, which compilers turn into whatever vectors the baseline has.
// Products and sums are rounded separately (no FMA).
#include "backend/cpu/kernel_loops.h"

namespace jewel {
namespace {

constexpr int kWidth = 8;

struct Vec8 {
  float lane[kWidth];
};

inline float widen(float value) {
  return value;
}
inline float widen(uint16_t bits) {
  return bf16_value(bits);
}
inline float widen(uint8_t code) {
  return f8_value(code);
}

inline float reduce(const Vec8& v) {
  const float a = v.lane[0] + v.lane[4], b = v.lane[1] + v.lane[5];
  const float c = v.lane[2] + v.lane[6], d = v.lane[3] + v.lane[7];
  return (a + b) + (c + d);
}

template <typename Weight>
struct DotF32 {
  using Acc = Vec8;
  using X = Vec8;
  using W = Vec8;
  using XElement = float;
  using WElement = Weight;
  static constexpr int kStep = kWidth;
  static constexpr int kRows = 2;
  static constexpr int kOutputs = 2;

  template <typename T>
  static Vec8 load(const T* p, int n) {
    Vec8 v{};
    for (int i = 0; i < n; ++i) v.lane[i] = widen(p[i]);
    return v;
  }
  static Acc zero() { return {}; }
  static X load_x(const float* p) { return load(p, kWidth); }
  static X load_x_tail(const float* p, int n) { return load(p, n); }
  static W load_w(const Weight* p) { return load(p, kWidth); }
  static W load_w_tail(const Weight* p, int n) { return load(p, n); }
  static Acc mac(Acc acc, const X& x, const W& w) {
    for (int i = 0; i < kWidth; ++i) acc.lane[i] += x.lane[i] * w.lane[i];
    return acc;
  }
  template <int N>
  static void store_sums(const Acc* acc, float* out) {
    for (int i = 0; i < N; ++i) out[i] = reduce(acc[i]);
  }
};

template <typename Value>
struct Lanes {
  using Reg = Vec8;
  using Element = Value;
  static constexpr int kLanes = kWidth;
  static constexpr int kRows = 2;
  static constexpr int kVectors = 2;

  static Reg load(const float* p) { return load_any(p); }
  static Reg load_v(const Value* p) { return load_any(p); }
  template <typename T>
  static Reg load_any(const T* p) {
    Reg v;
    for (int i = 0; i < kWidth; ++i) v.lane[i] = widen(p[i]);
    return v;
  }
  static void store(float* p, const Reg& v) {
    for (int i = 0; i < kWidth; ++i) p[i] = v.lane[i];
  }
  static Reg broadcast(float value) {
    Reg v;
    for (int i = 0; i < kWidth; ++i) v.lane[i] = value;
    return v;
  }
  static Reg mac(Reg acc, const Reg& p, const Reg& v) {
    for (int i = 0; i < kWidth; ++i) acc.lane[i] += p.lane[i] * v.lane[i];
    return acc;
  }
};

constexpr Kernels kPortable = {
    .isa = CpuIsa::kPortable,
    .name = "portable",
    .dot_f32 = {dot_tile<DotF32<float>>, dot_tile<DotF32<uint16_t>>, dot_tile<DotF32<uint8_t>>},
    .dot_bf16 = {nullptr, nullptr, nullptr},
    .weighted_sum = {weighted_sum<Lanes<float>>, weighted_sum<Lanes<uint16_t>>, weighted_sum<Lanes<uint8_t>>},
    .bf16_to_f32 = bf16_to_f32_loop,
    .f8_to_f32 = f8_to_f32_loop,
    .f8_to_bf16 = f8_to_bf16_loop,
    .f32_to_bf16 = f32_to_bf16_loop,
    .round_to_bf16 = round_to_bf16_loop,
    .f32_to_f8 = f32_to_f8_loop,
    .gelu_mul = gelu_mul,
    .exp_sum = exp_sum,
    .sum_of_exp = sum_of_exp,
    .sum_of_squares = sum_of_squares,
    .max = max_of,
};

}  // namespace

const Kernels& portable_kernels() {
  return kPortable;
}

}  // namespace jewel
