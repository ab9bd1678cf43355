//! Signals as bytes on a socket, and while one program image takes the place of another.

use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use rustix::net::SendFlags;

use crate::execute;

/// Catches signals: returns a non-blocking socket that receives the number of each one as a byte, for
/// as long as the process lives. Those that arrive while its buffer is full are lost.
///
/// # Errors
///
/// Those of `socketpair(2)` and `sigaction(2)`.
///
/// # Panics
///
/// For signals that cannot be caught, as `SIGKILL`.
pub fn catch(signals: &[i32]) -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    let writer = Arc::new(writer);
    for &signal in signals {
        let number = u8::try_from(signal).map_err(io::Error::other)?;
        let writer = writer.clone();
        let write = move || {
            // Nothing can be done about a full buffer here.
            let _ = rustix::net::send(&*writer, &[number], SEND_FLAGS);
        };
        // SAFETY: all that the action does is `send(2)`, which is allowed in signal handlers.
        unsafe { signal_hook::low_level::register(signal, write) }?;
    }
    Ok(reader)
}

/// Of what a signal handler sends: it must not wait, nor end the process once nobody reads.
#[cfg(not(target_vendor = "apple"))]
const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
#[cfg(target_vendor = "apple")]
const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT;

fn set_mask(how: fn(*mut libc::sigset_t) -> libc::c_int) {
    // SAFETY: all zeroes is a value of the set, which is initialised before it is read; the calls
    // fail for invalid numbers only.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        how(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Has this thread handle signals, whatever the program that executed this one has blocked.
pub fn unblock_all() {
    // SAFETY: the function fills the set that it is given.
    set_mask(|set| unsafe { libc::sigemptyset(set) });
}

/// The signals that a thread has blocked.
pub(crate) struct Mask(libc::sigset_t);

/// Blocks all signals of this thread.
pub(crate) fn block_all() -> Mask {
    // SAFETY: all zeroes is a value of the set; without a new mask the call only fills it.
    let before = unsafe {
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &raw mut before);
        before
    };
    // SAFETY: the function fills the set that it is given.
    set_mask(|set| unsafe { libc::sigfillset(set) });
    Mask(before)
}

/// Blocks those that were blocked before.
pub(crate) fn restore(before: &Mask) {
    // SAFETY: the set was filled by the system.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before.0, std::ptr::null_mut()) };
}

/// [Executes](execute::execute) a program in place of this one, with all signals blocked: those that
/// come before it [handles](unblock_all) them wait, and do not end it. Returns only on failure; signals
/// are as they were then.
pub fn execute(
    command: &mut Command,
    prepare: impl FnOnce() -> io::Result<()> + Send,
) -> io::Error {
    // SAFETY: all zeroes is a value of the action, which the call fills without a new one.
    let of_pipes = unsafe {
        let mut of_pipes: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut of_pipes);
        of_pipes
    };
    // The standard library unblocks signals before it executes a program, and has `SIGPIPE` end it,
    // but not after this.
    // SAFETY: nothing was forked: the closure runs in this process, and makes two system calls.
    unsafe {
        command.pre_exec(move || {
            set_mask(|set| libc::sigfillset(set));
            libc::sigaction(libc::SIGPIPE, &raw const of_pipes, std::ptr::null_mut());
            Ok(())
        });
    }
    // This thread handles signals, and does not any more while the other one executes the program.
    let before = block_all();
    let error = execute::execute(command, prepare);
    restore(&before);
    error
}
