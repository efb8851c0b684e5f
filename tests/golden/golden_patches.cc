#include <fmt/format.h>

#include <fstream>
#include <iterator>

#include "digest.h"
#include "golden_run.h"
#include "image/prepare.h"

namespace jewel {
Result<ImagePatches> golden_patches(const GoldenFile& golden, const GoldenCase& golden_case,
                                    const ModelConfig& config) {
  if (golden_case.picture.empty()) {
    return ImagePatches{.grid_h = golden_case.grid_h,
                        .grid_w = golden_case.grid_w,
                        .pixels = golden.bytes(golden_case.name + "/pixels")};
  }
  const std::string path = golden.directory() + "/" + golden_case.picture;
  std::ifstream file(path, std::ios::binary);
  if (!file) return not_found(path + ": cannot be opened");
  const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
  JEWEL_ASSIGN(PreparedImage image,
               prepare_image(bytes, golden_case.max_soft_tokens, {}, config.vision.value()));
  const std::string digest = digest_of_bytes(image.patches.pixels);
  if (digest != golden_case.pixels_digest) {
    return invalid(fmt::format("{}: resized bytes have digest {}, the reference's {}", path, digest,
                               golden_case.pixels_digest));
  }
  return std::move(image.patches);
}

}  // namespace jewel
