//! Takes the identity that a primary passed to this process out of the environment.

use std::ffi::{OsStr, OsString};
use std::io;

/// Returns true if this process has exactly one thread, so that no other can read the environment
/// while it changes.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn is_single_threaded() -> io::Result<bool> {
    Ok(std::fs::read_dir("/proc/self/task")?.count() == 1)
}

/// Removes variables from the environment and returns them. Returns `None`, and changes nothing, if
/// this process has several threads.
///
/// # Errors
/// If `/proc` cannot be read, so that the number of threads is unknown.
pub fn take<const N: usize>(names: [&str; N]) -> io::Result<Option<[Option<OsString>; N]>> {
    if names.iter().all(|name| std::env::var_os(name).is_none()) {
        return Ok(Some([const { None }; N]));
    }
    if !is_single_threaded()? {
        return Ok(None);
    }
    Ok(Some(names.map(|name| {
        let value = std::env::var_os(name);
        if value.is_some() {
            remove(name.as_ref());
        }
        value
    })))
}

fn remove(name: &OsStr) {
    // SAFETY: `take` has just seen that this is the only thread of the process, and a thread can
    // only be started by a running one, so nothing else can be reading or writing the environment.
    unsafe { std::env::remove_var(name) }
}

/// Returns the variables with which this process was started, or the current ones if `/proc` cannot
/// be read.
#[must_use]
pub fn at_start<const N: usize>(names: [&str; N]) -> [Option<OsString>; N] {
    use std::os::unix::ffi::OsStrExt as _;
    let Ok(all) = std::fs::read("/proc/self/environ") else { return names.map(std::env::var_os) };
    names.map(|name| {
        let value = |entry: &[u8]| {
            Some(
                OsStr::from_bytes(entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?)
                    .to_owned(),
            )
        };
        all.split(|byte| *byte == 0).find_map(value)
    })
}
