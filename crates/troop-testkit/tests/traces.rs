//! The feature `tracing`: what a subscriber sees of a primary, and of its workers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use troop::{Cluster, Event, Setup};
use troop_testkit::{Troop, get, wait_until};

/// Where the subscriber of this process writes.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The first line with a message that begins so.
fn find(lines: &[u8], target: &str, message: &str) -> Option<Value> {
    lines
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .find(|line| {
            let said = line["fields"]["message"].as_str();
            line["target"] == target && said.is_some_and(|said| said.starts_with(message))
        })
}

/// What the span that a line is in says of its worker.
fn worker_and_slot(line: &Value) -> [Value; 2] {
    ["worker", "slot"].map(|field| line["span"][field].clone())
}

#[tokio::test]
async fn subscribers_see_the_worker_of_each_event_in_primary_and_workers() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .init();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("worker");
    let setup = Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args([
        "traced",
        "127.0.0.1:0",
        file.to_str().unwrap(),
    ]);
    let mut troop = Troop::start(Cluster::builder().workers(1).setup(setup));
    let listening = |e: &Event| match e {
        Event::Listening { worker, address, .. } => {
            Some((worker.clone(), u16::try_from(address.port.unwrap()).unwrap()))
        }
        _ => None,
    };
    let (worker, port) = troop.until("listening", listening).await;
    assert_eq!(get(port, "/").await.unwrap(), "traced\n");
    drop(troop.cluster.stop());
    troop.exit(&worker).await;

    // In the primary: in the worker's span, which is in the primary's.
    let id = worker.id().0;
    let line = |message: String| {
        let lines = lines.0.lock().unwrap();
        find(&lines, "troop::primary", &message).unwrap_or_else(|| panic!("no {message:?}"))
    };
    for message in ["started", "online", "listening", "disconnected", "finished"] {
        let line = line(format!("worker {id} {message}"));
        assert_eq!(line["spans"][0]["name"], "primary", "{line}");
        assert_eq!(line["span"]["pid"], worker.pid(), "{line}");
        assert_eq!(worker_and_slot(&line), [json!(id), json!(worker.slot())], "{line}");
        assert_eq!(line["fields"]["worker"], id, "{line}");
        assert_eq!(line["level"], "INFO", "{line}");
    }

    // In the worker: what troop says, what its program says, and what a request's handler says.
    wait_until("the worker's last line", || {
        find(&std::fs::read(&file).unwrap(), "traced", "done").is_some()
    });
    let lines = std::fs::read(&file).unwrap();
    for (target, message) in [
        ("troop::worker", "listening"),
        ("troop::worker", "draining"),
        ("traced", "begun"),
        ("traced", "asked"),
        ("traced", "done"),
    ] {
        let line = find(&lines, target, message).unwrap_or_else(|| panic!("no {message:?}"));
        assert_eq!(worker_and_slot(&line), [json!(id), json!(worker.slot())], "{line}");
    }
}
