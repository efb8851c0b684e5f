#include "client/openai_client.h"

#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <future>
#include <set>
#include <thread>
#include <utility>

#include "client/chat_reader.h"
#include "client/response_parser.h"
#include "client/server_url.h"
#include "client/sse.h"
#include "server/http/message.h"
#include "server/http/transport.h"

namespace jewel {

namespace json = boost::json;

namespace {

using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using Endpoint = asio::generic::stream_protocol::endpoint;

// A response that is not a stream's 200 is read whole before it is looked at.
constexpr size_t kMostErrorBytes = size_t{1} << 20;

Error of_status(int status, const std::string& where, std::string_view body) {
  ErrorCode code = status >= 500 ? ErrorCode::kInternal : ErrorCode::kInvalid;
  if (status == 401 || status == 403 || status == 404) code = ErrorCode::kNotFound;
  if (status == 413) code = ErrorCode::kTooLarge;
  if (status == 429 || status == 503) code = ErrorCode::kUnavailable;
  std::string message = fmt::format("{}: HTTP {} {}; the server says: {}", where, status,
                                    reason_phrase(status), server_message(body));
  if (status == 401 || status == 403) message += "; give the key with --api-key";
  return {code, std::move(message), ""};
}

}  // namespace

class OpenAiClient::Impl {
 public:
  Impl(ClientOptions options, ServerUrl url)
      : options_(std::move(options)), url_(std::move(url)), thread_([this] { context_.run(); }) {}

  ~Impl() {
    asio::post(context_, [this] {
      closing_ = true;
      idle_.clear();
      for (Line* line : lines_) line->close();
      for (StreamSocket* socket : connecting_) close(*socket);
    });
    work_.reset();
    thread_.join();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<void> prepare() {
    if (url_.tls) JEWEL_TRY(prepare_tls());
    JEWEL_TRY(resolve());
    return choose_model();
  }

  std::string chat_body(json::object request) const {
    if (!request.contains("model")) request["model"] = options_.model;
    request["stream"] = true;
    if (!request.contains("stream_options")) request["stream_options"] = {{"include_usage", true}};
    return json::serialize(request);
  }

  void start(std::shared_ptr<const std::string> body, OnEnd on_end) {
    asio::co_spawn(context_, chat(std::move(body), Clock::now(), std::move(on_end)), asio::detached);
  }

  Result<json::value> whole(std::string method, const std::string& route, std::string body) {
    // Shared: the one who waits may be gone before set_value() has returned.
    const auto promise = std::make_shared<std::promise<Result<json::value>>>();
    auto answer = promise->get_future();
    asio::co_spawn(context_, whole_json(std::move(method), url_.path + route, std::move(body), promise),
                   asio::detached);
    return answer.get();
  }

  const ClientOptions& options() const { return options_; }
  const ServerUrl& url() const { return url_; }
  const json::object& card() const { return card_; }
  bool on_this_machine() const { return on_this_machine_; }

 private:
  // A connection, and what was read from it and not yet taken.
  struct Line {
    explicit Line(std::shared_ptr<Transport> to) : transport(std::move(to)) {}
    void close() const { transport->close(); }
    std::shared_ptr<Transport> transport;
    std::string input;
    bool used = false;  // it has carried a request
  };
  // What becomes of a response. `head` sees status and content type once; `body` sees its bytes.
  struct Sink {
    std::function<void(const ResponseParser&)> head;
    std::function<Result<void>(std::string_view bytes, Clock::time_point at)> body;
  };
  struct Taken {
    bool answered = false;  // some byte of a response was read
    bool keep = false;
  };

  Result<void> prepare_tls() {
    tls_ = std::make_unique<asio::ssl::context>(asio::ssl::context::tls_client);
    error_code error;
    const auto cannot = [&] { return internal(fmt::format("TLS cannot be set up: {}", error.message())); };
    if (tls_->set_options(asio::ssl::context::no_sslv2 | asio::ssl::context::no_sslv3 |
                              asio::ssl::context::no_tlsv1 | asio::ssl::context::no_tlsv1_1,
                          error))
      return cannot();
    const auto verify = options_.verify_tls ? asio::ssl::verify_peer : asio::ssl::verify_none;
    if (tls_->set_verify_mode(verify, error)) return cannot();
    if (!options_.verify_tls) return {};
    if (options_.ca_file.empty()) {
      if (tls_->set_default_verify_paths(error)) return cannot();
    } else if (tls_->load_verify_file(options_.ca_file, error)) {
      return invalid(fmt::format("--ca-file {}: {}; expected a PEM file", options_.ca_file, error.message()),
                     "ca_file");
    }
    return {};
  }

  // Once: a benchmark should not measure name servers.
  Result<void> resolve() {
    if (!url_.unix_path.empty()) {
      if (url_.unix_path.size() >= 108)
        return invalid(fmt::format("{}: the path is longer than 107 bytes", url_.text()), "url");
      endpoints_ = {asio::local::stream_protocol::endpoint(url_.unix_path)};
      on_this_machine_ = true;
      return {};
    }
    asio::ip::tcp::resolver resolver(context_);
    error_code error;
    bool loopback = true;
    for (const auto& entry : resolver.resolve(url_.host, std::to_string(url_.port), error)) {
      endpoints_.emplace_back(entry.endpoint());
      loopback = loopback && entry.endpoint().address().is_loopback();
    }
    if (error || endpoints_.empty())
      return unavailable(
          fmt::format("{}: the host '{}' has no address: {}", url_.text(), url_.host, error.message()));
    on_this_machine_ = loopback;
    return {};
  }

  Result<void> choose_model() {
    JEWEL_ASSIGN(const json::value answer, whole("GET", "/models", ""));
    std::string names;
    const json::object* object = answer.if_object();
    const json::value* data = object == nullptr ? nullptr : object->if_contains("data");
    if (data == nullptr || !data->is_array() || data->get_array().empty()) {
      return invalid(fmt::format("{}/models: found {}, expected a list of models; is this an OpenAI server?",
                                 url_.text(), beginning_of(json::serialize(answer))));
    }
    for (const json::value& entry : data->get_array()) {
      const json::object* model = entry.if_object();
      const json::value* id = model == nullptr ? nullptr : model->if_contains("id");
      if (id == nullptr || !id->is_string()) continue;
      const std::string name(id->get_string());
      if (options_.model.empty()) options_.model = name;
      if (options_.model == name) {
        card_ = *model;
        return {};
      }
      names += (names.empty() ? "" : ", ") + name;
    }
    return not_found(fmt::format("{}: the model '{}' is not served there; it lists: {}", url_.text(),
                                 options_.model, names),
                     "model");
  }

  asio::awaitable<void> chat(std::shared_ptr<const std::string> body, Clock::time_point begun, OnEnd on_end) {
    const std::string where = url_.text() + "/chat/completions";
    ChatReader reader(begun);
    SseParser events;
    bool stream = false;
    int status = 0;
    std::string rest;  // of what is no stream
    Clock::time_point last{};
    const Sink sink{.head =
                        [&](const ResponseParser& response) {
                          status = response.status();
                          stream = status == 200 &&
                                   response.header("content-type").starts_with("text/event-stream");
                        },
                    .body = [&](std::string_view bytes, Clock::time_point at) -> Result<void> {
                      last = at;
                      if (stream) {
                        return events.put(bytes, [&](std::string_view name, std::string_view data) {
                          return reader.event(name, data, at);
                        });
                      }
                      if (status == 200 || rest.size() + bytes.size() <= kMostErrorBytes) rest += bytes;
                      return {};
                    }};
    const Result<void> sent = co_await exchange("POST", url_.path + "/chat/completions", *body, sink);
    if (closing_) {
      on_end(Error{ErrorCode::kCancelled, where + ": cancelled", ""});
      co_return;
    }
    Result<void> read = sent;
    if (status != 0 && status != 200 && (sent.ok() || !rest.empty())) {
      read = of_status(status, where, rest);
    } else if (sent.ok() && stream) {
      read = events.end(
          [&](std::string_view name, std::string_view data) { return reader.event(name, data, last); });
    } else if (sent.ok()) {
      read = reader.whole(rest, last);
    }
    Result<ChatAnswer> answer = read.ok() ? reader.finish(last) : Result<ChatAnswer>(read.error());
    if (!answer.ok() && !answer.error().message.starts_with(where)) {
      Error named = answer.error();
      named.message = where + ": " + named.message;
      on_end(std::move(named));
      co_return;
    }
    on_end(std::move(answer));
  }

  asio::awaitable<void> whole_json(std::string method, std::string target, std::string body,
                                   std::shared_ptr<std::promise<Result<json::value>>> promise) {
    const std::string where = url_.text() + target.substr(url_.path.size());
    std::string text;
    int status = 0;
    const Sink sink{.head = [&](const ResponseParser& response) { status = response.status(); },
                    .body = [&](std::string_view bytes, Clock::time_point) -> Result<void> {
                      text += bytes;
                      return {};
                    }};
    const Result<void> sent = co_await exchange(method, target, body, sink);
    if (!sent.ok()) {
      promise->set_value(Error{sent.error().code, where + ": " + sent.error().message, ""});
    } else if (status != 200) {
      promise->set_value(of_status(status, where, text));
    } else {
      error_code error;
      json::value parsed = json::parse(text, error);
      if (error) {
        promise->set_value(invalid(fmt::format("{}: expected JSON, found {}", where, beginning_of(text))));
      } else {
        promise->set_value(std::move(parsed));
      }
    }
  }

  // One request and its response. A connection that was kept may have been closed by the server in the
  // moment that we used it: the request then goes out again on a new one, unless some of an answer was read.
  asio::awaitable<Result<void>> exchange(const std::string& method, const std::string& target,
                                         const std::string& body, const Sink& sink) {
    for (;;) {
      std::unique_ptr<Line> line = take_idle();
      const bool kept = line != nullptr;
      if (!kept) {
        Result<std::unique_ptr<Line>> opened = co_await connect();
        if (!opened.ok()) co_return opened.error();
        line = std::move(opened).value();
      }
      lines_.insert(line.get());
      Taken taken;
      const Result<void> done =
          co_await exchange_on(*line, head_of(method, target, body.size()), body, sink, taken);
      lines_.erase(line.get());
      if (taken.keep && !closing_) {
        idle_.push_back(std::move(line));
      } else {
        line->close();
      }
      if (done.ok() || !kept || taken.answered || closing_) co_return done;
    }
  }

  asio::awaitable<Result<void>> exchange_on(Line& line, std::string head, const std::string& body,
                                            const Sink& sink, Taken& taken) {
    error_code error;
    Transport& transport = *line.transport;
    line.used = true;
    line.input.clear();
    transport.set_deadline(Clock::now() + options_.stall_timeout);
    // Small bodies travel in the head's packet; a copy of a large one would only cost.
    const bool together = body.size() <= 16384;
    if (together) head += body;
    co_await transport.write(asio::buffer(head), error);
    if (!error && !together) co_await transport.write(asio::buffer(body), error);
    // A server may refuse before it has read all: what it said is worth more than that it closed.
    const error_code write_error = error;
    ResponseParser response(options_.max_answer_bytes);
    bool head_seen = false;
    std::string buffer(size_t{64} << 10, '\0');
    while (!response.done()) {
      transport.set_deadline(Clock::now() + options_.stall_timeout);
      const size_t n = co_await transport.read_some(asio::buffer(buffer), error);
      const Clock::time_point at = Clock::now();
      if (error == asio::error::eof && response.put_end()) break;
      if (error) co_return broken(write_error ? write_error : error, response);
      taken.answered = true;
      line.input.append(buffer.data(), n);
      while (!line.input.empty() && !response.done()) {
        const Result<size_t> used = response.put(line.input);
        if (!used.ok()) co_return used.error();
        line.input.erase(0, *used);
        if (response.head_done() && !std::exchange(head_seen, true)) sink.head(response);
        const std::string piece = response.head_done() ? response.take_body() : std::string();
        if (!piece.empty()) {
          const Result<void> taken_in = sink.body(piece, at);
          if (!taken_in.ok()) co_return taken_in.error();
        }
        if (*used == 0) break;
      }
    }
    transport.no_deadline();
    taken.keep = response.keep_alive() && !write_error && line.input.empty();
    co_return Result<void>();
  }

  Error broken(const error_code& error, const ResponseParser& response) const {
    if (closing_) return {ErrorCode::kCancelled, "cancelled", ""};
    if (error == asio::error::timed_out) {
      return unavailable(fmt::format("no byte came for {:g} s{}",
                                     std::chrono::duration<double>(options_.stall_timeout).count(),
                                     response.head_done() ? " in the middle of the answer" : ""));
    }
    const std::string what = error == asio::error::eof ? "the server closed the connection" : error.message();
    return unavailable(what +
                       (response.head_done() ? " in the middle of its answer" : " before it answered"));
  }

  std::unique_ptr<Line> take_idle() {
    while (!idle_.empty()) {
      std::unique_ptr<Line> line = std::move(idle_.back());
      idle_.pop_back();
      if (!line->transport->peer_gone()) return line;
      line->close();
    }
    return nullptr;
  }

  std::string head_of(const std::string& method, const std::string& target, size_t body_bytes) const {
    std::string head = fmt::format(
        "{} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: jewel/{}\r\nAccept: text/event-stream, "
        "application/json\r\n",
        method, target, url_.authority(), JEWEL_VERSION);
    if (!options_.api_key.empty()) head += "Authorization: Bearer " + options_.api_key + "\r\n";
    if (method == "POST")
      head += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body_bytes);
    return head + "\r\n";
  }

  asio::awaitable<Result<std::unique_ptr<Line>>> connect() {
    const Clock::time_point limit = Clock::now() + options_.connect_timeout;
    error_code error = asio::error::host_not_found;
    for (const Endpoint& endpoint : endpoints_) {
      if (closing_) break;
      StreamSocket socket(context_);
      co_await connect_socket(socket, endpoint, limit, error);
      if (error) continue;
      error_code ignored;  // a Unix socket has no such thing
      ignored = socket.set_option(asio::ip::tcp::no_delay(true), ignored);
      auto line = std::make_unique<Line>(make_client_transport(std::move(socket), tls_.get(), url_.host));
      line->transport->set_deadline(limit);
      lines_.insert(line.get());
      co_await line->transport->handshake(error);
      lines_.erase(line.get());
      if (!error) co_return std::move(line);
      line->close();
      if (tls_ != nullptr && error != asio::error::timed_out) {
        co_return unavailable(fmt::format(
            "TLS: {}; is it an https server, and does --ca-file name its authority?", error.message()));
      }
    }
    if (closing_) co_return Error{ErrorCode::kCancelled, "cancelled", ""};
    if (error == asio::error::timed_out || error == asio::error::operation_aborted) {
      co_return unavailable(fmt::format("no connection within {:g} s",
                                        std::chrono::duration<double>(options_.connect_timeout).count()));
    }
    co_return unavailable(fmt::format("no connection: {}; is the server up?", error.message()));
  }

  asio::awaitable<void> connect_socket(StreamSocket& socket, const Endpoint& endpoint,
                                       Clock::time_point limit, error_code& error) {
    asio::steady_timer timer(context_, limit);
    const auto over = std::make_shared<bool>(false);
    timer.async_wait([&socket, over](const error_code& cancelled) {
      if (!cancelled && !*over) close(socket);
    });
    connecting_.insert(&socket);
    co_await socket.async_connect(endpoint, asio::redirect_error(asio::use_awaitable, error));
    connecting_.erase(&socket);
    *over = true;
  }

  static void close(StreamSocket& socket) {
    error_code ignored;
    ignored = socket.close(ignored);
  }

  ClientOptions options_;
  const ServerUrl url_;
  json::object card_;
  std::vector<Endpoint> endpoints_;
  bool on_this_machine_ = false;
  std::unique_ptr<asio::ssl::context> tls_;

  asio::io_context context_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{context_.get_executor()};
  // Of the client's thread alone.
  bool closing_ = false;
  std::vector<std::unique_ptr<Line>> idle_;
  std::set<Line*> lines_;  // in use
  std::set<StreamSocket*> connecting_;

  std::thread thread_;  // the last: it uses all of the above
};

OpenAiClient::OpenAiClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
OpenAiClient::~OpenAiClient() = default;

Result<std::unique_ptr<OpenAiClient>> OpenAiClient::open(ClientOptions options) {
  JEWEL_ASSIGN(ServerUrl url, parse_server_url(options.url));
  for (const char c : options.api_key) {
    if (static_cast<unsigned char>(c) <= 0x20 || c == 0x7f)
      return invalid("--api-key: found a space or a control character in the key", "api_key");
  }
  auto impl = std::make_unique<Impl>(std::move(options), std::move(url));
  JEWEL_TRY(impl->prepare());
  return std::unique_ptr<OpenAiClient>(new OpenAiClient(std::move(impl)));
}

const std::string& OpenAiClient::model() const {
  return impl_->options().model;
}
std::string OpenAiClient::url() const {
  return impl_->url().text();
}
const json::object& OpenAiClient::card() const {
  return impl_->card();
}
bool OpenAiClient::on_this_machine() const {
  return impl_->on_this_machine();
}
std::string OpenAiClient::chat_body(json::object request) const {
  return impl_->chat_body(std::move(request));
}

Result<ChatAnswer> OpenAiClient::ask(json::object request) {
  // Shared: we may be gone before set_value() has returned.
  const auto promise = std::make_shared<std::promise<Result<ChatAnswer>>>();
  auto answer = promise->get_future();
  start(std::make_shared<const std::string>(chat_body(std::move(request))),
        [promise](Result<ChatAnswer> result) { promise->set_value(std::move(result)); });
  return answer.get();
}

void OpenAiClient::start(std::shared_ptr<const std::string> body, OnEnd on_end) {
  impl_->start(std::move(body), std::move(on_end));
}

Result<json::value> OpenAiClient::post(const std::string& route, const json::object& request) {
  return impl_->whole("POST", route, json::serialize(request));
}
Result<json::value> OpenAiClient::get(const std::string& route) {
  return impl_->whole("GET", route, "");
}

}  // namespace jewel
