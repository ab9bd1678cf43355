//! Closes descriptors that a hostile worker may share in threads, because a close can block: the
//! threads wait, the driver does not.
//!
//! The last `close` of a TCP socket with `SO_LINGER` waits until everything is sent, for up to 68
//! years, even on a non-blocking socket, and even where the kernel itself closes it: with a channel
//! that carries it, or because a message had more descriptors than were asked for. Any process with
//! a copy can set the option at any moment. So the closer clears the option, which is usually
//! enough, and interrupts threads that wait nevertheless.
//!
//! The last close of a file can take long too, and no signal ends it: an unlinked file of many pieces
//! takes seconds. The kernel drops descriptors of a message that are not taken in the thread that
//! receives the message, and those in the queue of a Unix socket in the thread that closes the socket.
//! So the driver only looks at messages, and consumes one itself only if it has copies of all its
//! descriptors; [`Closer::consume`] does it for others.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, IntoRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use troop_sys::interrupt::Thread;
use troop_sys::{fdpass, socket, spawn};

/// Maximum number of descriptors that wait to be closed. The calling thread closes further ones
/// itself, and is interrupted if that takes long; only Unix sockets wait nevertheless.
const MAX_WAITING: usize = 1024;
/// Maximum number of waiting descriptors that workers have sent before no more are accepted.
const MAX_FOREIGN: usize = MAX_WAITING / 2;
/// Maximum number of closing threads; one is started when all others are busy.
const MAX_THREADS: usize = 4;
/// Maximum number of closing threads while others cannot be interrupted, as in the close of a file
/// on a file system (FUSE) that never answers.
const MAX_STUCK: usize = 64;
/// Maximum number of files that are being closed before no more descriptors are accepted. Their
/// file systems may never end a close, and signals do not interrupt that.
const MAX_FILES: usize = 4;
/// Number of threads that close files: one for each possible file, because a process that is
/// started meanwhile would otherwise close waiting ones. One message has two at most.
const MAX_FILE_THREADS: usize = MAX_FILES + 1;
/// A thread that has been closing one descriptor for this long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// Time for which the close of a Unix socket waits for processes that are being started. They have copies
/// of it, and one that had the last would drop what is in its queue, which nothing interrupts.
const STARTS_TIMEOUT: Duration = Duration::from_millis(500);
/// Time after the last guarded call until the guard thread sleeps.
const GUARD_IDLE_TIMEOUT: Duration = Duration::from_millis(100);
/// Time after which a close is interrupted.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_millis(10);

/// Closes descriptors in threads, so that `SO_LINGER` does not block the caller. Clones share one
/// queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct Closer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    more: Condvar,
    begun: Condvar,
    /// Files that wait to be closed, or are being closed.
    unclosed_files: AtomicUsize,
    /// Sockets from workers that wait to be closed.
    foreign: AtomicUsize,
    /// Threads that consume messages.
    consuming: AtomicUsize,
    /// Descriptors that are closed when this process ends.
    left_open: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Each with whether a worker has sent it.
    waiting: VecDeque<(OwnedFd, bool)>,
    idle: usize,
    /// The closing threads, and the start of the close that each is in.
    threads: Vec<(Option<Thread>, Option<Instant>)>,
    /// Threads in a guarded call that can block, and its start. The guard thread interrupts them.
    guarded: Vec<(Thread, Instant)>,
    has_guard: bool,
    /// Whether the guard thread sleeps and must be woken.
    guard_sleeps: bool,
    files: VecDeque<OwnedFd>,
    /// Threads that close files.
    file_threads: usize,
    over: bool,
}

impl State {
    /// Whether no thread has finished anything for a while.
    fn is_stuck(&self) -> bool {
        let since = |(_, since): &(_, Option<Instant>)| since.map(|since| since.elapsed());
        self.threads.iter().all(|thread| since(thread).is_some_and(|time| time >= STUCK_AFTER))
    }
}

impl Closer {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never waits.
    pub(crate) fn close(&self, fd: OwnedFd) {
        self.close_as(fd, false);
    }

    /// Closes a socket that a worker has sent.
    pub(crate) fn close_foreign(&self, fd: OwnedFd) {
        self.close_as(fd, true);
    }

    fn close_as(&self, fd: OwnedFd, is_foreign: bool) {
        let mut state = self.lock();
        let most = if state.is_stuck() { MAX_STUCK } else { MAX_THREADS };
        if !state.over && state.idle == 0 && state.threads.len() < most {
            self.start(&mut state);
        }
        // In the queue of a Unix socket may be files, whose close cannot be interrupted.
        let has_room = !state.threads.is_empty()
            && (state.waiting.len() < MAX_WAITING || socket::is_unix(&fd));
        if state.over || !has_room {
            let is_stuck = !state.threads.is_empty() && state.is_stuck();
            drop(state);
            socket::close_at_once(&fd);
            if is_stuck {
                // A thread that closes it might never return.
                self.leave_open(fd);
            } else {
                self.guard(|| drop(fd));
            }
            return;
        }
        self.0.foreign.fetch_add(usize::from(is_foreign), Ordering::Relaxed);
        state.waiting.push_back((fd, is_foreign));
        drop(state);
        self.0.more.notify_one();
    }

    /// Closes a descriptor that is not a socket, without blocking.
    pub(crate) fn close_file(&self, fd: OwnedFd) {
        let mut state = self.lock();
        state.files.push_back(fd);
        self.0.unclosed_files.fetch_add(1, Ordering::Relaxed);
        if state.file_threads < MAX_FILE_THREADS {
            let closer = self.clone();
            let thread =
                std::thread::Builder::new().name("troop-close".into()).stack_size(64 * 1024);
            state.file_threads += usize::from(thread.spawn(move || closer.close_files()).is_ok());
        }
        if state.file_threads == 0 {
            state.files.drain(..).for_each(|fd| self.leave_open(fd));
        }
    }

    /// Has the end of this process close it.
    fn leave_open(&self, fd: OwnedFd) {
        let _ = fd.into_raw_fd();
        self.0.left_open.fetch_add(1, Ordering::Relaxed);
    }

    fn close_files(&self) {
        let mut state = self.lock();
        while let Some(fd) = state.files.pop_front() {
            drop(state);
            drop(fd);
            self.0.unclosed_files.fetch_sub(1, Ordering::Relaxed);
            state = self.lock();
        }
        state.file_threads -= 1;
    }

    /// Consumes bytes of a Unix socket, with more descriptors than anybody takes, in a thread of its
    /// own, and closes the socket there if nobody else has it any more. `done` is called when the
    /// kernel has dropped the descriptors; nobody else may read from the socket before.
    pub(crate) fn consume(
        &self,
        socket: Arc<OwnedFd>,
        len: usize,
        done: impl FnOnce() + Send + 'static,
    ) {
        let closer = self.clone();
        let consume = move || {
            let mut bytes = vec![0; len];
            closer.guard(|| {
                let _ = fdpass::consume(socket.as_fd(), &mut bytes);
            });
            spawn::await_started(STARTS_TIMEOUT);
            closer.guard(|| drop(socket));
            closer.0.consuming.fetch_sub(1, Ordering::Relaxed);
            done();
        };
        self.0.consuming.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("troop-close".into()).stack_size(64 * 1024);
        let consume = Arc::new(Mutex::new(Some(consume)));
        let take = |consume: &Mutex<Option<_>>| {
            consume.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let theirs = consume.clone();
        let spawned = thread.spawn(move || {
            if let Some(consume) = take(&theirs) {
                consume();
            }
        });
        if spawned.is_err()
            && let Some(consume) = take(&consume)
        {
            consume();
        }
    }

    /// Whether the limit of files that are not closed yet is reached.
    fn is_full(&self) -> bool {
        self.0.unclosed_files.load(Ordering::Relaxed) >= MAX_FILES
    }

    /// Whether descriptors from workers can be accepted: not too many files and sockets of theirs
    /// are waiting to be closed.
    pub(crate) fn accepts(&self) -> bool {
        !self.is_full() && self.0.foreign.load(Ordering::Relaxed) < MAX_FOREIGN
    }

    /// Makes a call in which the kernel may close descriptors, and interrupts it if it takes too
    /// long.
    pub(crate) fn guard<T>(&self, call: impl FnOnce() -> T) -> T {
        let thread = Thread::current();
        {
            let mut state = self.lock();
            if !state.has_guard {
                let closer = self.clone();
                let guard =
                    std::thread::Builder::new().name("troop-guard".into()).stack_size(64 * 1024);
                state.has_guard = guard.spawn(move || closer.watch()).is_ok();
            }
            state.guarded.push((thread, Instant::now()));
            if std::mem::take(&mut state.guard_sleeps) {
                self.0.begun.notify_one();
            }
        }
        let result = call();
        // Under the lock, so that a thread which may have ended is never interrupted.
        self.lock().guarded.retain(|(guarded, _)| *guarded != thread);
        result
    }

    fn watch(&self) {
        let mut state = self.lock();
        let mut last = Instant::now();
        while !state.over {
            if !state.guarded.is_empty() {
                last = Instant::now();
            } else if last.elapsed() >= GUARD_IDLE_TIMEOUT {
                state.guard_sleeps = true;
                state = self.0.begun.wait(state).unwrap_or_else(PoisonError::into_inner);
                last = Instant::now();
                continue;
            }
            let late = state.guarded.iter().filter(|(_, since)| since.elapsed() >= CLOSE_TIMEOUT);
            late.for_each(|(thread, _)| thread.interrupt());
            state = self
                .0
                .begun
                .wait_timeout(state, CLOSE_TIMEOUT)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn start(&self, state: &mut State) {
        let (closer, number) = (self.clone(), state.threads.len());
        let thread = std::thread::Builder::new().name("troop-close".into()).stack_size(64 * 1024);
        if thread.spawn(move || closer.work(number)).is_ok() {
            state.threads.push((None, None));
        }
    }

    fn work(&self, number: usize) {
        let thread = Thread::current();
        let mut state = self.lock();
        state.threads[number].0 = Some(thread);
        loop {
            state.threads[number].1 = None;
            let Some((fd, is_foreign)) = state.waiting.pop_front() else {
                if state.over {
                    return;
                }
                state.idle += 1;
                state = self.0.more.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            state.threads[number].1 = Some(Instant::now());
            drop(state);
            self.0.foreign.fetch_sub(usize::from(is_foreign), Ordering::Relaxed);
            socket::close_at_once(&fd);
            if socket::is_unix(&fd) {
                spawn::await_started(STARTS_TIMEOUT);
            }
            drop(fd);
            state = self.lock();
        }
    }

    /// Interrupts closes that take too long. Must be called again after [`CLOSE_TIMEOUT`] if it
    /// returns true.
    pub(crate) fn check(&self) -> bool {
        let state = self.lock();
        let busy = state.threads.iter().filter_map(|(thread, since)| Some(((*thread)?, (*since)?)));
        busy.filter(|(_, since)| since.elapsed() >= CLOSE_TIMEOUT)
            .for_each(|(thread, _)| thread.interrupt());
        !state.waiting.is_empty() || state.threads.iter().any(|(_, since)| since.is_some())
    }
}

impl Closer {
    /// Whether descriptors are still to be closed, for which the process would wait that executes
    /// another program now.
    pub(crate) fn is_busy(&self) -> bool {
        let shared = &self.0;
        let counts = [&shared.unclosed_files, &shared.consuming, &shared.left_open];
        let state = self.lock();
        counts.iter().any(|count| count.load(Ordering::Relaxed) > 0)
            || !state.waiting.is_empty()
            || state.threads.iter().any(|(_, since)| since.is_some())
    }
}

/// The driver's closer. Dropping it ends the threads when everything is closed.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    closer: Closer,
    was_full: bool,
}

impl Closing {
    pub(crate) fn closer(&self) -> &Closer {
        &self.closer
    }

    /// Whether the closer [is full](Closer::is_full) since this was last asked.
    pub(crate) fn has_become_full(&mut self) -> bool {
        let is_full = self.closer.is_full();
        !std::mem::replace(&mut self.was_full, is_full) && is_full
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.closer.lock().over = true;
        self.closer.0.more.notify_all();
        self.closer.0.begun.notify_all();
    }
}

/// A descriptor from a worker. Dropping it does not block if the worker runs as another user.
#[derive(Debug)]
pub(crate) struct Foreign {
    fd: Option<OwnedFd>,
    closer: Option<Closer>,
}

impl Foreign {
    pub(crate) fn new(fd: OwnedFd, closer: Option<&Closer>) -> Foreign {
        Foreign { fd: Some(fd), closer: closer.cloned() }
    }

    pub(crate) fn get(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    /// Returns the plain descriptor, for callers that may block or trust the worker.
    pub(crate) fn take(mut self) -> Option<OwnedFd> {
        self.fd.take()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let (Some(fd), Some(closer)) = (self.fd.take(), &self.closer) {
            closer.close_foreign(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn every_thread_is_guarded_while_others_are() {
        let closing = Closing::default();
        let (begun, first_is_over) = (Barrier::new(2), Barrier::new(2));
        // No process writes, so a read waits until it is interrupted.
        let read = |before: &Barrier| {
            let (socket, _other) = UnixStream::pair().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            closing.closer().guard(|| {
                before.wait();
                rustix::io::read(&socket, &mut [0])
            })
        };
        std::thread::scope(|scope| {
            let longer = scope.spawn(|| {
                closing.closer().guard(|| {
                    begun.wait();
                    // The other one has come and gone meanwhile.
                    first_is_over.wait();
                    let (socket, _other) = UnixStream::pair().unwrap();
                    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    rustix::io::read(&socket, &mut [0])
                })
            });
            assert_eq!(read(&begun), Err(rustix::io::Errno::INTR));
            first_is_over.wait();
            assert_eq!(longer.join().unwrap(), Err(rustix::io::Errno::INTR));
        });
        assert!(closing.closer().lock().guarded.is_empty());
    }
}
