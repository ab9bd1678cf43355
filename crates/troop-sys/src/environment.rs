//! The identity that a primary gave this process through its environment, taken out of it.

use std::ffi::{OsStr, OsString};
use std::io;

/// True if this process has exactly one thread, so that nothing can read the environment while it changes.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn is_single_threaded() -> io::Result<bool> {
    Ok(std::fs::read_dir("/proc/self/task")?.count() == 1)
}

/// Takes variables out of the environment, if this process has only one thread; `None` otherwise, with nothing changed.
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
    // SAFETY: `take` has just seen that this is the only thread of the process, and a thread can only be started by a running one,
    // so nothing else can be reading or writing the environment.
    unsafe { std::env::remove_var(name) }
}
