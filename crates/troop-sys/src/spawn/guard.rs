//! Bounds the time of a start. With `CLONE_VFORK` the parent waits until the child executes the
//! program, and any process of the child's new user can stop the child before it does.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// Interval between attempts to resume a stopped child, and the age from which on one is checked.
const RESUME_INTERVAL: Duration = Duration::from_millis(20);

/// Time after which a child that becomes another user is killed if it has not executed its program.
/// Slow disks are allowed for.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for a child of this user, which no other user can stop; only a file system that does
/// not answer makes its start this long.
pub(super) const OWN_START_TIMEOUT: Duration = Duration::from_secs(30);

/// Number of checks that may find a child stopped before it is killed: half a second in all.
const MAX_STOPS: u32 = 25;

/// Number of intervals for which the watching thread waits for other starts.
const MAX_IDLE: u32 = 5;

/// Stack size of the watching thread, in bytes.
const STACK: usize = 64 * 1024;

/// A child that is watched.
struct Watched {
    /// Its pidfd, -1 before it exists.
    pidfd: Arc<AtomicI32>,
    begun: Instant,
    timeout: Duration,
    is_cancelled: Arc<AtomicBool>,
    stops: u32,
    is_killed: bool,
}

/// The children that are being started. One thread watches all of them: to start one for each, and to
/// wait for its end, would take as long as a start.
struct Watch {
    children: Vec<Watched>,
    /// Whether the thread runs.
    runs: bool,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch { children: Vec::new(), runs: false });

/// Runs `start` while a thread watches the child: resumes it when it is stopped, and kills it if it
/// is stopped too often, after `timeout`, or once it `is_cancelled`. Returns whether it was killed.
/// If no thread can be started, the child is not watched.
///
/// `start` must store the child's pidfd as soon as it exists, keep it open, and return when the
/// child has executed its program or has ended.
pub(super) fn guarded<T>(
    pidfd: &Arc<AtomicI32>,
    timeout: Duration,
    is_cancelled: &Arc<AtomicBool>,
    start: impl FnOnce() -> T,
) -> (T, bool) {
    begin(Watched {
        pidfd: pidfd.clone(),
        begun: Instant::now(),
        timeout,
        is_cancelled: is_cancelled.clone(),
        stops: 0,
        is_killed: false,
    });
    // Also if it panics.
    let watched = Ends(pidfd);
    let result = start();
    let is_killed = watched.end();
    (result, is_killed)
}

fn begin(child: Watched) {
    let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    watch.children.push(child);
    if watch.runs {
        return;
    }
    let thread = std::thread::Builder::new().name("troop-spawn".into()).stack_size(STACK);
    watch.runs = thread.spawn(watch_all).is_ok();
}

/// Ends the watch of the child with this pidfd, if it has not been ended.
struct Ends<'a>(&'a Arc<AtomicI32>);

impl Ends<'_> {
    fn end(&self) -> bool {
        let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
        let at = watch.children.iter().position(|child| Arc::ptr_eq(&child.pidfd, self.0));
        at.is_some_and(|at| watch.children.swap_remove(at).is_killed)
    }
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

fn watch_all() {
    let mut idle = 0;
    while idle < MAX_IDLE {
        std::thread::sleep(RESUME_INTERVAL);
        let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
        idle = if watch.children.is_empty() { idle + 1 } else { 0 };
        // Whoever adds one must not take a thread that ends for one that watches.
        watch.runs = idle < MAX_IDLE;
        let old = watch.children.iter_mut().filter(|one| one.begun.elapsed() >= RESUME_INTERVAL);
        old.for_each(Watched::look);
    }
}

impl Watched {
    fn look(&mut self) {
        let fd = self.pidfd.load(Ordering::Acquire);
        if fd < 0 {
            return;
        }
        // SAFETY: the kernel stored the pidfd when it created the child. The caller of `guarded` takes
        // ownership of it only after that has returned, which removes this under the lock that is held
        // here, so it is open.
        let child = unsafe { BorrowedFd::borrow_raw(fd) };
        self.stops += u32::from(is_stopped(child));
        let is_over = self.begun.elapsed() >= self.timeout
            || self.stops >= MAX_STOPS
            || self.is_cancelled.load(Ordering::Relaxed);
        self.is_killed |= is_over;
        let signal = if is_over { Signal::KILL } else { Signal::CONT };
        let _ = pidfd_send_signal(child, signal);
    }
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
        end_unless(script, timeout, false)
    }

    fn end_unless(script: &str, timeout: Duration, is_cancelled: bool) -> ExitStatus {
        let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let owned = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let pidfd = Arc::new(AtomicI32::new(-1));
        guarded(&pidfd, timeout, &Arc::new(is_cancelled.into()), || {
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
        let end = end_unless("exec sleep 600", Duration::from_secs(600), true);
        assert_eq!(end.signal(), Some(9));
    }
}
