#include "server/openai/api_error.h"

#include "server/openai/json_out.h"

namespace jewel {
namespace {

std::string_view type_of(int status) {
  switch (status) {
    case 401:
      return "AuthenticationError";
    case 403:
      return "PermissionDeniedError";
    case 404:
      return "NotFoundError";
    case 408:
    case 504:
      return "TimeoutError";
    case 422:
      return "UnprocessableEntityError";
    case 429:
      return "RateLimitError";
    case 501:
      return "NotImplementedError";
    case 503:
      return "ServiceUnavailableError";
    default:
      return status >= 500 ? "InternalServerError" : "BadRequestError";
  }
}

std::string_view anthropic_type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 408:
    case 504:
      return "timeout_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return status >= 500 ? "api_error" : "invalid_request_error";
  }
}

}  // namespace

int status_of(const Error& error) {
  switch (error.code) {
    case ErrorCode::kNotFound:
      return 404;
    case ErrorCode::kUnavailable:
    case ErrorCode::kCancelled:
      return 503;
    case ErrorCode::kInternal:
      return 500;
    default:
      return 400;  // too many tokens too, as in vLLM; too many bytes are seen before: 413
  }
}

std::string error_json(int status, std::string_view message, std::string_view param) {
  JsonOut out;
  out.open('{').key("error").open('{').field("message", message).field("type", type_of(status));
  if (param.empty())
    out.null_field("param");
  else
    out.field("param", param);
  out.field("code", status).close('}').close('}');
  return out.take();
}

std::string anthropic_error_json(int status, std::string_view message) {
  JsonOut out;
  out.open('{').field("type", "error").key("error").open('{');
  out.field("type", anthropic_type_of(status)).field("message", message).close('}');
  return out.close('}').take();
}

ServerResponse error_response(int status, std::string_view message, std::string_view param,
                              ErrorShape shape) {
  ServerResponse response{.status = status,
                          .body = shape == ErrorShape::kAnthropic ? anthropic_error_json(status, message)
                                                                  : error_json(status, message, param)};
  if (status == 503) response.headers.push_back({.name = "Retry-After", .value = "1"});
  return response;
}

ServerResponse error_response(const Error& error, ErrorShape shape) {
  return error_response(status_of(error), error.message, error.param, shape);
}

}  // namespace jewel
