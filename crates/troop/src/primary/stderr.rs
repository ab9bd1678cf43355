//! Passes the workers' standard error on to the primary's, and remembers its end.

use std::collections::{HashMap, VecDeque};
use std::io::{self, PipeReader, Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use troop_sys::poll::{Bell, Interest, Poller};

/// How many lines and bytes are remembered of each worker.
const MAX_LINES: usize = 20;
const MAX_BYTES: usize = 8 * 1024;

/// The end of what a worker wrote.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    state: Mutex<(VecDeque<u8>, bool)>,
    ended: Condvar,
}

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.extend(&bytes[bytes.len().saturating_sub(MAX_BYTES)..]);
        let surplus = state.0.len().saturating_sub(MAX_BYTES);
        state.0.drain(..surplus);
    }

    fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.ended.notify_all();
    }

    pub(crate) fn text(&self, patience: Duration) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) =
            self.ended.wait_timeout_while(state, patience, |(_, ended)| !*ended).unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = state.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(MAX_LINES)..].join("\n")
    }
}

struct Stream {
    pipe: PipeReader,
    tail: Arc<Tail>,
    /// Passed on, not only remembered.
    shown: bool,
}

type Streams = Arc<Mutex<HashMap<u64, Stream>>>;

/// Wakes the thread so that it sees that nobody will add streams any more.
const NO_MORE: u64 = 0;

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.no_more.ring();
    }
}

/// A thread that copies. When the primary's standard error is slow, the workers wait, as they would on an inherited one; the primary does
/// not.
pub(crate) struct Forwarder {
    poller: Arc<Poller>,
    streams: Streams,
    last: u64,
    no_more: Arc<Bell>,
}

impl Forwarder {
    pub(crate) fn start() -> io::Result<Forwarder> {
        let poller = Poller::new()?;
        // The thread waits on a copy of the descriptor, so that it can be added to without a lock.
        let waiting = poller.try_clone()?;
        let streams = Streams::default();
        let theirs = streams.clone();
        let no_more = Arc::new(Bell::new()?);
        poller.add(&no_more, NO_MORE, Interest::Read)?;
        let bell = no_more.clone();
        std::thread::Builder::new()
            .name("troop-stderr".into())
            .stack_size(128 * 1024)
            .spawn(move || copy(waiting, &theirs, &bell))?;
        Ok(Forwarder { poller: Arc::new(poller), streams, last: NO_MORE, no_more })
    }

    pub(crate) fn add(&mut self, pipe: PipeReader, shown: bool) -> io::Result<Arc<Tail>> {
        self.last += 1;
        let tail = Arc::new(Tail::default());
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        self.poller.add(&pipe, self.last, Interest::Read)?;
        streams.insert(self.last, Stream { pipe, tail: tail.clone(), shown });
        Ok(tail)
    }
}

fn copy(mut poller: Poller, streams: &Streams, bell: &Bell) {
    let (mut ready, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    let mut no_more = false;
    while poller.wait(None, &mut ready).is_ok() {
        for event in ready.drain(..) {
            if event.token == NO_MORE {
                bell.hush();
                no_more = true;
                continue;
            }
            // Read outside the lock: adding a stream must not wait for a slow terminal.
            let stream = {
                let streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
                streams.get(&event.token).and_then(|s| Some((s.pipe.try_clone().ok()?, s.tail.clone(), s.shown)))
            };
            let Some((mut pipe, tail, shown)) = stream else {
                // Out of descriptors; the stream will be reported again.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            match pipe.read(&mut buffer) {
                Ok(n) if n > 0 => {
                    tail.push(&buffer[..n]);
                    if shown {
                        // Nobody to tell when the primary's own standard error is closed.
                        let _ = io::stderr().lock().write_all(&buffer[..n]);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    drop(pipe);
                    streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&event.token);
                    tail.end();
                }
            }
        }
        if no_more && streams.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return;
        }
    }
}
