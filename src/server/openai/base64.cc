#include "server/openai/base64.h"

#include <fmt/format.h>

#include <array>
#include <cstdint>

#include "server/http/message.h"

namespace jewel {
namespace {

constexpr uint8_t kBad = 0xff;

constexpr std::array<uint8_t, 256> kValues = [] {
  std::array<uint8_t, 256> values{};
  values.fill(kBad);
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kAlphabet.size(); ++i)
    values[static_cast<uint8_t>(kAlphabet[i])] = static_cast<uint8_t>(i);
  return values;
}();

}  // namespace

std::optional<std::string> decode_base64(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  const size_t digits = text.size() - padding;
  std::string out;
  out.reserve(text.size() / 4 * 3);
  uint32_t bits = 0;
  for (size_t i = 0; i < digits; ++i) {
    const uint8_t value = kValues[static_cast<uint8_t>(text[i])];
    if (value == kBad) return std::nullopt;
    bits = bits << 6 | value;
    if (i % 4 != 3) continue;
    out += static_cast<char>(bits >> 16);
    out += static_cast<char>(bits >> 8);
    out += static_cast<char>(bits);
    bits = 0;
  }
  if (padding == 1) {  // 18 bits, of which 16 count
    if ((bits & 3) != 0) return std::nullopt;
    out += static_cast<char>(bits >> 10);
    out += static_cast<char>(bits >> 2);
  } else if (padding == 2) {  // 12 bits, of which 8 count
    if ((bits & 15) != 0) return std::nullopt;
    out += static_cast<char>(bits >> 4);
  }
  return out;
}

Result<std::string> decode_data_url(std::string_view url, const std::string& field) {
  const size_t comma = url.substr(0, 256).find(',');
  if (!equal_without_case(url.substr(0, 5), "data:") || comma == std::string_view::npos)
    return invalid(fmt::format("{}: expected a URL as data:image/png;base64,…", field), field);
  const std::string_view type = url.substr(5, comma - 5);
  if (!type.ends_with(";base64"))
    return invalid(fmt::format("{}: the data is not marked as ;base64", field), field);
  if (!equal_without_case(type.substr(0, 6), "image/"))
    return invalid(fmt::format("{}: found data of the type '{}', expected image/…", field,
                               type.substr(0, type.find(';'))),
                   field);
  std::optional<std::string> bytes = decode_base64(url.substr(comma + 1));
  if (!bytes)
    return invalid(fmt::format("{}: the data is not base64 (letters, digits, + and /, padded with =)", field),
                   field);
  return *std::move(bytes);
}

}  // namespace jewel
