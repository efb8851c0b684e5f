#include "engine/prefix_keys.h"

#include <openssl/evp.h>

#include <bit>
#include <memory>

namespace jewel {
namespace {

static_assert(std::endian::native == std::endian::little, "keys are over little-endian ids");

constexpr std::string_view kRootText = "jewel prefix 1";

struct FreeDigest {
  void operator()(EVP_MD* digest) const { EVP_MD_free(digest); }
};
struct FreeContext {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

// Fetching an algorithm by name takes OpenSSL 3 longer than hashing a page, so it is done once.
const EVP_MD* sha256_algorithm() {
  static const std::unique_ptr<EVP_MD, FreeDigest> algorithm(EVP_MD_fetch(nullptr, "SHA256", nullptr));
  JEWEL_CHECK(algorithm != nullptr, "OpenSSL has no SHA-256");
  return algorithm.get();
}

void append_int32(std::vector<std::byte>& out, int32_t value) {
  const auto bits = static_cast<uint32_t>(value);
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<std::byte>(bits >> shift));
}

void append_bytes(std::vector<std::byte>& out, std::span<const std::byte> bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

}  // namespace

Digest sha256(std::span<const std::byte> bytes) {
  thread_local const std::unique_ptr<EVP_MD_CTX, FreeContext> context(EVP_MD_CTX_new());
  Digest digest;
  unsigned length = 0;
  const bool good = EVP_DigestInit_ex2(context.get(), sha256_algorithm(), nullptr) == 1 &&
                    EVP_DigestUpdate(context.get(), bytes.data(), bytes.size()) == 1 &&
                    EVP_DigestFinal_ex(context.get(), digest.data(), &length) == 1;
  JEWEL_CHECK(good && length == digest.size(), "SHA-256 failed");
  return digest;
}

Digest prefix_root(std::string_view salt) {
  std::vector<std::byte> text;
  append_bytes(text, std::as_bytes(std::span(kRootText)));
  append_bytes(text, std::as_bytes(std::span(salt)));
  return sha256(text);
}

Digest page_key(const Digest& parent, std::span<const TokenId> tokens, std::span<const PromptImage> images,
                int position) {
  JEWEL_CHECK(tokens.size() == kPageTokens, "a page of {} tokens", tokens.size());
  thread_local std::vector<std::byte> text;
  text.clear();
  append_bytes(text, std::as_bytes(std::span(parent)));
  append_bytes(text, std::as_bytes(tokens));
  for (const PromptImage& image : images) {
    if (image.position >= position + kPageTokens) break;
    if (image.position + image.count <= position) continue;
    append_bytes(text, std::as_bytes(std::span(image.content)));
    append_int32(text, image.budget);
    append_int32(text, image.position - position);
    append_int32(text, image.count);
  }
  return sha256(text);
}

std::vector<Digest> prefix_keys(std::string_view salt, std::span<const TokenId> prompt,
                                std::span<const PromptImage> images) {
  std::vector<Digest> keys;
  keys.reserve(prompt.size() / kPageTokens);
  Digest parent = prefix_root(salt);
  size_t first_image = 0;  // the first that is not behind the page
  for (size_t begin = 0; begin + kPageTokens <= prompt.size(); begin += kPageTokens) {
    const auto position = static_cast<int>(begin);
    while (first_image < images.size() &&
           images[first_image].position + images[first_image].count <= position) {
      ++first_image;
    }
    parent = page_key(parent, prompt.subspan(begin, kPageTokens), images.subspan(first_image), position);
    keys.push_back(parent);
  }
  return keys;
}

}  // namespace jewel
