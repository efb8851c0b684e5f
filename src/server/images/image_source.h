// ImageSource: a picture's bytes from its address, by rules that keep a stranger's URL from reaching what is
// not the stranger's.
//
// http(s): every host of the public internet, or only listed ones. An address is judged where the socket is
// opened, after the name was resolved and again for every redirect, so that a name cannot be one thing when
// it is checked and another when it is used. A host on the list, written there as it is asked for, may have
// any address: the operator has named it. No proxy, no cookies, no credentials. file://: only under one
// directory, symbolic links resolved before it is looked at.
//
// Bytes are held to a size, a fetch to a time; nothing is decompressed, and what begins like no picture is
// dropped at its first bytes, whatever its Content-Type says.
//
// Blocking; any thread, several at once.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace jewel {

struct ImageRules {
  // nullopt: every public host; empty: none. "example.com" is that host alone, as in vLLM; ".example.com" all
  // hosts below it, as far as they are public.
  std::optional<std::vector<std::string>> hosts;
  std::string local_directory;  // canonical; empty: no files
  size_t max_bytes = size_t{20} << 20;
  int connect_timeout_s = 5;
  int timeout_s = 10;  // redirects included
  int max_redirects = 3;

  int max_images = 128;                       // of one request
  size_t max_held_bytes = size_t{512} << 20;  // of all pictures that were fetched and are still in use
  bool can_fetch = true;                      // libcurl is there
  std::function<bool(const sockaddr*)> public_address;  // set by tests, whose servers are on loopback
};

class ImageSource {
 public:
  explicit ImageSource(ImageRules rules);

  // What can be said without asking anybody. Errors: kInvalid (refused), kUnsupported (no libcurl).
  Result<void> check(std::string_view url) const;

  // Errors: check()'s; kInvalid also for an address that is not public; kNotFound for what did not give a
  // picture, whatever the reason; kCancelled. The sentences name the host, never an address it resolves to.
  Result<std::string> load(const std::string& url, const std::atomic<bool>& cancelled) const;

  const ImageRules& rules() const { return rules_; }

 private:
  enum class Listing : uint8_t { kNo, kBelow, kNamed };
  Listing listing(const std::string& host) const;
  bool may_ask(const std::string& host) const;
  Result<std::string> fetch(const std::string& url, const std::string& host,
                            const std::atomic<bool>& cancelled) const;
  Result<std::string> read(const std::string& path) const;

  const ImageRules rules_;
};

}  // namespace jewel
