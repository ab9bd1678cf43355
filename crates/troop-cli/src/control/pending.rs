//! Clients that have connected and not sent a request yet.
//!
//! Their number is bounded. A new client is always accepted, and the one that has been silent for
//! longest is disconnected, so that silent clients cannot keep others out.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::Shutdown;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::connection::Connection;
use super::protocol::MAX_REQUEST;

/// The number of silent clients.
const MAX_SILENT: usize = 16;
/// The time that a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Clients of the control socket without a request, the one that has been silent for longest first.
#[derive(Debug, Default)]
pub(super) struct PendingClients {
    silent: Mutex<VecDeque<Arc<UnixStream>>>,
}

impl PendingClients {
    /// Accepts a client, and may disconnect another one for it.
    pub(super) fn admit(&self, stream: UnixStream) -> Arc<UnixStream> {
        let stream = Arc::new(stream);
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if silent.len() >= MAX_SILENT {
            // A client that has sent nothing at all goes before one whose request is arriving.
            let is_silent = |client: &Arc<UnixStream>| {
                rustix::io::ioctl_fionread(client).is_ok_and(|bytes| bytes == 0)
            };
            let at = silent.iter().position(is_silent).unwrap_or(0);
            if let Some(client) = silent.remove(at) {
                // The task of that client sees the end of the stream. This fails only if the client
                // has closed it.
                let _ = rustix::net::shutdown(&client, Shutdown::Both);
            }
        }
        silent.push_back(stream.clone());
        stream
    }

    /// Waits for the request of a client: a line. Returns `None` if the client has left, was
    /// disconnected, or has sent too much or nothing in time.
    pub(super) async fn read_request(
        &self,
        stream: Arc<UnixStream>,
    ) -> Option<(Vec<u8>, Connection)> {
        let request = timeout(REQUEST_TIMEOUT, read_line(&stream)).await;
        self.silent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|client| !Arc::ptr_eq(client, &stream));
        let line = request.ok()?.ok()?;
        Some((line, Connection::new(Arc::try_unwrap(stream).ok()?)))
    }
}

async fn read_line(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let (mut line, mut part) = (Vec::new(), [0; 4096]);
    loop {
        stream.readable().await?;
        let part = match stream.try_read(&mut part) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => &part[..len],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        };
        if let Some(end) = memchr::memchr(b'\n', part) {
            line.extend_from_slice(&part[..=end]);
            return Ok(line);
        }
        line.extend_from_slice(part);
        if line.len() > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}
