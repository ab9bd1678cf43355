//! Signals that a supervised cluster obeys.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGTTIN, SIGTTOU, SIGWINCH};
use troop_core::Time;
use troop_sys::poll::Interest;
use troop_sys::{fault, signals};

use super::{Driver, Token};
use crate::keeper;
use crate::primary::saved::{Key, Reader, Writer};
use crate::primary::{MAX_WORKERS, Reload};

/// A signal to stop that arrives within this time of the first one is the same request: `timeout`,
/// shells and service managers signal a process and then its group.
const SAME_STOP_WINDOW: Duration = Duration::from_millis(500);

/// The most signals that are obeyed in one turn.
const MAX_READ: usize = 64;

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

/// Where signals have arrived, and what they mean.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedSignals {
    numbers: Key,
    meanings: Vec<(i32, SignalMeans)>,
}

/// Where signals arrive, and what they mean.
#[derive(Default)]
pub(super) struct Signals {
    /// Those that were obeyed since the state was written down.
    obeyed: Vec<i32>,
    /// Receives their numbers, once they are caught.
    numbers: Option<UnixStream>,
    meanings: Vec<(i32, SignalMeans)>,
    /// When the first signal to stop arrived.
    stopped: Option<Time>,
}

impl Signals {
    /// What has arrived.
    fn read(&mut self) -> Vec<SignalMeans> {
        self.numbers.as_mut().map(|numbers| read(numbers, &self.meanings)).unwrap_or_default()
    }

    /// Writes down where signals may have arrived that are not obeyed yet.
    pub(super) fn save<'a>(&'a self, to: &mut Writer<'a>) -> Option<SavedSignals> {
        let numbers = to.descriptor(self.numbers.as_ref()?);
        Some(SavedSignals { numbers, meanings: self.meanings.clone() })
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

/// What the signals mean whose numbers have arrived.
fn read(numbers: &mut UnixStream, meanings: &[(i32, SignalMeans)]) -> Vec<SignalMeans> {
    let mut bytes = [0; MAX_READ];
    let count = numbers.read(&mut bytes).unwrap_or(0);
    let means = |byte: &u8| meanings.iter().find(|(signal, _)| *signal == i32::from(*byte));
    bytes[..count].iter().filter_map(means).map(|(_, means)| *means).collect()
}

impl Driver {
    /// Reaps what the program has left that this process has executed before.
    pub(super) fn reap_earlier(&mut self) {
        self.workers.reap_earlier(self.now);
    }

    /// Catches signals, and obeys them from now on.
    pub(crate) fn handle_signals(&mut self, meanings: Vec<(i32, SignalMeans)>) -> io::Result<()> {
        let all: Vec<i32> = meanings.iter().map(|(signal, _)| *signal).collect();
        let numbers = signals::catch(&all)?;
        self.poller.add(&numbers, Token::Signal, Interest::Read)?;
        let hears_of_children = meanings.iter().any(|(_, means)| *means == SignalMeans::ChildEnded);
        self.signals.numbers = Some(numbers);
        self.signals.meanings = meanings;
        if hears_of_children {
            self.workers.reap_others();
            // Some may have ended before.
            self.workers.child_ended(self.now);
        }
        Ok(())
    }

    pub(super) fn signalled(&mut self) {
        for means in self.signals.read() {
            self.apply_signal(means);
        }
    }

    /// Obeys signals that another program image has caught and not obeyed.
    pub(super) fn obey_earlier(
        &mut self,
        saved: Option<SavedSignals>,
        from: &mut Reader,
    ) -> io::Result<()> {
        let Some(SavedSignals { numbers, meanings }) = saved else { return Ok(()) };
        let mut numbers = UnixStream::from(from.descriptor(numbers)?);
        for means in read(&mut numbers, &meanings) {
            self.apply_signal(means);
        }
        Ok(())
    }

    /// Obeys signals that came to an image which had a pipe for each of them.
    pub(super) fn obey_earlier_pipes(
        &mut self,
        saved: Vec<(Key, SignalMeans)>,
        from: &mut Reader,
    ) -> io::Result<()> {
        for (pipe, means) in saved {
            let mut pipe = UnixStream::from(from.descriptor(pipe)?);
            for _ in 0..pipe.read(&mut [0; MAX_READ]).unwrap_or(0) {
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
