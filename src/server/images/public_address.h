// Which network addresses a stranger's URL may lead to: the public internet's. Not loopback, private networks
// (RFC 1918, ULA), link-local (where clouds keep their metadata), carrier-grade NAT, multicast, documentation
// and test ranges, nor any IPv6 form that carries such an IPv4 address inside (mapped, NAT64). The ranges are
// those that IANA's special-purpose registries call not globally reachable. Pure function, any thread.
#pragma once

#include <sys/socket.h>

namespace jewel {

// False for every family other than IPv4 and IPv6.
bool is_public_address(const sockaddr* address);

}  // namespace jewel
