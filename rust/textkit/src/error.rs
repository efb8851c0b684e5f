//! What every entry point shares: no panic and no Rust type crosses the C border.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

/// `tk_status` in the header.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok = 0,
    Invalid = 1,
    TooLarge = 2,
    Unsupported = 3,
    Panic = 4,
}

#[derive(Debug)]
pub struct Error {
    pub status: Status,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn invalid(message: impl Into<String>) -> Self {
        Self {
            status: Status::Invalid,
            message: message.into(),
        }
    }
    pub fn too_large(message: impl Into<String>) -> Self {
        Self {
            status: Status::TooLarge,
            message: message.into(),
        }
    }
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self {
            status: Status::Unsupported,
            message: message.into(),
        }
    }
}

/// `tk_buffer`: bytes allocated here, given to the caller, who returns them through `tk_buffer_free`.
#[repr(C)]
pub struct Buffer {
    pub data: *mut u8,
    pub size: usize,
}

impl Buffer {
    pub const EMPTY: Buffer = Buffer {
        data: std::ptr::null_mut(),
        size: 0,
    };

    pub fn from_vec(bytes: Vec<u8>) -> Self {
        if bytes.is_empty() {
            return Self::EMPTY;
        }
        let boxed = bytes.into_boxed_slice();
        let size = boxed.len();
        Buffer {
            data: Box::into_raw(boxed) as *mut u8,
            size,
        }
    }
}

/// # Safety
/// `buffer` is null or points to a Buffer that this library filled (or that is zeroed) and that was not freed yet.
#[no_mangle]
pub unsafe extern "C" fn tk_buffer_free(buffer: *mut Buffer) {
    if buffer.is_null() || (*buffer).data.is_null() {
        return;
    }
    let b = std::mem::replace(&mut *buffer, Buffer::EMPTY);
    drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(b.data, b.size)));
}

static QUIET: Once = Once::new();

/// Runs the body of an entry point: an Err or a panic becomes a status, with its text in `error` when that is not null.
///
/// # Safety
/// `error` is null or points to writable memory for a Buffer; its former content is overwritten, not freed.
pub unsafe fn guard(error: *mut Buffer, body: impl FnOnce() -> Result<()>) -> i32 {
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    if !error.is_null() {
        *error = Buffer::EMPTY;
    }
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(|s| s.to_string())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "unknown".into());
        Err(Error {
            status: Status::Panic,
            message: format!("a library panicked: {text}"),
        })
    });
    match outcome {
        Ok(()) => Status::Ok as i32,
        Err(e) => {
            if !error.is_null() {
                *error = Buffer::from_vec(e.message.into_bytes());
            }
            e.status as i32
        }
    }
}

/// The caller's bytes as a slice; a null pointer with size 0 is the empty slice.
///
/// # Safety
/// `data` points to `size` readable bytes that outlive the returned slice, or size is 0.
pub unsafe fn bytes<'a>(data: *const u8, size: usize) -> &'a [u8] {
    if size == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, size)
    }
}

/// The same as text.
///
/// # Safety
/// As `bytes`.
pub unsafe fn text<'a>(data: *const u8, size: usize, what: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes(data, size))
        .map_err(|e| Error::invalid(format!("{what}: not UTF-8 at byte {}", e.valid_up_to())))
}
