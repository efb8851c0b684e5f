#include "server/http/connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "server/http/response_head.h"

namespace jewel {
namespace {

using boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr size_t kReadBytes = 16 << 10;
constexpr size_t kFirstReadBytes = 2 << 10;  // most heads; thousands of connections wait with such a buffer
constexpr size_t kWriteBytes = 64 << 10;     // of a body that comes bit by bit, at once
// How often a client that waits for its answer is looked at: well within the second in which a request whose
// client is gone must be cancelled.
constexpr std::chrono::milliseconds kLookAtPeer{250};
constexpr std::chrono::milliseconds kLinger{2000};
constexpr size_t kMaxIdChars = 128;

std::string new_request_id() {
  static thread_local std::mt19937_64 random{(uint64_t{std::random_device{}()} << 32) ^
                                             std::random_device{}()};
  return fmt::format("{:016x}{:016x}", random(), random());
}

// An id of the client's own goes back into a header and into logs: letters and digits of moderate length.
bool is_plain_id(std::string_view id) {
  return !id.empty() && id.size() <= kMaxIdChars &&
         std::ranges::all_of(id, [](char c) { return c > 0x20 && c < 0x7f && c != '"'; });
}

}  // namespace

void ConnectionTable::add(const std::shared_ptr<Connection>& connection) {
  const std::scoped_lock lock(mutex_);
  connections_.emplace(connection.get(), connection);
}

void ConnectionTable::remove(const Connection* connection) {
  const std::scoped_lock lock(mutex_);
  connections_.erase(connection);
}

int ConnectionTable::size() const {
  const std::scoped_lock lock(mutex_);
  return static_cast<int>(connections_.size());
}

void ConnectionTable::for_each(const std::function<void(Connection&)>& visit) const {
  std::vector<std::shared_ptr<Connection>> alive;
  {
    const std::scoped_lock lock(mutex_);
    for (const auto& [key, weak] : connections_) {
      if (auto connection = weak.lock()) alive.push_back(std::move(connection));
    }
  }
  for (const auto& connection : alive) visit(*connection);
}

bool ConnectionTable::take_bytes(size_t bytes, size_t limit) {
  if (buffered_.fetch_add(bytes) + bytes <= limit) return true;
  buffered_ -= bytes;
  return false;
}

// Bytes of a body on the books, for as long as the request is read and answered.
class Connection::BodyBytes {
 public:
  BodyBytes(ConnectionTable& table, size_t limit) : table_(table), limit_(limit) {}
  ~BodyBytes() { table_.give_bytes(held_); }
  BodyBytes(const BodyBytes&) = delete;
  BodyBytes& operator=(const BodyBytes&) = delete;

  // In all, `bytes` or more.
  bool hold(size_t bytes) {
    if (bytes <= held_) return true;
    if (!table_.take_bytes(bytes - held_, limit_)) return false;
    held_ = bytes;
    return true;
  }

 private:
  ConnectionTable& table_;
  const size_t limit_;
  size_t held_ = 0;
};

// Wakes the coroutine from any thread. Only the first wake() since the last wait costs anything.
class Connection::Waker : public std::enable_shared_from_this<Waker> {
 public:
  explicit Waker(const asio::any_io_executor& strand) : strand_(strand), timer_(strand) {}

  void wake() {
    if (awake_.exchange(true)) return;
    asio::post(strand_, [self = shared_from_this()] { self->timer_.cancel(); });
  }

  // True: woken; false: the time is up. On the strand.
  asio::awaitable<bool> wait_for(std::chrono::milliseconds limit) {
    if (awake_.exchange(false)) co_return true;
    timer_.expires_after(limit);
    error_code error;
    co_await timer_.async_wait(asio::redirect_error(asio::use_awaitable, error));
    co_return awake_.exchange(false);
  }

 private:
  const asio::any_io_executor strand_;
  asio::steady_timer timer_;
  std::atomic<bool> awake_{false};
};

// What others hold to wake a connection. They may be the last to let go of it, after the connection and its
// io_context are gone, so there is nothing of Asio's in it.
class Connection::Bell {
 public:
  explicit Bell(Waker* waker) : waker_(waker) {}

  void ring() {
    const std::lock_guard lock(mutex_);
    if (waker_ != nullptr) waker_->wake();
  }
  void take_down() {
    const std::lock_guard lock(mutex_);
    waker_ = nullptr;
  }

 private:
  std::mutex mutex_;
  Waker* waker_;
};

Connection::Connection(std::shared_ptr<Transport> transport, asio::any_io_executor strand,
                       HttpHandler& handler, const HttpOptions& options,
                       std::shared_ptr<ConnectionTable> table, bool refuse)
    : transport_(std::move(transport)),
      strand_(std::move(strand)),
      handler_(handler),
      options_(options),
      table_(std::move(table)),
      waker_(std::make_shared<Waker>(strand_)),
      bell_(std::make_shared<Bell>(waker_.get())),
      refuse_(refuse) {}

Connection::~Connection() {
  bell_->take_down();
  table_->remove(this);
}

void Connection::drain() {
  asio::post(strand_, [self = shared_from_this()] {
    if (self->idle_) self->transport_->close();
  });
}

void Connection::stop() {
  asio::post(strand_, [self = shared_from_this()] {
    self->stopped_ = true;
    self->waker_->wake();
  });
}

void Connection::abort() {
  asio::post(strand_, [self = shared_from_this()] {
    self->stopped_ = true;
    self->transport_->close();
    self->waker_->wake();
  });
}

asio::awaitable<void> Connection::run() {
  error_code error;
  transport_->set_deadline(Clock::now() + options_.header_timeout);
  co_await transport_->handshake(error);
  Next next = error ? Next::kClose : Next::kRequest;
  while (next == Next::kRequest) next = co_await one_request();
  if (next == Next::kLinger) co_await linger();
  if (next == Next::kEnd) {
    transport_->set_deadline(Clock::now() + kLinger);
    co_await transport_->end_output();
  }
  transport_->close();
}

asio::awaitable<Connection::Next> Connection::one_request() {
  RequestParser parser(options_.max_header_bytes);
  request_id_.clear();
  more_headers_.clear();
  if (!co_await read_head(parser)) {
    if (!parser.trouble()) co_return Next::kClose;
    co_await send_trouble(*parser.trouble());
    co_return Next::kLinger;
  }
  ServerRequest request = parser.take_head();
  const std::string* id = request.header("X-Request-Id");
  request.id = id != nullptr && is_plain_id(*id) ? *id : new_request_id();
  request.peer = transport_->peer();
  request_id_ = request.id;
  more_headers_ = handler_.headers_for(request);
  record_ = {.id = request.id, .peer = request.peer, .method = request.method, .path = request.path};
  const auto start = Clock::now();
  const Next next = co_await serve(parser, std::move(request));
  record_.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  record_.whole = record_.status != 0 && next != Next::kClose;
  handler_.finished(record_);
  co_return next;
}

asio::awaitable<Connection::Next> Connection::serve(RequestParser& parser, ServerRequest request) {
  if (parser.trouble()) {
    co_await send_trouble(*parser.trouble());
    co_return Next::kLinger;
  }
  if (refuse_) {
    co_await send_trouble({503, "too many connections are open; try again in a moment"});
    co_return Next::kLinger;
  }
  const bool head_only = request.method == "HEAD";
  const Admission admission = handler_.admit(request);
  if (admission.refusal != nullptr) {
    // A body that is not wanted is not read, so the connection cannot go on behind it.
    const bool keep = parser.keep_alive() && !parser.has_body() && !table_->draining;
    const bool sent = co_await send(*admission.refusal, keep, head_only);
    co_return !sent ? Next::kClose : keep ? Next::kRequest : Next::kLinger;
  }
  BodyBytes bytes(*table_, options_.max_buffered_bytes);
  parser.read_body(admission.max_body_bytes);
  if (!co_await read_body(parser, request, bytes, admission.max_body_bytes)) co_return Next::kLinger;
  bool keep_alive = parser.keep_alive();
  const bool sent = co_await answer(std::move(request), keep_alive, parser.is_http_1_0());
  if (!sent) co_return Next::kClose;
  co_return keep_alive ? Next::kRequest : input_.empty() ? Next::kEnd : Next::kLinger;
}

// More bytes behind input_; false when there are none, be it the end, an error or the deadline.
asio::awaitable<bool> Connection::read_more(bool& timed_out, size_t at_most) {
  const size_t before = input_.size();
  input_.resize(before + at_most);
  error_code error;
  const size_t n = co_await transport_->read_some(asio::buffer(input_.data() + before, at_most), error);
  input_.resize(before + n);
  timed_out = error == asio::error::timed_out;
  co_return !error && n > 0;
}

// False without trouble(): the client closed, or never began.
asio::awaitable<bool> Connection::read_head(RequestParser& parser) {
  idle_ = input_.empty();
  if (idle_) {
    input_.shrink_to_fit();
    if (table_->draining) co_return false;
    transport_->set_deadline(Clock::now() + options_.idle_timeout);
    bool timed_out = false;
    if (!co_await read_more(timed_out, kFirstReadBytes)) co_return false;
    idle_ = false;
  }
  transport_->set_deadline(Clock::now() + options_.header_timeout);
  while (true) {
    const size_t taken = parser.put(input_);
    input_.erase(0, taken);
    if (parser.trouble()) co_return false;
    if (parser.head_done()) co_return true;
    bool timed_out = false;
    if (co_await read_more(timed_out, kReadBytes)) continue;
    if (timed_out)
      co_await send_trouble({408, fmt::format("the request's head was not complete after {} s",
                                              options_.header_timeout.count() / 1000)});
    co_return false;
  }
}

// False: it was answered with an error, or the client is gone.
asio::awaitable<bool> Connection::read_body(RequestParser& parser, ServerRequest& request, BodyBytes& bytes,
                                            size_t max_bytes) {
  if (parser.done()) co_return true;
  const uint64_t length = parser.content_length().value_or(0);
  if (length > max_bytes) {
    co_await send_trouble({413, fmt::format("the request's body has {} bytes, the limit of this route is {}; "
                                            "send smaller pictures or fewer",
                                            length, max_bytes)});
    co_return false;
  }
  if (!bytes.hold(length)) {
    co_await send_trouble({503, "too many large requests are under way; try again in a moment"});
    co_return false;
  }
  if (parser.expects_continue() && input_.empty() && !co_await write("HTTP/1.1 100 Continue\r\n\r\n"))
    co_return false;
  const auto start = Clock::now();
  while (!parser.done()) {
    const size_t taken = input_.empty() ? 0 : parser.put(input_);
    input_.erase(0, taken);
    if (parser.trouble()) {
      co_await send_trouble(*parser.trouble());
      co_return false;
    }
    if (parser.done()) break;
    if (!bytes.hold(parser.body_bytes())) {
      co_await send_trouble({503, "too many large requests are under way; try again in a moment"});
      co_return false;
    }
    if (taken > 0 && !input_.empty()) continue;
    const auto more =
        std::chrono::duration<double>(static_cast<double>(parser.body_bytes()) / options_.min_body_rate);
    transport_->set_deadline(start + options_.body_timeout +
                             std::chrono::duration_cast<Clock::duration>(more));
    bool timed_out = false;
    if (co_await read_more(timed_out, kReadBytes)) continue;
    if (timed_out)
      co_await send_trouble({408, fmt::format("the request's body did not come in time: {} bytes so far",
                                              parser.body_bytes())});
    co_return false;
  }
  request.body = parser.take_body();
  record_.bytes_in = request.body.size();
  co_return true;
}

asio::awaitable<bool> Connection::answer(ServerRequest request, bool& keep_alive, bool old_client) {
  const bool head_only = request.method == "HEAD";
  Reply reply = handler_.handle(std::move(request));
  keep_alive = keep_alive && !table_->draining;
  if (const auto* whole = std::get_if<ServerResponse>(&reply))
    co_return co_await send(*whole, keep_alive, head_only);
  PendingReply& pending = *std::get<std::unique_ptr<PendingReply>>(reply);
  pending.start([bell = bell_] { bell->ring(); });
  co_return co_await answer_pending(pending, head_only, keep_alive, old_client);
}

// False: the client is gone, or the answer broke off; the connection is of no use any more.
asio::awaitable<bool> Connection::answer_pending(PendingReply& reply, bool head_only, bool& keep_alive,
                                                 bool old_client) {
  auto framing = BodyFraming::kChunked;
  bool begun = false;
  bool told_to_stop = false;
  std::string out;
  while (true) {
    if (stopped_ && !told_to_stop) {
      told_to_stop = true;
      reply.stop();
    }
    PendingReply::Progress progress = reply.take();
    if (progress.head != nullptr && progress.done) {
      keep_alive = keep_alive && !table_->draining;
      progress.head->body += progress.body;
      co_return co_await send(*progress.head, keep_alive, head_only);
    }
    if (progress.head != nullptr) {
      begun = true;
      if (old_client) {
        framing = BodyFraming::kUntilEnd;
        keep_alive = false;
      }
      record_.status = progress.head->status;
      out = response_bytes(*progress.head, {.framing = framing,
                                            .keep_alive = keep_alive,
                                            .request_id = request_id_,
                                            .more_headers = more_headers_});
    }
    append_piece(out, framing, progress.body);
    if (progress.done && begun) append_end(out, framing);
    const bool wrote = !out.empty();
    for (size_t at = 0; at < out.size(); at += kWriteBytes) {
      if (!co_await write(std::string_view(out).substr(at, kWriteBytes))) co_return false;
    }
    out.clear();
    if (progress.done) co_return begun;
    // A busy answer is woken more often than the peer is looked at; a write to one that is gone fails.
    if (!co_await waker_->wait_for(kLookAtPeer) && transport_->peer_gone()) co_return false;
    if (!wrote && transport_->peer_gone()) co_return false;
  }
}

asio::awaitable<bool> Connection::send(const ServerResponse& response, bool keep_alive, bool head_only) {
  const std::string bytes = response_bytes(response, {.keep_alive = keep_alive,
                                                      .body_allowed = !head_only,
                                                      .request_id = request_id_,
                                                      .more_headers = more_headers_});
  record_.status = response.status;
  co_return co_await write(bytes);
}

asio::awaitable<bool> Connection::send_trouble(const RequestParser::Trouble& trouble) {
  ServerResponse response = handler_.trouble(trouble.status, trouble.message);
  const auto is_retry = [](const HttpHeader& h) { return equal_without_case(h.name, "Retry-After"); };
  if (trouble.status == 503 && std::ranges::none_of(response.headers, is_retry))
    response.headers.push_back({.name = "Retry-After", .value = "1"});
  co_return co_await send(response, false, false);
}

asio::awaitable<bool> Connection::write(std::string_view bytes) {
  transport_->set_deadline(Clock::now() + options_.write_timeout);
  error_code error;
  co_await transport_->write(asio::buffer(bytes.data(), bytes.size()), error);
  if (!error) record_.bytes_out += bytes.size();
  co_return !error;
}

// A socket that is closed while bytes of the client are unread resets the connection, and the answer may be
// lost with it: so what still comes is read and thrown away, for a moment.
asio::awaitable<void> Connection::linger() {
  transport_->set_deadline(Clock::now() + kLinger);
  co_await transport_->end_output();
  std::string thrown_away(kReadBytes, '\0');
  error_code error;
  while (!error) co_await transport_->read_some(asio::buffer(thrown_away.data(), thrown_away.size()), error);
}

}  // namespace jewel
