//! Signals while one program image takes the place of another.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

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

/// Executes a program in place of this one, with all signals blocked: those that come before it
/// [handles](unblock_all) them wait, and do not end it. Returns only on failure; signals are as they
/// were then.
pub fn execute(command: &mut Command) -> io::Error {
    // SAFETY: all zeroes is a value of the set, which the call fills.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: without a new mask the call only writes to `before`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &raw mut before) };
    // The standard library unblocks signals before it executes a program, but not after this.
    // SAFETY: nothing was forked: the closure runs in this thread, and makes one system call.
    unsafe {
        command.pre_exec(|| {
            set_mask(|set| libc::sigfillset(set));
            Ok(())
        });
    }
    let error = command.exec();
    // SAFETY: `before` was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    error
}
