// Antialiased bicubic resize of 8-bit RGB, byte for byte what torch's CPU kernel gives for uint8
// (torchvision's resize with antialias=True, the reference processor's back end).
//
// The filter is Keys' cubic with a = -1/2, widened by the scale when shrinking. Weights are computed in
// double, then become int16 with as many fractional bits as the axis's largest weight allows (at most 22); a
// pass sums weight · byte in int32, adds half a unit, shifts and clamps. The horizontal pass comes first and
// leaves bytes; the vertical one reads those. A side that keeps its size has no pass.
//
// Pure function, callable from any thread; it uses the calling thread alone.
#pragma once

#include "image/rgb_image.h"

namespace jewel {

// kBest takes the fastest kernels this CPU has; tests ask for the plain ones, which every CPU has. Same
// bytes.
enum class ResizePath { kBest, kPortable };

// `image` must hold height · width · 3 bytes and both sides of both sizes must be positive (our own callers'
// duty).
RgbImage resize_bicubic(const RgbImage& image, int height, int width, ResizePath path = ResizePath::kBest);

}  // namespace jewel
