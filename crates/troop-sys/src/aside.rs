//! Another process for questions that the kernel may take any time to answer, and during which it
//! cannot be interrupted: those about a process that can hold its locks. It can be left behind.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::{process, signals};

/// How much nicer than this process it is.
const NICENESS: libc::c_int = 10;
/// Maximum length of a request and of an answer, in bytes.
pub(crate) const MAX_LENGTH: usize = 32 * 1024;
/// Time that a [`Holder`] has to end.
const HOLDER_TIMEOUT: Duration = Duration::from_secs(1);

/// The process. It shares this process's memory as it was at the start, has no descriptor of it,
/// and ends with the thread that has started it.
#[derive(Debug)]
pub(crate) struct Aside {
    child: Child,
    socket: OwnedFd,
}

/// Such a process that was left behind: killed, but not gone, because the kernel does not let it.
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

/// A process with copies of all descriptors that this one has at its start: while it is there, no close
/// here is the last one. At its own end nothing waits, not even what lingers.
#[derive(Debug)]
pub(crate) struct Holder(Child);

impl Holder {
    /// Starts it; it ends with the thread that has started it. `None` if there can be no process.
    pub(crate) fn start() -> Option<Holder> {
        let parent = rustix::process::getpid().as_raw_nonzero().get();
        // Its signals stay blocked: what catches them here is to be told once.
        let before = signals::block_all();
        // SAFETY: as in `Aside::start`; the child makes system calls alone.
        let child = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
        if child == 0 {
            // SAFETY: the calls are async-signal-safe, and concern this process alone.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::prctl(libc::PR_SET_NAME, c"troop-holder".as_ptr());
                while libc::getppid() == parent {
                    libc::pause();
                }
                libc::_exit(1);
            }
        }
        signals::restore(&before);
        let pid = libc::pid_t::try_from(child).ok().filter(|pid| *pid > 0)?;
        Some(Holder(Child { pid, is_reaped: false }))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill();
        let until = Instant::now() + HOLDER_TIMEOUT;
        while !self.0.is_gone() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Processes aside of the program that has executed this one. They end with it, and nobody knows them
/// any more.
#[derive(Debug, Default)]
pub struct Bequeathed(Vec<Child>);

impl Bequeathed {
    /// Finds them, as far as `/proc` shows them. There are none any more once this program has looked
    /// for them, or has started one of its own.
    #[must_use]
    pub fn find() -> Bequeathed {
        if ARE_OWN.swap(true, Ordering::Relaxed) {
            return Bequeathed::default();
        }
        let children = process::children().into_iter();
        let pids = children.filter(|pid| is_aside(*pid)).filter_map(|pid| pid.try_into().ok());
        Bequeathed(pids.map(|pid| Child { pid, is_reaped: false }).collect())
    }

    /// Reaps those that have ended. Returns whether there are no others.
    pub fn are_gone(&mut self) -> bool {
        self.0.retain_mut(|child| !child.is_gone());
        self.0.is_empty()
    }
}

/// Whether all such processes are those of this program.
static ARE_OWN: AtomicBool = AtomicBool::new(false);

/// Whether a child is a process aside, by its name, and by the signal that it does not send.
fn is_aside(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WCLONE;
    // SAFETY: an all-zero siginfo_t is a valid value of that plain C struct, which is writable.
    name.starts_with("troop-")
        && unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid, &raw mut info, options) == 0
        }
}

/// What the process does: it gets its memory and a request, and writes an answer, whose length it
/// returns. It must neither allocate nor take a lock, which a thread that is not there may have.
pub(crate) type Work<M> = fn(&mut M, &[u8], &mut [u8]) -> usize;

impl Aside {
    /// Starts the process. `name` is its name, of 15 bytes at most.
    ///
    /// # Errors
    /// Those of `socketpair(2)` and `clone(2)`.
    pub(crate) fn start<M>(name: &CStr, mut memory: M, work: Work<M>) -> io::Result<Aside> {
        let (socket, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        ARE_OWN.store(true, Ordering::Relaxed);
        let mut buffers = (vec![0; MAX_LENGTH], vec![0; MAX_LENGTH]);
        let parent = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: as `fork(2)`, but that this process gets no signal at the child's end. The child
        // calls `run` alone, which does not return, and makes only system calls.
        let child = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
        match child {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: this is the child.
            0 => unsafe { run(name, &mut memory, work, &mut buffers, other.as_raw_fd(), parent) },
            child => {
                let pid = libc::pid_t::try_from(child).unwrap_or_default();
                let child = Child { pid, is_reaped: pid == 0 };
                Ok(Aside { child, socket })
            }
        }
    }

    /// Sends a request, and returns the length of the answer. Blocks for this time at most.
    ///
    /// # Errors
    /// `TimedOut` if there was no answer, after which it must be [left](Aside::leave); others if it
    /// has ended.
    pub(crate) fn ask(
        &self,
        request: &[u8],
        answer: &mut [u8],
        timeout: Duration,
    ) -> io::Result<usize> {
        rustix::net::send(&self.socket, request, SendFlags::NOSIGNAL)?;
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => break,
            }
        }
        match rustix::net::recv(&self.socket, answer, RecvFlags::empty())? {
            (0, _) => Err(io::ErrorKind::BrokenPipe.into()),
            (length, _) => Ok(length),
        }
    }

    /// Kills it. Returns what is left of it, if it does not end within this time.
    #[must_use]
    pub(crate) fn leave(mut self, timeout: Duration) -> Option<LeftBehind> {
        self.child.kill();
        let until = Instant::now() + timeout;
        while !self.child.is_gone() {
            if Instant::now() >= until {
                return Some(LeftBehind(self.child));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }
}

/// Answers until the other end of the socket is closed.
///
/// # Safety
/// Call only in a new process with one thread.
unsafe fn run<M>(
    name: &CStr,
    memory: &mut M,
    work: Work<M>,
    (request, answer): &mut (Vec<u8>, Vec<u8>),
    socket: libc::c_int,
    parent: libc::pid_t,
) -> ! {
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
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
        loop {
            let length = libc::recv(0, request.as_mut_ptr().cast(), request.len(), 0);
            let Some(length) = usize::try_from(length).ok().filter(|length| *length > 0) else {
                libc::_exit(0)
            };
            let length = work(memory, &request[..length], answer);
            libc::send(0, answer.as_ptr().cast(), length, libc::MSG_NOSIGNAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    /// Answers with the sum of what it was asked.
    fn adder() -> Aside {
        let work = |total: &mut u8, request: &[u8], answer: &mut [u8]| {
            *total = request.iter().fold(*total, |total, byte| total.wrapping_add(*byte));
            answer[0] = *total;
            1
        };
        Aside::start(c"troop-adder", 1, work).unwrap()
    }

    #[test]
    fn it_answers_and_has_none_of_this_ones_descriptors() {
        let (_socket, aside) = (std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), adder());
        let mut answer = [0; 4];
        assert_eq!(aside.ask(&[1, 2], &mut answer, TIMEOUT).unwrap(), 1);
        assert_eq!(aside.ask(&[3], &mut answer, TIMEOUT).unwrap(), 1);
        assert_eq!(answer[0], 7);
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", aside.child.pid)).unwrap();
        let descriptors: Vec<_> = descriptors.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(descriptors, ["0"]);
        let pid = aside.child.pid;
        assert!(aside.leave(TIMEOUT).is_none());
        assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
    }

    /// As a kernel does that waits for a lock which the process that is asked about holds.
    #[test]
    fn one_that_does_not_answer_is_left() {
        let aside = adder();
        // SAFETY: it is a child of this process.
        unsafe { libc::kill(aside.child.pid, libc::SIGSTOP) };
        let error = aside.ask(&[1], &mut [0], Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(aside.leave(TIMEOUT).is_none());
    }

    #[test]
    fn it_ends_with_the_thread_that_started_it() {
        let pid = std::thread::spawn(|| {
            let aside = adder();
            // So it has come so far that it sees the end.
            aside.ask(&[1], &mut [0], TIMEOUT).unwrap();
            let pid = aside.child.pid;
            std::mem::forget(aside);
            pid
        });
        let mut child = Child { pid: pid.join().unwrap(), is_reaped: false };
        let deadline = Instant::now() + TIMEOUT;
        while !child.is_gone() {
            assert!(Instant::now() < deadline, "it goes on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn nobody_else_reaps_it() {
        let aside = adder();
        let mut other = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
        aside.child.kill();
        assert!(other.wait().unwrap().success());
        assert!(aside.leave(TIMEOUT).is_none());
    }
}
