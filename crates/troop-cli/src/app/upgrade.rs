//! Another engine that goes on with the app: that of a newer version, for example.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use troop::Error;
use troop::keeper::{self, Leaving, LeftDescriptor, Upgrade};

use super::{Counts, RunningApp};
use crate::config::source;
use crate::control::protocol::Failure;
use crate::error::RunError;
use crate::libraries::LimiterOptions;
use crate::records::keeper::Keeper;
use crate::records::{Text, own_env, pairs};
use crate::resolve::ResolvedApp;
use crate::restart::{LeftRestart, RestartRequest};
use crate::{log, restart};

/// Time for which an upgrade is tried again while the keeper is being told the state anew.
const RETRY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between these attempts.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// What an engine leaves to the next one beside its cluster.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeftApp {
    pub(crate) name: String,
    /// The version that has left it.
    pub(crate) version: String,
    /// The app as it was started, and as of the last reload.
    pub(crate) started: LeftOptions,
    pub(crate) resolved: LeftOptions,
    /// The file that it comes from, and its name there.
    pub(crate) file: Option<(PathBuf, String)>,
    pub(crate) uncounted_restarts: u64,
    /// How often things have happened.
    #[serde(default)]
    pub(crate) counts: Counts,
    /// The limiters of `rate-limiter-flexible`, which workers do not name again.
    #[serde(default)]
    pub(crate) limiters: Vec<LimiterOptions>,
    /// The lock of its name, and its control socket.
    pub(crate) claim: Option<(LeftDescriptor, LeftDescriptor)>,
    /// The client that has asked for the next engine, which answers it.
    pub(crate) client: Option<LeftDescriptor>,
    #[serde(default)]
    pub(crate) ending: LeftEnding,
    /// Whether `troop start` waits for a report of the start, which the next engine gives.
    #[serde(default)]
    pub(crate) is_report_due: bool,
    /// Why it runs alone, if its program has chosen that.
    #[serde(default)]
    pub(crate) alone: Option<String>,
}

/// What an engine has been told that ends its workers: the next one finishes that.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct LeftEnding {
    is_stop: bool,
    /// `troop delete`.
    is_forgotten: bool,
    restart: Option<LeftRestart>,
}

impl LeftEnding {
    pub(crate) fn go_on(&self, restarting: &RestartRequest, keeper: Option<&Keeper>) {
        if let Some(restart) = &self.restart {
            restarting.go_on(restart);
        }
        if self.is_stop {
            restarting.go_on_stopping();
        }
        if let Some(keeper) = keeper.filter(|_| self.is_forgotten) {
            keeper.forget();
        }
    }
}

impl LeftApp {
    /// Reads what another engine has left of the app.
    pub(crate) fn read(note: &[u8]) -> Result<LeftApp, RunError> {
        serde_json::from_slice(note).map_err(|e| {
            RunError::Failed(Error::Settings(format!(
                "cannot read what the former engine has left: {e}"
            )))
        })
    }
}

/// The options of an app, with the environment that its workers inherit.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeftOptions {
    options: ResolvedApp,
    inherited: Vec<(Text, Text)>,
}

impl LeftOptions {
    fn of(app: &ResolvedApp) -> LeftOptions {
        // The next engine may have another environment: that of the first start.
        let inherited = app.inherited.as_deref().map_or_else(own_env, pairs::of);
        LeftOptions { options: app.clone(), inherited }
    }

    pub(crate) fn take(&self) -> ResolvedApp {
        let inherited = pairs::environment(&self.inherited);
        ResolvedApp { inherited: Some(Arc::new(inherited)), ..self.options.clone() }
    }
}

impl RunningApp {
    /// Has another engine go on: this program as it is installed now, or another one. The next engine
    /// answers the client. Returns only if this engine goes on.
    pub(crate) async fn upgrade(
        self: &Arc<RunningApp>,
        path: Option<PathBuf>,
        client: Option<OwnedFd>,
    ) -> Failure {
        let program = match chosen(path).await {
            Ok(program) => program,
            Err(refused) => return refused,
        };
        let (client, until) = (Arc::new(client), Instant::now() + RETRY_TIMEOUT);
        loop {
            let (leaving, ending, client) = (self.clone(), self.clone(), client.clone());
            let upgrade = Upgrade::to(&program)
                .note(move |to| leaving.leave(client.as_ref().as_ref(), to))
                .before_end(move || {
                    ending.queue.iter().for_each(|queue| queue.finish());
                    log::finish();
                });
            let error = self.cluster.upgrade(upgrade).await;
            if keeper::is_passing(&error) && Instant::now() < until {
                tokio::time::sleep(RETRY_DELAY).await;
                continue;
            }
            let why = match error {
                Error::NotReplaced(why) => why,
                other => other.chain(),
            };
            return refused(&program, &why);
        }
    }

    /// Has the keeper execute this program as it is installed now, or another one, in its own place.
    pub(crate) async fn upgrade_keeper(&self, path: Option<PathBuf>) -> Result<Value, Failure> {
        let program = chosen(path).await?;
        let from = self.cluster.upgrade_keeper(&program).await.map_err(|e| match e {
            Error::NotReplaced(why) => refused(&program, &why),
            other => refused(&program, &other.chain()),
        })?;
        let version = keeper::version().unwrap_or_default();
        let pid = keeper::app_pid();
        log::line(&format!(
            "troop: the keeper, process {pid}, was upgraded from {from} to {version}"
        ));
        Ok(json!({ "upgraded": true, "from": from, "version": version, "pid": pid }))
    }

    /// The same without a client, whose answer is in the log.
    pub(super) async fn upgrade_without_client(self: &Arc<RunningApp>) {
        let failure = self.upgrade(None, None).await;
        log::line(&format!("troop: {}", failure.message));
    }

    /// Returns what the next engine needs besides the cluster.
    pub(crate) fn leave(&self, client: Option<&OwnedFd>, to: &mut Leaving<'_, '_>) -> Vec<u8> {
        let claim = self
            .claim
            .as_ref()
            .and_then(|claim| claim.lock().unwrap_or_else(PoisonError::into_inner).to_leave());
        let left = LeftApp {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: LeftOptions::of(&self.started),
            resolved: LeftOptions::of(&self.resolved()),
            file: self.source.origin().cloned(),
            uncounted_restarts: self.uncounted_restarts.load(Ordering::Relaxed),
            counts: self.counts(),
            limiters: self.inbox.limiters(),
            claim: claim.map(|(lock, socket)| (to.descriptor(lock), to.descriptor(socket))),
            client: client.and_then(|client| Some(to.descriptor(client.try_clone().ok()?))),
            is_report_due: self.reporter.as_ref().is_some_and(|reporter| reporter.is_due()),
            ending: LeftEnding {
                is_stop: self.restarting.is_stop_requested(),
                is_forgotten: self.keeper.as_ref().is_some_and(|keeper| keeper.is_forgotten()),
                restart: self.restarting.to_leave(),
            },
            alone: crate::primary_part::why().map(str::to_owned),
        };
        serde_json::to_vec(&left).unwrap_or_default()
    }

    /// What a client gets to know that has asked for this engine.
    pub(super) fn upgraded(&self, from: &str) -> Value {
        json!({
            "upgraded": true,
            "from": from,
            "version": env!("CARGO_PKG_VERSION"),
            "engine": std::process::id(),
            "keeper_version": keeper::version(),
        })
    }
}

/// The program to go on with, if it may be executed.
async fn chosen(path: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let Some(program) = path else { return Ok(restart::program()) };
    let path = program.clone();
    // Its file system may not answer.
    let looked = move || source::answered(move || source::may_run(&path));
    let may_run = tokio::task::spawn_blocking(looked).await;
    match may_run.unwrap_or_else(|e| Err(e.to_string())) {
        Ok(_) => Ok(program),
        Err(why) => Err(refused(&program, &why)),
    }
}

fn refused(program: &Path, why: &str) -> Failure {
    let program = program.display();
    Failure::new("failed", format!("not upgraded to {program}, and the app goes on: {why}"))
}
