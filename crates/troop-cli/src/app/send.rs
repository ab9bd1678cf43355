//! Messages that clients send to workers through the primary.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use troop::{Error, WorkerHandle, WorkerId};

use super::RunningApp;
use crate::control::protocol::Failure;

/// The longest timeout for replies.
const MAX_REPLY_TIMEOUT: Duration = Duration::from_secs(3600);

/// The longest reply that is relayed, in bytes.
const MAX_REPLY: usize = 1024 * 1024;

impl RunningApp {
    /// Sends a message to one worker or to all, and waits for replies if `wait` is set.
    pub(crate) async fn send(
        &self,
        message: Value,
        worker: Option<u32>,
        wait: Option<Duration>,
    ) -> Result<Value, Failure> {
        if message["cmd"].as_str().is_some_and(|cmd| cmd.starts_with("NODE_")) {
            return Err(Failure::new(
                "bad-request",
                "messages whose `cmd` begins with NODE_ are Node's own",
            ));
        }
        let workers = match worker {
            None => self.cluster.workers(),
            Some(id) => match self.cluster.worker(WorkerId(id)) {
                Some(worker) => vec![worker],
                None => return Err(Failure::new("no-worker", format!("there is no worker {id}"))),
            },
        };
        let (mut reached, mut answers, mut failed) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut asked = JoinSet::new();
        for worker in workers {
            match wait {
                None => match worker.try_send(&message) {
                    Ok(()) => reached.push(worker.id()),
                    Err(e) => drop(failed.insert(worker.id(), e.chain())),
                },
                Some(wait) => {
                    let message = message.clone();
                    asked.spawn(async move {
                        (worker.id(), ask(&worker, &message, wait.min(MAX_REPLY_TIMEOUT)).await)
                    });
                }
            }
        }
        while let Some(answered) = asked.join_next().await {
            let Ok((worker, answer)) = answered else { continue };
            match answer {
                Ok(answer) => {
                    reached.push(worker);
                    answers.insert(worker, answer);
                }
                Err(e) => drop(failed.insert(worker, e.chain())),
            }
        }
        reached.sort_unstable();
        Ok(json!({ "workers": reached, "answers": answers, "failed": failed }))
    }

    /// Whether workers have a channel for messages, which those with activated sockets lack.
    pub(crate) fn has_channels(&self) -> bool {
        self.resolved().app.bind.is_empty()
    }
}

async fn ask(worker: &WorkerHandle, message: &Value, wait: Duration) -> Result<Value, Error> {
    let answer: Value = worker.request(message, wait).await?;
    // All replies are kept until the last one has arrived.
    if answer.to_string().len() > MAX_REPLY {
        return Err(Error::Refused("an answer longer than 1 MiB, which is not passed on".into()));
    }
    Ok(answer)
}
