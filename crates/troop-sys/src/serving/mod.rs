//! Whether a process waits for connections on sockets that it was given, as far as `/proc` shows it
//! (`proc_pid_fd(5)`, `proc_pid_syscall(5)`, `kcmp(2)`).
//!
//! The kernel may take any time for an answer, and cannot be interrupted: the process that is asked
//! about can hold its locks. So another process asks ([`Checker`]), which can be left behind.

mod check;
mod process;

pub use check::{MAX_SOCKETS, waits};
pub use process::Checker;

/// Whether a process waits for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waits {
    /// It has none of the sockets, nor has a process that it has started.
    Without,
    /// It does not.
    No,
    /// It has one of the sockets and waits for something, perhaps for connections: in `select(2)`,
    /// `poll(2)` or `io_uring_enter(2)`, whose descriptors `/proc` does not show.
    Perhaps,
    /// It does: in `accept(2)`, or in `epoll_wait(2)` for one of the sockets.
    Yes,
}
