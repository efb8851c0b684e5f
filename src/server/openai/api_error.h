// Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}} with vLLM's statuses
// and types. Pure functions, any thread.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "server/http/message.h"

namespace jewel {

int status_of(const Error& error);
// {"error": …}, also the data of an event in a stream that has begun.
std::string error_json(int status, std::string_view message, std::string_view param = {});
ServerResponse error_response(int status, std::string_view message, std::string_view param = {});
ServerResponse error_response(const Error& error);  // with Retry-After where trying again helps

}  // namespace jewel
