//! Pauses the reading of output, to write down how far it has come.

use std::collections::BTreeMap;
use std::io::{self, PipeReader};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use troop_sys::poll::Interest;

use super::marked::MarkedLines;
use super::{Fate, Forwarder, Output, Shared, Source, Stream, Tail, lock};
use crate::primary::saved::{Bytes, Key, Reader, Writer, invalid};

/// Time that the thread has to pause. It is longer only where the reader of the output takes
/// nothing.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether the thread reads nothing for now.
#[derive(Debug, Default)]
pub(super) enum Pause {
    #[default]
    None,
    Wanted,
    /// It does not. What it has of unfinished lines, by stream.
    Begun(BTreeMap<u64, Vec<u8>>),
}

/// Pauses the thread if that is wanted.
pub(super) fn pause(
    shared: &Shared,
    output: &Option<Box<dyn Output>>,
    marked: &BTreeMap<u64, MarkedLines>,
) {
    let mut streams = lock(&shared.streams);
    // Wanted again before this thread has seen that it was over.
    while matches!(streams.pause, Pause::Wanted) {
        streams = pause_once(shared, streams, output, marked);
    }
}

fn pause_once<'a>(
    shared: &Shared,
    mut streams: MutexGuard<'a, super::Streams>,
    output: &Option<Box<dyn Output>>,
    marked: &BTreeMap<u64, MarkedLines>,
) -> MutexGuard<'a, super::Streams> {
    let unfinished = streams.open.iter().map(|(token, stream)| {
        let bytes = match (stream.fate, output) {
            (Fate::Marked, _) => marked.get(token).map(MarkedLines::unfinished).unwrap_or_default(),
            (Fate::Collected, Some(output)) => output.unfinished(stream.source),
            _ => Vec::new(),
        };
        (*token, [&stream.unfinished[..], &bytes].concat())
    });
    streams.pause = Pause::Begun(unfinished.collect());
    shared.paused.notify_all();
    let is_paused = |streams: &mut super::Streams| matches!(streams.pause, Pause::Begun(_));
    shared.paused.wait_while(streams, is_paused).unwrap_or_else(PoisonError::into_inner)
}

/// The streams of all workers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct SavedOutput {
    streams: Vec<SavedStream>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedStream {
    pipe: Key,
    is_left: bool,
    source: Source,
    fate: Fate,
    unfinished: Bytes,
    tail: Option<Bytes>,
}

/// The thread goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Paused(Arc<Shared>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        lock(&self.0.streams).pause = Pause::None;
        self.0.paused.notify_all();
    }
}

impl Forwarder {
    /// Pauses the reading of output.
    ///
    /// # Errors
    /// `TimedOut` if the reader of the output takes nothing.
    pub(crate) fn pause(&self) -> io::Result<Paused> {
        let mut streams = lock(&self.shared.streams);
        streams.pause = Pause::Wanted;
        let paused = Paused(self.shared.clone());
        self.event_fd.signal();
        let until = Instant::now() + PAUSE_TIMEOUT;
        while !matches!(streams.pause, Pause::Begun(_)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(streams);
                return Err(io::ErrorKind::TimedOut.into());
            }
            streams = self
                .shared
                .paused
                .wait_timeout(streams, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(paused)
    }

    /// Writes down the streams, completely if reading is [paused](Forwarder::pause). What is read of a line
    /// that has no end yet is missing otherwise.
    pub(crate) fn save(&self, to: &mut Writer<'_>) -> io::Result<SavedOutput> {
        let none = BTreeMap::new();
        let streams = lock(&self.shared.streams);
        let unfinished = match &streams.pause {
            Pause::Begun(unfinished) => unfinished,
            _ => &none,
        };
        let saved = streams.open.iter().map(|(token, stream)| {
            Ok(SavedStream {
                pipe: to.owned(stream.pipe.try_clone()?.into()),
                is_left: stream.is_left,
                source: stream.source,
                fate: stream.fate,
                unfinished: to.bytes(unfinished.get(token).map_or(&[], |bytes| bytes)),
                tail: stream.tail.as_ref().map(|tail| to.bytes(&tail.bytes())),
            })
        });
        Ok(SavedOutput { streams: saved.collect::<io::Result<_>>()? })
    }

    /// Goes on with these streams. Returns the ends of standard error that are kept.
    pub(crate) fn restore(
        &mut self,
        saved: SavedOutput,
        from: &mut Reader,
    ) -> io::Result<Vec<(Source, Arc<Tail>)>> {
        let mut tails = Vec::new();
        for SavedStream { pipe, is_left, source, fate, unfinished, tail } in saved.streams {
            let pipe = PipeReader::from(from.descriptor(pipe)?);
            let unfinished = from.bytes(unfinished)?.to_vec();
            let tail = match tail {
                Some(bytes) => {
                    let tail = Arc::new(Tail::default());
                    tail.push(from.bytes(bytes)?);
                    tails.push((source, tail.clone()));
                    Some(tail)
                }
                None => None,
            };
            self.last += 1;
            let mut streams = lock(&self.shared.streams);
            self.poller.add(&pipe, self.last, Interest::Read)?;
            let pipe = Arc::new(pipe);
            let stream = Stream { pipe, is_left, source, tail, fate, unfinished };
            if streams.open.insert(self.last, stream).is_some() {
                return Err(invalid("two streams have one number".into()));
            }
        }
        Ok(tails)
    }
}
