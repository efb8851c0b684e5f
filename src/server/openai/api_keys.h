// The keys that clients must show. Comparing takes the same time whatever is sent, so that a key cannot be
// guessed letter by letter.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/http/message.h"

namespace jewel {

class ApiKeys {
 public:
  explicit ApiKeys(const std::vector<std::string>& keys);
  bool required() const { return !digests_.empty(); }
  // "Authorization: Bearer KEY", or "x-api-key: KEY" as Anthropic's clients send it; of both, either.
  bool allows(const ServerRequest& request) const;

 private:
  bool knows(std::string_view key) const;

  std::vector<std::string> digests_;  // SHA-256: all of one length
};

}  // namespace jewel
