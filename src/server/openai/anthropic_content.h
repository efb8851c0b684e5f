// The system text and the messages of a Messages request, block by block. Pure functions, any thread; errors
// name the block's field and what cannot be served.
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/value.hpp>

#include "base/result.h"
#include "server/openai/chat_turns.h"

namespace jewel {

// A text or a list of text blocks.
Result<void> read_anthropic_system(const boost::json::value& system, ChatTurns& turns);
Result<void> read_anthropic_messages(const boost::json::array& messages, ChatTurns& turns);

}  // namespace jewel
