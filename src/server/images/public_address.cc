#include "server/images/public_address.h"

#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

namespace jewel {
namespace {

struct Range4 {
  uint32_t first;
  int bits;
};

constexpr uint32_t v4(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return a << 24 | b << 16 | c << 8 | d;
}

constexpr auto kNotPublic4 = std::to_array<Range4>({
    {v4(0, 0, 0, 0), 8},        // this host
    {v4(10, 0, 0, 0), 8},       // private
    {v4(100, 64, 0, 0), 10},    // carrier-grade NAT; Alibaba's metadata
    {v4(127, 0, 0, 0), 8},      // loopback
    {v4(169, 254, 0, 0), 16},   // link-local; most clouds' metadata
    {v4(172, 16, 0, 0), 12},    // private
    {v4(192, 0, 0, 0), 24},     // protocol assignments; Oracle's metadata
    {v4(192, 0, 2, 0), 24},     // documentation
    {v4(192, 88, 99, 0), 24},   // 6to4 relays, retired
    {v4(192, 168, 0, 0), 16},   // private
    {v4(198, 18, 0, 0), 15},    // benchmarks
    {v4(198, 51, 100, 0), 24},  // documentation
    {v4(203, 0, 113, 0), 24},   // documentation
    {v4(224, 0, 0, 0), 4},      // multicast
    {v4(240, 0, 0, 0), 4},      // reserved, broadcast
});

bool is_public4(uint32_t address) {
  return std::ranges::none_of(
      kNotPublic4, [&](const Range4& range) { return (address ^ range.first) >> (32 - range.bits) == 0; });
}

struct Range6 {
  std::array<uint8_t, 16> first;
  int bits;
};

bool inside(const uint8_t* address, const Range6& range) {
  for (int bit = 0; bit < range.bits; bit += 8) {
    const int here = std::min(8, range.bits - bit);
    if ((address[bit / 8] ^ range.first[static_cast<size_t>(bit / 8)]) >> (8 - here) != 0) return false;
  }
  return true;
}

constexpr Range6 kMapped{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, 96};    // ::ffff:0:0
constexpr Range6 kNat64{{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0}, 96};  // 64:ff9b::
constexpr Range6 kGlobalUnicast{{0x20}, 3};                                  // 2000::
constexpr auto kNotPublic6 = std::to_array<Range6>({
    {{0x20, 0x01}, 23},              // 2001::, protocol assignments; Teredo, which carries an IPv4 address
    {{0x20, 0x01, 0x0d, 0xb8}, 32},  // documentation
    {{0x20, 0x02}, 16},              // 6to4, which carries an IPv4 address
    {{0x3f, 0xff}, 20},              // documentation
});

bool is_public6(const uint8_t* address) {
  if (inside(address, kMapped) || inside(address, kNat64)) {
    return is_public4(v4(address[12], address[13], address[14], address[15]));
  }
  return inside(address, kGlobalUnicast) &&
         std::ranges::none_of(kNotPublic6, [&](const Range6& range) { return inside(address, range); });
}

}  // namespace

bool is_public_address(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, address, sizeof(in));
    return is_public4(ntohl(in.sin_addr.s_addr));
  }
  if (address->sa_family == AF_INET6) {
    sockaddr_in6 in{};
    std::memcpy(&in, address, sizeof(in));
    return is_public6(in.sin6_addr.s6_addr);
  }
  return false;
}

}  // namespace jewel
