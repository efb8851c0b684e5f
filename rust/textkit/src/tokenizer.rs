//! tokenizer.json, by the reference implementation.
