//! Clients that have connected and not said yet what they want.
//!
//! There may be so many of them. Whoever comes next is let in all the same, and the one that has
//! been silent for longest is sent away, so that nobody can keep others out by connecting and
//! saying nothing.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::Shutdown;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Clients that may be silent at a time.
const MAX_SILENT: usize = 16;
/// The longest request, and how long it may take to arrive.
const MAX_REQUEST: usize = 64 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Clients of the control socket that have not asked anything yet, the one that has been silent for
/// longest first.
#[derive(Debug, Default)]
pub(super) struct Door {
    silent: Mutex<VecDeque<Arc<UnixStream>>>,
}

impl Door {
    /// Takes a client in. Another one may be sent away for it.
    pub(super) fn enter(&self, stream: UnixStream) -> Arc<UnixStream> {
        let stream = Arc::new(stream);
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if silent.len() >= MAX_SILENT {
            // Rather one that has said nothing at all than one whose request is on its way.
            let says_nothing = |client: &Arc<UnixStream>| {
                rustix::io::ioctl_fionread(client).is_ok_and(|bytes| bytes == 0)
            };
            let at = silent.iter().position(says_nothing).unwrap_or(0);
            if let Some(client) = silent.remove(at) {
                // Its task sees the end of the stream. It fails only if the client has gone
                // already.
                let _ = rustix::net::shutdown(&client, Shutdown::Both);
            }
        }
        silent.push_back(stream.clone());
        stream
    }

    /// Waits for a client's request: a line. `None` if it has left, was sent away, or has said too
    /// much or nothing in time.
    pub(super) async fn read_request(
        &self,
        stream: Arc<UnixStream>,
    ) -> Option<(Vec<u8>, UnixStream)> {
        let request = timeout(REQUEST_TIMEOUT, read_line(&stream)).await;
        self.silent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|client| !Arc::ptr_eq(client, &stream));
        let line = request.ok()?.ok()?;
        Some((line, Arc::try_unwrap(stream).ok()?))
    }
}

async fn read_line(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let (mut line, mut part) = (Vec::new(), [0; 4096]);
    loop {
        stream.readable().await?;
        match stream.try_read(&mut part) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => line.extend_from_slice(&part[..len]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        }
        if let Some(end) = memchr::memchr(b'\n', &line) {
            line.truncate(end + 1);
            return Ok(line);
        }
        if line.len() > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Completes when a client has left: it closes its side, or says something when it has nothing more
/// to say.
pub(super) async fn has_left(stream: &UnixStream) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut [0]) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}
