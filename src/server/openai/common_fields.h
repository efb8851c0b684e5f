// Fields that chat and completion requests share. For read_chat.cc and read_completion.cc.
#pragma once

#include "server/openai/asked.h"
#include "server/openai/field_reader.h"

namespace jewel {

// Everything but prompt, messages, tools and logprobs, into `asked` and into the one request that all choices
// begin as. Trouble is left in `fields`.
void read_common(FieldReader& fields, const AskDefaults& defaults, Asked& asked, Request& request);

// n copies of the request; a seed that was given is counted up, so that choices differ and can be repeated.
void add_choices(Asked& asked, const Request& request);

// Absent fields that the API's clients send and that mean nothing to a server with one user and one model.
void accept_harmless(FieldReader& fields);

}  // namespace jewel
