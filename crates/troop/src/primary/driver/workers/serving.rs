//! A thread that checks whether workers with activated sockets wait for connections.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use troop_core::WorkerId;
use troop_core::cluster::serving::Waits;
use troop_sys::serving;

use crate::primary::wake::{Command, DriverHandle};

/// Of this many parts of the time, the checks take one at most.
const PAUSE_FACTOR: u32 = 10;
/// Maximum pause after a check.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A worker to check.
pub(super) struct Serving {
    pub(super) worker: WorkerId,
    pub(super) pid: u32,
    /// The inodes of its sockets.
    pub(super) sockets: Vec<u64>,
}

/// The thread. It ends when this is dropped.
pub(super) struct ServingChecker(Option<mpsc::Sender<Serving>>);

impl ServingChecker {
    pub(super) fn start(driver: DriverHandle) -> ServingChecker {
        let (sender, checks) = mpsc::channel();
        let work = move || {
            for Serving { worker, pid, sockets } in checks {
                let begin = Instant::now();
                let waits = match serving::waits(pid, &sockets) {
                    Ok(serving::Waits::Yes) => Waits::Yes,
                    Ok(serving::Waits::Perhaps) => Waits::Perhaps,
                    Ok(serving::Waits::No) => Waits::No,
                    Err(_) => Waits::Hidden,
                };
                if driver.send(Command::ServingChecked(worker, waits)).is_err() {
                    return;
                }
                std::thread::sleep((begin.elapsed() * PAUSE_FACTOR).min(MAX_PAUSE));
            }
        };
        let thread = std::thread::Builder::new().name("troop-serving".into());
        let started = thread.stack_size(256 * 1024).spawn(work).is_ok();
        ServingChecker(started.then_some(sender))
    }

    /// Has a worker checked; the result is a command. False if that cannot be.
    pub(super) fn check(&self, check: Serving) -> bool {
        self.0.as_ref().is_some_and(|checks| checks.send(check).is_ok())
    }
}
