//! Notifies systemd of the app's state: `sd_notify(3)`, for services of `Type=notify` and
//! `notify-reload`, with `WatchdogSec`.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{MissedTickBehavior, timeout};
use troop::supervise::Progress;
use troop::{Builder, Cluster, Event};

use crate::log;
use crate::restart::RestartRequest;

const VARIABLE: &str = "NOTIFY_SOCKET";

/// Whether a service manager has set `NOTIFY_SOCKET`.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|socket| !socket.is_empty())
}

/// What systemd is told about, besides that all workers are ready.
#[derive(Debug, Clone, Copy)]
enum Step {
    ReloadBegan,
    ReloadOver,
    Stopping,
}

impl Step {
    fn of(event: &Event) -> Option<Step> {
        let Event::Supervision(progress) = event else { return None };
        match progress {
            Progress::ReloadStarted { .. } => Some(Step::ReloadBegan),
            Progress::ReloadFinished | Progress::ReloadFailed { .. } => Some(Step::ReloadOver),
            Progress::StopDelayed { .. } | Progress::Stopping => Some(Step::Stopping),
            _ => None,
        }
    }
}

/// Notifies systemd from a thread of its own until the cluster has ended. An observer, which misses
/// no event, keeps that thread up to date.
pub(crate) fn attach(builder: Builder, restarting: Arc<RestartRequest>) -> Builder {
    let (sender, steps) = unbounded_channel();
    let observed = builder.on_event(move |event| {
        if let Some(step) = Step::of(event) {
            let _ = sender.send(step);
        }
    });
    observed.on_start(|cluster| {
        if let Err(e) = start(cluster, steps, restarting) {
            log::line(&format!("troop: cannot notify systemd: {e}"));
        }
    })
}

fn start(
    cluster: Cluster,
    steps: UnboundedReceiver<Step>,
    restarting: Arc<RestartRequest>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("troop-notify".into())
        .spawn(move || runtime.block_on(watch(cluster, steps, &restarting)))?;
    Ok(())
}

fn send(state: &[NotifyState<'_>]) {
    // A failure is ignored: systemd does not listen any more.
    let text: String = state.iter().map(|part| format!("{part}\n")).collect();
    if !troop::keeper::notify(&text) {
        let _ = deliver(&text);
    }
}

/// Sends a notification to a path, or to an abstract address (`@name`), which `sd_notify::notify`
/// takes for a path.
fn deliver(text: &str) -> io::Result<()> {
    let Some(at) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let address = match at.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&at)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address).map(drop)
}

/// Notifies systemd of the end of an app that has done what it was to do: a service that ends before it
/// was ready has failed.
pub(crate) fn ended(is_success: bool, restarting: &RestartRequest) {
    if is_wanted() && is_success && !restarting.is_requested() && !restarting.is_stop_requested() {
        send(&[NotifyState::Ready]);
    }
}

/// That it will be ready again.
fn send_reloading() {
    let now = NotifyState::monotonic_usec_now();
    send(&[Some(NotifyState::Reloading), now.ok()].into_iter().flatten().collect::<Vec<_>>());
}

async fn watch(cluster: Cluster, mut steps: UnboundedReceiver<Step>, restarting: &RestartRequest) {
    // Half of what it waits, as the manual page advises.
    let watchdog =
        sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|beat| !beat.is_zero());
    let mut beat = tokio::time::interval(watchdog.unwrap_or(Duration::from_secs(60)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ready = Some(cluster.ready());
    loop {
        tokio::select! {
            biased;
            result = async { Some(ready.as_mut()?.await) }, if ready.is_some() => {
                ready = None;
                // Whatever keeps it from being ready, a reload may help.
                if let Some(Ok(_)) = result {
                    send(&[NotifyState::Ready]);
                }
            }
            step = steps.recv() => match step {
                None => return,
                Some(Step::ReloadBegan) => send_reloading(),
                Some(Step::ReloadOver) => send(&[NotifyState::Ready]),
                // After a restart in place, which systemd would not wait for if it were told of an
                // end.
                Some(Step::Stopping) if restarting.is_requested() => send_reloading(),
                Some(Step::Stopping) => {
                    ready = None;
                    send(&[NotifyState::Stopping]);
                }
            },
            _ = beat.tick(), if watchdog.is_some() => {
                // A primary that does not answer is not to be taken for one that works.
                if let Some(beat) = watchdog
                    && let Ok(Ok(_)) = timeout(beat, cluster.snapshot()).await
                {
                    send(&[NotifyState::Watchdog]);
                }
            }
        }
    }
}
