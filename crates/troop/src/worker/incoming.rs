//! A listener's connections as a stream, for servers that take one.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::net::{TcpListener, TcpStream, UnixListener, UnixStream, is_draining};

type Accept<C> = Pin<Box<dyn Future<Output = io::Result<C>> + Send>>;

/// The connections of a listener. Ends when its worker is to finish, and closes the listener when it
/// is dropped. See [`TcpListener::incoming`].
#[must_use = "streams do nothing unless they are polled"]
pub struct Incoming<C> {
    accept: Box<dyn FnMut() -> Accept<C> + Send>,
    /// `None` after the last one.
    next: Option<Accept<C>>,
}

impl<C> Incoming<C> {
    fn new(mut accept: impl FnMut() -> Accept<C> + Send + 'static) -> Incoming<C> {
        Incoming { next: Some(accept()), accept: Box::new(accept) }
    }
}

impl<C> std::fmt::Debug for Incoming<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("ended", &self.next.is_none()).finish_non_exhaustive()
    }
}

impl<C> Stream for Incoming<C> {
    type Item = io::Result<C>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<C>>> {
        let Some(next) = &mut self.next else { return Poll::Ready(None) };
        let accepted = ready!(next.as_mut().poll(cx));
        if accepted.as_ref().is_err_and(is_draining) {
            self.next = None;
            return Poll::Ready(None);
        }
        self.next = Some((self.accept)());
        Poll::Ready(Some(accepted))
    }
}

impl TcpListener {
    /// The connections as a stream that ends when the worker is to finish, for servers that take
    /// one. With the feature `tonic`, its server takes it together with
    /// [`Worker::draining`](crate::Worker::draining), which tells it to finish what it is serving:
    ///
    /// ```text
    /// let incoming = worker.listen("0.0.0.0:50051").await?.incoming();
    /// Server::builder().add_service(greeter).serve_with_incoming_shutdown(incoming, worker.draining()).await
    /// ```
    ///
    /// All its connections are closed at one moment then. `troop::serve`, with the features `axum`
    /// and `http2`, closes them one after another:
    ///
    /// ```text
    /// troop::serve(listener, Routes::new(greeter).into_axum_router()).await;
    /// ```
    pub fn incoming(self) -> Incoming<TcpStream> {
        let listener = Arc::new(self);
        Incoming::new(move || {
            let listener = listener.clone();
            Box::pin(async move { listener.accept().await.map(|(stream, _)| stream) })
        })
    }
}

impl UnixListener {
    /// The connections as a stream; see [`TcpListener::incoming`].
    pub fn incoming(self) -> Incoming<UnixStream> {
        let listener = Arc::new(self);
        Incoming::new(move || {
            let listener = listener.clone();
            Box::pin(async move { listener.accept().await })
        })
    }
}

#[cfg(feature = "tonic")]
mod tonic_connections {
    use tonic::transport::server::{Connected, TcpConnectInfo, UdsConnectInfo};

    use super::{TcpStream, UnixStream};

    impl Connected for TcpStream {
        type ConnectInfo = TcpConnectInfo;

        fn connect_info(&self) -> TcpConnectInfo {
            (**self).connect_info()
        }
    }

    impl Connected for UnixStream {
        type ConnectInfo = UdsConnectInfo;

        fn connect_info(&self) -> UdsConnectInfo {
            (**self).connect_info()
        }
    }
}
