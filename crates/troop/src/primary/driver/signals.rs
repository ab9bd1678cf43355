//! Signals that a supervised cluster obeys.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGTTIN, SIGTTOU, SIGWINCH};
use troop_core::Time;
use troop_sys::fault;
use troop_sys::poll::Interest;

use super::poller::EventPoller;
use super::{Driver, Token};
use crate::keeper;
use crate::primary::saved::{Key, Reader, Writer};
use crate::primary::{MAX_WORKERS, Reload};

/// A signal to stop that arrives within this time of the first one is the same request: `timeout`,
/// shells and service managers signal a process and then its group.
const SAME_STOP_WINDOW: Duration = Duration::from_millis(500);

/// What a signal asks of a supervised cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SignalMeans {
    Stop,
    /// At once.
    StopNow,
    OneMore,
    OneLess,
    Reload,
    /// End the workers, keep the listeners.
    Pause,
    ChildEnded,
}

impl SignalMeans {
    /// The signal, unless the app ends with it.
    fn number(self) -> Option<i32> {
        match self {
            SignalMeans::OneMore => Some(SIGTTIN),
            SignalMeans::OneLess => Some(SIGTTOU),
            SignalMeans::Reload => Some(SIGHUP),
            SignalMeans::Pause => Some(SIGWINCH),
            SignalMeans::Stop | SignalMeans::StopNow | SignalMeans::ChildEnded => None,
        }
    }
}

/// Where signals arrive, and what they mean.
#[derive(Default)]
pub(super) struct Signals {
    /// Those that were obeyed since the state was written down.
    obeyed: Vec<i32>,
    pipes: Vec<(UnixStream, SignalMeans)>,
    /// When the first signal to stop arrived.
    stopped: Option<Time>,
}

impl Signals {
    fn add(
        &mut self,
        poller: &EventPoller,
        pipe: UnixStream,
        means: SignalMeans,
    ) -> io::Result<()> {
        pipe.set_nonblocking(true)?;
        let number = u32::try_from(self.pipes.len()).unwrap_or(u32::MAX);
        poller.add(&pipe, Token::Signal(number), Interest::Read)?;
        self.pipes.push((pipe, means));
        Ok(())
    }

    /// What has arrived, and how often.
    fn read(&mut self, number: u32) -> Option<(SignalMeans, usize)> {
        let (pipe, means) = self.pipes.get_mut(number as usize)?;
        // As many bytes as signals.
        Some((*means, pipe.read(&mut [0; 16]).unwrap_or(0)))
    }

    /// Writes down where signals may have arrived that are not obeyed yet.
    pub(super) fn save<'a>(&'a self, to: &mut Writer<'a>) -> Vec<(Key, SignalMeans)> {
        self.pipes.iter().map(|(pipe, means)| (to.descriptor(pipe), *means)).collect()
    }

    /// Whether a signal to stop is another request than the first one, or the first.
    fn is_new_stop(&mut self, now: Time) -> bool {
        match self.stopped {
            Some(first) => now.since(first) >= SAME_STOP_WINDOW,
            None => {
                self.stopped = Some(now);
                true
            }
        }
    }
}

impl Driver {
    /// Reaps what the program has left that this process has executed before.
    pub(super) fn reap_earlier(&mut self) {
        self.workers.reap_earlier(self.now);
    }

    /// Obeys a signal: a byte on `pipe` for each one.
    pub(crate) fn handle_signal(&mut self, pipe: UnixStream, means: SignalMeans) -> io::Result<()> {
        self.signals.add(&self.poller, pipe, means)?;
        if means == SignalMeans::ChildEnded {
            self.workers.reap_others();
            // Some may have ended before.
            self.workers.child_ended(self.now);
        }
        Ok(())
    }

    pub(super) fn signalled(&mut self, number: u32) {
        let Some((means, count)) = self.signals.read(number) else { return };
        for _ in 0..count {
            self.apply_signal(means);
        }
    }

    /// Obeys signals that another program image has caught and not obeyed.
    pub(super) fn obey_earlier(
        &mut self,
        saved: Vec<(Key, SignalMeans)>,
        from: &mut Reader,
    ) -> io::Result<()> {
        for (pipe, means) in saved {
            let mut pipe = UnixStream::from(from.descriptor(pipe)?);
            for _ in 0..pipe.read(&mut [0; 16]).unwrap_or(0) {
                self.apply_signal(means);
            }
        }
        Ok(())
    }

    /// Obeys a signal that has come in another way.
    pub(super) fn obey(&mut self, means: SignalMeans) {
        self.apply_signal(means);
    }

    /// What was obeyed is part of the state that the keeper holds.
    pub(super) fn say_obeyed(&mut self) {
        self.signals.obeyed.drain(..).for_each(keeper::has_obeyed);
    }

    fn apply_signal(&mut self, means: SignalMeans) {
        fault::point("signalled");
        if keeper::is_kept()
            && let Some(signal) = means.number()
        {
            self.signals.obeyed.push(signal);
            self.change();
        }
        let Some(supervisor) = self.cluster.supervisor_mut() else {
            if means == SignalMeans::ChildEnded {
                self.workers.child_ended(self.now);
            }
            return;
        };
        match means {
            SignalMeans::Stop if !self.signals.is_new_stop(self.now) => {}
            SignalMeans::Stop if !supervisor.is_stopping() => supervisor.stop(self.now),
            SignalMeans::Stop | SignalMeans::StopNow => {
                supervisor.stop_now(self.now);
                self.workers.hurry_leftovers(self.now);
            }
            SignalMeans::OneMore => {
                supervisor.scale(self.now, (supervisor.wanted() + 1).min(MAX_WORKERS))
            }
            // The last one stays. Where there is none, there is none to end either.
            SignalMeans::OneLess => supervisor.scale(
                self.now,
                supervisor.wanted().saturating_sub(1).max(supervisor.wanted().min(1)),
            ),
            SignalMeans::Reload => {
                // Its sender gets no answer, and does not know that one is under way.
                if !self.cluster.reload_afterwards() {
                    self.reload(Reload::new(), None);
                }
            }
            SignalMeans::Pause => supervisor.pause(self.now),
            SignalMeans::ChildEnded => self.workers.child_ended(self.now),
        }
    }
}
