// ClientLimit: how many requests one client may have under way. A client is the API key that it shows, or
// without keys its address (of IPv6 the /64 that one subscriber has). Any thread.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "server/http/message.h"

namespace jewel {

class ClientLimit {
 public:
  ClientLimit(int max_requests, bool by_key);  // 0: no limit
  // To be kept for as long as the request is under way; nullptr: this client has its share already. Without a
  // limit it is always something.
  std::shared_ptr<void> enter(const ServerRequest& head) const;

 private:
  struct Counts {
    std::mutex mutex;
    std::unordered_map<std::string, int> under_way;
  };
  class Lease;
  std::string client_of(const ServerRequest& head) const;

  const int max_requests_;
  const bool by_key_;
  const std::shared_ptr<Counts> counts_ = std::make_shared<Counts>();
};

}  // namespace jewel
