//! Keeps a start from lasting for ever. The parent waits until its child executes the program, and
//! a child that has become another user can be stopped by any process of that user before it gets
//! there.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// Pause between two attempts to resume a child that has not executed its program yet.
const RESUME_INTERVAL: Duration = Duration::from_millis(20);

/// How long a child that becomes another user may take to execute its program, from a slow disk,
/// say; then it is killed.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for one whom nobody else may stop: its directory or its program is on a file system
/// that does not answer.
pub(super) const OWN_START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a child may be found stopped before it is killed. Nobody stops one by chance, so
/// whoever does holds its parent up for half a second.
const MAX_STOPS: u32 = 25;

/// The stack of the thread that watches.
const STACK: usize = 64 * 1024;

/// Runs `start`, which stores the pidfd of a child as soon as there is one, keeps it open, and
/// returns when the child has executed its program or has ended. Meanwhile the child is resumed if
/// it is stopped, and killed if that does not end, after `timeout`, or once it `is_cancelled`.
/// Returns whether it was killed. Without memory for a thread nothing watches.
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
                // SAFETY: the kernel stored it in `pidfd` when it made the child, and our caller takes
                // it out, to own it, only after `guarded` has returned, which joins this thread.
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

/// Whether a child is stopped now. Nobody else's waiting for it is disturbed.
fn is_stopped(child: BorrowedFd<'_>) -> bool {
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::PidFd(child), options), Ok(Some(status)) if status.stopped())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    /// The end of a shell that runs this, as a child that is starting.
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
    fn a_child_that_is_stopped_again_and_again_is_killed_in_the_end() {
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
    fn a_child_that_nobody_wants_any_more_is_killed() {
        let end = end_unless("exec sleep 600", Duration::from_secs(600), &AtomicBool::new(true));
        assert_eq!(end.signal(), Some(9));
    }
}
