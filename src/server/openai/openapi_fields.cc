// The fields of every body, with the ranges that the readers and the engine hold them to.
#include <array>

#include "server/openai/openapi.h"

namespace jewel {
namespace {

constexpr std::string_view kFlag = R"({"type":"boolean"})";
constexpr std::string_view kText = R"({"type":"string"})";
constexpr std::string_view kFromZero = R"({"type":"integer","minimum":0,"maximum":2147483647})";
constexpr std::string_view kFromOne = R"({"type":"integer","minimum":1,"maximum":2147483647})";
constexpr std::string_view kIds = R"({"type":"array","items":{"$ref":"#/components/schemas/TokenId"}})";
constexpr std::string_view kAnything = "{}";
constexpr std::string_view kStops =
    R"({"anyOf":[{"type":"string","minLength":1},{"type":"array","items":{"type":"string","minLength":1},"maxItems":16}]})";
constexpr std::string_view kStopList =
    R"({"type":"array","items":{"type":"string","minLength":1},"maxItems":16})";
constexpr std::string_view kTexts = R"({"type":"array","items":{"type":"string"}})";
constexpr std::string_view kEffort = R"({"enum":["none","minimal","low","medium","high","xhigh","max"]})";

// read_model(), and what read_serving() reads.
constexpr auto kServing = std::to_array<ApiField>({
    {"model", kText, "a name from /v1/models; absent: the one that is served"},
    {"temperature", R"({"type":"number","minimum":0,"maximum":100})", "0: always the likeliest token"},
    {"top_k", R"({"type":"integer","minimum":-1,"maximum":2147483647})",
     "of the likeliest tokens; -1 or 0: all"},
    {"top_p", R"({"type":"number","exclusiveMinimum":0,"maximum":1})",
     "of the likeliest, this much probability"},
    {"min_p", R"({"type":"number","minimum":0,"maximum":1})",
     "at least this part of the likeliest's probability"},
    {"repetition_penalty", R"({"type":"number","minimum":0.01,"maximum":100})", "1: none"},
    {"presence_penalty", R"({"type":"number","minimum":-2,"maximum":2})",
     "for tokens that were answered already"},
    {"frequency_penalty", R"({"type":"number","minimum":-2,"maximum":2})", "the same, for each time"},
    {"seed", R"({"type":"integer","minimum":-9223372036854775808,"maximum":18446744073709551615})",
     "the same seed and request: the same answer"},
    {"logit_bias",
     R"({"type":"object","maxProperties":1024,"propertyNames":{"pattern":"^[0-9]{1,6}$"},)"
     R"("additionalProperties":{"type":"number","minimum":-100,"maximum":100}})",
     "by token id; -100 forbids"},
    {"min_tokens", kFromZero, "the answer does not end before"},
    {"ignore_eos", kFlag, "the answer ends at max_tokens alone"},
    {"thinking_token_budget", kFromZero, "after so many tokens of reasoning the answer begins"},
    {"stop_token_ids", kIds, "end the answer"},
    {"include_stop_str_in_output", kFlag, "the stop text is part of the answer"},
    {"structured_outputs", R"({"$ref":"#/components/schemas/StructuredOutputs"})",
     "the answer matches exactly one of these"},
    {"mm_processor_kwargs", R"({"$ref":"#/components/schemas/ImageBudget"})", "how finely pictures are seen"},
    {"skip_special_tokens", kFlag, "false: control tokens stand in the answer"},
    {"priority", R"({"type":"integer","minimum":-1000000,"maximum":1000000})", "smaller goes first"},
    {"cache_salt", kText, "prompts are found in the cache only by requests with the same one"},
});

// read_narrowing() and refuse_impossible().
constexpr auto kNarrowing = std::to_array<ApiField>({
    {"bad_words",
     R"({"type":"array","maxItems":1024,"items":{"type":"string","pattern":"[^ ]","maxLength":256}})",
     "never said"},
    {"allowed_token_ids", R"({"type":"array","minItems":1,"items":{"$ref":"#/components/schemas/TokenId"}})",
     "no other token is said"},
    {"truncate_prompt_tokens", R"({"type":"integer","minimum":-1,"maximum":2147483647,"not":{"const":0}})",
     "a longer prompt is cut; -1: to what the model takes"},
    {"truncation_side", R"({"enum":["left","right"]})", "where it is cut"},
    {"repetition_detection", R"({"$ref":"#/components/schemas/RepetitionDetection"})",
     "an answer that repeats itself ends"},
    {"use_beam_search", kAnything, "false: answers are sampled"},
    {"logprob_token_ids", kAnything, "empty: not served"},
    {"prompt_embeds", kAnything, "empty: not served"},
    {"audio", kAnything, "nothing: answers are text"},
    {"functions", kAnything, "empty: send tools"},
    {"function_call", kAnything, "nothing: send tool_choice"},
    {"best_of", R"({"const":1})", "not more than n"},
});

// accept_harmless().
constexpr auto kHarmless = std::to_array<ApiField>({
    {"user", kAnything, "accepted, no effect"},
    {"metadata", kAnything, "accepted, no effect"},
    {"service_tier", kAnything, "accepted, no effect"},
    {"safety_identifier", kAnything, "accepted, no effect"},
    {"prompt_cache_key", kAnything, "accepted, no effect: prompts are found in the cache by themselves"},
    {"request_id", kAnything, "accepted, no effect: send X-Request-Id"},
    {"spaces_between_special_tokens", kAnything, "accepted, no effect"},
    {"length_penalty", kAnything, "accepted, no effect: of beam search"},
});

// What else read_common() reads.
constexpr auto kCommon = std::to_array<ApiField>({
    {"n", R"({"type":"integer","minimum":1,"maximum":128})", "answers to the same prompt"},
    {"stream", kFlag, "server-sent events"},
    {"stream_options", R"({"$ref":"#/components/schemas/StreamOptions"})", "only with stream"},
    {"response_format", R"({"$ref":"#/components/schemas/ResponseFormat"})",
     "text, any JSON, or JSON of a schema"},
    {"max_tokens", kFromOne, "of the answer"},
    {"max_completion_tokens", kFromOne, "the newer name of max_tokens"},
    {"stop", kStops, "texts that end the answer"},
    {"prompt_logprobs", kFromZero, "this many likeliest tokens for every place of the prompt"},
    {"return_token_ids", kFlag, "ids of prompt and answer"},
    {"return_tokens_as_token_ids", kFlag, "logprobs name tokens as token_id:N"},
});

// Also the prompt of /tokenize.
constexpr auto kPrompt = std::to_array<ApiField>({
    {"messages", R"({"type":"array","minItems":1,"items":{"$ref":"#/components/schemas/Message"}})",
     "the conversation so far"},
    {"tools", R"({"type":"array","items":{"$ref":"#/components/schemas/Tool"}})",
     "functions that may be called"},
    {"tool_choice", R"({"$ref":"#/components/schemas/ToolChoice"})", "whether one must be called, and which"},
    {"parallel_tool_calls", kFlag, "false: one call at most"},
    {"chat_template_kwargs", R"({"type":"object"})", "enable_thinking, and what else the template reads"},
    {"reasoning_effort", kEffort, "none: no reasoning"},
    {"continue_final_message", kFlag, "the answer goes on where the last message, an assistant's, ends"},
    {"add_generation_prompt", kFlag, "false: nobody's turn is opened"},
    {"chat_template", kAnything, "nothing: templates of requests are not run"},
    {"documents", kAnything, "empty: put them into a message"},
});

constexpr auto kChat = std::to_array<ApiField>({
    {"logprobs", kFlag, "the logarithm of each token's probability"},
    {"top_logprobs", R"({"type":"integer","minimum":0,"maximum":20})", "and those of the likeliest tokens"},
    {"modalities", R"({"type":"array","items":{"const":"text"}})", "answers are text"},
    {"include_reasoning", kFlag, "false: reasoning is not told"},
    {"echo", R"({"enum":[false]})", "completions do that"},
    {"add_special_tokens", kAnything, "accepted, no effect: the template writes <bos>"},
});

constexpr auto kCompletion = std::to_array<ApiField>({
    {"prompt", R"({"$ref":"#/components/schemas/Prompt"})", "text or token ids, one or several"},
    {"logprobs", R"({"type":"integer","minimum":0,"maximum":20})", "this many likeliest tokens"},
    {"echo", kFlag, "the answer begins with its prompt"},
    {"suffix", R"({"const":""})", "the model does not fill in the middle"},
    {"add_special_tokens", kFlag, "<bos> in front of a text"},
});

constexpr auto kStore = std::to_array<ApiField>({
    {"store", kAnything, "accepted, no effect: nothing is kept"},
});

constexpr auto kResponses = std::to_array<ApiField>({
    {"input", R"({"$ref":"#/components/schemas/ResponseInput"})", "a text, or the conversation so far"},
    {"instructions", kText, "the system message"},
    {"max_output_tokens", kFromOne, "of the answer"},
    {"stream", kFlag, "server-sent events"},
    {"stop", kStops, "texts that end the answer"},
    {"text", R"({"$ref":"#/components/schemas/ResponseText"})", "text, any JSON, or JSON of a schema"},
    {"reasoning", R"({"$ref":"#/components/schemas/ResponseReasoning"})", "how hard to think"},
    {"tools", R"({"type":"array","items":{"$ref":"#/components/schemas/ResponseTool"}})",
     "functions that may be called"},
    {"tool_choice", R"({"$ref":"#/components/schemas/ResponseToolChoice"})",
     "whether one must be called, and which"},
    {"parallel_tool_calls", kFlag, "false: one call at most"},
    {"chat_template_kwargs", R"({"type":"object"})", "enable_thinking, and what else the template reads"},
    {"top_logprobs", R"({"type":"integer","minimum":0,"maximum":20})", "of the likeliest tokens"},
    {"include", kTexts, "message.output_text.logprobs: the logarithm of each token's probability"},
    {"store", kFlag, "accepted, no effect: nothing is kept"},
    {"background", R"({"enum":[false]})", "answers are not kept"},
    {"previous_response_id", R"({"type":"null"})", "nothing is kept: send the whole conversation"},
    {"conversation", R"({"type":"null"})", "nothing is kept: send the whole conversation"},
    {"prompt", R"({"type":"null"})", "prompt templates are not kept"},
    {"max_tool_calls", kAnything, "accepted, no effect: of tools that a server runs"},
    {"stream_options", kAnything, "accepted, no effect"},
    {"truncation", kAnything, "accepted, no effect: what is too long is refused"},
    {"prompt_cache_retention", kAnything, "accepted, no effect"},
    {"prompt_cache_options", kAnything, "accepted, no effect"},
});

// Anthropic's.
constexpr auto kMessages = std::to_array<ApiField>({
    {"messages", R"({"type":"array","minItems":1,"items":{"$ref":"#/components/schemas/AnthropicMessage"}})",
     "the conversation so far"},
    {"system", R"({"$ref":"#/components/schemas/AnthropicText"})", "the system message"},
    {"max_tokens", kFromOne, "of the answer"},
    {"stop_sequences", kStopList, "texts that end the answer"},
    {"stream", kFlag, "server-sent events"},
    {"tools", R"({"type":"array","items":{"$ref":"#/components/schemas/AnthropicTool"}})",
     "functions that may be called"},
    {"tool_choice", R"({"$ref":"#/components/schemas/AnthropicToolChoice"})",
     "whether one must be called, and which"},
    {"thinking", R"({"$ref":"#/components/schemas/AnthropicThinking"})", "whether to think, and how long"},
    {"output_config", R"({"$ref":"#/components/schemas/AnthropicOutputConfig"})", "JSON of a schema"},
    {"chat_template_kwargs", R"({"type":"object"})", "enable_thinking, and what else the template reads"},
    {"cache_control", kAnything, "accepted, no effect: prompts are found in the cache by themselves"},
    {"container", kAnything, "accepted, no effect"},
    {"context_management", kAnything, "accepted, no effect"},
    {"diagnostics", kAnything, "accepted, no effect"},
    {"inference_geo", kAnything, "accepted, no effect"},
    {"speed", kAnything, "accepted, no effect"},
    {"betas", kAnything, "accepted, no effect"},
});

constexpr auto kTokenize = std::to_array<ApiField>({
    {"model", kText, "a name from /v1/models"},
    {"prompt", kText, "a text; else messages"},
    {"add_special_tokens", kFlag, "<bos> in front"},
    {"return_token_strs", kFlag, "each token's text too"},
});

constexpr auto kDetokenize = std::to_array<ApiField>({
    {"model", kText, "a name from /v1/models"},
    {"tokens", kIds, "ids to make text of"},
});

}  // namespace

std::span<const ApiBody> api_bodies() {
  static const auto bodies = std::to_array<ApiBody>({
      {"ChatRequest",
       {kPrompt, kChat, kCommon, kServing, kNarrowing, kHarmless, kStore},
       R"(["messages"])",
       R"({"messages":[{"role":"user","content":"Who are you?"}],"max_tokens":8})"},
      {"CompletionRequest",
       {kCompletion, kCommon, kServing, kNarrowing, kHarmless, kStore},
       R"(["prompt"])",
       R"({"prompt":"One, two,","max_tokens":8})"},
      {"ResponsesRequest",
       {kResponses, kServing, kNarrowing, kHarmless},
       R"(["input"])",
       R"({"input":"Who are you?","max_output_tokens":8})"},
      {"MessagesRequest",
       {kMessages, kServing, kNarrowing, kHarmless, kStore},
       R"(["messages","max_tokens"])",
       R"({"messages":[{"role":"user","content":"Who are you?"}],"max_tokens":8})"},
      {"CountTokensRequest",
       {kMessages, kServing, kNarrowing, kHarmless, kStore},
       R"(["messages"])",
       R"({"messages":[{"role":"user","content":"Who are you?"}]})"},
      {"TokenizeTextRequest", {kTokenize}, R"(["prompt"])", R"({"prompt":"One, two,"})"},
      {"TokenizeChatRequest",
       {kTokenize, kPrompt},
       R"(["messages"])",
       R"({"messages":[{"role":"user","content":"Who are you?"}]})"},
      {"DetokenizeRequest", {kDetokenize}, R"(["tokens"])", R"({"tokens":[2,3]})"},
  });
  return bodies;
}

std::span<const ApiOperation> api_operations() {
  static constexpr auto kOperations = std::to_array<ApiOperation>({
      {.method = "POST",
       .path = "/v1/chat/completions",
       .id = "createChatCompletion",
       .what = "Answers a conversation: text, pictures, tools",
       .body = "ChatRequest",
       .answer = "ChatCompletion",
       .streams = true},
      {.method = "POST",
       .path = "/v1/completions",
       .id = "createCompletion",
       .what = "Goes on with a prompt",
       .body = "CompletionRequest",
       .answer = "Completion",
       .streams = true},
      {.method = "POST",
       .path = "/v1/responses",
       .id = "createResponse",
       .what = "Answers a conversation in the shape of OpenAI's Responses; nothing is kept",
       .body = "ResponsesRequest",
       .answer = "Response",
       .streams = true},
      {.method = "POST",
       .path = "/v1/responses/input_tokens",
       .id = "countResponseTokens",
       .what = "How many tokens a Responses request has",
       .body = "ResponsesRequest",
       .answer = "TokenCount"},
      {.method = "GET",
       .path = "/v1/responses/{id}",
       .id = "getResponse",
       .what = "404: nothing is kept",
       .answer = "Response"},
      {.method = "DELETE",
       .path = "/v1/responses/{id}",
       .id = "deleteResponse",
       .what = "404: nothing is kept",
       .answer = "Response"},
      {.method = "POST",
       .path = "/v1/messages",
       .id = "createMessage",
       .what = "Answers a conversation in the shape of Anthropic's Messages",
       .body = "MessagesRequest",
       .answer = "AnthropicAnswer",
       .streams = true},
      {.method = "POST",
       .path = "/v1/messages/count_tokens",
       .id = "countMessageTokens",
       .what = "How many tokens a Messages request has",
       .body = "CountTokensRequest",
       .answer = "TokenCount"},
      {.method = "GET",
       .path = "/health/deep",
       .id = "deepHealth",
       .what = "Answers golden prompts and compares; also /health?deep=1",
       .answer = "DeepHealth"},
      {.method = "GET",
       .path = "/v1/models",
       .id = "listModels",
       .what = "The model, by each of its names",
       .answer = "ModelList"},
      {.method = "POST",
       .path = "/tokenize",
       .id = "tokenize",
       .what = "The token ids of a prompt or a conversation",
       .body = "TokenizeTextRequest",
       .other_body = "TokenizeChatRequest",
       .answer = "Tokens"},
      {.method = "POST",
       .path = "/detokenize",
       .id = "detokenize",
       .what = "The text of token ids",
       .body = "DetokenizeRequest",
       .answer = "DetokenizedText"},
      {.method = "GET",
       .path = "/health",
       .id = "health",
       .what = "200 while requests are taken",
       .text_answer = "text/plain"},
      {.method = "GET",
       .path = "/ping",
       .id = "ping",
       .what = "The same as /health",
       .text_answer = "text/plain"},
      {.method = "POST",
       .path = "/ping",
       .id = "pingByPost",
       .what = "The same as /health",
       .text_answer = "text/plain"},
      {.method = "GET",
       .path = "/version",
       .id = "version",
       .what = "The server's version",
       .answer = "Version"},
      {.method = "GET",
       .path = "/load",
       .id = "load",
       .what = "How many requests are under way",
       .answer = "Load"},
      {.method = "GET",
       .path = "/metrics",
       .id = "metrics",
       .what = "For Prometheus, under vLLM's names",
       .text_answer = "text/plain"},
      {.method = "GET",
       .path = "/openapi.json",
       .id = "openapi",
       .what = "This document",
       .answer = "Document"},
  });
  return kOperations;
}

}  // namespace jewel
