//! What no client requests: reloads and fewer workers by signals, reloads by changes of files.

use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGTTOU, SIGUSR1, SIGUSR2};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use troop::keeper;

use super::RunningApp;
use crate::log;
use crate::signals::Signals;
use crate::watch::Watched;

impl RunningApp {
    /// Handles SIGHUP, SIGUSR1, SIGTTOU and SIGUSR2.
    pub(super) async fn handle_signals(self: Arc<RunningApp>, signals: Signals) {
        let Signals { reload, reopen, fewer, upgrade } = signals;
        let [Ok(mut reload), Ok(mut reopen), Ok(mut fewer), Ok(mut upgrade)] =
            [reload, reopen, fewer, upgrade].map(UnixStream::from_std)
        else {
            return;
        };
        loop {
            let (mut bytes, mut others, mut signals) = ([0; 16], [0; 16], [0; 16]);
            let mut ignored = [0; 16];
            tokio::select! {
                read = reload.read(&mut bytes) => match read {
                    Ok(1..) => {
                        keeper::has_obeyed(SIGHUP);
                        let app = self.clone();
                        tokio::spawn(async move { app.reload_without_client().await });
                    }
                    _ => return,
                },
                read = reopen.read(&mut others) => match read {
                    Ok(1..) => {
                        keeper::has_obeyed(SIGUSR1);
                        self.queue.iter().for_each(|queue| queue.reopen());
                    }
                    _ => return,
                },
                read = upgrade.read(&mut ignored) => match read {
                    Ok(1..) => {
                        keeper::has_obeyed(SIGUSR2);
                        let app = self.clone();
                        tokio::spawn(async move { app.upgrade_without_client().await });
                    }
                    _ => return,
                },
                read = fewer.read(&mut signals) => match read {
                    Ok(count @ 1..) => {
                        keeper::has_obeyed(SIGTTOU);
                        for _ in 0..count {
                            self.remove_worker().await;
                        }
                    }
                    _ => return,
                },
            }
        }
    }

    /// Removes a worker after a signal. The last one stays.
    async fn remove_worker(&self) {
        if let Err(failure) = self.scale(None, -1, false).await {
            log::line(&format!("troop: TTOU: no worker less: {}", failure.message));
        }
    }

    /// Reloads whenever a watched file has changed.
    pub(super) async fn watch_files(self: Arc<RunningApp>, mut watched: Watched) {
        while let Some(what) = watched.changed().await {
            log::line(&format!("troop: {what} has changed"));
            self.reload_without_client().await;
        }
    }

    /// Reloads after a signal or a change of files. Failures are logged, because no client waits.
    pub(super) async fn reload_without_client(&self) {
        // One waiting reload covers all further requests.
        let Ok(waiting) = self.waiting.try_acquire() else { return };
        drop(self.reloading.lock().await);
        drop(waiting);
        if let Err(failure) = self.reload(None, false, None).await
            && failure.kind != "failed"
        {
            log::line(&format!("troop: not reloaded: {}", failure.message));
        }
    }
}
