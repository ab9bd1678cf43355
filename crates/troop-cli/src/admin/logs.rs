//! `GET /logs`: the last lines of an app's log and those that follow, as server-sent events.
//!
//! They are read by this program as it is typed, `troop logs APP --json`, while there is a client.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};

use super::Admin;
use super::apps::unavailable;
use super::events::Stream;
use super::verbs::forget_worker;
use crate::restart;

/// The most clients at a time.
const MAX_CLIENTS: usize = 16;
/// The number of lines that there are, if the client does not say it.
const LINES: usize = 200;
/// The most of them.
const MAX_LINES: usize = 10_000;
/// The interval between comments, by which a client that is gone is noticed.
const COMMENT_INTERVAL: Duration = Duration::from_secs(10);
/// The longest reason why there are no lines, in bytes.
const MAX_REASON: u64 = 4096;

pub(super) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_CLIENTS))
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    app: String,
    lines: Option<usize>,
}

/// `GET /logs?app=web&lines=200`.
pub(super) async fn logs(
    State(admin): State<Arc<Admin>>,
    Query(wanted): Query<Wanted>,
) -> Response {
    let app = wanted.app;
    match admin.apps.all().await {
        Ok(apps) if apps.iter().any(|known| known.name() == app) => {}
        Ok(_) => return (StatusCode::NOT_FOUND, "there is no such app\n").into_response(),
        Err(e) => return unavailable(&e),
    }
    let Ok(place) = admin.log_places.clone().try_acquire_owned() else {
        let text = format!("{MAX_CLIENTS} clients read logs already\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let lines = wanted.lines.unwrap_or(LINES).min(MAX_LINES).to_string();
    let mut command = Command::new(restart::program());
    command.args(["logs", "--json", "--lines", &lines, "--", &app]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    forget_worker(&mut command);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            let text = format!("start troop: {e}\n");
            return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
        }
    };
    let (sender, receiver) = mpsc::channel(64);
    let child = Arc::new(Mutex::new(child));
    let (reading, to) = (child.clone(), sender.clone());
    let mut passing = tokio::task::spawn_blocking(move || pass_on(&reading, &to));
    tokio::spawn(async move {
        let mut comment = tokio::time::interval(COMMENT_INTERVAL);
        let drained = admin.drained();
        tokio::pin!(drained);
        loop {
            tokio::select! {
                () = sender.closed() => break,
                _ = &mut passing => break,
                () = &mut drained => break,
                _ = comment.tick() => {
                    if sender.send(Bytes::from_static(b":\n\n")).await.is_err() {
                        break;
                    }
                }
            }
        }
        let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
    });
    let body = Body::new(Stream::new(receiver, place));
    ([(CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// Passes lines on until there are no more, and then says why.
fn pass_on(child: &Mutex<Child>, to: &mpsc::Sender<Bytes>) {
    let (out, err) = {
        let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
        (child.stdout.take(), child.stderr.take())
    };
    for line in out.into_iter().flat_map(|out| BufReader::new(out).lines()) {
        let Ok(line) = line else { break };
        if to.blocking_send(format!("data: {line}\n\n").into()).is_err() {
            break;
        }
    }
    let mut reason = String::new();
    if let Some(err) = err
        && !to.is_closed()
    {
        let _ = err.take(MAX_REASON).read_to_string(&mut reason);
    }
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = child.kill();
    let _ = child.wait();
    let end = json!({ "reason": reason.trim() });
    let _ = to.blocking_send(format!("event: end\ndata: {end}\n\n").into());
}
