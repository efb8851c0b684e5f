// Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}} with vLLM's statuses
// and types; and as Anthropic's do: {"type": "error", "error": {"type", "message"}}. Pure functions, any
// thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "server/http/message.h"

namespace jewel {

enum class ErrorShape : uint8_t { kOpenAi, kAnthropic };

int status_of(const Error& error);
// {"error": …}, also the data of an event in a stream that has begun.
std::string error_json(int status, std::string_view message, std::string_view param = {});
std::string anthropic_error_json(int status, std::string_view message);
// With Retry-After where trying again helps.
ServerResponse error_response(int status, std::string_view message, std::string_view param = {},
                              ErrorShape shape = ErrorShape::kOpenAi);
ServerResponse error_response(const Error& error, ErrorShape shape = ErrorShape::kOpenAi);

}  // namespace jewel
