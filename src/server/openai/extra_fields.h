// vLLM's fields that narrow what may be said and what is read of a prompt; and those of vLLM's and OpenAI's
// that this server refuses. For common_fields.cc.
#pragma once

#include "jewel/request.h"
#include "server/openai/field_reader.h"

namespace jewel {

// bad_words, allowed_token_ids, truncate_prompt_tokens, truncation_side, repetition_detection.
void read_narrowing(FieldReader& fields, Request& request);

// What another server would do and this one does not: ignoring it would give another answer than was asked
// for.
void refuse_impossible(FieldReader& fields);

// whitespace_pattern and disable_any_whitespace of structured_outputs: they go into the schema.
void read_white_space(FieldReader& outputs, Grammar& grammar);

}  // namespace jewel
