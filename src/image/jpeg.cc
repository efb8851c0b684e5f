#include "image/jpeg.h"

#include <cstddef>
#include <cstdio>
// libjpeg's header needs size_t and FILE first.
#include <fmt/format.h>
#include <jpeglib.h>

#include <algorithm>
#include <csetjmp>
#include <string>
#include <utility>
#include <vector>

namespace jewel {
namespace {

// A progressive file may revisit the whole picture in every scan, and an empty scan costs a few bytes.
// Ordinary encoders write about ten; the bound grows as pictures shrink, so that the work stays within that
// of 25 scans over 64 megapixels.
constexpr int kMinScans = 25;
constexpr int kMaxScans = 200;
constexpr int64_t kScanPixels = int64_t{25} * 64'000'000;

int scan_limit(int64_t pixels) {
  return static_cast<int>(
      std::clamp<int64_t>(kScanPixels / std::max<int64_t>(pixels, 1), kMinScans, kMaxScans));
}

// c · k / 255, rounded, for bytes.
uint8_t scaled(int c, int k) {
  const int product = c * k + 128;
  return static_cast<uint8_t>(((product >> 8) + product) >> 8);
}

}  // namespace

// What libjpeg calls back into. Its errors leave by longjmp, so the frames in between (libjpeg's, and the
// lambdas handed to guarded()) hold nothing with a destructor.
struct JpegDecoder::State {
  jpeg_decompress_struct cinfo{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  jpeg_progress_mgr progress{};
  std::jmp_buf escape{};
  int max_scans = kMaxScans;
  char message[JMSG_LENGTH_MAX] = {};

  ~State() { jpeg_destroy_decompress(&cinfo); }  // allowed on a zeroed struct, too

  static State& of(j_common_ptr cinfo) { return *static_cast<State*>(cinfo->client_data); }
  static State& of(j_decompress_ptr cinfo) { return *static_cast<State*>(cinfo->client_data); }

  [[noreturn]] void fail(const char* text) {
    std::snprintf(message, sizeof message, "%s", text);
    std::longjmp(escape, 1);
  }

  // Runs a piece of libjpeg; false when it failed, with the reason in `message`.
  template <typename F>
  bool guarded(F piece) {
    if (setjmp(escape)) return false;
    piece();
    return true;
  }

  void install(std::span<const uint8_t> bytes);
};

void JpegDecoder::State::install(std::span<const uint8_t> bytes) {
  cinfo.err = jpeg_std_error(&errors);
  cinfo.client_data = this;
  errors.error_exit = [](j_common_ptr c) {
    State& state = of(c);
    (*c->err->format_message)(c, state.message);
    std::longjmp(state.escape, 1);
  };
  errors.emit_message = [](j_common_ptr, int) {};  // warnings: what the decoder can step over
  errors.output_message = [](j_common_ptr) {};

  source.next_input_byte = bytes.data();
  source.bytes_in_buffer = bytes.size();
  source.init_source = [](j_decompress_ptr) {};
  source.term_source = [](j_decompress_ptr) {};
  source.resync_to_restart = jpeg_resync_to_restart;
  source.fill_input_buffer = [](j_decompress_ptr c) -> boolean { of(c).fail("the file ends too early"); };
  source.skip_input_data = [](j_decompress_ptr c, long count) {
    if (count <= 0) return;
    if (static_cast<size_t>(count) > c->src->bytes_in_buffer) of(c).fail("the file ends too early");
    c->src->next_input_byte += count;
    c->src->bytes_in_buffer -= count;
  };
  progress.progress_monitor = [](j_common_ptr c) {
    State& state = of(c);
    if (state.cinfo.input_scan_number > state.max_scans)
      state.fail("too many scans for a picture of this size");
  };
}

JpegDecoder::JpegDecoder(std::unique_ptr<State> state) : state_(std::move(state)) {}
JpegDecoder::JpegDecoder(JpegDecoder&&) noexcept = default;
JpegDecoder& JpegDecoder::operator=(JpegDecoder&&) noexcept = default;
JpegDecoder::~JpegDecoder() = default;

int JpegDecoder::width() const {
  return static_cast<int>(state_->cinfo.image_width);
}
int JpegDecoder::height() const {
  return static_cast<int>(state_->cinfo.image_height);
}

Result<JpegDecoder> JpegDecoder::open(std::span<const uint8_t> bytes) {
  auto state = std::make_unique<State>();
  State* s = state.get();
  s->install(bytes);
  const bool ok = s->guarded([s] {
    jpeg_create_decompress(&s->cinfo);
    s->cinfo.src = &s->source;
    s->cinfo.progress = &s->progress;
    jpeg_read_header(&s->cinfo, TRUE);
  });
  if (!ok) return invalid(fmt::format("broken JPEG: {}", s->message));
  const int components = s->cinfo.num_components;
  if (components != 1 && components != 3 && components != 4) {
    return unsupported(
        fmt::format("a JPEG of {} components, expected 1 (gray), 3 (colour) or 4 (CMYK)", components));
  }
  s->cinfo.out_color_space = components == 4 ? JCS_CMYK : JCS_RGB;
  s->max_scans = scan_limit(int64_t{s->cinfo.image_width} * s->cinfo.image_height);
  return JpegDecoder(std::move(state));
}

Result<void> JpegDecoder::read(std::span<uint8_t> rgb) {
  State* s = state_.get();
  const size_t row_pixels = s->cinfo.image_width;
  JEWEL_CHECK(rgb.size() == row_pixels * 3 * s->cinfo.image_height, "{} bytes for {} x {}", rgb.size(),
              width(), height());
  std::vector<uint8_t> cmyk(s->cinfo.out_color_space == JCS_CMYK ? row_pixels * 4 : 0);
  uint8_t* const cmyk_row = cmyk.empty() ? nullptr : cmyk.data();
  uint8_t* out = rgb.data();
  const bool ok = s->guarded([s, row_pixels, cmyk_row, out] {
    jpeg_start_decompress(&s->cinfo);
    while (s->cinfo.output_scanline < s->cinfo.output_height) {
      uint8_t* to = out + s->cinfo.output_scanline * row_pixels * 3;
      JSAMPROW row = cmyk_row ? cmyk_row : to;
      jpeg_read_scanlines(&s->cinfo, &row, 1);
      if (!cmyk_row) continue;
      for (size_t x = 0; x < row_pixels; ++x, to += 3) {
        const uint8_t* p = cmyk_row + 4 * x;
        // Stored inverted: 255 is no ink. So rgb = k − (255 − c) · k / 255 with the bytes as they are.
        for (int i = 0; i < 3; ++i)
          to[i] = static_cast<uint8_t>(std::max(p[3] - scaled(255 - p[i], p[3]), 0));
      }
    }
  });
  if (!ok) return invalid(fmt::format("broken JPEG: {}", s->message));
  return {};
}

}  // namespace jewel
