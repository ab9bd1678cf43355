//! Lines that `troop attach` passes on to a worker's standard input.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe::Sender;
use tokio::sync::Mutex;
use tokio::time::timeout;
use troop::{WorkerHandle, WorkerId};

use super::RunningApp;
use crate::control::protocol::Failure;

/// Time in which a worker must make room for a line.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

/// The inputs of workers that something was written to.
pub(super) type Inputs = Mutex<BTreeMap<WorkerId, (WorkerHandle, Arc<Mutex<Sender>>)>>;

impl RunningApp {
    /// Writes text to the input of a worker, or of the only one.
    pub(crate) async fn input(&self, worker: Option<u32>, text: &str) -> Result<Value, Failure> {
        let failed = |text: String| Failure::new("failed", text);
        let worker = self.one_worker(worker)?;
        let mut inputs = self.inputs.lock().await;
        // One that drains may take the end of its input for a reason to exit.
        inputs.retain(|_, (worker, _)| !worker.is_dead());
        let input = match inputs.get(&worker.id()) {
            Some((_, input)) => input.clone(),
            None => {
                let why = "the worker has no input: only workers of apps in the background have one, without `user` and `cron`";
                let pipe = worker.take_stdin().ok_or_else(|| failed(why.into()))?;
                let sender = Sender::from_owned_fd(OwnedFd::from(pipe))
                    .map_err(|e| failed(format!("cannot write to the worker's input: {e}")))?;
                let input = Arc::new(Mutex::new(sender));
                inputs.insert(worker.id(), (worker.clone(), input.clone()));
                input
            }
        };
        drop(inputs);
        let number = worker.id();
        let write = async { input.lock().await.write_all(text.as_bytes()).await };
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(())) => Ok(json!({ "worker": number })),
            Ok(Err(e)) => Err(failed(format!("worker {number} has closed its input: {e}"))),
            Err(_) => {
                Err(failed(format!("worker {number} does not read its input, which is full")))
            }
        }
    }

    fn one_worker(&self, worker: Option<u32>) -> Result<WorkerHandle, Failure> {
        let no_worker = |text: String| Failure::new("no-worker", text);
        if let Some(id) = worker {
            let found = self.cluster.worker(WorkerId(id));
            return found.ok_or_else(|| no_worker(format!("there is no worker {id}")));
        }
        let mut workers = self.cluster.workers();
        // Of a worker that is replaced and its successor, the successor.
        workers.retain(|worker| !worker.is_dead());
        workers.sort_by_key(WorkerHandle::id);
        let slots: std::collections::BTreeSet<u32> =
            workers.iter().map(WorkerHandle::slot).collect();
        match (slots.len(), workers.pop()) {
            (1, Some(worker)) => Ok(worker),
            (0, _) | (_, None) => Err(no_worker("no worker runs".into())),
            (several, _) => Err(Failure::new(
                "bad-request",
                format!(
                    "input is for one of the {several} workers: `troop attach {}:1`, with a number that `troop show` has",
                    self.name
                ),
            )),
        }
    }
}
