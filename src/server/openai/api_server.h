// ApiServer: the routes of OpenAI's and Anthropic's APIs over one engine, for an HttpServer to call.
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
#include "server/http/cors.h"
#include "server/http/message.h"
#include "server/images/image_loader.h"
#include "server/openai/asked.h"
#include "server/openai/client_limit.h"
#include "server/openai/engine_watch.h"
#include "server/openai/golden_health.h"
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
  CorsRules cors;
  int max_requests_per_client = 0;  // under way; more are answered 429; 0: no limit
};

class ApiServer final : public HttpHandler {
 public:
  ApiServer(Engine& engine, ApiOptions options);

  Admission admit(const ServerRequest& head) override;
  Reply handle(ServerRequest&& request) override;
  ServerResponse trouble(int status, std::string_view message) override;
  std::vector<HttpHeader> headers_for(const ServerRequest& head) override { return cors_.headers_for(head); }
  void finished(const FinishedRequest& request) override;

  // /health says 503 from now on, so that balancers send nobody here.
  void set_draining() { draining_ = true; }
  // What /health?deep=1 compares with; without it, what its first call computes.
  void take_golden_answers() { golden_.take_answers(); }

 private:
  std::vector<Route> make_routes();
  Reply generate(ServerRequest&& request, AnswerShape shape);
  Reply count_tokens(ServerRequest&& request, AnswerShape shape);
  Result<Asked> read(AnswerShape shape, const boost::json::object& body) const;
  Reply models(const ServerRequest& request) const;
  Reply tokenize(const ServerRequest& request);
  Reply tokens_reply(const Result<std::vector<int32_t>>& ids, bool wants_strings) const;
  Reply detokenize(const ServerRequest& request) const;
  Reply health();
  Reply deep_health();
  Reply metrics_page() const;
  void warn_of(const std::vector<std::string>& ignored);

  Engine& engine_;
  const ApiOptions options_;
  const std::shared_ptr<Metrics> metrics_ = std::make_shared<Metrics>();
  const int64_t created_;
  ImageLoader images_;
  const Cors cors_;
  const ClientLimit limit_;
  GoldenHealth golden_;
  EngineWatch watch_;
  std::atomic<bool> draining_{false};
  std::mutex warned_mutex_;
  std::set<std::string> warned_;  // fields that the log has named
  const Router router_;
};

}  // namespace jewel
