// textkit: the C border of the Rust static library (rust/textkit): tokenizer, chat template, grammars, image
// decoding.
//
// Rules that hold for every function:
// - Inputs are pointer + length. Nothing is NUL-terminated, embedded NULs are data. (NULL, 0) is the empty
// input. Inputs are
//   only read during the call.
// - Outputs of type tk_buffer are allocated by textkit and belong to the caller, who frees them with
// tk_buffer_free. An out
//   parameter is overwritten without being freed first, and is written on success only, unless its comment
//   says otherwise.
// - A function that can fail returns a tk_status. `error` (may be NULL) then holds a message in UTF-8, to be
// freed like any
//   buffer; on success it is the empty buffer.
// - No Rust panic leaves the library: it is caught and returned as TK_PANIC. Nothing is printed.
// - Threads: functions without a handle may be called from any thread at any time. A handle (tk_tokenizer,
// tk_template)
//   is immutable after its creation and may be used by several threads at once; freeing it while it is in use
//   is an error.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tk_status {
  TK_OK = 0,
  TK_INVALID = 1,      // the input is wrong
  TK_TOO_LARGE = 2,    // a limit was passed
  TK_UNSUPPORTED = 3,  // well-formed, but not done here
  TK_PANIC = 4,        // a bug in a library, caught
} tk_status;

// Bytes owned by the caller; {NULL, 0} when empty.
typedef struct tk_buffer {
  uint8_t* data;
  size_t size;
} tk_buffer;

// Frees and empties *buffer. NULL and empty buffers are allowed.
void tk_buffer_free(tk_buffer* buffer);

// ---- tokenizer (src/tokenizer.rs)
// ------------------------------------------------------------------------------------

typedef struct tk_tokenizer tk_tokenizer;

// A token, as the detokenizer sees it: one of HOLE (no token has this id), TEXT, BYTE; and SPECIAL as a flag.
enum { TK_TOKEN_HOLE = 0, TK_TOKEN_TEXT = 1, TK_TOKEN_BYTE = 2, TK_TOKEN_SPECIAL = 4 };

// From the bytes of a tokenizer.json. TK_UNSUPPORTED when its decoder is not Gemma's or a special token has
// strip flags.
int32_t tk_tokenizer_new(const uint8_t* json, size_t size, tk_tokenizer** out, tk_buffer* error);
void tk_tokenizer_free(tk_tokenizer* tokenizer);  // NULL is allowed

// Ids of a text, as an array of uint32 in `ids`. Special tokens in the text are text. Nothing is added in
// front or behind.
int32_t tk_tokenizer_encode(const tk_tokenizer* tokenizer, const uint8_t* text, size_t size, tk_buffer* ids,
                            tk_buffer* error);

// The reference's decoding of a whole sequence; ids without a token are passed over.
int32_t tk_tokenizer_decode(const tk_tokenizer* tokenizer, const uint32_t* ids, size_t count,
                            int32_t skip_special, tk_buffer* text, tk_buffer* error);

// The id of a token by its exact spelling in the vocabulary, -1 when there is none.
int64_t tk_tokenizer_id(const tk_tokenizer* tokenizer, const uint8_t* token, size_t size);

// What every id prints. For id i: kinds[i] (uint8), and the bytes pieces[ends[i-1] .. ends[i]) (ends: uint32,
// ends[-1] = 0),
// "\u2581" already replaced by a space, a byte token as its one byte. There are as many rows as the largest
// id plus one.
int32_t tk_tokenizer_table(const tk_tokenizer* tokenizer, tk_buffer* pieces, tk_buffer* ends,
                           tk_buffer* kinds, tk_buffer* error);

// ---- chat template (src/template.rs)
// -----------------------------------------------------------------------------------

typedef struct tk_template tk_template;

// Compiles a Jinja template. Messages of errors name the template's line.
int32_t tk_template_new(const uint8_t* source, size_t size, tk_template** out, tk_buffer* error);
void tk_template_free(tk_template* chat_template);  // NULL is allowed

// Renders it with the variables of a JSON object (at most 127 levels deep). `now` is what strftime_now
// prints, in seconds since 1970. TK_TOO_LARGE when the rendering takes too many steps.
int32_t tk_template_render(const tk_template* chat_template, const uint8_t* variables, size_t size,
                           int64_t now, tk_buffer* text, tk_buffer* error);

// ---- grammars (src/grammar.rs)
// ---------------------------------------------------------------------------------------

// What every id prints, as a trie; made once per model, used by many threads at once.
typedef struct tk_vocabulary tk_vocabulary;

// `vocab_size`: of the model, at least the tokenizer's. `stops`: the ids that may follow a complete answer.
int32_t tk_vocabulary_new(const tk_tokenizer* tokenizer, size_t vocab_size, const uint32_t* stops,
                          size_t n_stops, tk_vocabulary** out, tk_buffer* error);
void tk_vocabulary_free(tk_vocabulary* vocabulary);  // NULL is allowed

// Where one sequence stands in a grammar. One thread at a time uses a matcher, whichever it is.
typedef struct tk_matcher tk_matcher;

// What the text is: a JSON schema; a regular expression for the whole answer (Rust's syntax, no look-around);
// a grammar in llguidance's dialect of Lark, with <[48]> for token 48.
enum { TK_GRAMMAR_JSON_SCHEMA = 1, TK_GRAMMAR_REGEX = 2, TK_GRAMMAR_LARK = 3 };

// At the grammar's start. Time and memory are bounded (TK_INVALID says which bound); `vocabulary` may be
// freed before the matcher.
int32_t tk_matcher_new(const tk_vocabulary* vocabulary, int32_t kind, const uint8_t* text, size_t size,
                       tk_matcher** out, tk_buffer* error);
// A matcher of its own that stands at the same place; several threads may clone one that nobody moves.
int32_t tk_matcher_clone(const tk_matcher* matcher, tk_matcher** out, tk_buffer* error);
void tk_matcher_free(tk_matcher* matcher);  // NULL is allowed

// The ids that may come next: bit id % 32 of word id / 32, (vocab_size + 31) / 32 words.
int32_t tk_matcher_mask(tk_matcher* matcher, uint32_t* words, size_t n_words, tk_buffer* error);
// Moves on by one id. TK_INVALID when the grammar does not allow it; the matcher is then of no more use.
int32_t tk_matcher_push(tk_matcher* matcher, uint32_t id, tk_buffer* error);
// 1: the answer may end here.
int32_t tk_matcher_accepts(tk_matcher* matcher);

// ---- images (src/image.rs)
// ------------------------------------------------------------------------------------------

// What the bytes are; the caller has looked at their first few.
enum { TK_IMAGE_PNG = 1, TK_IMAGE_WEBP = 2, TK_IMAGE_GIF = 3, TK_IMAGE_BMP = 4 };

// Reads the header alone: width and height in pixels, before any orientation tag. Memory used does not depend
// on them.
int32_t tk_image_size(int32_t format, const uint8_t* data, size_t size, uint32_t* width, uint32_t* height,
                      tk_buffer* error);

// Decodes (of a GIF or an animation: the first frame) into `rgb` [height, width, 3], whose size must be just
// that for the size that tk_image_size gave. On failure the contents of `rgb` are unspecified.
int32_t tk_image_decode(int32_t format, const uint8_t* data, size_t size, uint8_t* rgb, size_t rgb_size,
                        tk_buffer* error);

#ifdef __cplusplus
}  // extern "C"
#endif
