#include "server/openai/json_body.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/parser.hpp>
#include <new>

#include "model/json_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr size_t kMaxDepth = 128;
// A list of token ids takes about ten times its text while it is read; long bodies are mostly one picture.
constexpr size_t kLeastMemory = size_t{48} << 20;

}  // namespace

void* JsonBody::Memory::do_allocate(size_t bytes, size_t alignment) {
  // Plain new serves every alignment that Boost.JSON asks for; it gives memory back without saying which it
  // was.
  JEWEL_CHECK(alignment <= __STDCPP_DEFAULT_NEW_ALIGNMENT__);
  if (bytes > left_) throw std::bad_alloc();
  left_ -= bytes;
  return ::operator new(bytes);
}

void JsonBody::Memory::do_deallocate(void* p, size_t bytes, size_t /*alignment*/) {
  left_ += bytes;
  ::operator delete(p);
}

Result<std::unique_ptr<JsonBody>> JsonBody::parse(std::string_view text) {
  std::unique_ptr<JsonBody> body(new JsonBody(std::max(kLeastMemory, 4 * text.size())));
  try {
    json::parse_options options;
    options.max_depth = kMaxDepth;
    json::parser parser({}, options);
    parser.reset(&body->memory_);
    boost::system::error_code error;
    const size_t read = parser.write_some(text.data(), text.size(), error);
    if (!error && text.find_first_not_of(" \t\r\n", read) != std::string_view::npos)
      error = json::error::extra_data;
    if (error)
      return invalid(
          fmt::format("the body is not JSON: {} at byte {} of {}", error.message(), read, text.size()));
    body->root_ = std::make_unique<json::value>(parser.release());
  } catch (const std::bad_alloc&) {
    return too_large("the body's JSON has too many values");
  }
  if (!body->root_->is_object())
    return invalid(fmt::format("the body is {}, expected an object", describe(*body->root_)));
  return body;
}

}  // namespace jewel
