//! textkit: tokenizer, chat template, grammars and image decoding for Jewel, behind include/textkit.h, which documents the border:
//! pointer and length everywhere, every panic caught, every allocation freed by the function named beside it.

mod error;
mod grammar;
mod image;
mod python;
mod template;
mod tokenizer;
