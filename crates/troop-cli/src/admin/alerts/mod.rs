//! Tells somebody when something is wrong with an app: by a command, `--alert`.
//!
//! The apps are asked once a second, and only if there is a command. It runs in this worker's process
//! group, so no app's primary waits for it or knows of it.

mod rules;
mod run;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;
use troop::Worker;
use troop::text::escaped;

use super::Admin;
use crate::args::{AlertKind, AlertOptions};
use crate::log;
use crate::records::millis;
use rules::{Alert, Rules, State};

/// Interval at which the apps are asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// The most alerts that wait for the command to end.
const MAX_QUEUED: usize = 64;
/// The longest text of an alert, in characters.
const MAX_TEXT: usize = 2000;
/// The slot whose worker tells of alerts, if there are several.
const SLOT: &str = "0";

/// Starts to tell of alerts until the worker drains, if there is somebody to tell. Returns what ends
/// when the last one was told.
pub(super) fn start(
    worker: &Worker,
    admin: Arc<Admin>,
    options: &AlertOptions,
) -> Option<JoinHandle<()>> {
    let command = options.command.clone()?;
    if std::env::var("TROOP_SLOT").is_ok_and(|slot| slot != SLOT) {
        return None;
    }
    let rules = Rules::new(options.wanted(), options.after());
    let (sender, receiver) = mpsc::channel(MAX_QUEUED);
    let draining = worker.draining();
    tokio::spawn(async move {
        tokio::select! {
            () = watch(&admin, rules, &sender) => {}
            // Its successor goes on.
            () = draining => {}
        }
    });
    Some(tokio::spawn(tell(command, receiver)))
}

/// Watches the apps.
async fn watch(admin: &Admin, mut rules: Rules, sender: &mpsc::Sender<Value>) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Ok(apps) = admin.apps.all().await else { continue };
        for alert in rules.note(Instant::now(), &apps) {
            let alert = as_json(&alert);
            log::line(&format!("troop: alert: {}", text(&alert)));
            if let Err(TrySendError::Full(alert)) = sender.try_send(alert) {
                log::line(&format!(
                    "troop: {MAX_QUEUED} alerts wait for the command already, so it is not told of: {}",
                    text(&alert)
                ));
            }
        }
    }
}

/// Runs the command for one alert after the other.
async fn tell(command: String, mut receiver: mpsc::Receiver<Value>) {
    while let Some(alert) = receiver.recv().await {
        let (command, told) = (command.clone(), alert.clone());
        let ran = tokio::task::spawn_blocking(move || run::run(&command, &told)).await;
        let failed = match ran {
            Ok(Ok(())) => continue,
            Ok(Err(why)) => why,
            Err(e) => e.to_string(),
        };
        log::line(&format!("troop: --alert: {failed}; the alert was: {}", text(&alert)));
    }
}

/// Runs the command with a test alert.
///
/// # Errors
/// The reason why it failed, for people.
pub(super) fn test(options: &AlertOptions) -> Result<(), String> {
    let alert = Alert {
        app: "web".into(),
        kind: AlertKind::Down,
        state: State::Happened,
        count: 1,
        text: "web: this is a test of troop's alerts, nothing is wrong".into(),
    };
    let command = options.command.as_deref().unwrap_or_default();
    run::run(command, &as_json(&alert)).map_err(|why| format!("--alert: {why}"))
}

fn as_json(alert: &Alert) -> Value {
    let Alert { app, kind, state, count, text } = alert;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let state = match state {
        State::Firing => "firing",
        State::Resolved => "resolved",
        State::Happened => "happened",
    };
    json!({
        "time_ms": millis(std::time::SystemTime::now()),
        "host": host.trim(),
        "app": app,
        "kind": kind,
        "state": state,
        "count": count,
        // Workers have their say in it.
        "text": format!("{:.1$}", escaped(text), MAX_TEXT),
    })
}

fn text(alert: &Value) -> &str {
    alert["text"].as_str().unwrap_or_default()
}
