// textkit: the C border of the Rust static library (rust/textkit): tokenizer, chat template, image decoding.
//
// Rules that hold for every function:
// - Inputs are pointer + length. Nothing is NUL-terminated, embedded NULs are data. (NULL, 0) is the empty input. Inputs are
//   only read during the call.
// - Outputs of type tk_buffer are allocated by textkit and belong to the caller, who frees them with tk_buffer_free. An out
//   parameter is overwritten without being freed first, and is written on success only, unless its comment says otherwise.
// - A function that can fail returns a tk_status. `error` (may be NULL) then holds a message in UTF-8, to be freed like any
//   buffer; on success it is the empty buffer.
// - No Rust panic leaves the library: it is caught and returned as TK_PANIC. Nothing is printed.
// - Threads: functions without a handle may be called from any thread at any time. A handle (tk_tokenizer, tk_template)
//   is immutable after its creation and may be used by several threads at once; freeing it while it is in use is an error.
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

// ---- images (src/image.rs) ------------------------------------------------------------------------------------------

#ifdef __cplusplus
}  // extern "C"
#endif
