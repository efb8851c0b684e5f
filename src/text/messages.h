// Messages as a template wants them, from messages as a client sends them. Pure functions, any thread.
#pragma once

#include <boost/json/array.hpp>
#include <string_view>

#include "base/result.h"
#include "text/user_text.h"

namespace jewel {

// The spellings of the markers whose spans the template removes from the assistant's content; may be empty.
struct ChannelMarkers {
  std::string_view open, close;
};

// A copy of `messages` with every string protected, tool calls' arguments parsed from JSON text to objects,
// and content parts other than text cut down to their type (an image's data has no place in a template).
// Errors name the field.
// Boost.JSON reads numbers of more than 15 digits to within one unit in the last place, not always to the
// nearest value.
Result<boost::json::array> messages_for_template(const boost::json::array& messages,
                                                 const UserText& user_text, ChannelMarkers channel);

}  // namespace jewel
