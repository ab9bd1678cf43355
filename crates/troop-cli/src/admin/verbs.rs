//! `POST /apps/APP/VERB`: what an operator can do to an app, as far as `--verbs` allows it.
//!
//! A verb is done by this program as it is typed, so that it succeeds and fails as it does there.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{Extensions, StatusCode};
use axum::response::Response;
use clap::ValueEnum as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Admin;
use super::apps::{json_answer, unavailable};
use crate::args::AdminVerb;
use crate::control::client::BEHALF_VARIABLE;
use crate::{log, names, restart};

/// The longest body of a request, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// Time in which it has to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The most verbs at a time.
const MAX_AT_A_TIME: usize = 8;
/// The most output of a verb that is answered with, in bytes.
const MAX_OUTPUT: usize = 256 * 1024;

pub(super) struct Verbs {
    allowed: Vec<AdminVerb>,
    places: Arc<Semaphore>,
}

impl Verbs {
    pub(super) fn new(allowed: &[AdminVerb]) -> Verbs {
        Verbs { allowed: allowed.to_vec(), places: Arc::new(Semaphore::new(MAX_AT_A_TIME)) }
    }

    /// Returns the verbs that clients may ask for.
    pub(super) fn allowed(&self) -> &[AdminVerb] {
        &self.allowed
    }
}

/// The body of a request; it may be empty.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// The worker to reload.
    worker: Option<u32>,
    /// Whether new workers may listen on other addresses.
    allow_moved: bool,
    /// The number of workers to scale to.
    workers: Option<usize>,
    /// The number of workers more, or less.
    by: Option<i64>,
    /// Whether to kill the workers.
    quick: bool,
}

/// `POST /apps/APP/VERB`.
pub(super) async fn post(
    State(admin): State<Arc<Admin>>,
    Path((app, verb)): Path<(String, String)>,
    request: Request,
) -> Response {
    let failed = |status: StatusCode, why: String| json_answer(status, &json!({ "failed": why }));
    let Ok(verb) = AdminVerb::from_str(&verb, false) else {
        return failed(StatusCode::NOT_FOUND, format!("there is no verb {verb:?}"));
    };
    if !admin.verbs.allowed.contains(&verb) {
        let why = format!("{verb} is not allowed here: troop admin --verbs {verb} allows it");
        return failed(StatusCode::FORBIDDEN, why);
    }
    // The verb would take a number or a namespace, too.
    match admin.apps.all().await {
        Ok(apps) if names::is_app(&app) && apps.iter().any(|one| one.name() == app) => {}
        Ok(_) => return failed(StatusCode::NOT_FOUND, format!("there is no app {app:?}")),
        Err(e) => return unavailable(&e),
    }
    let client = client(request.extensions());
    let arriving = axum::body::to_bytes(request.into_body(), MAX_BODY);
    let body = match timeout(BODY_TIMEOUT, arriving).await {
        Ok(Ok(body)) => body,
        Ok(Err(e)) => return failed(StatusCode::PAYLOAD_TOO_LARGE, e.to_string()),
        Err(_) => {
            let why = format!("the body has not arrived within {} s", BODY_TIMEOUT.as_secs());
            return failed(StatusCode::REQUEST_TIMEOUT, why);
        }
    };
    let options = match body.trim_ascii() {
        [] => Options::default(),
        text => match serde_json::from_slice(text) {
            Ok(options) => options,
            Err(e) => return failed(StatusCode::BAD_REQUEST, e.to_string()),
        },
    };
    let args = match args(verb, &app, &options) {
        Ok(args) => args,
        Err(why) => return failed(StatusCode::BAD_REQUEST, why.into()),
    };
    let Ok(place) = admin.verbs.places.clone().try_acquire_owned() else {
        let why = format!("{MAX_AT_A_TIME} verbs are being carried out already");
        return failed(StatusCode::SERVICE_UNAVAILABLE, why);
    };
    // It goes on without the client, as a verb does whose terminal is closed.
    let carrying_out = tokio::task::spawn_blocking(move || {
        let done = carry_out(&args, &client);
        drop(place);
        let line = match &done {
            Ok((status, _)) => status.as_u16().to_string(),
            Err(e) => e.to_string(),
        };
        log::line(&format!("troop: {client} asked for `troop {}`: {line}", args.join(" ")));
        done
    });
    match carrying_out.await {
        Ok(Ok((status, answer))) => json_answer(status, &answer),
        Ok(Err(e)) => failed(StatusCode::INTERNAL_SERVER_ERROR, format!("start troop: {e}")),
        Err(e) => failed(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

/// Returns who has sent a request, for people.
pub(super) fn client(extensions: &Extensions) -> String {
    match extensions.get::<SocketAddr>() {
        Some(address) => format!("the HTTP client {address}"),
        None => "an HTTP client of the Unix socket".into(),
    }
}

/// Has a command know nothing of this worker: it is none, and what it starts goes on without it.
pub(super) fn forget_worker(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let is_of_worker = |prefix: &&str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
        if ["NODE_CHANNEL_", "NODE_UNIQUE_ID", "TROOP_TREE"].iter().any(is_of_worker) {
            command.env_remove(name);
        }
    }
}

/// Returns the command line of a verb.
fn args(verb: AdminVerb, app: &str, options: &Options) -> Result<Vec<String>, &'static str> {
    let Options { worker, allow_moved, workers, by, quick } = *options;
    let mut args = vec![verb.to_string()];
    let is_reload = verb == AdminVerb::Reload;
    if (!is_reload && (worker.is_some() || allow_moved))
        || (verb != AdminVerb::Scale && (workers.is_some() || by.is_some()))
        || (verb != AdminVerb::Stop && quick)
    {
        return Err("this verb has no such option");
    }
    args.push(match worker {
        Some(worker) => format!("{app}:{worker}"),
        None => app.to_owned(),
    });
    match (verb, workers, by) {
        (AdminVerb::Scale, Some(workers), None) => args.push(workers.to_string()),
        (AdminVerb::Scale, None, Some(by)) => args.push(format!("{by:+}")),
        (AdminVerb::Scale, ..) => return Err("scale needs either workers or by"),
        _ => {}
    }
    args.extend(allow_moved.then(|| "--allow-moved".into()));
    args.extend(quick.then(|| "--quick".into()));
    args.push("--json".into());
    Ok(args)
}

/// Returns the answer: what the verb has printed, with a status that stands for its exit code.
fn carry_out(args: &[String], client: &str) -> std::io::Result<(StatusCode, Value)> {
    let mut command = Command::new(restart::program());
    command.args(args).stdin(Stdio::null()).env(BEHALF_VARIABLE, client);
    forget_worker(&mut command);
    let output = command.output()?;
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_OUTPUT)]).trim().to_owned()
    };
    let done = text(&output.stdout);
    if output.status.success() {
        let done = serde_json::from_str(&done).unwrap_or(Value::String(done));
        return Ok((StatusCode::OK, json!({ "done": done })));
    }
    let status = match output.status.code() {
        Some(2) => StatusCode::BAD_REQUEST,
        Some(3) => StatusCode::NOT_FOUND,
        _ => StatusCode::CONFLICT,
    };
    Ok((status, json!({ "failed": text(&output.stderr), "exit_code": output.status.code() })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_becomes_what_an_operator_types() {
        use AdminVerb::{Reload, Restart, Scale, Stop};
        for (verb, body, typed) in [
            (Reload, "{}", Some("reload web --json")),
            (Reload, r#"{"worker":3}"#, Some("reload web:3 --json")),
            (Reload, r#"{"allow_moved":true}"#, Some("reload web --allow-moved --json")),
            (Scale, r#"{"workers":4}"#, Some("scale web 4 --json")),
            (Scale, r#"{"by":-1}"#, Some("scale web -1 --json")),
            (Scale, r#"{"by":2}"#, Some("scale web +2 --json")),
            (Scale, "{}", None),
            (Scale, r#"{"workers":4,"by":1}"#, None),
            (Stop, r#"{"quick":true}"#, Some("stop web --quick --json")),
            (Restart, r#"{"quick":true}"#, None),
            (Restart, r#"{"worker":3}"#, None),
        ] {
            let options = serde_json::from_str(body).unwrap();
            let made = args(verb, "web", &options).ok().map(|args| args.join(" "));
            assert_eq!(made.as_deref(), typed, "{verb} {body}");
        }
    }
}
