// Fields that requests for text share, whatever their route. For the read_*.cc of this folder.
#pragma once

#include "server/openai/asked.h"
#include "server/openai/field_reader.h"

namespace jewel {

// Trouble is left in `fields`.
void read_model(FieldReader& fields, const AskDefaults& defaults, Asked& asked);

// How an answer is sampled, held and served, by the names that all routes have in common: OpenAI's sampling
// fields and vLLM's extensions.
void read_serving(FieldReader& fields, const AskDefaults& defaults, Request& request);

// `stop`: one text or several.
void read_stop(FieldReader& fields, Request& request);
// chat_template_kwargs over the server's own.
void read_template_kwargs(FieldReader& fields, const AskDefaults& defaults, Request& request);
// How hard to think: not at all, or else; the model knows no more than that.
void read_effort(FieldReader& fields, std::string_view name, Request& request);

// Those, and what only chat and completion requests have: everything but prompt, messages, tools and
// logprobs, into `asked` and into the one request that all choices begin as.
void read_common(FieldReader& fields, const AskDefaults& defaults, Asked& asked, Request& request);

// n copies of the request; a seed that was given is counted up, so that choices differ and can be repeated.
void add_choices(Asked& asked, const Request& request);

// Absent fields that the API's clients send and that mean nothing to a server with one user and one model.
void accept_harmless(FieldReader& fields);

}  // namespace jewel
