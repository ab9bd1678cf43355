//! `reload`, `scale`, `stop`, `policy`, `signal`: tells apps what to do, and waits until they have done it.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::args::{Policy, Reload, Scale, Signal, Stop, To};
use crate::control::Ask;
use crate::control::client::{self, Client, Trouble};

/// Says something for people on standard error; programs get the answer on standard output.
fn report(json: bool, answer: &Value, text: impl FnOnce() -> String) {
    let _ = if json { writeln!(std::io::stdout().lock(), "{answer}") } else { writeln!(std::io::stdout().lock(), "{}", text()) };
}

/// The app that is meant, if it is one.
fn one(target: Option<&str>) -> Result<Client, Trouble> {
    let mut clients = client::find(target)?;
    match clients.len() {
        1 => Ok(clients.remove(0)),
        _ => Err(Trouble::NoApp("this is done to one app at a time; name it".into())),
    }
}

/// `troop reload`: all that are meant, one after the other; the first failure ends it.
pub(crate) fn reload(args: &Reload) -> Result<(), Trouble> {
    for mut client in client::find(args.app.as_deref())? {
        let name = client.name().to_owned();
        let show = |event: &Value| {
            if let (false, Some(text)) = (args.json, event["text"].as_str()) {
                let _ = writeln!(std::io::stderr().lock(), "{name}: {text}");
            }
        };
        let answer = client.ask(Ask::Reload, show)?;
        report(args.json, &answer, || format!("{name}: {} workers replaced", answer["replaced"]));
    }
    Ok(())
}

/// `troop scale`.
pub(crate) fn scale(args: &Scale) -> Result<(), Trouble> {
    let mut client = one(args.app.as_deref())?;
    let ask = match args.to {
        To::Workers(workers) => Ask::Scale { workers: Some(workers), by: 0 },
        To::By(by) => Ask::Scale { workers: None, by },
    };
    let answer = client.ask(ask, |_| {})?;
    report(args.json, &answer, || format!("{}: {} workers, {} before", client.name(), answer["workers"], answer["before"]));
    Ok(())
}

/// `troop stop`.
pub(crate) fn stop(args: &Stop) -> Result<(), Trouble> {
    let mut clients = client::find(args.app.as_deref())?;
    for client in &mut clients {
        match client.ask(Ask::Stop { quick: args.quick }, |_| {}) {
            // It was faster.
            Err(Trouble::Failed(failure)) if failure.kind == "over" => {}
            result => drop(result?),
        }
    }
    for mut client in clients {
        if !args.no_wait {
            client.wait_for_end();
        }
        let done = if args.no_wait { "stopping" } else { "stopped" };
        report(args.json, &json!({ "name": client.name(), "state": done }), || format!("{}: {done}", client.name()));
    }
    Ok(())
}

/// `troop policy`.
pub(crate) fn policy(args: &Policy) -> Result<(), Trouble> {
    let mut client = one(args.app.as_deref())?;
    let listener = args.policy.listeners.as_ref().map(ToString::to_string);
    let answer = client.ask(Ask::Schedule { listener, policy: args.policy.scheduling.to_string() }, |_| {})?;
    report(args.json, &answer, || {
        let later: Vec<_> = answer["later"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        match &later[..] {
            [] => format!("{}: {}", client.name(), args.policy.scheduling),
            later => format!(
                "{}: {}, but {} only when opened the next time: between handing over, `shared` and `steered` open listeners do not change",
                client.name(),
                args.policy.scheduling,
                later.join(", ")
            ),
        }
    });
    Ok(())
}

/// `troop signal`.
pub(crate) fn signal(args: &Signal) -> Result<(), Trouble> {
    let mut client = one(args.app.as_deref())?;
    let answer = client.ask(Ask::Signal { signal: args.signal, worker: args.worker }, |_| {})?;
    report(args.json, &answer, || {
        let workers = answer["workers"].as_array().map_or(0, Vec::len);
        format!("{}: sent to {workers} workers", client.name())
    });
    Ok(())
}
