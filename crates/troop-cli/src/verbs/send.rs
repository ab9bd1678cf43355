//! `troop send`: sends a message to workers and prints their replies.

use serde_json::Value;
use troop::text;

use super::operate::{named, one};
use crate::args::Send;
use crate::control::client;
use crate::control::protocol::{Failure, Request};
use crate::error::CliError;
use crate::print;

/// Runs `troop send`.
pub(crate) fn send(args: &Send) -> Result<(), CliError> {
    let (app, message) = args.words();
    let (app, worker) = client::target(app)?;
    let mut client = one(app)?;
    let message =
        serde_json::from_str(message).unwrap_or_else(|_| Value::String(message.to_owned()));
    let wait_ms = args.ask.then(|| u64::try_from(args.timeout.0.as_millis()).unwrap_or(u64::MAX));
    let answer = client.request(Request::Send { message, worker, wait_ms }, |_| {})?;
    let answer = named(client.name(), answer);
    if args.json {
        let _ = print::json(&answer);
    } else if args.ask {
        for (worker, answer) in answer["answers"].as_object().into_iter().flatten() {
            let _ = print::raw(&text::json(format!("{}:{worker}: {answer}", client.name())));
        }
    } else {
        let workers = answer["workers"].as_array().map_or(0, Vec::len);
        let _ = print::line(&format!(
            "{}: sent to {}",
            client.name(),
            text::counted(workers, "worker")
        ));
    }
    let failed = answer["failed"].as_object().into_iter().flatten();
    let failed: Vec<_> = failed
        .map(|(worker, why)| format!("worker {worker}: {}", why.as_str().unwrap_or_default()))
        .collect();
    if failed.is_empty() {
        Ok(())
    } else {
        Err(CliError::Failed(Failure::new(
            "failed",
            format!("{}: {}", client.name(), failed.join("; ")),
        )))
    }
}
