//! What a process needs that keeps another one, and its children, in sight: signals, ends and
//! messages as things to wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::process::Exit;

/// Has orphans among the descendants of this process become its children.
///
/// # Errors
/// Never on Linux 3.4 or newer.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: the call has no pointers.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Signals that wait until they are read (`signalfd(2)`).
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Has these signals wait from now on. For a process with one thread.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn hold(signals: &[i32]) -> io::Result<Signals> {
        // SAFETY: all zeroes is a value of the set, which is initialised before it is read; the calls
        // get valid pointers, and fail for invalid numbers only.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, *signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just created this descriptor, and nothing else owns it.
        Ok(Signals(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Returns the number of a signal that has come.
    #[must_use]
    pub fn next(&self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        let len = rustix::io::read(&self.0, &mut info).ok()?;
        // The number is the first field (`ssi_signo`).
        let number = info.first_chunk().filter(|_| len == info.len())?;
        i32::try_from(u32::from_ne_bytes(*number)).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns two ends of a connection for messages (`SOCK_SEQPACKET`), close-on-exec.
///
/// # Errors
/// When out of descriptors.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Returns a child that has ended and how, without reaping it: the same one until it is
/// [reaped](crate::process::reap_child).
#[must_use]
pub fn ended_child() -> Option<(u32, Exit)> {
    // SAFETY: an all-zero siginfo_t is a valid value of that plain C struct.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid siginfo_t to write to; WNOWAIT leaves the child as it is.
    let result = unsafe {
        libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
    };
    // SAFETY: waitid filled the SIGCHLD part of the union, or left it zero when no child has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let pid = u32::try_from(pid).ok().filter(|pid| result == 0 && *pid != 0)?;
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => Exit::Signal(status),
        _ => Exit::Unknown,
    };
    Some((pid, exit))
}

/// Returns the children of this process, which has one thread. Empty where the kernel does not say.
#[must_use]
pub fn children() -> Vec<u32> {
    children_of(std::process::id())
}

/// Returns the children of another process, which has one thread. Empty where the kernel does not say.
#[must_use]
pub fn children_of(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    text.map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
        .unwrap_or_default()
}

/// Waits until one of these can be read, or a time in milliseconds has passed. Returns which can.
///
/// # Errors
/// When out of memory.
pub fn wait(fds: &[BorrowedFd<'_>], timeout_ms: Option<u64>) -> io::Result<Vec<bool>> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let timeout = timeout_ms.map(|ms| Timespec {
        tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(rustix::io::Errno::INTR) => Ok(vec![false; fds.len()]),
        Err(e) => Err(e.into()),
    }
}

/// Waits for room to send a message, a time in milliseconds at most.
pub fn wait_for_room(fd: BorrowedFd<'_>, timeout_ms: u32) {
    let timeout = Timespec {
        tv_sec: i64::from(timeout_ms / 1000),
        tv_nsec: i64::from(timeout_ms % 1000) * 1_000_000,
    };
    let _ = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&timeout));
}

/// Closes descriptors. Where that would wait (sockets that others have made linger, with `SO_LINGER`,
/// or in whose queues such ones are), it is interrupted. For a process with one thread, which has no
/// other use for `SIGALRM`.
pub fn close<T>(descriptors: T) {
    crate::interrupt::often(|| drop(descriptors));
}

/// Executes a program in place of this one, which has one thread: the process, its children and the signals
/// that are blocked and wait stay. Returns only on failure; nothing has changed then.
pub fn execute(command: &mut Command) -> io::Error {
    let error = command.exec();
    // The standard library ignores it, but not in programs that it executes.
    // SAFETY: the call has no pointers.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    error
}

/// Ends this process by a signal, without a core dump. Returns where that is not possible: process 1
/// of a PID namespace does not end so.
pub fn end_by(signal: i32) {
    // SAFETY: all zeroes are values of the structs; the calls get valid pointers, act on this process
    // alone, and fail for invalid numbers only.
    unsafe {
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::raise(signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_has_ended_is_told_of_until_it_is_reaped() {
        let mut child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let held = crate::process::pidfd(child.id()).unwrap();
        assert!(!crate::process::is_reaped(held.as_fd()));
        assert_eq!(wait(&[held.as_fd()], None).unwrap(), [true]);
        // Tests of one process run side by side elsewhere: others may have ended, too.
        if let Some((pid, exit)) = ended_child().filter(|(pid, _)| *pid == child.id()) {
            assert_eq!(exit, Exit::Code(7));
            assert_eq!(ended_child(), Some((pid, exit)));
            crate::process::reap_child(pid);
            assert_ne!(ended_child(), Some((pid, exit)));
        }
        // It may be reaped by now.
        let _ = child.wait();
        assert!(crate::process::is_reaped(held.as_fd()));
    }

    #[test]
    fn messages_keep_their_borders() {
        let (a, b) = message_pair().unwrap();
        crate::fdpass::send(a.as_fd(), b"one", &[b.as_fd()]).unwrap();
        crate::fdpass::send(a.as_fd(), b"two", &[]).unwrap();
        let (mut room, mut handles) = ([0; 16], Vec::new());
        let mut next = || {
            let len = crate::fdpass::recv_few(b.as_fd(), &mut room, &mut handles).unwrap().len;
            room[..len].to_vec()
        };
        assert_eq!((next(), next()), (b"one".to_vec(), b"two".to_vec()));
        assert_eq!(handles.len(), 1);
    }
}
