// The `input` of a Responses request: a text, or items (messages, calls, their outputs, reasoning) with which
// a client sends a conversation back. Pure function, any thread.
#pragma once

#include <boost/json/value.hpp>

#include "base/result.h"
#include "server/openai/chat_turns.h"

namespace jewel {

// True: the last item is an assistant's message that was cut off ("status": "incomplete"); it is to be
// continued. Errors name the item's field and what cannot be served.
Result<bool> read_responses_input(const boost::json::value& input, ChatTurns& turns);

}  // namespace jewel
