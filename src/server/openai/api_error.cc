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

ServerResponse error_response(int status, std::string_view message, std::string_view param) {
  ServerResponse response{.status = status, .body = error_json(status, message, param)};
  if (status == 503) response.headers.push_back({.name = "Retry-After", .value = "1"});
  return response;
}

ServerResponse error_response(const Error& error) {
  return error_response(status_of(error), error.message, error.param);
}

}  // namespace jewel
