//! textkit: tokenizer, chat template and image decoding for Jewel, behind include/textkit.h, which documents the border:
//! pointer and length everywhere, every panic caught, every allocation freed by the function named beside it.

mod error;
mod image;
mod python;
mod template;
mod tokenizer;
