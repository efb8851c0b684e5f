#include "client/response_parser.h"

#include <fmt/format.h>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>
#include <utility>

namespace jewel {

namespace http = boost::beast::http;

struct ResponseParser::Impl {
  size_t max_body_bytes = 0;
  bool head_only = false;
  std::optional<http::response_parser<http::string_body>> parser;
};

namespace {

// 100 Continue and its like come before the response proper.
bool is_interim(int status) {
  return status >= 100 && status < 200;
}

}  // namespace

ResponseParser::ResponseParser(size_t max_body_bytes, bool head_only) : impl_(std::make_unique<Impl>()) {
  impl_->max_body_bytes = max_body_bytes;
  impl_->head_only = head_only;
  impl_->parser.emplace();
  impl_->parser->body_limit(max_body_bytes);
  impl_->parser->eager(true);
  impl_->parser->skip(head_only);
}

ResponseParser::~ResponseParser() = default;

Result<size_t> ResponseParser::put(std::string_view bytes) {
  boost::system::error_code error;
  const size_t taken = impl_->parser->put(boost::asio::const_buffer(bytes.data(), bytes.size()), error);
  if (error == http::error::body_limit || error == http::error::buffer_overflow) {
    return too_large(
        fmt::format("the server's answer is longer than {} bytes, the limit here", impl_->max_body_bytes));
  }
  if (error && error != http::error::need_more)
    return invalid(fmt::format("the server's answer is not HTTP/1.1: {}", error.message()));
  if (impl_->parser->is_done() && is_interim(status())) {
    impl_->parser.emplace();
    impl_->parser->body_limit(impl_->max_body_bytes);
    impl_->parser->eager(true);
    impl_->parser->skip(impl_->head_only);
  }
  return taken;
}

bool ResponseParser::put_end() {
  if (!impl_->parser->is_header_done()) return false;
  boost::system::error_code error;
  impl_->parser->put_eof(error);
  return !error && impl_->parser->is_done();
}

bool ResponseParser::head_done() const {
  return impl_->parser->is_header_done();
}
bool ResponseParser::done() const {
  return impl_->parser->is_done();
}
int ResponseParser::status() const {
  return static_cast<int>(impl_->parser->get().result_int());
}

std::string ResponseParser::header(std::string_view name) const {
  const auto& message = impl_->parser->get();
  const auto found = message.find(boost::beast::string_view(name.data(), name.size()));
  if (found == message.end()) return {};
  return {found->value().data(), found->value().size()};
}

bool ResponseParser::keep_alive() const {
  return impl_->parser->keep_alive();
}
std::string ResponseParser::take_body() {
  return std::exchange(impl_->parser->get().body(), {});
}

}  // namespace jewel
