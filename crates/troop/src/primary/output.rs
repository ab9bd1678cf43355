//! Reads what workers write to standard output and error: passes it on, or gives it to the program, and remembers the end of standard error.

use std::collections::{HashMap, VecDeque};
use std::io::{self, PipeReader, Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use troop_core::WorkerId;
use troop_sys::poll::{Bell, Interest, Poller};

/// How many lines and bytes are remembered of each worker.
const MAX_LINES: usize = 40;
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

/// Who wrote something, and where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Source {
    /// The worker.
    pub worker: WorkerId,
    /// Its slot, if it is supervised.
    pub slot: Option<u32>,
    /// Standard error, not standard output.
    pub error: bool,
}

/// Takes what workers with [`Stdio::Collect`](crate::Stdio::Collect) write: see [`Builder::output`](crate::Builder::output).
///
/// It is called by one thread of its own. While it works, workers that write much wait; the primary does not.
pub trait Output: Send {
    /// Something was written: bytes as they came, so a line may be spread over several calls.
    fn write(&mut self, source: Source, bytes: &[u8]);

    /// All ends of the pipe are closed; mostly because the worker has ended.
    fn end(&mut self, source: Source);
}

/// What becomes of what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// To this process's standard error.
    Forwarded,
    Remembered,
    /// To the program's [`Output`].
    Collected,
}

struct Stream {
    pipe: PipeReader,
    source: Source,
    tail: Option<Arc<Tail>>,
    fate: Fate,
}

type Streams = Arc<Mutex<HashMap<u64, Stream>>>;

/// Wakes the thread so that it sees that nobody will add streams any more.
const NO_MORE: u64 = 0;

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.no_more.ring();
    }
}

/// A thread that copies. When what it copies to is slow, the workers wait, as they would on an inherited one; the primary does not.
pub(crate) struct Forwarder {
    poller: Arc<Poller>,
    streams: Streams,
    last: u64,
    no_more: Arc<Bell>,
}

impl Forwarder {
    pub(crate) fn start(output: Option<Box<dyn Output>>) -> io::Result<Forwarder> {
        let poller = Poller::new()?;
        // The thread waits on a copy of the descriptor, so that it can be added to without a lock.
        let waiting = poller.try_clone()?;
        let streams = Streams::default();
        let theirs = streams.clone();
        let no_more = Arc::new(Bell::new()?);
        poller.add(&no_more, NO_MORE, Interest::Read)?;
        let bell = no_more.clone();
        std::thread::Builder::new()
            .name("troop-output".into())
            .stack_size(256 * 1024)
            .spawn(move || copy(waiting, &theirs, &bell, output))?;
        Ok(Forwarder { poller: Arc::new(poller), streams, last: NO_MORE, no_more })
    }

    /// The end of what is written there is remembered if it is standard error.
    pub(crate) fn add(&mut self, pipe: PipeReader, source: Source, fate: Fate) -> io::Result<Option<Arc<Tail>>> {
        self.last += 1;
        let tail = source.error.then(|| Arc::new(Tail::default()));
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        self.poller.add(&pipe, self.last, Interest::Read)?;
        streams.insert(self.last, Stream { pipe, source, tail: tail.clone(), fate });
        Ok(tail)
    }
}

fn copy(mut poller: Poller, streams: &Streams, bell: &Bell, mut output: Option<Box<dyn Output>>) {
    let (mut ready, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
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
                streams.get(&event.token).and_then(|s| Some((s.pipe.try_clone().ok()?, s.source, s.tail.clone(), s.fate)))
            };
            let Some((mut pipe, source, tail, fate)) = stream else {
                // Out of descriptors; the stream will be reported again.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            match pipe.read(&mut buffer) {
                Ok(n) if n > 0 => {
                    let bytes = &buffer[..n];
                    tail.iter().for_each(|tail| tail.push(bytes));
                    match (fate, &mut output) {
                        // Nobody to tell when the primary's own standard error is closed.
                        (Fate::Forwarded, _) => drop(io::stderr().lock().write_all(bytes)),
                        (Fate::Collected, Some(output)) => output.write(source, bytes),
                        _ => {}
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    drop(pipe);
                    streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&event.token);
                    if let (Fate::Collected, Some(output)) = (fate, &mut output) {
                        output.end(source);
                    }
                    tail.iter().for_each(|tail| tail.end());
                }
            }
        }
        if no_more && streams.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return;
        }
    }
}
