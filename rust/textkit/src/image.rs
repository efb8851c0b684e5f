//! Decoding of PNG, WebP, GIF (first frame) and BMP into 8-bit RGB, as Pillow's `convert("RGB")` gives it: alpha is dropped
//! without compositing, 16-bit colour keeps its high byte, 16-bit gray is clipped at 255.
//!
//! Two calls: `tk_image_size` reads the header, so that the caller can refuse a size before a single pixel is allocated;
//! `tk_image_decode` fills the caller's buffer.

use std::io::Cursor;

use image::codecs::{bmp::BmpDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, ImageError, Limits};

use crate::error::{bytes, guard, Buffer, Error, Result};

const PNG: i32 = 1;
const WEBP: i32 = 2;
const GIF: i32 = 3;
const BMP: i32 = 4;

/// What a file may make the PNG reader hold besides its pixels (text, profiles, one row).
const PNG_SIDE_BYTES: u64 = 64 << 20;

fn invalid(what: &str, e: impl std::fmt::Display) -> Error {
    Error::invalid(format!("broken {what}: {e}"))
}

fn from_image(what: &'static str) -> impl Fn(ImageError) -> Error {
    move |e| match e {
        ImageError::Limits(_) => Error::too_large(format!("{what}: {e}")),
        ImageError::Unsupported(_) => Error::unsupported(format!("{what}: {e}")),
        e => invalid(what, e),
    }
}

/// The decoder of a file whose header was read.
enum Opened<'a> {
    Generic(Generic<'a>),
    Gif(Box<GifFrame<'a>>),
}

/// One of `image`'s decoders, and where the reference's result is not what that decoder's own conversion gives.
struct Generic<'a> {
    what: &'static str,
    decoder: Box<dyn ImageDecoder + 'a>,
    quirk: Quirk,
}

#[derive(Clone, Copy, PartialEq)]
enum Quirk {
    None,
    /// A gray PNG: an alpha channel is a tRNS colour, expanded by the decoder, and the samples are still plain gray.
    GrayPng,
    /// A BMP of 16 bits a pixel: Pillow widens a channel of n bits by v * 255 / (2^n - 1) rounded down, `image` to nearest.
    Bmp16 {
        green_bits: u32,
    },
}

impl<'a> Generic<'a> {
    fn png(data: &'a [u8]) -> Result<Self> {
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(PNG_SIDE_BYTES);
        let decoder = PngDecoder::with_limits(Cursor::new(data), limits).map_err(from_image("PNG"))?;
        const COLOR_TYPE: usize = 25; // in the header chunk, which stands first
        let quirk = if data.get(COLOR_TYPE) == Some(&0) {
            Quirk::GrayPng
        } else {
            Quirk::None
        };
        Ok(Self {
            what: "PNG",
            decoder: Box::new(decoder),
            quirk,
        })
    }

    fn webp(data: &'a [u8]) -> Result<Self> {
        let decoder = WebPDecoder::new(Cursor::new(data)).map_err(from_image("WebP"))?;
        Ok(Self {
            what: "WebP",
            decoder: Box::new(decoder),
            quirk: Quirk::None,
        })
    }

    fn bmp(data: &'a [u8]) -> Result<Self> {
        let decoder = BmpDecoder::new(Cursor::new(data)).map_err(from_image("BMP"))?;
        // After the 14-byte file header: header size, width, height, planes, bits, compression; channel masks at 54.
        let u32_at = |at: usize| {
            data.get(at..at + 4)
                .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        };
        let (header, bits, compression) = (u32_at(14), u32_at(28) & 0xFFFF, u32_at(30));
        const BITFIELDS: u32 = 3;
        let quirk = match bits {
            16 if header >= 40 => {
                let six = compression == BITFIELDS && u32_at(58) == 0x7E0;
                Quirk::Bmp16 {
                    green_bits: if six { 6 } else { 5 },
                }
            }
            _ => Quirk::None,
        };
        Ok(Self {
            what: "BMP",
            decoder: Box::new(decoder),
            quirk,
        })
    }
}

fn open(format: i32, data: &[u8]) -> Result<Opened<'_>> {
    Ok(match format {
        PNG => Opened::Generic(Generic::png(data)?),
        WEBP => Opened::Generic(Generic::webp(data)?),
        BMP => Opened::Generic(Generic::bmp(data)?),
        GIF => Opened::Gif(Box::new(GifFrame::open(data)?)),
        other => {
            return Err(Error::invalid(format!(
                "image format {other} is not one of textkit.h's"
            )))
        }
    })
}

impl Opened<'_> {
    fn size(&self) -> (u32, u32) {
        match self {
            Opened::Generic(generic) => generic.decoder.dimensions(),
            Opened::Gif(gif) => gif.canvas,
        }
    }

    fn decode(self, rgb: &mut [u8]) -> Result<()> {
        match self {
            Opened::Generic(generic) => {
                let quirk = generic.quirk;
                decode_generic(generic, rgb)?;
                if let Quirk::Bmp16 { green_bits } = quirk {
                    round_down(rgb, green_bits);
                }
                Ok(())
            }
            Opened::Gif(gif) => gif.decode(rgb),
        }
    }
}

/// From channels widened to the nearest byte to those rounded down.
fn round_down(rgb: &mut [u8], green_bits: u32) {
    let table = |bits: u32| {
        let top = (1u32 << bits) - 1;
        let mut table = [0u8; 256];
        (0..=top).for_each(|v| table[((v * 255 + top / 2) / top) as usize] = (v * 255 / top) as u8);
        table
    };
    let (five, green) = (table(5), table(green_bits));
    for pixel in rgb.chunks_exact_mut(3) {
        pixel[0] = five[usize::from(pixel[0])];
        pixel[1] = green[usize::from(pixel[1])];
        pixel[2] = five[usize::from(pixel[2])];
    }
}

fn decode_generic(generic: Generic<'_>, rgb: &mut [u8]) -> Result<()> {
    let Generic { what, decoder, quirk } = generic;
    let color = decoder.color_type();
    if color == ColorType::Rgb8 {
        return decoder.read_image_boxed(rgb).map_err(from_image(what));
    }
    let pixels = rgb.len() / 3;
    let mut raw = Vec::new();
    raw.try_reserve_exact(pixels * usize::from(color.bytes_per_pixel()))
        .map_err(|e| Error::too_large(format!("{what}: {e}")))?;
    raw.resize(pixels * usize::from(color.bytes_per_pixel()), 0);
    decoder.read_image_boxed(&mut raw).map_err(from_image(what))?;

    let word = |two: &[u8]| u16::from_ne_bytes([two[0], two[1]]);
    let high = |two: &[u8]| (word(two) >> 8) as u8;
    let mut each = |n: usize, f: &dyn Fn(&[u8]) -> [u8; 3]| {
        for (out, pixel) in rgb.chunks_exact_mut(3).zip(raw.chunks_exact(n)) {
            out.copy_from_slice(&f(pixel));
        }
    };
    match color {
        ColorType::L8 => each(1, &|p| [p[0]; 3]),
        ColorType::La8 => each(2, &|p| [p[0]; 3]),
        ColorType::Rgba8 => each(4, &|p| [p[0], p[1], p[2]]),
        // Pillow keeps 16-bit gray as integers and clips them on the way to RGB, unlike every other 16-bit kind.
        ColorType::L16 => each(2, &|p| [word(p).min(255) as u8; 3]),
        ColorType::La16 if quirk == Quirk::GrayPng => each(4, &|p| [word(p).min(255) as u8; 3]),
        ColorType::La16 => each(4, &|p| [high(p); 3]),
        ColorType::Rgb16 => each(6, &|p| [high(p), high(&p[2..]), high(&p[4..])]),
        ColorType::Rgba16 => each(8, &|p| [high(p), high(&p[2..]), high(&p[4..])]),
        other => return Err(Error::unsupported(format!("{what} with pixels of kind {other:?}"))),
    }
    Ok(())
}

/// The first frame of a GIF on its canvas. The `gif` crate is used below `image`'s wrapper, because that one gives
/// transparent pixels no colour, while the reference paints them in the palette's.
struct GifFrame<'a> {
    reader: gif::Decoder<&'a [u8]>,
    canvas: (u32, u32), // the logical screen, grown to hold the frame
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    transparent: Option<u8>,
    palette: [[u8; 3]; 256],
}

impl<'a> GifFrame<'a> {
    fn open(data: &'a [u8]) -> Result<Self> {
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::Indexed);
        options.allow_unknown_blocks(true);
        let mut reader = options.read_info(data).map_err(|e| invalid("GIF", e))?;
        let screen = (u32::from(reader.width()), u32::from(reader.height()));
        let global = reader.global_palette().map(<[u8]>::to_vec);
        let frame = reader
            .next_frame_info()
            .map_err(|e| invalid("GIF", e))?
            .ok_or_else(|| Error::invalid("broken GIF: it holds no image"))?;
        let (left, top) = (usize::from(frame.left), usize::from(frame.top));
        let (width, height) = (usize::from(frame.width), usize::from(frame.height));
        let canvas = (screen.0.max((left + width) as u32), screen.1.max((top + height) as u32));
        let transparent = frame.transparent;

        // Without any palette indices are gray levels; entries past the end of one are black.
        let mut palette = [[0u8; 3]; 256];
        match frame.palette.as_ref().or(global.as_ref()) {
            Some(colors) => {
                for (entry, color) in palette.iter_mut().zip(colors.chunks_exact(3)) {
                    entry.copy_from_slice(color);
                }
            }
            None => (0..256).for_each(|i| palette[i] = [i as u8; 3]),
        }
        Ok(Self {
            reader,
            canvas,
            left,
            top,
            width,
            height,
            transparent,
            palette,
        })
    }

    fn decode(mut self, rgb: &mut [u8]) -> Result<()> {
        let mut indices = vec![0u8; self.width * self.height];
        if self.reader.buffer_size() != indices.len() {
            return Err(Error::invalid("broken GIF: the frame's size changed"));
        }
        self.reader
            .read_into_buffer(&mut indices)
            .map_err(|e| invalid("GIF", e))?;

        let outside = self.palette[usize::from(self.transparent.unwrap_or(0))];
        rgb.chunks_exact_mut(3)
            .for_each(|pixel| pixel.copy_from_slice(&outside));
        if self.width == 0 {
            return Ok(());
        }
        let row_bytes = self.canvas.0 as usize * 3;
        for (y, row) in indices.chunks_exact(self.width).enumerate() {
            let start = (self.top + y) * row_bytes + self.left * 3;
            for (pixel, &index) in rgb[start..].chunks_exact_mut(3).zip(row) {
                pixel.copy_from_slice(&self.palette[usize::from(index)]);
            }
        }
        Ok(())
    }
}

/// # Safety
/// As textkit.h says: `data` holds `size` bytes, `width` and `height` are writable, `error` is null or writable.
#[no_mangle]
pub unsafe extern "C" fn tk_image_size(
    format: i32,
    data: *const u8,
    size: usize,
    width: *mut u32,
    height: *mut u32,
    error: *mut Buffer,
) -> i32 {
    guard(error, || {
        let found = open(format, bytes(data, size))?.size();
        *width = found.0;
        *height = found.1;
        Ok(())
    })
}

/// # Safety
/// As textkit.h says: `data` holds `size` bytes, `rgb` is writable for `rgb_size`, `error` is null or writable.
#[no_mangle]
pub unsafe extern "C" fn tk_image_decode(
    format: i32,
    data: *const u8,
    size: usize,
    rgb: *mut u8,
    rgb_size: usize,
    error: *mut Buffer,
) -> i32 {
    guard(error, || {
        let opened = open(format, bytes(data, size))?;
        let (width, height) = opened.size();
        let expected = (width as usize)
            .checked_mul(height as usize)
            .and_then(|n| n.checked_mul(3));
        if expected != Some(rgb_size) || rgb_size == 0 {
            return Err(Error::invalid(format!(
                "a buffer of {rgb_size} bytes for {width} x {height} RGB"
            )));
        }
        opened.decode(std::slice::from_raw_parts_mut(rgb, rgb_size))
    })
}
