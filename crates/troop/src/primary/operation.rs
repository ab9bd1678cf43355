//! Futures of the outcomes of operations.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::Cluster;
use super::wake::Command;
use crate::error::Error;

/// A future of the outcome of an operation of a [`Cluster`].
///
/// The operation begins when the method is called, not at the first poll. Dropping the future
/// cancels nothing: `drop(cluster.reload())` begins a reload and does not wait for it. Events that
/// the operation causes are published before it resolves. Like a copy of the [`Cluster`], the
/// future keeps the cluster alive.
///
/// ```no_run
/// use std::time::Duration;
///
/// # async fn scale(cluster: troop::Cluster) -> troop::Result<()> {
/// // There is no deadline but the caller's.
/// match tokio::time::timeout(Duration::from_secs(30), cluster.scale(8)).await {
///     Ok(result) => result?,
///     Err(_) => eprintln!("still scaling"),
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "the cluster does it all the same: await this to learn how it ends, or drop it"]
pub struct Operation<T, E = Error> {
    answer: oneshot::Receiver<Result<T, E>>,
    /// The outcome if the primary ends first.
    over: fn() -> E,
    _cluster: Cluster,
}

impl<T, E> Operation<T, E> {
    pub(super) fn ask(
        cluster: &Cluster,
        over: fn() -> E,
        command: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Command,
    ) -> Operation<T, E> {
        let (sender, answer) = oneshot::channel();
        // If the primary has ended, there is no answer, and the outcome is `over`.
        let _ = cluster.inner.driver_handle.send(command(sender));
        Operation { answer, over, _cluster: cluster.clone() }
    }

    pub(super) fn refused(cluster: &Cluster, over: fn() -> E, why: E) -> Operation<T, E> {
        let (sender, answer) = oneshot::channel();
        let _ = sender.send(Err(why));
        Operation { answer, over, _cluster: cluster.clone() }
    }

    /// Blocks this thread until the operation is over. For threads without a runtime.
    ///
    /// # Errors
    /// As the operation.
    ///
    /// # Panics
    /// In a task of a tokio runtime.
    pub fn wait(self) -> Result<T, E> {
        self.answer.blocking_recv().unwrap_or_else(|_| Err((self.over)()))
    }
}

impl<T, E> Future for Operation<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T, E>> {
        let over = self.over;
        Pin::new(&mut self.answer)
            .poll(context)
            .map(|answer| answer.unwrap_or_else(|_| Err(over())))
    }
}

impl<T, E> fmt::Debug for Operation<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation").finish_non_exhaustive()
    }
}
