//! Runs work that may block for ever, for example on a file system that does not answer, with a
//! timeout.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Maximum number of abandoned threads at a time.
const MAX_ABANDONED: usize = 8;

static LEFT: Mutex<usize> = Mutex::new(0);

static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Work that may block for ever, while this is held.
#[derive(Debug)]
pub(crate) struct UnderWay(());

impl UnderWay {
    pub(crate) fn begin() -> UnderWay {
        UNDER_WAY.fetch_add(1, Ordering::Relaxed);
        UnderWay(())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether threads of this process wait for file systems, perhaps for ever, and for so long no other
/// program can be executed.
#[must_use]
pub fn is_under_way() -> bool {
    UNDER_WAY.load(Ordering::Relaxed) > 0
}

#[derive(Debug, PartialEq)]
enum Work {
    Running,
    Left,
    Done,
}

/// Runs `work` in a thread of its own and waits for it for at most `limit`. A thread that takes
/// longer is abandoned: it goes on by itself, and its result is dropped.
///
/// # Errors
/// Those of `work`; `ETIMEDOUT` after `limit`, and at once while too many threads are abandoned.
pub fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    begin(limit, work)?.wait()
}

/// Begins work in a thread of its own, while the caller does something else. What it returns is to
/// be waited for; without that the thread is abandoned.
///
/// # Errors
/// `ETIMEDOUT` while too many threads are abandoned; those of starting a thread.
pub fn begin<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<Begun<T>> {
    if *left() >= MAX_ABANDONED {
        return Err(late());
    }
    let (sender, result) = sync_channel(1);
    let state = Arc::new(Mutex::new(Work::Running));
    let its_state = state.clone();
    let under_way = UnderWay::begin();
    let run = move || {
        let result = work();
        drop(under_way);
        let before = std::mem::replace(
            &mut *its_state.lock().unwrap_or_else(PoisonError::into_inner),
            Work::Done,
        );
        if before == Work::Left {
            *left() -= 1;
        }
        // If the caller has stopped waiting, the result is dropped here.
        drop(sender.send(result));
    };
    let deadline = Instant::now() + limit;
    std::thread::Builder::new().name("troop-files".into()).spawn(run)?;
    Ok(Begun { result, state, deadline })
}

/// Work that has begun.
#[derive(Debug)]
pub struct Begun<T> {
    result: Receiver<io::Result<T>>,
    state: Arc<Mutex<Work>>,
    deadline: Instant,
}

impl<T> Begun<T> {
    /// Waits for the result until the limit has passed since the work began.
    ///
    /// # Errors
    /// Those of the work; `ETIMEDOUT` after the limit.
    pub fn wait(self) -> io::Result<T> {
        let rest = self.deadline.saturating_duration_since(Instant::now());
        match self.result.recv_timeout(rest) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("a thread that looks at files has panicked"));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let is_done = *self.state.lock().unwrap_or_else(PoisonError::into_inner) == Work::Done;
        // The work may have ended just now.
        if is_done { self.result.recv().unwrap_or_else(|_| Err(late())) } else { Err(late()) }
    }
}

impl<T> Drop for Begun<T> {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == Work::Running {
            *state = Work::Left;
            *left() += 1;
        }
    }
}

fn left() -> MutexGuard<'static, usize> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn late() -> io::Error {
    io::Error::from_raw_os_error(libc::ETIMEDOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_takes_too_long_is_abandoned_and_the_number_of_abandoned_threads_is_bounded() {
        let short = Duration::from_millis(20);
        assert_eq!(within(Duration::from_secs(60), || Ok(7)).unwrap(), 7);
        assert_eq!(
            within(Duration::from_secs(60), || Err::<(), _>(io::ErrorKind::NotFound.into()))
                .unwrap_err()
                .kind(),
            io::ErrorKind::NotFound
        );
        let gate = Arc::new(Mutex::new(()));
        let shut = gate.lock().unwrap();
        for _ in 0..MAX_ABANDONED {
            let gate = gate.clone();
            let wait = move || {
                drop(gate.lock().unwrap());
                Ok(())
            };
            assert_eq!(within(short, wait).unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        assert_eq!(
            within(Duration::from_secs(60), || Ok(7)).unwrap_err().kind(),
            io::ErrorKind::TimedOut,
            "no more"
        );
        drop(shut);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while *LEFT.lock().unwrap() > 0 && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(within(Duration::from_secs(60), || Ok(7)).unwrap(), 7);
    }
}
