// The inner loops that depend on the instruction set, as tables of function pointers: portable, AVX2 + FMA +
// F16C, and AVX-512 with BF16 dot products. Each table is one source file compiled with its own -m flags;
// those files keep every function internal and call no inline function from elsewhere, so that the linker
// cannot pick a copy that was compiled for a machine that this one is not.
//
// Products are exact in the order of their operations: an output is computed from lanes over k in steps of a
// fixed width, one accumulator of lanes per output, reduced by one fixed tree. The order does not depend on
// how many rows or outputs a call has, so results are bitwise the same for a row alone and for a row in a
// batch. They differ between instruction sets.
//
// Kernels are pure functions of their arguments and may be called by any thread.
#pragma once

#include <cstdint>
#include <optional>

#include "backend/cpu/cpu_backend.h"

namespace jewel {

// How the numbers of one side of a product are stored.
enum class Format : uint8_t { kF32, kBF16, kF8E4M3 };
inline constexpr int kFormatCount = 3;

constexpr int64_t format_bytes(Format format) {
  return format == Format::kF32 ? 4 : format == Format::kBF16 ? 2 : 1;
}

// y[r, o] = sum over k of x[r, k] * w[o, k]. Strides count elements.
struct DotTile {
  const void* x = nullptr;
  int64_t x_stride = 0;
  int rows = 0;
  const void* w = nullptr;
  int64_t w_stride = 0;
  int outputs = 0;
  int64_t k = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
};

// sum[r, d] += sum over keys j, in order, of p[r, j] * v[j, d]. `columns` is a multiple of 16.
struct WeightedSum {
  const float* p = nullptr;
  int64_t p_stride = 0;
  int rows = 0;
  const void* v = nullptr;
  int64_t v_stride = 0;
  int keys = 0;
  int64_t columns = 0;
  float* sum = nullptr;
  int64_t sum_stride = 0;
};

struct Kernels {
  CpuIsa isa;
  const char* name;

  // By the format of w. x in float32; products and sums in float32.
  void (*dot_f32[kFormatCount])(const DotTile& tile);
  // x in bf16, w in kBF16 or kF8E4M3, by VDPBF16PS (which takes bf16 denormals as zero). Null where the
  // machine lacks it.
  void (*dot_bf16[kFormatCount])(const DotTile& tile);
  // By the format of v.
  void (*weighted_sum[kFormatCount])(const WeightedSum& sum);

  // Exact widening, and rounding to nearest even.
  void (*bf16_to_f32)(const uint16_t* in, float* out, int64_t n);
  void (*f8_to_f32)(const uint8_t* in, float* out, int64_t n);
  void (*f8_to_bf16)(const uint8_t* in, uint16_t* out, int64_t n);
  void (*f32_to_bf16)(const float* in, uint16_t* out, int64_t n);
  void (*round_to_bf16)(const float* in, float* out, int64_t n);
  // Rounds in / scale to nearest even, beyond ±448 clamped.
  void (*f32_to_f8)(const float* in, uint8_t* out, int64_t n, float scale);

  // gate[i] = gelu_tanh(gate[i]) * up[i]
  void (*gelu_mul)(float* gate, const float* up, int64_t n);
  // x[i] = exp(x[i] - max), for x <= max; returns the sum of the new x.
  float (*exp_sum)(float* x, int64_t n, float max);
  // The same sum without writing.
  float (*sum_of_exp)(const float* x, int64_t n, float max);
  float (*sum_of_squares)(const float* x, int64_t n);
  float (*max)(const float* x, int64_t n);
};

// The best table that this machine can run.
const Kernels& best_kernels();
// Null when this machine cannot run it.
const Kernels* kernels_for(CpuIsa isa);

// One per source file; callable only where the machine has the instructions.
const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_bf16_kernels();
#endif

}  // namespace jewel
