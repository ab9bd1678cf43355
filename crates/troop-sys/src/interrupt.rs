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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    /// A connection that lingers for a minute, with bytes that nobody reads, and its other end.
    fn lingering() -> (TcpStream, TcpStream) {
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
