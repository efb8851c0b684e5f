#include "image/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace jewel {
namespace {

// What one axis needs: for every output index, the run of input indices it is made of and their integer
// weights.
struct Axis {
  int max_taps = 0;              // row stride of `weights`; a multiple of kTapGroup, padded with zero weights
  int precision = 0;             // fractional bits of the weights
  std::vector<int> begin;        // [out] first input index
  std::vector<int> taps;         // [out] how many
  std::vector<int16_t> weights;  // [out, max_taps]
};

// The AVX2 row pass takes four taps at a time, so every run of weights is padded to a multiple of four.
constexpr int kTapGroup = 4;
constexpr int kGroupBytes = 3 * kTapGroup;

// NOLINTBEGIN(bugprone-incorrect-roundings): adding a half and truncating is the rounding to be matched.
double keys_cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

// The most fractional bits with which the largest weight still fits an int16.
int weight_precision(double largest) {
  int precision = 0;
  while (precision < 22 && static_cast<int>(0.5 + largest * (1 << (precision + 1))) < (1 << 15)) ++precision;
  return precision;
}

Axis make_axis(int in, int out) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double stretch = std::max(scale, 1.0);
  const double support = 2.0 * stretch;
  const double inverse_stretch = scale >= 1.0 ? 1.0 / scale : 1.0;
  const int taps_bound = static_cast<int>(std::ceil(support)) * 2 + 1;

  Axis axis;
  axis.max_taps = (taps_bound + kTapGroup - 1) / kTapGroup * kTapGroup;
  axis.begin.resize(out);
  axis.taps.resize(out);
  std::vector<double> exact(static_cast<size_t>(out) * axis.max_taps, 0.0);
  double largest = 0.0;
  for (int i = 0; i < out; ++i) {
    const double center = scale * (i + 0.5);
    const int begin = std::max(static_cast<int>(center - support + 0.5), 0);
    const int end = std::min(static_cast<int>(center + support + 0.5), in);
    const int taps = std::clamp(end - begin, 0, taps_bound);
    double* w = &exact[static_cast<size_t>(i) * axis.max_taps];
    double total = 0.0;
    for (int j = 0; j < taps; ++j) {
      w[j] = keys_cubic((j + begin - center + 0.5) * inverse_stretch);
      total += w[j];
    }
    for (int j = 0; j < taps; ++j) {
      if (total != 0.0) w[j] /= total;
      largest = std::max(largest, w[j]);
    }
    axis.begin[i] = begin;
    axis.taps[i] = taps;
  }

  axis.precision = weight_precision(largest);
  axis.weights.resize(exact.size());
  for (size_t k = 0; k < exact.size(); ++k) {
    const double v = exact[k] * (1 << axis.precision);
    axis.weights[k] =
        static_cast<int16_t>(v < 0 ? v - 0.5 : v + 0.5);  // the cast truncates: halves go outward
  }
  return axis;
}

// NOLINTEND(bugprone-incorrect-roundings)

uint8_t to_byte(int32_t sum, int precision) {
  return static_cast<uint8_t>(std::clamp(sum >> precision, 0, 255));
}

// One row, horizontally, from output x on: out[x] = Σ weights[x, j] · in[begin[x] + j].
void horizontal_row_from(size_t from, const Axis& axis, const uint8_t* in, uint8_t* out) {
  const int32_t half = 1 << (axis.precision - 1);
  for (size_t x = from; x < axis.begin.size(); ++x) {
    const int16_t* w = &axis.weights[x * axis.max_taps];
    const uint8_t* p = in + static_cast<size_t>(axis.begin[x]) * 3;
    int32_t r = half, g = half, b = half;
    for (int j = 0; j < axis.taps[x]; ++j, p += 3) {
      r += w[j] * p[0];
      g += w[j] * p[1];
      b += w[j] * p[2];
    }
    out[3 * x] = to_byte(r, axis.precision);
    out[3 * x + 1] = to_byte(g, axis.precision);
    out[3 * x + 2] = to_byte(b, axis.precision);
  }
}

void horizontal_row(const Axis& axis, const uint8_t* in, int /*in_width*/, uint8_t* out) {
  horizontal_row_from(0, axis, in, out);
}

// One output row, vertically: out[i] = Σ weights[j] · rows[j][i] over `bytes` columns, each channel a column.
inline __attribute__((always_inline)) void vertical_row_body(const int16_t* weights, int precision,
                                                             const uint8_t* const* rows, int n_rows,
                                                             size_t bytes, uint8_t* out) {
  constexpr size_t kBlock = 256;  // sums of a block stay in the first-level cache over all rows
  const int32_t half = 1 << (precision - 1);
  for (size_t at = 0; at < bytes; at += kBlock) {
    const size_t n = std::min(kBlock, bytes - at);
    int32_t sums[kBlock];
    std::fill_n(sums, n, half);
    int j = 0;
    for (; j + 1 < n_rows; j += 2) {
      const int32_t w0 = weights[j], w1 = weights[j + 1];
      const uint8_t* row0 = rows[j] + at;
      const uint8_t* row1 = rows[j + 1] + at;
      for (size_t i = 0; i < n; ++i) sums[i] += w0 * row0[i] + w1 * row1[i];
    }
    if (j < n_rows) {
      const int32_t w = weights[j];
      const uint8_t* row = rows[j] + at;
      for (size_t i = 0; i < n; ++i) sums[i] += w * row[i];
    }
    for (size_t i = 0; i < n; ++i) out[at + i] = to_byte(sums[i], precision);
  }
}

void vertical_row(const int16_t* weights, int precision, const uint8_t* const* rows, int n_rows, size_t bytes,
                  uint8_t* out) {
  vertical_row_body(weights, precision, rows, n_rows, bytes, out);
}

#if defined(__x86_64__)
// The same sums in another order, which integers do not mind. Four pixels (12 bytes, read as 16) are spread
// so that the low half holds taps 0 and 1 as (r0 r1)(g0 g1)(b0 b1) and the high half taps 2 and 3; a
// multiply-add of pairs then adds two taps per 32-bit sum. The read goes 4 bytes past the fourth pixel, so
// the last outputs of a row are left to the plain loop, where that would leave the row.
__attribute__((target("avx2"))) void horizontal_row_avx2(const Axis& axis, const uint8_t* in, int in_width,
                                                         uint8_t* out) {
  const __m256i spread_pixels = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                                 6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m256i spread_weights = _mm256_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3,  //
                                                  4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  const __m128i half = _mm_set1_epi32(1 << (axis.precision - 1));
  const __m128i shift = _mm_cvtsi32_si128(axis.precision);
  size_t x = 0;
  for (; x + 1 < axis.begin.size(); ++x) {  // the 4-byte store of the last pixel would leave the row too
    const int groups = (axis.taps[x] + kTapGroup - 1) / kTapGroup;
    if (axis.begin[x] + groups * kTapGroup + 2 > in_width) break;
    const int16_t* w = &axis.weights[x * axis.max_taps];
    const uint8_t* p = in + static_cast<size_t>(axis.begin[x]) * 3;
    __m256i sums = _mm256_setzero_si256();
    for (int g = 0; g < groups; ++g, p += kGroupBytes, w += kTapGroup) {
      const __m128i four_pixels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      const __m128i four_weights = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w));
      const __m256i pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(four_pixels), spread_pixels);
      const __m256i pairs = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(four_weights), spread_weights);
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pixels, pairs));
    }
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum = _mm_sra_epi32(_mm_add_epi32(sum, half), shift);
    sum = _mm_packs_epi32(sum, sum);
    const int rgb0 = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
    std::memcpy(out + 3 * x, &rgb0, 4);  // the fourth byte is overwritten by the next pixel
  }
  horizontal_row_from(x, axis, in, out);
}

__attribute__((target("avx2"))) void vertical_row_avx2(const int16_t* weights, int precision,
                                                       const uint8_t* const* rows, int n_rows, size_t bytes,
                                                       uint8_t* out) {
  vertical_row_body(weights, precision, rows, n_rows, bytes, out);
}
#endif

// The two passes of one instruction set. Both sets compute the same integers.
struct Passes {
  void (*horizontal)(const Axis& axis, const uint8_t* in, int in_width, uint8_t* out) = horizontal_row;
  decltype(&vertical_row) vertical = vertical_row;
};

Passes choose_passes([[maybe_unused]] ResizePath path) {
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2");
  if (path == ResizePath::kBest && avx2) return {horizontal_row_avx2, vertical_row_avx2};
#endif
  return {};
}

// Rows of the image after the horizontal pass. The vertical pass asks for them in order, a window of max_taps
// at a time, so only that window is kept: it stays in cache, and a tall photo needs no second full-height
// buffer.
class NarrowedRows {
 public:
  NarrowedRows(const Passes& passes, const RgbImage& image, int width, int window)
      : passes_(passes), image_(image), row_bytes_(static_cast<size_t>(width) * 3) {
    if (width == image.width) return;
    axis_ = make_axis(image.width, width);
    window_ = std::min(window, image.height);
    ring_.resize(window_ * row_bytes_);
  }

  // Valid until row y + window is asked for. Rows below y - window must not be asked for again.
  const uint8_t* row(int y) {
    if (ring_.empty()) return &image_.rgb[y * row_bytes_];
    for (; made_ <= y; ++made_) {
      const uint8_t* in = &image_.rgb[static_cast<size_t>(made_) * image_.width * 3];
      passes_.horizontal(axis_, in, image_.width, slot(made_));
    }
    return slot(y);
  }

 private:
  uint8_t* slot(int y) { return &ring_[(y % window_) * row_bytes_]; }

  Passes passes_;
  const RgbImage& image_;
  size_t row_bytes_;
  Axis axis_;
  int window_ = 0;
  int made_ = 0;  // rows [0, made_) were computed, the last window_ of them are still there
  std::vector<uint8_t> ring_;
};

}  // namespace

RgbImage resize_bicubic(const RgbImage& image, int height, int width, ResizePath path) {
  const Passes passes = choose_passes(path);
  JEWEL_CHECK(image.height > 0 && image.width > 0 && height > 0 && width > 0, "{} x {} to {} x {}",
              image.height, image.width, height, width);
  JEWEL_CHECK(image.rgb.size() == size_t{3} * image.height * image.width, "{} bytes for {} x {}",
              image.rgb.size(), image.height, image.width);
  const size_t row_bytes = static_cast<size_t>(width) * 3;
  RgbImage out{height, width, std::vector<uint8_t>(height * row_bytes)};
  if (height == image.height) {
    NarrowedRows rows(passes, image, width, 1);
    for (int y = 0; y < height; ++y) std::memcpy(&out.rgb[y * row_bytes], rows.row(y), row_bytes);
    return out;
  }
  const Axis axis = make_axis(image.height, height);
  NarrowedRows rows(passes, image, width, axis.max_taps);
  std::vector<const uint8_t*> taps(axis.max_taps);
  for (int y = 0; y < height; ++y) {
    for (int j = 0; j < axis.taps[y]; ++j) taps[j] = rows.row(axis.begin[y] + j);
    passes.vertical(&axis.weights[static_cast<size_t>(y) * axis.max_taps], axis.precision, taps.data(),
                    axis.taps[y], row_bytes, &out.rgb[y * row_bytes]);
  }
  return out;
}

}  // namespace jewel
