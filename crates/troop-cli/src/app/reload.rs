//! Reloads: re-reading the configuration, replacing the workers, and reporting the outcome.

use std::sync::Arc;

use serde_json::{Value, json};
use troop::snapshot::Phase;
use troop::supervise::{Afterwards, Progress, ReloadFailed, Reloaded};
use troop::{Event, Reload, Scheduling, WorkerHandle};

use super::{RunningApp, failed};
use crate::control::connection::Connection;
use crate::control::protocol::{Answer, Failure};
use crate::log;
use crate::records::Text;
use crate::resolve::ResolvedApp;

/// A policy of one listener, or of all others.
pub(super) type Policy = (Option<String>, Scheduling);

impl RunningApp {
    fn pending(&self) -> std::sync::MutexGuard<'_, Vec<Policy>> {
        self.pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn take_pending(&self) -> Vec<Policy> {
        std::mem::take(&mut *self.pending())
    }

    /// Forgets a policy that was to come, because another one was set.
    pub(super) fn forget_pending(&self, listener: Option<&str>) {
        self.pending().retain(|(other, _)| other.as_deref() != listener);
    }

    /// Applies the other changes of the configuration after the new workers are ready. If a client
    /// waits, so does this until further workers are ready. Returns the listeners that change only
    /// when they are opened again.
    async fn apply_changes(
        &self,
        before: &ResolvedApp,
        after: &ResolvedApp,
        is_awaited: bool,
    ) -> Result<Vec<String>, Failure> {
        let mut policies: Vec<Policy> = Vec::new();
        if before.app.policy != after.app.policy {
            policies.push((None, after.policy()));
        }
        let changed = before.policies(after).into_iter();
        policies.extend(changed.map(|(listener, policy)| (Some(listener), policy)));
        // What has changed before and waits for a listener to be opened again is told again.
        for pending in self.take_pending() {
            if !policies.iter().any(|(listener, _)| *listener == pending.0) {
                policies.push(pending);
            }
        }
        let mut later = std::collections::BTreeSet::new();
        for (listener, policy) in policies {
            let bad = |e: troop::policy::BadScheduling| Failure::new("bad-request", e.to_string());
            let pattern = listener.as_deref().map(str::parse).transpose().map_err(bad)?;
            let waiting = self.cluster.set_scheduling(pattern, policy.clone()).await;
            let waiting = waiting.map_err(|e| failed(&e))?;
            if !waiting.is_empty() {
                self.pending().push((listener, policy));
            }
            later.extend(waiting.iter().map(ToString::to_string));
        }
        let workers = after.workers();
        if self.started.app.cron.is_some() {
            // The next run has as many.
        } else if before.workers() != workers && is_awaited {
            self.scale_for_reload(before.workers(), workers).await?;
        } else if before.workers() != workers {
            self.begin_scaling(workers).await?;
        }
        Ok(later.into_iter().collect())
    }

    /// Re-reads the configuration and replaces the workers. Continues if the client leaves.
    pub(crate) async fn reload(
        &self,
        mut client: Option<&mut Connection>,
        allow_moved: bool,
        env: Option<Vec<(Text, Text)>>,
    ) -> Result<Value, Failure> {
        let busy = || Err(Failure::new("busy", "a reload is under way, or the app is stopping"));
        let _one = match &client {
            Some(_) => match self.reloading.try_lock() {
                Ok(one) => one,
                Err(_) => return busy(),
            },
            // A signal cannot be sent again by its sender, who gets no answer: wait.
            None => self.reloading.lock().await,
        };
        let phase = self.cluster.snapshot().await.map_err(|e| failed(&e))?.phase;
        if matches!(phase, Phase::Reloading | Phase::Stopping) {
            // A signal has started a reload.
            return busy();
        }
        let before = self.resolved();
        let (mut after, warnings) =
            self.source.next().await.map_err(|text| Failure::new("bad-request", text))?;
        let os = |(name, value): &(Text, Text)| (name.to_os(), value.to_os());
        after.inherited = match &env {
            Some(env) => Some(Arc::new(env.iter().map(os).collect())),
            None => before.inherited.clone(),
        };
        // The listeners of the workers that there are would be in the way of one that runs alone.
        let mut now = after.clone();
        now.app.alone = self.started.app.alone;
        let setup = now.setup().map_err(|e| Failure::new("bad-request", e.chain()))?;
        warnings.iter().for_each(|warning| log::line(&format!("troop: {warning}")));
        let (changes, _) = before.changes(&after);
        let (_, late) = self.started.changes(&after);
        let late = late.into_iter().map(|name| format!("{name} only at the next start"));
        let changes: Vec<String> = changes.into_iter().chain(late).collect();
        if !changes.is_empty() {
            let text = format!("changed: {}", changes.join("; "));
            match &mut client {
                Some(client) => {
                    drop(
                        client
                            .send(&Answer::Event(
                                json!({ "event": "changed", "changes": changes, "text": text }),
                            ))
                            .await,
                    );
                }
                None => log::line(&format!("troop: {text}")),
            }
        }
        let is_awaited = client.is_some();
        let done =
            self.replace_all(Reload::new().setup(setup).allow_moved(allow_moved), client).await?;
        let later = self.apply_changes(&before, &after, is_awaited).await.map_err(
            |Failure { kind, message }| {
                let replaced = troop::text::counted(done.replaced, "worker");
                Failure { kind, message: format!("{replaced} replaced, but {message}") }
            },
        );
        self.set_resolved(after);
        if let (Some(keeper), Some(env)) = (&self.keeper, env) {
            // It is started again with this one.
            keeper.update_env(env);
        }
        let mut answer = json!({ "replaced": done.replaced, "later": later? });
        if let (1.., Some(fields)) = (done.started, answer.as_object_mut()) {
            fields.insert("started".into(), done.started.into());
        }
        if let (false, Some(fields)) = (done.started_again.is_empty(), answer.as_object_mut()) {
            let paths: Vec<_> = done.started_again.iter().map(ToString::to_string).collect();
            fields.insert("started_again".into(), paths.into());
        }
        Ok(answer)
    }

    /// Replaces the workers, and shows the client the progress.
    async fn replace_all(
        &self,
        reload: Reload,
        mut client: Option<&mut Connection>,
    ) -> Result<Reloaded, Failure> {
        let mut events = self.cluster.events();
        let oldest = self.cluster.workers().iter().map(WorkerHandle::id).max();
        let mut reload = self.cluster.reload_with(reload);
        let (mut began, mut is_reading) = (false, true);
        loop {
            let event = tokio::select! {
                biased;
                // Events before the answer are shown before it.
                Some(event) = events.recv() => event,
                result = &mut reload => return result.map_err(|failed| failure(&failed, &self.name)),
            };
            let is_shown = match &event {
                // Earlier events belong to another reload.
                Event::Supervision(Progress::ReloadStarted { .. }) => {
                    began = true;
                    true
                }
                Event::Supervision(
                    Progress::Replaced { .. }
                    | Progress::MakingWay { .. }
                    | Progress::PathRemoved { .. }
                    | Progress::Awaiting { .. }
                    | Progress::PutOff { .. },
                ) => began,
                Event::Exit { worker, exit: how, .. } => {
                    !how.is_success() && Some(worker.id()) > oldest
                }
                _ => false,
            };
            // A client that has left, or does not read, is not waited for again.
            if let (true, Some(client)) = (is_shown && is_reading, &mut client) {
                is_reading = client.send(&Answer::Event(log::as_json(&event))).await.is_ok();
            }
        }
    }
}

/// Why a reload of this app failed, with what helps.
fn failure(failed: &ReloadFailed, name: &str) -> Failure {
    match failed {
        ReloadFailed::UnderWay | ReloadFailed::Stopping => {
            Failure::new("busy", "a reload is under way, or the app is stopping")
        }
        ReloadFailed::Stopped | ReloadFailed::Over => Failure::new("over", "the app is stopping"),
        failed => {
            let mut text = failed.to_string();
            if let Some(words) = failed.last_lines().filter(|words| !words.trim().is_empty()) {
                text.push_str("; its last lines:\n");
                text.push_str(&troop::text::lines(words.trim_end(), log::QUOTE));
                let stands_in_the_way =
                    matches!(failed, ReloadFailed::Failed { then: Afterwards::KeepsRunning, .. });
                if stands_in_the_way && troop::text::tells_of_used_address(words) {
                    text.push_str(&format!(
                        "\nIf it binds its port by itself, the old one has to leave first: `troop restart {name}`, or, for every reload, max_surge = 0 and max_unavailable = 1 (--set at the start)"
                    ));
                }
            }
            Failure::new("failed", text)
        }
    }
}
