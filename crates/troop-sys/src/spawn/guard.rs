//! Bounds the time of a start. With `CLONE_VFORK` the parent waits until the child executes the
//! program, and any process of the child's new user can stop the child before it does.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// Interval between attempts to resume a stopped child.
const RESUME_INTERVAL: Duration = Duration::from_millis(20);

/// Time after which a child that becomes another user is killed if it has not executed its program.
/// Slow disks are allowed for.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for a child of this user, which no other user can stop; only a file system that does
/// not answer makes its start this long.
pub(super) const OWN_START_TIMEOUT: Duration = Duration::from_secs(30);

/// Number of checks that may find a child stopped before it is killed: half a second in all.
const MAX_STOPS: u32 = 25;

/// Stack size of the watching thread, in bytes.
const STACK: usize = 64 * 1024;

/// Runs `start` while a thread watches the child: resumes it when it is stopped, and kills it if it
/// is stopped too often, after `timeout`, or once it `is_cancelled`. Returns whether it was killed.
/// If no thread can be started, the child is not watched.
///
/// `start` must store the child's pidfd as soon as it exists, keep it open, and return when the
/// child has executed its program or has ended.
pub(super) fn guarded<T>(
    pidfd: &AtomicI32,
    timeout: Duration,
    is_cancelled: &AtomicBool,
    start: impl FnOnce() -> T,
) -> (T, bool) {
    let (started, wait) = channel::<()>();
    let is_killed = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let is_killed = &is_killed;
        let watch = move || {
            let (begun, mut stops) = (Instant::now(), 0);
            while wait.recv_timeout(RESUME_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let fd = pidfd.load(Ordering::Acquire);
                if fd < 0 {
                    continue;
                }
                // SAFETY: the kernel stored the pidfd when it created the child. The caller takes
                // ownership of it only after `guarded` has returned, which joins this thread, so it
                // is open here.
                let child = unsafe { BorrowedFd::borrow_raw(fd) };
                stops += u32::from(is_stopped(child));
                let is_over = begun.elapsed() >= timeout
                    || stops >= MAX_STOPS
                    || is_cancelled.load(Ordering::Relaxed);
                is_killed.fetch_or(is_over, Ordering::Relaxed);
                let signal = if is_over { Signal::KILL } else { Signal::CONT };
                let _ = pidfd_send_signal(child, signal);
            }
        };
        let _ = std::thread::Builder::new()
            .name("troop-spawn".into())
            .stack_size(STACK)
            .spawn_scoped(scope, watch);
        let result = start();
        drop(started);
        result
    });
    (result, is_killed.into_inner())
}

/// Whether a child is stopped now (`waitid(2)`). `WNOWAIT` leaves its state for other waiters.
fn is_stopped(child: BorrowedFd<'_>) -> bool {
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::PidFd(child), options) {
        Ok(status) => status.is_some_and(|status| status.stopped()),
        // It is the parent's child.
        Err(_) => crate::process::is_stopped(child),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    /// Runs a shell with this script as a child that is starting, and returns how it ended.
    fn end_of(script: &str, timeout: Duration) -> ExitStatus {
        end_unless(script, timeout, &AtomicBool::new(false))
    }

    fn end_unless(script: &str, timeout: Duration, is_cancelled: &AtomicBool) -> ExitStatus {
        let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let owned = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let pidfd = AtomicI32::new(-1);
        guarded(&pidfd, timeout, is_cancelled, || {
            pidfd.store(owned.as_raw_fd(), Ordering::Release);
            child.wait().unwrap()
        })
        .0
    }

    #[test]
    fn a_child_that_is_stopped_before_it_executes_its_program_is_resumed() {
        assert_eq!(end_of("kill -STOP $$; exit 7", Duration::from_secs(60)).code(), Some(7));
    }

    #[test]
    fn a_child_that_is_stopped_repeatedly_is_killed() {
        assert_eq!(
            end_of("while :; do kill -STOP $$; done", Duration::from_secs(600)).signal(),
            Some(9)
        );
    }

    #[test]
    fn a_child_that_takes_too_long_is_killed() {
        assert_eq!(end_of("exec sleep 600", Duration::from_millis(200)).signal(), Some(9));
    }

    #[test]
    fn a_cancelled_child_is_killed() {
        let end = end_unless("exec sleep 600", Duration::from_secs(600), &AtomicBool::new(true));
        assert_eq!(end.signal(), Some(9));
    }
}
