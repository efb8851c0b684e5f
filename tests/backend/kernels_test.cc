// Every kernel of every instruction set that this machine runs, against plain loops. Tolerances come from the
// order of operations: n float32 roundings of a sum of products cost at most n * 2^-24 of the sum of their
// magnitudes.
#include "backend/cpu/kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "backend/cpu/linear.h"
#include "backend/cpu/ops.h"
#include "backend/cpu/ops_ref.h"
#include "driver.h"

namespace jewel {
namespace {

constexpr double kUnit = 0x1p-24;  // of one float32 rounding

std::vector<float> random_values(size_t n, uint64_t seed, float deviation = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

// Values as stored in a format, and what they then are.
struct Stored {
  std::vector<std::byte> bytes;
  std::vector<float> values;
};

Stored stored(Format format, const std::vector<float>& values) {
  Stored s;
  s.bytes.resize(values.size() * static_cast<size_t>(format_bytes(format)));
  for (size_t i = 0; i < values.size(); ++i) {
    std::byte* at = s.bytes.data() + i * static_cast<size_t>(format_bytes(format));
    if (format == Format::kF32) {
      std::memcpy(at, &values[i], 4);
      s.values.push_back(values[i]);
    } else if (format == Format::kBF16) {
      const uint16_t bits = f32_to_bf16(values[i]);
      std::memcpy(at, &bits, 2);
      s.values.push_back(bf16_to_f32(bits));
    } else {
      const uint8_t code = f32_to_f8e4m3(values[i]);
      *at = static_cast<std::byte>(code);
      s.values.push_back(f8e4m3_to_f32(code));
    }
  }
  return s;
}

class PerIsa : public testing::TestWithParam<CpuIsa> {
 protected:
  const Kernels& kernels() const { return *kernels_for(GetParam()); }
};

uint32_t bits_of(float value) {
  return std::bit_cast<uint32_t>(value);
}

void expect_same_value(float got, float want, const std::string& what) {
  if (std::isnan(want)) {
    EXPECT_TRUE(std::isnan(got)) << what;
  } else {
    EXPECT_EQ(bits_of(got), bits_of(want)) << what << ": " << got << " for " << want;
  }
}

TEST_P(PerIsa, AllF8CodesAreExact) {
  std::vector<uint8_t> codes(256);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i);
  for (size_t n : {256, 255, 31, 7}) {  // whole vectors and tails
    std::vector<float> wide(n, -1);
    std::vector<uint16_t> half(n, 1);
    kernels().f8_to_f32(codes.data() + 256 - n, wide.data(), static_cast<int64_t>(n));
    kernels().f8_to_bf16(codes.data() + 256 - n, half.data(), static_cast<int64_t>(n));
    for (size_t i = 0; i < n; ++i) {
      const float want = f8e4m3_to_f32(codes[256 - n + i]);
      expect_same_value(wide[i], want, "f8_to_f32");
      expect_same_value(bf16_to_f32(half[i]), want, "f8_to_bf16");
    }
  }
}

// Each code alone through the products that widen in registers: subnormal codes too (VDPBF16PS would drop a
// bf16 denormal), and in the tail as well as in a whole vector.
TEST_P(PerIsa, AllF8CodesThroughDotProducts) {
  const float one = 1;
  const uint16_t one_bf16 = f32_to_bf16(1);
  for (int code = 0; code < 256; ++code) {
    for (int64_t k : {64, 67}) {
      std::vector<uint8_t> w(static_cast<size_t>(k), 0);
      w.back() = static_cast<uint8_t>(code);
      const float want = f8e4m3_to_f32(static_cast<uint8_t>(code));
      float y = -1;
      const std::vector<float> x(static_cast<size_t>(k), one);
      DotTile tile{.x = x.data(),
                   .x_stride = k,
                   .rows = 1,
                   .w = w.data(),
                   .w_stride = k,
                   .outputs = 1,
                   .k = k,
                   .y = &y,
                   .y_stride = 1};
      kernels().dot_f32[static_cast<int>(Format::kF8E4M3)](tile);
      if (want != 0) expect_same_value(y, want, "dot_f32");
      if (auto dot = kernels().dot_bf16[static_cast<int>(Format::kF8E4M3)]) {
        const std::vector<uint16_t> x_bf16(static_cast<size_t>(k), one_bf16);
        tile.x = x_bf16.data();
        dot(tile);
        if (want != 0) expect_same_value(y, want, "dot_bf16");
      }
    }
  }
}

TEST_P(PerIsa, RoundingIsThatOfDtype) {
  std::vector<float> values = random_values(4000, 1, 30);
  for (int code = 0; code < 256; ++code) {  // codes, the middles between them and their neighbours
    const float a = f8e4m3_to_f32(static_cast<uint8_t>(code)),
                b = f8e4m3_to_f32(static_cast<uint8_t>(code ^ 1));
    for (float v : {a, (a + b) / 2, std::nextafter((a + b) / 2, 1e9f), std::nextafter((a + b) / 2, -1e9f)})
      values.push_back(v);
  }
  for (float v : {448.0f, 464.0f, 480.0f, 1e30f, INFINITY, -INFINITY, NAN, -NAN, 0.0f, -0.0f, 1e-40f,
                  0x1p-10f, 0x3p-11f, 0x1.01p0f, 0x1.03p0f, std::numeric_limits<float>::max()}) {
    values.push_back(v);
  }
  const auto n = static_cast<int64_t>(values.size());
  std::vector<uint8_t> f8(values.size());
  std::vector<uint16_t> bf16(values.size());
  std::vector<float> rounded(values.size());
  kernels().f32_to_f8(values.data(), f8.data(), n, 1);
  kernels().f32_to_bf16(values.data(), bf16.data(), n);
  kernels().round_to_bf16(values.data(), rounded.data(), n);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(f8[i], f32_to_f8e4m3(values[i])) << values[i];
    EXPECT_EQ(bf16[i], f32_to_bf16(values[i])) << values[i];
    expect_same_value(rounded[i], round_to_bf16(values[i]), "round_to_bf16");
  }
  kernels().f32_to_f8(values.data(), f8.data(), n, 0.25f);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(f8[i], f32_to_f8e4m3(values[i] / 0.25f)) << values[i];
}

TEST_P(PerIsa, DotProducts) {
  constexpr int kRows = 9, kOutputs = 7;
  for (int64_t k : {1, 7, 16, 31, 32, 64, 100, 768}) {
    const auto n = static_cast<size_t>(k);
    for (bool x_bf16 : {false, true}) {
      for (Format format : {Format::kF32, Format::kBF16, Format::kF8E4M3}) {
        const auto dot = (x_bf16 ? kernels().dot_bf16 : kernels().dot_f32)[static_cast<int>(format)];
        if (dot == nullptr) continue;
        const Stored x = stored(x_bf16 ? Format::kBF16 : Format::kF32, random_values(kRows * n, 2));
        const Stored w = stored(format, random_values(kOutputs * n, 3));
        std::vector<float> y(kRows * kOutputs, NAN);
        const DotTile tile{.x = x.bytes.data(),
                           .x_stride = k,
                           .rows = kRows,
                           .w = w.bytes.data(),
                           .w_stride = k,
                           .outputs = kOutputs,
                           .k = k,
                           .y = y.data(),
                           .y_stride = kOutputs};
        dot(tile);
        for (size_t r = 0; r < kRows; ++r) {
          for (size_t o = 0; o < kOutputs; ++o) {
            double sum = 0, magnitude = 0;
            for (size_t i = 0; i < n; ++i) {
              const double product = static_cast<double>(x.values[r * n + i]) * w.values[o * n + i];
              sum += product;
              magnitude += std::fabs(product);
            }
            // One product and one sum in each of k / 8 steps (the narrowest lanes), and the tree.
            const double tolerance = (2.0 * std::ceil(static_cast<double>(k) / 8) + 4) * kUnit * magnitude;
            EXPECT_NEAR(y[r * kOutputs + o], sum, tolerance)
                << "k " << k << ", row " << r << ", output " << o;
            // Bitwise the same alone.
            float alone = NAN;
            DotTile one = tile;
            one.x = x.bytes.data() + r * n * static_cast<size_t>(x_bf16 ? 2 : 4);
            one.w = w.bytes.data() + o * n * static_cast<size_t>(format_bytes(format));
            one.rows = one.outputs = 1;
            one.y = &alone;
            dot(one);
            EXPECT_EQ(bits_of(alone), bits_of(y[r * kOutputs + o]));
          }
        }
      }
    }
  }
}

TEST_P(PerIsa, WeightedSums) {
  constexpr int kRows = 5, kKeys = 21;
  for (int64_t columns : {16, 48, 64, 80, 256}) {
    const auto n = static_cast<size_t>(columns);
    for (Format format : {Format::kF32, Format::kBF16, Format::kF8E4M3}) {
      const auto p = random_values(kRows * kKeys, 4);
      const Stored v = stored(format, random_values(kKeys * n, 5));
      const auto before = random_values(kRows * n, 6);
      auto sum = before;
      kernels().weighted_sum[static_cast<int>(format)]({.p = p.data(),
                                                        .p_stride = kKeys,
                                                        .rows = kRows,
                                                        .v = v.bytes.data(),
                                                        .v_stride = columns,
                                                        .keys = kKeys,
                                                        .columns = columns,
                                                        .sum = sum.data(),
                                                        .sum_stride = columns});
      for (size_t r = 0; r < kRows; ++r) {
        for (size_t c = 0; c < n; ++c) {
          double want = before[r * n + c], magnitude = std::fabs(want);
          for (size_t j = 0; j < kKeys; ++j) {
            const double product = static_cast<double>(p[r * kKeys + j]) * v.values[j * n + c];
            want += product;
            magnitude += std::fabs(product);
          }
          EXPECT_NEAR(sum[r * n + c], want, 2 * kKeys * kUnit * magnitude);
        }
      }
    }
  }
}

TEST_P(PerIsa, GeluMul) {
  std::vector<float> x;
  for (float v = -12; v <= 12; v += 0.01f) x.push_back(v);
  for (float v : {-1e30f, -100.0f, 1e-30f, -1e-30f, 0.0f, 100.0f, 1e30f}) x.push_back(v);
  auto gate = x;
  const auto up = random_values(x.size(), 7);
  kernels().gelu_mul(gate.data(), up.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = static_cast<double>(ref::gelu_tanh(x[i])) * up[i];
    // A rounding error in u moves exp(-2u) by 2u of it: for negative x the result is small next to x.
    EXPECT_NEAR(gate[i], want, 1e-6 * std::fabs(want) + 1e-7 * std::fabs(up[i])) << x[i];
  }
}

TEST_P(PerIsa, ExpAndSums) {
  for (size_t n : {1, 15, 16, 17, 1000}) {
    auto x = random_values(n, 8, 20);
    const float max = kernels().max(x.data(), static_cast<int64_t>(n));
    EXPECT_EQ(max, *std::max_element(x.begin(), x.end()));
    double want = 0, squares = 0;
    for (float v : x) want += std::exp(static_cast<double>(v) - max), squares += static_cast<double>(v) * v;
    EXPECT_NEAR(kernels().sum_of_squares(x.data(), static_cast<int64_t>(n)), squares, 80 * kUnit * squares);
    EXPECT_NEAR(kernels().sum_of_exp(x.data(), static_cast<int64_t>(n), max), want, 80 * kUnit * want);
    auto e = x;
    EXPECT_NEAR(kernels().exp_sum(e.data(), static_cast<int64_t>(n), max), want, 80 * kUnit * want);
    for (size_t i = 0; i < n; ++i) {
      const double exact = std::exp(static_cast<double>(x[i] - max));
      EXPECT_NEAR(e[i], exact, 4 * kUnit * exact + 2e-38) << x[i] - max;  // 2 ulp
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, PerIsa, testing::ValuesIn(runnable_isas()), [](const auto& info) {
  std::string name = isa_name(info.param);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

// --- Products with weights
// -----------------------------------------------------------------------------------------

TEST(Linear, EveryFormatScaleAndNumberOfRows) {
  constexpr int64_t kIn = 100, kOut = 37, kMaxRows = 21;
  const auto x = random_values(kMaxRows * kIn, 9);
  for (CpuIsa isa : runnable_isas()) {
    for (DType dtype : {DType::kBF16, DType::kF32}) {
      for (Format format : {Format::kF32, Format::kBF16, Format::kF8E4M3}) {
        for (size_t n_scales : {size_t{0}, size_t{1}, static_cast<size_t>(kOut)}) {
          const Stored w = stored(format, random_values(kOut * kIn, 10));
          constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF8E4M3};
          LinearWeight weight;
          weight.weight = {kDTypes[static_cast<int>(format)], {kOut, kIn}, w.bytes.data(), w.bytes.size()};
          weight.scale = random_values(n_scales, 11);
          std::vector<float>
              first_rows;  // the results for every number of rows must agree in their common rows
          for (int64_t rows : {int64_t{1}, int64_t{3}, int64_t{8}, kMaxRows}) {
            ThreadPool pool(2);
            const Compute compute{.kernels = kernels_for(isa), .pool = &pool, .dtype = dtype};
            auto copy = x;
            ProductInput input;
            input.set(compute, {copy.data(), rows, kIn});
            std::vector<float> y(static_cast<size_t>(rows * kOut), NAN),
                part(static_cast<size_t>(rows * 5), NAN);
            linear(compute, input, weight, {y.data(), rows, kOut});
            linear(compute, input, weight, {part.data(), rows, 5}, 30);
            for (int64_t r = 0; r < rows; ++r) {
              for (int64_t o = 0; o < kOut; ++o) {
                double sum = 0, magnitude = 0;
                for (int64_t k = 0; k < kIn; ++k) {
                  const float in = compute.round_if_bf16(x[static_cast<size_t>(r * kIn + k)]);
                  const double product = static_cast<double>(in) * w.values[static_cast<size_t>(o * kIn + k)];
                  sum += product;
                  magnitude += std::fabs(product);
                }
                const double scale =
                    n_scales == 0 ? 1 : weight.scale[n_scales == 1 ? 0 : static_cast<size_t>(o)];
                const float got = y[static_cast<size_t>(r * kOut + o)];
                EXPECT_NEAR(got, sum * scale, (2 * 13 + 5) * kUnit * magnitude * std::fabs(scale));
                if (o >= 30 && o < 35) EXPECT_EQ(part[static_cast<size_t>(r * 5 + o - 30)], got);
                if (r == 0 && rows == 1) first_rows.push_back(got);
                if (r == 0) EXPECT_EQ(got, first_rows[static_cast<size_t>(o)]) << rows << " rows";
              }
            }
          }
        }
      }
    }
  }
}

TEST(Linear, InputsAreClamped) {
  ThreadPool pool(1);
  const Compute compute{.kernels = &best_kernels(), .pool = &pool, .dtype = DType::kF32};
  std::vector<float> x = {-3, -0.5f, 0.25f, 7}, y(1);
  const std::vector<float> w = {1, 10, 100, 1000};
  LinearWeight weight;
  weight.weight = {DType::kF32, {1, 4}, reinterpret_cast<const std::byte*>(w.data()), 16};
  ProductInput input;
  input.set(compute, {x.data(), 1, 4}, -1, 2);
  linear(compute, input, weight, {y.data(), 1, 1});
  EXPECT_EQ(y[0], -1 - 5 + 25 + 2000);
}

// --- Operations over rows
// -------------------------------------------------------------------------------------------

TEST(Ops, NormAndRopeMatchTheReference) {
  ThreadPool pool(2);
  for (CpuIsa isa : runnable_isas()) {
    const Compute compute{.kernels = kernels_for(isa), .pool = &pool, .dtype = DType::kF32};
    constexpr int64_t kRows = 11, kColumns = 256;
    const auto x = random_values(kRows * kColumns, 12, 3);
    const auto weight = random_values(kColumns, 13);
    for (bool weighted : {true, false}) {
      auto copy = x;
      const Matrix m{copy.data(), kRows, kColumns};
      rms_norm(compute, m, weighted ? std::span<const float>(weight) : std::span<const float>(), 1e-6f, m);
      for (size_t r = 0; r < kRows; ++r) {
        const auto want =
            ref::rms_norm(std::span(x).subspan(r * kColumns, kColumns),
                          weighted ? std::span<const float>(weight) : std::span<const float>(), 1e-6f);
        for (size_t i = 0; i < kColumns; ++i) {
          // The mean: 16 terms a lane and the tree; then division, root and two products. Half of the mean's
          // error.
          EXPECT_NEAR(copy[r * kColumns + i], want[i], 16 * kUnit * std::fabs(want[i]));
        }
      }
    }
    const RopeConfig config{.theta = 1e6, .partial_rotary_factor = 0.25, .proportional = true};
    const auto frequencies = config.frequencies(kColumns);
    const std::vector<int> positions = {0, 1, 511, 512, 4097, 131071, 77, 8, 9, 10, 11};
    RopeTable table;
    table.compute(compute, positions, frequencies);
    for (size_t r = 0; r < kRows; ++r) {
      std::vector<float> got(x.begin() + static_cast<std::ptrdiff_t>(r * kColumns),
                             x.begin() + static_cast<std::ptrdiff_t>((r + 1) * kColumns));
      auto want = got;
      const double scale = 3 * *std::max_element(got.begin(), got.end());
      table.rotate(got.data(), static_cast<int64_t>(r));
      ref::rope(want, positions[r], frequencies);
      for (size_t i = 0; i < kColumns; ++i) EXPECT_NEAR(got[i], want[i], 4 * kUnit * scale);
      EXPECT_EQ(got[100], x[r * kColumns + 100]);  // beyond the rotating quarter: unchanged
    }
  }
}

}  // namespace
}  // namespace jewel
