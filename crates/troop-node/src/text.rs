//! Reads JavaScript strings into a reused buffer. napi-rs asks for the length first, which takes as
//! long as the copy.
#![allow(unsafe_code)]

use std::ptr;

use napi::bindgen_prelude::Unknown;
use napi::{Error, JsValue as _, Result, Status, sys};

/// The initial size of the buffer, and the size that is kept.
const BUFFER_SIZE: usize = 16 * 1024;
/// Node-API copies whole characters and a NUL byte; with less than this left, the text may be
/// incomplete.
const MIN_SPARE: usize = 5;

/// Replaces the content of `room` by the UTF-8 of a string.
pub(crate) fn read(text: &Unknown<'_>, room: &mut Vec<u8>) -> Result<()> {
    room.clear();
    room.shrink_to(BUFFER_SIZE);
    room.reserve(BUFFER_SIZE);
    if copy(text, room)? + MIN_SPARE > room.capacity() {
        let value = text.value();
        let mut length = 0;
        // SAFETY: the value is alive, as `text` is; without room this only counts.
        check(unsafe {
            sys::napi_get_value_string_utf8(value.env, value.value, ptr::null_mut(), 0, &mut length)
        })?;
        room.reserve(length + MIN_SPARE);
        copy(text, room)?;
    }
    Ok(())
}

/// Copies as much as fits.
fn copy(text: &Unknown<'_>, room: &mut Vec<u8>) -> Result<usize> {
    let value = text.value();
    let mut length = 0;
    room.clear();
    // SAFETY: the value is alive, as `text` is, and the room as large as is said, including the
    // zero at the end.
    check(unsafe {
        sys::napi_get_value_string_utf8(
            value.env,
            value.value,
            room.as_mut_ptr().cast(),
            room.capacity(),
            &mut length,
        )
    })?;
    // SAFETY: so many bytes have been written.
    unsafe { room.set_len(length) };
    Ok(length)
}

fn check(status: sys::napi_status) -> Result<()> {
    match Status::from(status) {
        Status::Ok => Ok(()),
        status => Err(Error::new(status, "a message that is no text")),
    }
}
