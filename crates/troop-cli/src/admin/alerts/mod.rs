//! Tells somebody when something is wrong with an app: by a command, `--alert`, or by a request,
//! `--alert-webhook`.
//!
//! The apps are asked once a second, and only if there is somebody to tell. This worker does it, so no app's
//! primary waits for it or knows of it.

mod post;
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
use crate::args::{AlertForm, AlertKind, AlertOptions};
use crate::log;
use crate::records::millis;
use rules::{Alert, Rules, State};

/// Interval at which the apps are asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// The most alerts that wait for the one before.
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
    let means = Means::of(options);
    if means.is_empty() {
        return None;
    }
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
    Some(tokio::spawn(tell(means, receiver)))
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
                    "troop: {MAX_QUEUED} alerts wait already, so nobody is told of: {}",
                    text(&alert)
                ));
            }
        }
    }
}

/// How somebody is told.
#[derive(Debug, Clone)]
enum Means {
    Command(String),
    Webhook(String, Option<AlertForm>),
}

impl Means {
    fn of(options: &AlertOptions) -> Vec<Means> {
        let command = options.command.clone().map(Means::Command);
        let webhook = options.webhook.clone().map(|url| Means::Webhook(url, options.form));
        command.into_iter().chain(webhook).collect()
    }

    fn tell(&self, alert: &Value) -> Result<(), String> {
        match self {
            Means::Command(command) => {
                run::run(command, alert).map_err(|why| format!("--alert: {why}"))
            }
            Means::Webhook(url, form) => {
                post::post(url, *form, alert).map_err(|why| format!("--alert-webhook: {why}"))
            }
        }
    }
}

/// Tells of one alert after the other.
async fn tell(means: Vec<Means>, mut receiver: mpsc::Receiver<Value>) {
    while let Some(alert) = receiver.recv().await {
        for means in &means {
            let (means, told) = (means.clone(), alert.clone());
            let failed = match tokio::task::spawn_blocking(move || means.tell(&told)).await {
                Ok(Ok(())) => continue,
                Ok(Err(why)) => why,
                Err(e) => e.to_string(),
            };
            log::line(&format!("troop: {failed}; the alert was: {}", text(&alert)));
        }
    }
}

/// Tells of a test alert.
///
/// # Errors
/// The reasons why it failed, for people.
pub(super) fn test(options: &AlertOptions) -> Result<(), String> {
    let alert = Alert {
        app: "web".into(),
        kind: AlertKind::Down,
        state: State::Happened,
        count: 1,
        text: "web: this is a test of troop's alerts, nothing is wrong".into(),
    };
    let alert = as_json(&alert);
    let told = Means::of(options).into_iter().map(|means| means.tell(&alert));
    let failed: Vec<_> = told.filter_map(Result::err).collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
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
