// JPEG by libjpeg-turbo, with the decoder's defaults (exact integer IDCT, fancy upsampling), which are the
// reference's.
//
//   JEWEL_ASSIGN(auto jpeg, JpegDecoder::open(bytes));   // header only
//   ... check jpeg.width(), jpeg.height() ...
//   JEWEL_TRY(jpeg.read(rgb));                           // once
//
// One-shot and not thread-safe; different decoders may run on different threads. `bytes` must outlive the
// decoder. A file that ends before its last line is an Error. Damage that libjpeg can step over (a wrong
// restart marker, garbage between segments) is not, as in the reference.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"

namespace jewel {

class JpegDecoder {
 public:
  static Result<JpegDecoder> open(std::span<const uint8_t> bytes);

  JpegDecoder(JpegDecoder&&) noexcept;
  JpegDecoder& operator=(JpegDecoder&&) noexcept;
  ~JpegDecoder();

  int width() const;
  int height() const;

  // Writes [height, width, 3] into `rgb`, which has just that size. Gray is repeated; CMYK and YCCK, stored
  // inverted by the programs that write them, become RGB by the reference's integer formula.
  Result<void> read(std::span<uint8_t> rgb);

 private:
  struct State;
  explicit JpegDecoder(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace jewel
