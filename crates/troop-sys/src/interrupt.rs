//! Interrupts threads that are blocked in a system call.

use std::sync::Once;

use rustix::thread::{Pid, gettid};

/// The signal, which is ignored by default and harmless to programs that handle it (`socket(7)`).
const SIGNAL: libc::c_int = libc::SIGURG;

extern "C" fn nothing(_: libc::c_int) {}

/// Installs an empty handler, so that the signal interrupts system calls, unless the program has a
/// handler of its own, which has the same effect.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: both structures are valid for the calls, all zeroes are a value of theirs, and
        // the handler does nothing.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(SIGNAL, std::ptr::null(), &mut before) != 0
                || !matches!(before.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
            {
                return;
            }
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
            libc::sigaction(SIGNAL, &action, std::ptr::null_mut());
        }
    });
}

/// A thread that can be interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread(Pid);

impl Thread {
    /// Returns a handle of the calling thread, and unblocks the signal in it.
    #[must_use]
    pub fn current() -> Thread {
        install();
        // SAFETY: the set is valid for the calls, which initialise it and read it.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, SIGNAL);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
        Thread(gettid())
    }

    /// Interrupts the system call in which the thread is blocked. The thread must not have ended.
    pub fn interrupt(self) {
        // SAFETY: it takes numbers, and fails if there is no such thread in this process.
        unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0.as_raw_nonzero().get(), SIGNAL)
        };
    }
}

/// How often [`often`] interrupts.
const INTERVAL_MICROS: i32 = 10_000;

/// Does work during which a timer interrupts the system calls that wait, over and over. For a process with
/// one thread that has no other use for `SIGALRM`, and for a child before it executes its program: beside
/// the work there are async-signal-safe calls only.
pub(crate) fn often(work: impl FnOnce()) {
    let time = |micros: i32| libc::timeval { tv_sec: 0, tv_usec: micros.into() };
    let set_timer = |micros| {
        let timer = libc::itimerval { it_interval: time(micros), it_value: time(micros) };
        // SAFETY: the call gets a valid pointer.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    };
    // SAFETY: all zeroes are values of the structs; the calls get valid pointers, and the handler does
    // nothing.
    let (action_before, signals_before) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut action_before: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigaction(libc::SIGALRM, &raw const action, &raw mut action_before);
        let mut signals: libc::sigset_t = std::mem::zeroed();
        let mut signals_before: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGALRM);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const signals, &raw mut signals_before);
        (action_before, signals_before)
    };
    set_timer(INTERVAL_MICROS);
    work();
    set_timer(0);
    // SAFETY: the calls get what the former ones have filled. No signal of the timer waits: it is not
    // blocked here.
    unsafe {
        libc::sigprocmask(libc::SIG_SETMASK, &raw const signals_before, std::ptr::null_mut());
        libc::sigaction(libc::SIGALRM, &raw const action_before, std::ptr::null_mut());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rustix::net::sockopt;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    /// A connection that lingers for a minute, with bytes that nobody reads, and its other end.
    pub(crate) fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let reader = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut stream = listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 65_536]).is_ok() {}
        sockopt::set_socket_linger(&stream, Some(Duration::from_secs(60))).unwrap();
        (stream, reader)
    }

    #[test]
    fn a_close_that_lingers_ends_when_its_thread_is_interrupted() {
        let (stream, _reader) = lingering();
        let (sender, threads) = std::sync::mpsc::channel();
        let closes = std::thread::spawn(move || {
            sender.send(Thread::current()).unwrap();
            let begun = Instant::now();
            drop(stream);
            begun.elapsed()
        });
        let thread = threads.recv().unwrap();
        // That it waits, although it does not block otherwise, is the kernel's way.
        std::thread::sleep(Duration::from_millis(300));
        assert!(!closes.is_finished());
        while !closes.is_finished() {
            thread.interrupt();
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(closes.join().unwrap() < Duration::from_secs(60));
    }
}
