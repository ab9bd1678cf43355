//! `scale`, `policy` and `signal`: change one running app and wait for the outcome.

use serde_json::Value;
use troop::text::counted;

use super::progress::Progress;
use crate::args::{Policy, Scale, Signal, To};
use crate::control::client::{self, Client};
use crate::control::protocol::Request;
use crate::control::targets;
use crate::error::CliError;
use crate::print;

/// Prints the outcome: a sentence for people, or the answer as JSON.
pub(super) fn report(json: bool, answer: &Value, text: impl FnOnce() -> String) {
    let _ = if json { print::json(answer) } else { print::line(&text()) };
}

/// Adds the app's name to an answer.
pub(super) fn named(name: &str, mut answer: Value) -> Value {
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("name".into(), name.into());
    }
    answer
}

/// Returns the one app that was selected.
pub(super) fn one(target: Option<&str>) -> Result<Client, CliError> {
    let mut clients = targets::find(target)?;
    match clients.len() {
        1 => Ok(clients.remove(0)),
        _ => Err(CliError::Usage("this is done to one app at a time; name it".into())),
    }
}

/// Runs `troop scale`.
pub(crate) fn scale(args: &Scale) -> Result<(), CliError> {
    let mut client = one(args.app.as_deref())?;
    let request = match args.to {
        To::Workers(workers) => {
            Request::Scale { workers: Some(workers), by: 0, wait: !args.no_wait }
        }
        To::By(by) => Request::Scale { workers: None, by, wait: !args.no_wait },
    };
    let progress = (!args.no_wait).then(|| Progress::begin(client.name(), args.json, false));
    let answer = match args.to {
        // As often as another process goes on with the app: the number stays the same.
        To::Workers(_) => client
            .request_until_answered(&request)?
            .ok_or_else(|| CliError::NoApp(format!("{} has ended", client.name())))?,
        To::By(_) => client.request(request, |_| {})?,
    };
    drop(progress);
    let answer = named(client.name(), answer);
    report(args.json, &answer, || {
        let workers = counted(answer["workers"].as_u64().unwrap_or(0), "worker");
        let scaling = if args.no_wait { "scaling to " } else { "" };
        format!("{}: {scaling}{workers}, {} before", client.name(), answer["before"])
    });
    Ok(())
}

/// Names the listeners to which an accepted change of policy does not apply yet.
pub(super) fn unchanged(answer: &Value) -> Option<String> {
    let later: Vec<_> =
        answer["later"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let listeners = later.join(", ");
    let reason = "an open listener cannot change to or from `shared`, nor to `steered` and `auto` if it was opened without sockets for its workers";
    (!later.is_empty()).then(|| {
        format!(
            "but not yet on {listeners}, which changes when it is opened the next time: {reason}"
        )
    })
}

/// Runs `troop policy`.
pub(crate) fn policy(args: &Policy) -> Result<(), CliError> {
    let mut client = one(args.app.as_deref())?;
    let listener = args.policy.listeners.as_ref().map(ToString::to_string);
    let answer = client.request(
        Request::Schedule { listener, policy: args.policy.scheduling.to_string() },
        |_| {},
    )?;
    let answer = named(client.name(), answer);
    report(args.json, &answer, || {
        let (name, policy) = (client.name(), &args.policy.scheduling);
        match unchanged(&answer) {
            None => format!("{name}: {policy}"),
            Some(unchanged) => format!(
                "{name}: {policy}, {unchanged}; `troop restart {name}` opens it with the policy of its configuration or --policy"
            ),
        }
    });
    Ok(())
}

/// Runs `troop signal`.
pub(crate) fn signal(args: &Signal) -> Result<(), CliError> {
    let (app, worker) = client::target(args.app.as_deref())?;
    let mut client = one(app)?;
    let answer = client
        .request(Request::Signal { signal: args.signal, worker: args.worker.or(worker) }, |_| {})?;
    let answer = named(client.name(), answer);
    report(args.json, &answer, || {
        let workers = answer["workers"].as_array().map_or(0, Vec::len);
        format!("{}: sent to {}", client.name(), counted(workers, "worker"))
    });
    Ok(())
}
