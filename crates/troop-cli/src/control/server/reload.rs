//! Reloads: re-reading the configuration, replacing the workers, and reporting the outcome.

use serde_json::{Value, json};
use tokio::net::UnixStream;
use troop::snapshot::Phase;
use troop::supervise::{Afterwards, Progress};
use troop::text::counted;
use troop::{Event, Reload, WorkerHandle};

use super::{LAST_WORDS, Server, failed, send_answer};
use crate::control::{Answer, Failure};
use crate::log;
use crate::resolve::ResolvedApp;

impl Server {
    /// Applies the other changes of the configuration after the new workers are ready. Returns the
    /// listeners that change only when they are opened again.
    async fn adopt(
        &self,
        before: &ResolvedApp,
        after: &ResolvedApp,
    ) -> Result<Vec<String>, Failure> {
        if before.workers() != after.workers() {
            self.cluster.scale(after.workers()).map_err(|e| failed(&e))?;
        }
        let mut later = Vec::new();
        if before.app.policy != after.app.policy {
            let policy = after.app.policy.clone().unwrap_or_default();
            later.extend(self.cluster.set_scheduling(None, policy).await.map_err(|e| failed(&e))?);
        }
        for (listener, policy) in before.policies(after) {
            let bad = |e: troop::policy::BadScheduling| Failure::new("bad-request", e.to_string());
            let listener = listener.parse().map_err(bad)?;
            later.extend(
                self.cluster
                    .set_scheduling(Some(listener), policy)
                    .await
                    .map_err(|e| failed(&e))?,
            );
        }
        Ok(later.iter().map(ToString::to_string).collect())
    }

    /// Re-reads the configuration and replaces the workers. Continues if the client leaves.
    pub(super) async fn reload(
        &self,
        mut stream: Option<&mut UnixStream>,
        allow_moved: bool,
    ) -> Result<Value, Failure> {
        let busy = || Err(Failure::new("busy", "a reload is under way, or the app is stopping"));
        let _one = match &stream {
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
        let (after, doubts) =
            self.source.next().await.map_err(|text| Failure::new("bad-request", text))?;
        let setup = after.setup().map_err(|e| Failure::new("bad-request", e.chain()))?;
        doubts.iter().for_each(|doubt| log::line(&format!("troop: {doubt}")));
        let (changes, _) = before.changes(&after);
        let (_, late) = self.started.changes(&after);
        let late = late.into_iter().map(|name| format!("{name} only at the next start"));
        let changes: Vec<String> = changes.into_iter().chain(late).collect();
        if !changes.is_empty() {
            let text = format!("changed: {}", changes.join("; "));
            match &mut stream {
                Some(stream) => {
                    drop(
                        send_answer(
                            stream,
                            &Answer::Event(
                                json!({ "event": "changed", "changes": changes, "text": text }),
                            ),
                        )
                        .await,
                    );
                }
                None => log::line(&format!("troop: {text}")),
            }
        }
        let (replaced, started) =
            self.replace_all(Reload::new().setup(setup).allow_moved(allow_moved), stream).await?;
        let later = self.adopt(&before, &after).await;
        self.is_planned(after);
        let mut answer = json!({ "replaced": replaced, "later": later? });
        if let (1.., Some(fields)) = (started, answer.as_object_mut()) {
            fields.insert("started".into(), started.into());
        }
        Ok(answer)
    }

    /// Returns the number of workers that were replaced, and of those that were started in empty
    /// slots.
    async fn replace_all(
        &self,
        reload: Reload,
        mut stream: Option<&mut UnixStream>,
    ) -> Result<(u64, u64), Failure> {
        let mut events = self.cluster.events();
        let oldest = self.cluster.workers().iter().map(WorkerHandle::id).max();
        self.cluster.reload_with(reload).map_err(|e| failed(&e))?;
        let (mut began, mut replaced, mut is_heard) = (false, 0_u64, true);
        let mut fallen: Option<WorkerHandle> = None;
        while let Some(event) = events.recv().await {
            match &event {
                // Earlier events belong to another reload.
                Event::Supervision(Progress::ReloadStarted { .. }) => began = true,
                Event::Supervision(Progress::ReloadRefused) if !began => {
                    return Err(Failure::new(
                        "busy",
                        "a reload is under way, or the app is stopping",
                    ));
                }
                Event::Supervision(Progress::Replaced { .. }) if began => replaced += 1,
                Event::Supervision(Progress::Awaiting { .. } | Progress::PutOff { .. })
                    if began => {}
                Event::Supervision(Progress::ReloadFinished) if began => {
                    let workers = self.cluster.snapshot().await.map_err(|e| failed(&e))?.workers;
                    let newest = workers.iter().filter_map(|worker| worker.generation).max();
                    let new = workers
                        .iter()
                        .filter(|worker| worker.generation == newest && newest.is_some())
                        .count() as u64;
                    return Ok((replaced, new.saturating_sub(replaced)));
                }
                Event::Supervision(Progress::ReloadFailed { reason, then }) if began => {
                    let then = match then {
                        Afterwards::GoesOn => format!("{} had been replaced, the others go on", counted(replaced, "worker")),
                        Afterwards::Retries => "no worker is ready, and troop goes on trying with what was there before".into(),
                        Afterwards::Paused => "the app is still paused, and nothing is tried again before the next reload".into(),
                        Afterwards::Ends => "the reload is over".into(),
                        Afterwards::Replaced => format!("{} replaced", counted(replaced, "worker")),
                    };
                    let mut text = format!("{reason}; {then}");
                    if let Some(words) = fallen
                        .and_then(|worker| worker.last_stderr(LAST_WORDS))
                        .filter(|w| !w.trim().is_empty())
                    {
                        text.push_str("; its last lines:\n");
                        text.push_str(&troop::text::lines(words.trim_end(), log::QUOTE));
                        if ["EADDRINUSE", "Address already in use"]
                            .iter()
                            .any(|sign| words.contains(sign))
                        {
                            text.push_str(
                                "\nIf it binds its port by itself, the old one has to leave first: max_surge = 0 and max_unavailable = 1",
                            );
                        }
                    }
                    return Err(Failure::new("failed", text));
                }
                Event::Supervision(Progress::Stopping) => break,
                // The end of the reload may be among the dropped events.
                Event::Lagged { .. }
                    if self.cluster.snapshot().await.map_err(|e| failed(&e))?.phase
                        != Phase::Reloading =>
                {
                    return Err(Failure::new(
                        "failed",
                        "too much happened to see how it ended; look with `troop show`",
                    ));
                }
                Event::Exit { worker, exit: how, .. }
                    if !how.is_success() && Some(worker.id()) > oldest =>
                {
                    fallen = Some(worker.clone())
                }
                _ => continue,
            }
            // A client that has left or does not read is not waited for again.
            if let Some(stream) = &mut stream {
                is_heard = is_heard
                    && send_answer(stream, &Answer::Event(log::as_json(&event))).await.is_ok();
            }
        }
        Err(Failure::new("over", "the app is stopping"))
    }
}
