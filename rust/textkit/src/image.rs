//! Decoding of PNG, WebP, GIF and BMP.
