#include "server/openai/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <string_view>

namespace jewel {
namespace {

std::string digest_of(std::string_view key) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  ::SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(),
           reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

}  // namespace

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) digests_.push_back(digest_of(key));
}

bool ApiKeys::knows(std::string_view key) const {
  const std::string digest = digest_of(key);
  bool found = false;
  for (const std::string& known : digests_)
    found = (::CRYPTO_memcmp(known.data(), digest.data(), digest.size()) == 0) || found;
  return found && !key.empty();
}

bool ApiKeys::allows(const ServerRequest& request) const {
  constexpr std::string_view kBearer = "Bearer ";
  bool allowed = false;
  if (const std::string* header = request.header("Authorization")) {
    const std::string_view value = *header;
    if (equal_without_case(value.substr(0, kBearer.size()), kBearer))
      allowed = knows(value.substr(kBearer.size()));
  }
  if (const std::string* key = request.header("x-api-key")) allowed = knows(*key) || allowed;
  return allowed;
}

}  // namespace jewel
