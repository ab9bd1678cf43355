//! Splits the output of workers into lines as the bytes arrive.

use std::collections::HashMap;
use std::sync::Arc;

use troop::setup::{Output, Source};

use super::line::Origin;
use super::writer::LogQueue;

/// The longest line, in bytes; the rest of a longer one becomes further lines.
const MAX_LINE: usize = 64 * 1024;

/// Splits the output of workers into lines and queues them.
pub(crate) struct Collector {
    queue: Arc<LogQueue>,
    /// Incomplete lines, by origin.
    partial: HashMap<Source, Vec<u8>>,
}

impl Collector {
    pub(crate) fn new(queue: Arc<LogQueue>) -> Collector {
        Collector { queue, partial: HashMap::new() }
    }
}

fn origin(source: Source) -> Origin {
    let slot = source.slot.unwrap_or_default();
    if source.error { Origin::Err(slot) } else { Origin::Out(slot) }
}

impl Output for Collector {
    fn write(&mut self, source: Source, mut bytes: &[u8]) {
        let origin = origin(source);
        let partial = self.partial.entry(source).or_default();
        let mut lines = self.queue.lines();
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if partial.is_empty() {
                lines.split(origin, line, MAX_LINE);
            } else {
                partial.extend_from_slice(line);
                lines.split(origin, partial, MAX_LINE);
                partial.clear();
            }
            bytes = rest;
        }
        partial.extend_from_slice(bytes);
        while partial.len() > MAX_LINE {
            lines.push(origin, &partial[..MAX_LINE]);
            partial.drain(..MAX_LINE);
        }
    }

    fn end(&mut self, source: Source) {
        if let Some(last) = self.partial.remove(&source).filter(|last| !last.is_empty()) {
            self.queue.lines().push(origin(source), &last);
        }
    }
}
