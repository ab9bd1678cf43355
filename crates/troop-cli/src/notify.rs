//! Notifies systemd of the app's state: `sd_notify(3)`, for services of `Type=notify` and
//! `notify-reload`, with `WatchdogSec`.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use troop::snapshot::Snapshot;
use troop::supervise::Progress;
use troop::{Cluster, Event};

use crate::restart::Restarting;

/// Interval between checks whether all workers are ready.
const LOOK: Duration = Duration::from_millis(100);

/// Whether a service manager has set `NOTIFY_SOCKET`.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty())
}

/// Notifies systemd from a thread of its own until the cluster has ended.
pub(crate) fn start(cluster: Cluster, restarting: Arc<Restarting>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("troop-notify".into())
        .spawn(move || runtime.block_on(watch(cluster, &restarting)))?;
    Ok(())
}

fn send(state: &[NotifyState<'_>]) {
    // A failure is ignored: systemd does not listen any more.
    let _ = sd_notify::notify(state);
}

fn is_up(snapshot: &Snapshot) -> bool {
    let up = snapshot
        .workers
        .iter()
        .filter(|worker| worker.leaving_ms.is_none() && worker.ready == Some(true))
        .count();
    up >= snapshot.wanted.unwrap_or(1)
}

/// Sends `RELOADING=1`, which announces another `READY=1`.
fn send_reloading() {
    let now = NotifyState::monotonic_usec_now();
    send(&[Some(NotifyState::Reloading), now.ok()].into_iter().flatten().collect::<Vec<_>>());
}

async fn watch(cluster: Cluster, restarting: &Restarting) {
    let mut events = cluster.events();
    // Half of the watchdog timeout, as the manual page advises.
    let watchdog =
        sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|beat| !beat.is_zero());
    let mut look = tokio::time::interval(watchdog.map_or(LOOK, |beat| beat.min(LOOK)));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut fed = Instant::now();
    let (mut ready, mut stopping) = (false, false);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                None => return,
                Some(Event::Supervision(Progress::Stopping)) => {
                    stopping = true;
                    // A restart in place is announced as a reload: after `STOPPING=1` systemd would
                    // not wait for the app to be ready again.
                    if restarting.is_asked() { send_reloading() } else { send(&[NotifyState::Stopping]) }
                }
                Some(Event::Supervision(Progress::ReloadStarted { .. })) => send_reloading(),
                Some(Event::Supervision(Progress::ReloadFinished | Progress::ReloadFailed { .. })) => send(&[NotifyState::Ready]),
                Some(_) => {}
            },
            _ = look.tick() => {
                let hungry = watchdog.is_some_and(|beat| fed.elapsed() >= beat);
                if !hungry && (ready || stopping) {
                    continue;
                }
                // A primary that does not answer must not pass for a healthy one.
                let Ok(Ok(snapshot)) = timeout(watchdog.unwrap_or(LOOK * 10), cluster.snapshot()).await else { continue };
                if hungry {
                    fed = Instant::now();
                    send(&[NotifyState::Watchdog]);
                }
                if !ready && !stopping && is_up(&snapshot) {
                    ready = true;
                    send(&[NotifyState::Ready]);
                }
            }
        }
    }
}
