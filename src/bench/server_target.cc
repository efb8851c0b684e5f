#include <utility>
#include <vector>

#include "bench/target.h"

namespace jewel {
namespace {

class ServerTarget final : public Target {
 public:
  explicit ServerTarget(std::unique_ptr<OpenAiClient> client) : client_(std::move(client)) {
    info_ = {.name = client_->url(),
             .served = client_->model(),
             .where = client_->url(),
             .on_this_machine = client_->on_this_machine(),
             .work = {},
             .settings = {{"url", client_->url()}, {"model", client_->model()}}};
    for (const char* key : {"owned_by", "max_model_len", "root"}) {
      if (const boost::json::value* value = client_->card().if_contains(key)) info_.settings[key] = *value;
    }
  }

  const TargetInfo& info() const override { return info_; }
  Result<void> add(const boost::json::object& body) override {
    bodies_.push_back(std::make_shared<const std::string>(client_->chat_body(body)));
    return {};
  }
  void clear() override { bodies_.clear(); }
  void start(size_t number, OnEnd on_end) override { client_->start(bodies_[number], std::move(on_end)); }

 private:
  std::vector<std::shared_ptr<const std::string>> bodies_;
  std::unique_ptr<OpenAiClient> client_;
  TargetInfo info_;
};

}  // namespace

Result<std::unique_ptr<Target>> make_server_target(const ClientOptions& options) {
  JEWEL_ASSIGN(auto client, OpenAiClient::open(options));
  return std::unique_ptr<Target>(new ServerTarget(std::move(client)));
}

bool is_server_address(const std::string& text) {
  return text.find("://") != std::string::npos || text.starts_with("unix:");
}

}  // namespace jewel
