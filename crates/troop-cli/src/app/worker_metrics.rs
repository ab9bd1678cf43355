//! Metrics that workers keep themselves, asked for as `AggregatorRegistry` of prom-client does it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use troop::{Event, WorkerId};

use super::RunningApp;
use crate::control::protocol::Failure;

const REQUEST: &str = "prom-client:getMetricsReq";
const RESPONSE: &str = "prom-client:getMetricsRes";

/// The longest time to wait for answers.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of events that wait to be read meanwhile.
const MAX_QUEUED: usize = 16 << 20;
/// The longest answer of a worker, and of all together, in bytes.
const MAX_ANSWER: usize = 1 << 20;
const MAX_ANSWERS: usize = 16 << 20;

/// Numbers requests, so that an answer that comes late is none to the next one.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

impl RunningApp {
    /// Asks all workers for their metrics. Those that do not answer in time are named as `missing`.
    pub(crate) async fn worker_metrics(&self, wait: Duration) -> Value {
        let until = Instant::now() + wait.min(MAX_TIMEOUT);
        let mut events = self.cluster.events_within(MAX_QUEUED);
        let id = format!("troop-{}", REQUESTS.fetch_add(1, Ordering::Relaxed));
        let message = json!({ "type": REQUEST, "requestId": id });
        let (mut asked, mut missing) = (BTreeSet::new(), Vec::new());
        for worker in self.cluster.workers() {
            match worker.try_send(&message) {
                Ok(()) => drop(asked.insert(worker.id())),
                Err(_) => missing.push(worker.id()),
            }
        }
        let (mut answers, mut size) = (BTreeMap::<WorkerId, Value>::new(), 0);
        while !asked.is_empty() {
            match timeout_at(until, events.recv()).await {
                Err(_) | Ok(None) => break,
                Ok(Some(Event::Message { worker, message, .. })) => {
                    let text = message.as_json();
                    if !asked.contains(&worker.id()) || !text.contains(RESPONSE) {
                        continue;
                    }
                    let Some(metrics) = answer(text, &id) else { continue };
                    asked.remove(&worker.id());
                    size += text.len();
                    match metrics {
                        Ok(metrics) if text.len() <= MAX_ANSWER && size <= MAX_ANSWERS => {
                            answers.insert(worker.id(), metrics);
                        }
                        _ => missing.push(worker.id()),
                    }
                }
                Ok(Some(Event::Disconnect { worker, .. } | Event::Exit { worker, .. })) => {
                    if asked.remove(&worker.id()) {
                        missing.push(worker.id());
                    }
                }
                Ok(Some(_)) => {}
            }
        }
        missing.extend(asked);
        json!({ "answers": answers, "missing": missing })
    }
}

/// Returns what a message answers to a request: registries, each a list of metrics. `None` if it is no
/// answer to it.
fn answer(text: &str, id: &str) -> Option<Result<Value, Failure>> {
    let mut message: Value = serde_json::from_str(text).ok()?;
    if message["type"] != RESPONSE || message["requestId"] != *id {
        return None;
    }
    Some(match message["metrics"].take() {
        metrics @ Value::Array(_) => Ok(metrics),
        _ => Err(Failure::new("failed", message["error"].as_str().unwrap_or("no metrics"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_to_this_request_counts() {
        let text = |id: &str, rest: &str| {
            format!(r#"{{"type":"prom-client:getMetricsRes","requestId":{id}{rest}}}"#)
        };
        let metrics = |text: &str| answer(text, "troop-3").map(|answer| answer.ok());
        let right = text(r#""troop-3""#, r#","metrics":[[]]"#);
        assert_eq!(metrics(&right), Some(Some(json!([[]]))));
        assert_eq!(metrics(&text(r#""troop-3""#, r#","error":"it is broken""#)), Some(None));
        for other in [text(r#""troop-2""#, ""), text("3", ""), "[1]".into(), "nonsense".into()] {
            assert_eq!(metrics(&other), None, "{other}");
        }
    }
}
