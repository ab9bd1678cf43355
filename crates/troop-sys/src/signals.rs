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
/// [handles](unblock_all) them wait, and do not end it. Returns only on failure; signals and the
/// working directory are as they were then.
///
/// A thread executes it that has the descriptors for itself, after it has called `prepare`: which of
/// them the program inherits does not concern the programs that other threads start at this moment.
pub fn execute(
    command: &mut Command,
    prepare: impl FnOnce() -> io::Result<()> + Send,
) -> io::Error {
    let directory = std::fs::File::open(".");
    // SAFETY: all zeroes is a value of the set and of the action, which the calls fill.
    let (mut before, mut of_pipes): (libc::sigset_t, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: without a new mask or action the calls only write to these.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &raw mut before);
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut of_pipes);
    }
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
    // SAFETY: the function fills the set that it is given.
    set_mask(|set| unsafe { libc::sigfillset(set) });
    let error = std::thread::scope(|scope| {
        let execute = || match own_descriptors().and_then(|()| prepare()) {
            Ok(()) => command.exec(),
            Err(e) => e,
        };
        let thread = std::thread::Builder::new().name("troop-execute".into());
        match thread.spawn_scoped(scope, execute).map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(error)) | Err(error) => error,
            Ok(Err(_)) => io::Error::other("the thread that executes it has panicked"),
        }
    });
    // SAFETY: `before` was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    if let Ok(directory) = directory {
        let _ = rustix::process::fchdir(directory);
    }
    error
}

/// Gives this thread a table of descriptors of its own, with the same ones.
fn own_descriptors() -> io::Result<()> {
    // Unlike `unshare`, this is allowed in most sandboxes. No descriptor has these numbers.
    // SAFETY: the call closes nothing.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, libc::CLOSE_RANGE_UNSHARE)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
