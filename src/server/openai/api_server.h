// ApiServer: the routes of the OpenAI API over one engine, for an HttpServer to call.
//
// Threads: any. The engine outlives it.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "jewel/engine.h"
#include "server/http/message.h"
#include "server/images/image_loader.h"
#include "server/openai/asked.h"
#include "server/openai/metrics.h"
#include "server/openai/router.h"

namespace jewel {

struct ApiOptions {
  AskDefaults defaults;
  std::string model_root;  // what was asked for on the command line
  std::vector<std::string> api_keys;
  bool protect_all = false;
  std::string root_path;
  size_t max_body_bytes = size_t{64} << 20;
  bool log_requests = false;
  ImageRules images;
};

class ApiServer final : public HttpHandler {
 public:
  ApiServer(Engine& engine, ApiOptions options);

  Admission admit(const ServerRequest& head) override { return router_.admit(head); }
  Reply handle(ServerRequest&& request) override;
  ServerResponse trouble(int status, std::string_view message) override;

  // /health says 503 from now on, so that balancers send nobody here.
  void set_draining() { draining_ = true; }

 private:
  std::vector<Route> make_routes();
  Reply generate(ServerRequest&& request, bool chat);
  Reply models(const ServerRequest& request) const;
  Reply tokenize(const ServerRequest& request);
  Reply tokens_reply(const Result<std::vector<int32_t>>& ids, bool wants_strings) const;
  Reply detokenize(const ServerRequest& request) const;
  Reply health() const;
  Reply metrics_page() const;
  void warn_of(const std::vector<std::string>& ignored);

  Engine& engine_;
  const ApiOptions options_;
  const std::shared_ptr<Metrics> metrics_ = std::make_shared<Metrics>();
  const int64_t created_;
  ImageLoader images_;
  std::atomic<bool> draining_{false};
  std::mutex warned_mutex_;
  std::set<std::string> warned_;  // fields that the log has named
  const Router router_;
};

}  // namespace jewel
