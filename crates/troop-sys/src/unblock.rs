//! Interrupts `accept` on a socket whose other copies belong to another process. All copies share
//! the mode (`O_NONBLOCK`), so the other process can make the call block at any moment, and no
//! system call accepts without blocking whatever the mode.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::socket;

/// Interval between checks of the thread.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Number of consecutive checks that must find it asleep in the same call.
const MIN_ASLEEP_CHECKS: u32 = 5;
/// Stack size of the thread that checks.
const STACK: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Calls {
    /// The number of calls begun and ended: odd during a call.
    count: AtomicU32,
    interrupted: AtomicBool,
}

/// Watches the thread that created it while it accepts.
#[derive(Debug)]
pub struct Unblocker {
    calls: Arc<Calls>,
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Unblocker {
    /// Starts to watch the calling thread, which is about to accept on `socket`.
    ///
    /// # Errors
    /// If no descriptors or memory are left.
    pub fn start(socket: BorrowedFd<'_>) -> io::Result<Unblocker> {
        let socket = socket.try_clone_to_owned()?;
        let stat = format!("/proc/self/task/{}/stat", rustix::thread::gettid().as_raw_nonzero());
        let calls = Arc::new(Calls::default());
        let (over, wait) = channel();
        let watch = {
            let calls = calls.clone();
            move || {
                let (mut last, mut seen) = (0, 0);
                while wait.recv_timeout(CHECK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    let count = calls.count.load(Ordering::Acquire);
                    seen = if count % 2 == 1 && count == last && is_asleep(&stat) {
                        seen + 1
                    } else {
                        0
                    };
                    last = count;
                    if seen >= MIN_ASLEEP_CHECKS {
                        calls.interrupted.store(true, Ordering::Release);
                        // The thread is blocked because the queue is empty, so the shutdown loses
                        // no connection.
                        socket::shut_down(socket.as_fd());
                        seen = 0;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("troop-accept".into())
            .stack_size(STACK)
            .spawn(watch)?;
        Ok(Unblocker { calls, over: Some(over), thread: Some(thread) })
    }

    /// Runs a call that may block.
    pub fn call<T>(&self, accept: impl FnOnce() -> T) -> T {
        self.calls.count.fetch_add(1, Ordering::AcqRel);
        let result = accept();
        self.calls.count.fetch_add(1, Ordering::AcqRel);
        result
    }

    /// Whether a call had to be interrupted, for which the socket was shut down.
    #[must_use]
    pub fn has_interrupted(&self) -> bool {
        self.calls.interrupted.load(Ordering::Acquire)
    }
}

impl Drop for Unblocker {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether a thread is asleep in a system call, rather than waiting for a CPU or stopped.
fn is_asleep(stat: &str) -> bool {
    let stat = std::fs::read_to_string(stat).unwrap_or_default();
    // The process name may contain anything and ends at the last parenthesis (`proc_pid_stat(5)`).
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_thread_that_waits_for_connections_is_let_go_and_one_that_finds_them_is_left_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let unblocker = Unblocker::start(listener.as_fd()).unwrap();
        assert!(unblocker.call(|| socket::accept(listener.as_fd())).is_ok());
        // Outside calls the thread may sleep.
        std::thread::sleep(CHECK_INTERVAL * (MIN_ASLEEP_CHECKS + 5));
        assert!(!unblocker.has_interrupted());
        assert!(unblocker.call(|| socket::accept(listener.as_fd())).is_err());
        assert!(unblocker.has_interrupted() && socket::is_shut_down(&listener));
    }
}
