#include "server/openai/client_limit.h"

#include <arpa/inet.h>

#include <string_view>
#include <utility>

namespace jewel {
namespace {

// Of "2001:db8:1:2:3::4" the first 64 bits; other texts as they are.
std::string network_of(const std::string& address) {
  in6_addr bits{};
  if (::inet_pton(AF_INET6, address.c_str(), &bits) != 1) return address;
  return {reinterpret_cast<const char*>(bits.s6_addr), 8};
}

}  // namespace

ClientLimit::ClientLimit(int max_requests, bool by_key) : max_requests_(max_requests), by_key_(by_key) {}

class ClientLimit::Lease {
 public:
  Lease(std::shared_ptr<Counts> counts, std::string client)
      : counts_(std::move(counts)), client_(std::move(client)) {}
  ~Lease() {
    const std::scoped_lock lock(counts_->mutex);
    const auto found = counts_->under_way.find(client_);
    if (--found->second == 0) counts_->under_way.erase(found);
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

 private:
  const std::shared_ptr<Counts> counts_;
  const std::string client_;
};

std::string ClientLimit::client_of(const ServerRequest& head) const {
  if (by_key_) {
    if (const std::string* header = head.header("Authorization")) return *header;
    if (const std::string* key = head.header("x-api-key")) return *key;
  }
  return network_of(head.peer);
}

std::shared_ptr<void> ClientLimit::enter(const ServerRequest& head) const {
  if (max_requests_ <= 0) return std::make_shared<bool>();
  std::string client = client_of(head);
  {
    const std::scoped_lock lock(counts_->mutex);
    int& now = counts_->under_way[client];
    if (now >= max_requests_) return nullptr;
    ++now;
  }
  return std::make_shared<Lease>(counts_, std::move(client));
}

}  // namespace jewel
