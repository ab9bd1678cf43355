//! The primary's side of one connection to a client.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::protocol::Answer;

/// Timeout of writing a line, for clients that do not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a client whose request has arrived.
#[derive(Debug)]
pub(crate) struct Connection(UnixStream);

/// The error for a client that has left, or does not read.
#[derive(Debug)]
pub(crate) struct Disconnected;

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Connection {
        Connection(stream)
    }

    /// Sends a line.
    ///
    /// # Errors
    /// If the client has left, or has not read for ten seconds.
    pub(crate) async fn send(&mut self, answer: &Answer) -> Result<(), Disconnected> {
        let mut line = serde_json::to_vec(answer).map_err(|_| Disconnected)?;
        line.push(b'\n');
        match timeout(WRITE_TIMEOUT, self.0.write_all(&line)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Disconnected),
        }
    }

    /// Returns a copy of it, for another engine that answers the client.
    pub(super) fn to_leave(&self) -> Option<OwnedFd> {
        self.0.as_fd().try_clone_to_owned().ok()
    }

    /// Has the client wait for the end of the app's process.
    pub(super) fn hold_until_end(&self) {
        troop::keeper::hold_until_end(&self.0);
    }

    /// Completes when the client has closed its side, or sends something after its request.
    pub(super) async fn closed(&self) {
        loop {
            if self.0.readable().await.is_err() {
                return;
            }
            match self.0.try_read(&mut [0]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    }
}
