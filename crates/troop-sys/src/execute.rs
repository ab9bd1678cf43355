//! Executes another program in place of this one.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::io::FdFlags;

use crate::aside::Holder;

/// Maximum number of descriptors that are checked where `/proc` does not show them.
const MAX_UNSEEN: i32 = 65_536;

/// Executes a program in place of this one. Returns only on failure; the working directory is as it
/// was then.
///
/// A thread executes it that has the descriptors for itself, after it has called `prepare`: which of
/// them the program inherits does not concern the programs that other threads start at this moment.
/// What the program does not inherit is closed without waiting, also sockets that others have made
/// linger (`SO_LINGER`), wherever they are: at the bottom of the queues of Unix sockets, for example.
pub fn execute(
    command: &mut Command,
    prepare: impl FnOnce() -> io::Result<()> + Send,
) -> io::Error {
    let directory = std::fs::File::open(".");
    let error = std::thread::scope(|scope| {
        let execute = || match leave_descriptors(prepare) {
            Ok(()) => command.exec(),
            Err(e) => e,
        };
        let thread = std::thread::Builder::new().name("troop-execute".into());
        match thread.spawn_scoped(scope, execute).map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(error)) | Err(error) => error,
            Ok(Err(_)) => io::Error::other("the thread that executes it has panicked"),
        }
    });
    if let Ok(directory) = directory {
        let _ = rustix::process::fchdir(directory);
    }
    error
}

/// Leaves this thread with the descriptors that a program inherits. The kernel would close the others
/// while it executes the program, and a close that is the last one of a socket may wait for decades.
/// These are not the last ones. The last one is in a process that ends, where none waits.
fn leave_descriptors(prepare: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // Other threads have them, too, but may close them at this moment.
    let holder = Holder::start();
    own_descriptors()?;
    prepare()?;
    for fd in numbers() {
        // SAFETY: without this flag a descriptor is not touched; with it, nobody in this thread uses
        // it any more, and no other thread has this table.
        unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFD);
            if flags >= 0 && flags.cast_unsigned() & FdFlags::CLOEXEC.bits() != 0 {
                libc::close(fd);
            }
        }
    }
    drop(holder);
    Ok(())
}

/// The numbers of this thread's descriptors, and perhaps others.
fn numbers() -> Vec<i32> {
    match std::fs::read_dir("/proc/thread-self/fd") {
        Ok(all) => {
            let numbers = all.flatten().map(|fd| fd.file_name().to_str()?.parse().ok());
            numbers.flatten().collect()
        }
        Err(_) => (0..MAX_UNSEEN).collect(),
    }
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
