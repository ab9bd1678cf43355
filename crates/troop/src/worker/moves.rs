//! Connections that outlive their worker: between two requests they go back to the primary, which
//! gives them to another worker.

use std::fmt;
use std::os::fd::AsFd;

use troop_core::wire::outgoing;

use super::Worker;
use super::counted::Counted;
use crate::error::Error;

/// A connection that could not be [returned](Worker::return_connection), and why.
pub struct NotReturned<S> {
    stream: Option<Counted<S>>,
    error: Error,
}

impl<S> NotReturned<S> {
    /// The connection, which is still this worker's. `None` if the primary went away while it was
    /// under way, because another worker may have it.
    #[must_use]
    pub fn into_stream(self) -> Option<Counted<S>> {
        self.stream
    }

    /// Why it could not be returned.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.error
    }
}

impl<S> fmt::Debug for NotReturned<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotReturned").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<S> fmt::Display for NotReturned<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the connection could not be returned to the primary: {}", self.error)
    }
}

impl<S> std::error::Error for NotReturned<S> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl<S> From<NotReturned<S>> for Error {
    fn from(refused: NotReturned<S>) -> Error {
        refused.error
    }
}

impl Worker {
    /// Returns a connection to the primary, which gives it to another worker: there it comes out of
    /// the listener like a new one, and the client notices nothing. For a connection that its client
    /// keeps open and that is at a resting point of its protocol, while this worker
    /// [is to finish](Worker::draining): nothing of a next request has been read, and nothing of the
    /// last answer is left to write. What has arrived and was not read goes along.
    /// `troop::serve` does it by itself for HTTP/1.
    ///
    /// Waits until the primary has the connection, behind at most 32 others of this worker. Not
    /// cancel safe: a dropped call may have returned the connection, which is closed here then.
    ///
    /// ```no_run
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// use troop::{Worker, net::TcpStream};
    ///
    /// /// Sends back every byte that comes, to the last one of this worker and then to the next.
    /// async fn echo(worker: Worker, mut stream: TcpStream) -> troop::Result<()> {
    ///     let mut byte = [0];
    ///     loop {
    ///         tokio::select! {
    ///             read = stream.read(&mut byte) => match read {
    ///                 Ok(1) => stream.write_all(&byte).await.unwrap_or_default(),
    ///                 _ => return Ok(()),
    ///             },
    ///             () = worker.draining() => break,
    ///         }
    ///     }
    ///     // If no other worker can take it, it is closed.
    ///     Ok(worker.return_connection(stream).await?)
    /// }
    /// ```
    ///
    /// # Errors
    /// [`NotReturned`], with the connection in it: this worker is not to finish
    /// ([`Error::Settings`]); the listener is this process's own, no other worker has it, or too many
    /// connections wait there ([`Error::HandleRefused`]); the system has no descriptor left
    /// ([`Error::Io`]). Without the connection: the primary is gone ([`Error::Closed`]).
    pub async fn return_connection<S: AsFd>(
        &self,
        stream: Counted<S>,
    ) -> Result<(), NotReturned<S>> {
        let refused = |stream, error| Err(NotReturned { stream: Some(stream), error });
        if !self.is_draining() {
            let reason = "only a worker that is to finish returns connections";
            return refused(stream, Error::Settings(reason.into()));
        }
        if !self.inner.moves() {
            return refused(stream, Error::HandleRefused);
        }
        self.offer_connection(stream).await
    }

    /// The same, also where this worker was only asked to return some of its connections.
    pub(crate) async fn offer_connection<S: AsFd>(
        &self,
        stream: Counted<S>,
    ) -> Result<(), NotReturned<S>> {
        let refused = |stream, error| Err(NotReturned { stream: Some(stream), error });
        let Some(key) = stream.open.key.clone().filter(|_| self.inner.is_connected()) else {
            return refused(stream, Error::HandleRefused);
        };
        // Closed only with the worker, which is here.
        let _turn = self.inner.moving.acquire().await;
        // The stream is kept until the primary has a copy.
        let copy = match stream.as_fd().try_clone_to_owned() {
            Ok(copy) => copy,
            Err(source) => {
                let error = Error::Io { doing: "copy a connection for the primary", source };
                return refused(stream, error);
            }
        };
        let mut line = Vec::with_capacity(128);
        outgoing::move_connection(&mut line, &key);
        match self.inner.mailbox.send_line_with(line, copy, 1).await {
            Ok(()) => Ok(()),
            Err(Error::Closed) => Err(NotReturned { stream: None, error: Error::Closed }),
            Err(error) => refused(stream, error),
        }
    }
}
