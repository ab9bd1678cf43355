//! The process that checks.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::Waits;
use super::check::{Failure, MAX_SOCKETS, Memory, waits_with};

/// How much nicer than this process it is.
const NICENESS: libc::c_int = 10;
/// A process and its sockets.
const REQUEST: usize = 4 + 8 * MAX_SOCKETS;

const NO: u8 = 0;
const PERHAPS: u8 = 1;
const YES: u8 = 2;
const HIDDEN: u8 = 3;
const TIMED_OUT: u8 = 4;

/// A process that checks whether others wait for connections. It shares this process's memory as it
/// was at the start, has no descriptor of it, and ends with the thread that has started it.
#[derive(Debug)]
pub struct Checker {
    child: Child,
    socket: OwnedFd,
}

/// One that was left behind: killed, but not gone, because the kernel does not let it.
#[derive(Debug)]
pub struct LeftBehind(Child);

/// A child that is neither reaped by others nor reported to them by `SIGCHLD`.
#[derive(Debug)]
struct Child {
    pid: libc::pid_t,
    is_reaped: bool,
}

impl Child {
    fn kill(&self) {
        if !self.is_reaped {
            // SAFETY: it was not reaped, so the number is its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
    }

    /// Whether it is gone and reaped.
    fn is_gone(&mut self) -> bool {
        if !self.is_reaped {
            let options = libc::__WALL | libc::WNOHANG;
            let mut status = 0;
            // SAFETY: `status` is writable. Without `__WALL` children without a signal are not
            // found.
            let found = unsafe { libc::waitpid(self.pid, &raw mut status, options) };
            self.is_reaped = found != 0;
        }
        self.is_reaped
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        self.is_gone();
    }
}

impl LeftBehind {
    /// Whether it is gone now.
    #[must_use]
    pub fn is_gone(&mut self) -> bool {
        self.0.is_gone()
    }
}

impl Checker {
    /// Starts the process.
    ///
    /// # Errors
    /// Those of `socketpair(2)` and `clone(2)`.
    pub fn start() -> io::Result<Checker> {
        let (socket, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let mut memory = Memory::new();
        let parent = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: as `fork(2)`, but that this process gets no signal at the child's end. The child
        // calls `run` alone, which does not return, and makes only system calls.
        let child = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
        match child {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: this is the child.
            0 => unsafe { run(&mut memory, other.as_raw_fd(), parent) },
            child => {
                let pid = libc::pid_t::try_from(child).unwrap_or_default();
                let child = Child { pid, is_reaped: pid == 0 };
                Ok(Checker { child, socket })
            }
        }
    }

    /// Has a process checked, as [`waits`](super::waits) does it. Blocks for this time at most.
    ///
    /// # Errors
    /// `TimedOut` if there was no answer, after which it must be [left](Checker::leave);
    /// `PermissionDenied` if the system does not show what it takes, or not in time; others if the
    /// checking process has ended.
    pub fn check(&self, pid: u32, sockets: &[u64], timeout: Duration) -> io::Result<Waits> {
        let mut request = [0; REQUEST];
        request[..4].copy_from_slice(&pid.to_ne_bytes());
        let sockets = &sockets[..sockets.len().min(MAX_SOCKETS)];
        for (place, inode) in request[4..].chunks_exact_mut(8).zip(sockets) {
            place.copy_from_slice(&inode.to_ne_bytes());
        }
        let length = 4 + 8 * sockets.len();
        rustix::net::send(&self.socket, &request[..length], SendFlags::NOSIGNAL)?;
        let until = std::time::Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => break,
            }
        }
        let mut answer = [0; 1];
        match rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())? {
            (0, _) => Err(io::ErrorKind::BrokenPipe.into()),
            _ => match answer[0] {
                NO => Ok(Waits::No),
                PERHAPS => Ok(Waits::Perhaps),
                YES => Ok(Waits::Yes),
                _ => Err(io::ErrorKind::PermissionDenied.into()),
            },
        }
    }

    /// Kills it. Returns what is left of it, if it does not end within this time.
    #[must_use]
    pub fn leave(mut self, timeout: Duration) -> Option<LeftBehind> {
        self.child.kill();
        let until = std::time::Instant::now() + timeout;
        while !self.child.is_gone() {
            if std::time::Instant::now() >= until {
                return Some(LeftBehind(self.child));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }
}

/// Checks until the other end of the socket is closed. It must neither allocate nor take a lock,
/// which a thread that is not there may have.
///
/// # Safety
/// Call only in a new process with one thread.
unsafe fn run(memory: &mut Memory, socket: libc::c_int, parent: libc::pid_t) -> ! {
    // SAFETY: the calls are async-signal-safe, and concern this process alone.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != parent || libc::dup2(socket, 0) != 0 {
            libc::_exit(1);
        }
        // Signals of a terminal or a supervisor are for the parent, at whose end this one ends.
        for signal in 1..=64 {
            let is_fault = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT]
                .contains(&signal);
            libc::signal(signal, if is_fault { libc::SIG_DFL } else { libc::SIG_IGN });
        }
        if libc::syscall(libc::SYS_close_range, 1u32, u32::MAX, 0) != 0 {
            for fd in 1..65536 {
                libc::close(fd);
            }
        }
        libc::prctl(libc::PR_SET_NAME, c"troop-serving".as_ptr());
        libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
        let mut request = [0u8; REQUEST];
        let mut sockets = [0u64; MAX_SOCKETS];
        loop {
            let length = libc::recv(0, request.as_mut_ptr().cast(), REQUEST, 0);
            let Ok(length @ 4..=REQUEST) = usize::try_from(length) else { libc::_exit(0) };
            let (pid, inodes) = request[..length].split_at(4);
            let pid = pid.try_into().map_or(0, u32::from_ne_bytes);
            let inodes = inodes.chunks_exact(8);
            let count = inodes.len();
            for (socket, inode) in sockets.iter_mut().zip(inodes) {
                *socket = inode.try_into().map_or(0, u64::from_ne_bytes);
            }
            let answer = match waits_with(memory, pid, &sockets[..count]) {
                Ok(Waits::No) => NO,
                Ok(Waits::Perhaps) => PERHAPS,
                Ok(Waits::Yes) => YES,
                Err(Failure::Hidden) => HIDDEN,
                Err(Failure::TimedOut) => TIMED_OUT,
            };
            libc::send(0, (&raw const answer).cast(), 1, libc::MSG_NOSIGNAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::diag::inode;

    const TIMEOUT: Duration = Duration::from_secs(20);

    #[test]
    fn another_process_checks_and_has_none_of_this_ones_descriptors() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = [inode(&listener).unwrap()];
        let checker = Checker::start().unwrap();
        let own = std::process::id();
        // This process has the socket, and a thread of it waits for connections.
        let copy = listener.try_clone().unwrap();
        let accepting = std::thread::spawn(move || copy.accept().map(drop));
        while checker.check(own, &sockets, TIMEOUT).unwrap() != Waits::Yes {
            std::thread::yield_now();
        }
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", checker.child.pid)).unwrap();
        let descriptors: Vec<_> = descriptors.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(descriptors, ["0"]);
        drop(std::net::TcpStream::connect(listener.local_addr().unwrap()));
        accepting.join().unwrap().unwrap();
        assert!(checker.check(u32::MAX / 2, &sockets, TIMEOUT).is_err());
        let pid = checker.child.pid;
        assert!(checker.leave(TIMEOUT).is_none());
        assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
    }

    /// As a kernel does that waits for a lock which the process that is asked about holds.
    #[test]
    fn one_that_does_not_answer_is_left() {
        let checker = Checker::start().unwrap();
        // SAFETY: it is a child of this process.
        unsafe { libc::kill(checker.child.pid, libc::SIGSTOP) };
        let error = checker.check(1, &[1], Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(checker.leave(TIMEOUT).is_none());
    }

    #[test]
    fn it_ends_with_the_thread_that_started_it() {
        let pid = std::thread::spawn(|| {
            let checker = Checker::start().unwrap();
            let pid = checker.child.pid;
            std::mem::forget(checker);
            pid
        });
        let mut child = Child { pid: pid.join().unwrap(), is_reaped: false };
        let deadline = std::time::Instant::now() + TIMEOUT;
        while !child.is_gone() {
            assert!(std::time::Instant::now() < deadline, "it goes on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn nobody_else_reaps_it() {
        let checker = Checker::start().unwrap();
        let mut other = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
        checker.child.kill();
        assert!(other.wait().unwrap().success());
        assert!(checker.leave(TIMEOUT).is_none());
    }
}
