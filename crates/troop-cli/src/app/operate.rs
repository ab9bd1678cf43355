//! Operations on an app other than reloads and changes of the number of workers.

use std::time::Duration;

use serde_json::{Value, json};
use troop::WorkerId;
use troop::snapshot::Phase;
use troop::supervise::RecycleFailed;

use super::{RunningApp, failed};
use crate::control::protocol::Failure;
use crate::preflight;
use crate::records::Text;
use crate::restart;
use crate::start::start_timeout;

impl RunningApp {
    /// Replaces one worker.
    pub(crate) async fn recycle(&self, worker: u32) -> Result<Value, Failure> {
        let worker = WorkerId(worker);
        if self.cluster.worker(worker).is_none() {
            return Err(Failure::new("no-worker", format!("there is no worker {worker}")));
        }
        let failed = match self.cluster.recycle(worker, "it was asked for").await {
            Ok(new) => return Ok(json!({ "replaced": 1, "new": new })),
            Err(failed) => failed,
        };
        Err(match failed {
            RecycleFailed::Reloading => Failure::new("busy", "all are being replaced now"),
            RecycleFailed::NotInService | RecycleFailed::UnderWay | RecycleFailed::Paused => {
                Failure::new("busy", "others are being replaced, or it is leaving")
            }
            RecycleFailed::Ended => Failure::new("failed", "it ended by itself meanwhile"),
            RecycleFailed::Stopping | RecycleFailed::Over => {
                Failure::new("over", "the app is stopping")
            }
            failed => Failure::new("failed", failed.to_string()),
        })
    }

    /// Changes the scheduling of one listener, or the default of all others.
    pub(crate) async fn schedule(
        &self,
        listener: Option<String>,
        policy: &str,
    ) -> Result<Value, Failure> {
        let bad = |e: troop::policy::BadScheduling| Failure::new("bad-request", e.to_string());
        let named = listener.clone();
        let listener = listener.map(|listener| listener.parse()).transpose().map_err(bad)?;
        let later = self
            .cluster
            .set_scheduling(listener, policy.parse().map_err(bad)?)
            .await
            .map_err(|e| match e {
                troop::Error::Settings(_) => {
                    let text = "its workers take sockets by activation (bind), and the kernel chooses among them; \
                        a policy is for an app without bind, or set at its start";
                    Failure::new("bad-request", text)
                }
                e => failed(&e),
            })?;
        self.forget_pending(named.as_deref());
        Ok(json!({ "later": later.iter().map(ToString::to_string).collect::<Vec<_>>() }))
    }

    /// Sends a signal to one worker or to all.
    pub(crate) async fn signal(&self, signal: i32, worker: Option<u32>) -> Result<Value, Failure> {
        let workers = match worker {
            None => self.cluster.workers(),
            Some(id) => match self.cluster.worker(WorkerId(id)) {
                Some(worker) => vec![worker],
                None => return Err(Failure::new("no-worker", format!("there is no worker {id}"))),
            },
        };
        let mut reached = Vec::new();
        for worker in workers {
            match worker.kill(signal).await {
                Ok(()) => reached.push(worker.id()),
                // The worker has ended meanwhile.
                Err(troop::Error::NoWorker(_)) => {}
                Err(e) => return Err(failed(&e)),
            }
        }
        Ok(json!({ "workers": reached }))
    }

    /// Stops the workers; the primary then executes itself again. Returns the time that it has to be
    /// ready then.
    ///
    /// # Errors
    /// If the app is stopping, or its current configuration is invalid.
    pub(crate) async fn restart(
        &self,
        env: Option<Vec<(Text, Text)>>,
    ) -> Result<Duration, Failure> {
        let timeout = self.can_restart().await?;
        let inherited = self.resolved().inherited;
        let text = |(name, value): (&std::ffi::OsString, &std::ffi::OsString)| {
            (Text::from(name.as_os_str()), Text::from(value.as_os_str()))
        };
        // That of an earlier reload, if that has brought another one.
        let env = env.or_else(|| inherited.map(|inherited| inherited.iter().map(text).collect()));
        let wanted = self.cluster.snapshot().await.map_err(|e| failed(&e))?.wanted;
        self.restarting.request(env, self.scaled(wanted));
        drop(self.cluster.stop());
        Ok(timeout)
    }

    /// Stops the app; `quick` kills its workers. With `forget` it is not listed any more then.
    pub(crate) fn stop(&self, quick: bool, forget: bool) {
        self.restarting.cancel();
        if let Some(keeper) = self.keeper.as_ref().filter(|_| forget) {
            keeper.forget();
        }
        drop(if quick { self.cluster.stop_now() } else { self.cluster.stop() });
    }

    /// Checks whether the app could be started again with its current configuration, and returns the
    /// time that such a start may take.
    async fn can_restart(&self) -> Result<Duration, Failure> {
        if self.cluster.snapshot().await.map_err(|e| failed(&e))?.phase == Phase::Stopping {
            // It was asked for twice: by a client whose first engine was killed, for example.
            return match self.restarting.is_requested() {
                true => Ok(start_timeout(&self.resolved())),
                false => Err(Failure::new("busy", "the app is stopping")),
            };
        }
        let (resolved, _) =
            self.source.next().await.map_err(|text| Failure::new("bad-request", text))?;
        let checked = resolved.setup().and_then(|_| preflight::check_files(&resolved));
        checked.map_err(|e| Failure::new("bad-request", e.chain()))?;
        let tried = tokio::task::spawn_blocking(restart::try_program).await;
        tried.unwrap_or_else(|e| Err(e.to_string())).map_err(|e| {
            Failure::new("failed", format!("not restarted, and the app goes on: {e}"))
        })?;
        Ok(start_timeout(&resolved))
    }
}
