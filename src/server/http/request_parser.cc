#include "server/http/request_parser.h"

#include <fmt/format.h>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <utility>

namespace jewel {

namespace http = boost::beast::http;

struct RequestParser::Impl {
  http::request_parser<http::string_body> parser;
  size_t max_header_bytes = 0;
  size_t max_body_bytes = 0;
  char last = '\n';  // of the head
};

namespace {

std::string text_of(boost::beast::string_view text) {
  return {text.data(), text.size()};
}

// "http://host/path?x" → "/path?x": what clients of proxies send, and servers must accept.
std::string without_authority(std::string target) {
  const size_t scheme = target.find("://");
  if (target.starts_with('/') || scheme == std::string::npos) return target;
  const size_t slash = target.find('/', scheme + 3);
  return slash == std::string::npos ? "/" : target.substr(slash);
}

// Line breaks that proxies read in different ways, and by which a header can be hidden from one of them: a
// line that goes on in the next, and one that ends without a carriage return.
bool has_unclear_line(std::string_view head, char& last) {
  for (const char c : head) {
    if (last == '\n' && (c == ' ' || c == '\t')) return true;
    if (c == '\n' && last != '\r') return true;
    last = c;
  }
  return false;
}

}  // namespace

RequestParser::RequestParser(size_t max_header_bytes) : impl_(std::make_unique<Impl>()) {
  impl_->max_header_bytes = max_header_bytes;
  impl_->parser.header_limit(static_cast<std::uint32_t>(max_header_bytes));
  impl_->parser.body_limit(boost::none);  // until the head says whose body it is
  impl_->parser.eager(false);
}

RequestParser::~RequestParser() = default;

size_t RequestParser::put(std::string_view bytes) {
  const bool in_head = !impl_->parser.is_header_done();
  boost::system::error_code error;
  const size_t taken = impl_->parser.put(boost::asio::const_buffer(bytes.data(), bytes.size()), error);
  if (in_head && has_unclear_line(bytes.substr(0, taken), impl_->last)) {
    trouble_ =
        Trouble{400, "not an HTTP/1.1 request: each line of the head ends with CR LF and stands alone"};
    return taken;
  }
  if (!error || error == http::error::need_more) return taken;
  if (error == http::error::header_limit) {
    trouble_ = Trouble{431, fmt::format("the request's head is longer than {} bytes; send fewer or shorter "
                                        "headers",
                                        impl_->max_header_bytes)};
  } else if (error == http::error::body_limit || error == http::error::buffer_overflow) {
    refuse_body();
  } else {
    trouble_ = Trouble{400, fmt::format("not an HTTP/1.1 request: {}", error.message())};
  }
  return taken;
}

void RequestParser::refuse_body() {
  trouble_ = Trouble{413, fmt::format("the request's body is longer than {} bytes, the limit of this route",
                                      impl_->max_body_bytes)};
}

bool RequestParser::head_done() const {
  return impl_->parser.is_header_done();
}

ServerRequest RequestParser::take_head() {
  const auto& message = impl_->parser.get();
  ServerRequest head;
  head.method = text_of(message.method_string());
  std::string target = without_authority(text_of(message.target()));
  const size_t question = target.find('?');
  if (question != std::string::npos) {
    head.query = target.substr(question + 1);
    target.resize(question);
  }
  head.path = std::move(target);
  for (const auto& field : message)
    head.headers.push_back({.name = text_of(field.name_string()), .value = text_of(field.value())});
  if (message.version() >= 11 && message.find(http::field::host) == message.end())
    trouble_ = Trouble{400, "the Host header is missing; HTTP/1.1 wants one"};
  // Where a body ends must be beyond doubt, or its end is read as the next request.
  const auto coding = message.find(http::field::transfer_encoding);
  if (coding != message.end() && (message.count(http::field::transfer_encoding) > 1 ||
                                  !equal_without_case(text_of(coding->value()), "chunked"))) {
    trouble_ = Trouble{501, "a Transfer-Encoding other than chunked is not understood"};
  }
  if (message.count(http::field::host) > 1) trouble_ = Trouble{400, "several Host headers; expected one"};
  const auto length = message.find(http::field::content_length);
  if (length != message.end() && (message.count(http::field::content_length) > 1 ||
                                  text_of(length->value()).find(',') != std::string::npos)) {
    trouble_ = Trouble{400, "several Content-Lengths; expected one"};
  }
  return head;
}

bool RequestParser::keep_alive() const {
  return impl_->parser.keep_alive();
}
bool RequestParser::is_http_1_0() const {
  return impl_->parser.get().version() < 11;
}

bool RequestParser::expects_continue() const {
  const auto& message = impl_->parser.get();
  const auto found = message.find(http::field::expect);
  return found != message.end() && equal_without_case(text_of(found->value()), "100-continue");
}

bool RequestParser::has_body() const {
  return impl_->parser.chunked() || impl_->parser.content_length().value_or(0) > 0;
}

std::optional<uint64_t> RequestParser::content_length() const {
  const auto length = impl_->parser.content_length();
  return length ? std::optional<uint64_t>(*length) : std::nullopt;
}

void RequestParser::read_body(size_t max_bytes) {
  impl_->max_body_bytes = max_bytes;
  impl_->parser.body_limit(max_bytes);
  // The parser would make room for it first.
  if (impl_->parser.content_length().value_or(0) > max_bytes) refuse_body();
  impl_->parser.eager(true);
}

bool RequestParser::done() const {
  return impl_->parser.is_done();
}
size_t RequestParser::body_bytes() const {
  return impl_->parser.get().body().size();
}
std::string RequestParser::take_body() {
  return std::move(impl_->parser.get().body());
}

}  // namespace jewel
