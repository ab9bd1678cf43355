//! The mode of a listener under `auto`: connections are handed over in exact turns while they are
//! few, and the kernel spreads them while they are many.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Time, WorkerId};

/// Number of connections that come to the primary's own socket per interval of measurement while
/// the kernel spreads the others. Their rate tells that of all, so their number is the same under
/// any load.
const SAMPLE: f64 = 20.0;
/// Largest part of the connections that such a sample may be.
const MAX_FRACTION: f64 = 0.5;
/// Consecutive intervals above or below a threshold before the mode changes.
const INTERVALS: u32 = 2;
/// The kernel spreads connections until they are fewer than this part of the rate from which it
/// does.
const CALM: f64 = 0.5;

/// The rates at which a listener under [`Scheduling::Auto`](crate::policy::Scheduling::Auto)
/// changes its mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AutoLimits {
    /// New connections per second and worker from which the kernel spreads them. Default: 500.
    pub rate_per_worker: u32,
    /// New connections per second of all workers together from which the kernel spreads them,
    /// however many workers there are. Default: 2,000.
    pub max_rate: u32,
    /// Time for which connections must be that many. Default: 200 ms.
    pub hot_after: Duration,
    /// Time for which connections must be fewer than half as many before they are handed over in
    /// turns again. Default: 2 s.
    pub calm_after: Duration,
}

impl Default for AutoLimits {
    fn default() -> AutoLimits {
        AutoLimits {
            rate_per_worker: 500,
            max_rate: 2000,
            hot_after: Duration::from_millis(200),
            calm_after: Duration::from_secs(2),
        }
    }
}

impl AutoLimits {
    /// Sets [`rate_per_worker`](#structfield.rate_per_worker).
    #[must_use]
    pub fn rate_per_worker(mut self, rate: u32) -> AutoLimits {
        self.rate_per_worker = rate;
        self
    }

    /// Sets [`max_rate`](#structfield.max_rate).
    #[must_use]
    pub fn max_rate(mut self, rate: u32) -> AutoLimits {
        self.max_rate = rate;
        self
    }

    /// Sets [`hot_after`](#structfield.hot_after).
    #[must_use]
    pub fn hot_after(mut self, time: Duration) -> AutoLimits {
        self.hot_after = time;
        self
    }

    /// Sets [`calm_after`](#structfield.calm_after).
    #[must_use]
    pub fn calm_after(mut self, time: Duration) -> AutoLimits {
        self.calm_after = time;
        self
    }

    /// Returns the rate from which the kernel spreads the connections of this many workers.
    fn hot_rate(&self, workers: usize) -> f64 {
        let all = u64::from(self.rate_per_worker).saturating_mul(workers.max(1) as u64);
        all.min(self.max_rate.into()).max(1) as f64
    }
}

/// What chooses the workers for the connections of a listener under `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Mode {
    /// The primary accepts all connections and hands them over in exact turns.
    Turns,
    /// The kernel spreads connections over the workers' own sockets, by their load.
    Steered,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Turns => "turns",
            Mode::Steered => "steered",
        })
    }
}

/// Why a listener has its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ModeReason {
    /// It has just been opened.
    Opened,
    /// About this many connections come per second.
    Rate(u32),
    /// This worker rejects connections, or limits their number, so that it must not accept by
    /// itself. The listener stays in turns.
    Limited(WorkerId),
    /// A socket of another process is in the group. The listener stays in turns while it is there.
    Foreign,
    /// The numbers of its sockets are not known any more. The listener stays in turns.
    NumbersLost,
}

impl fmt::Display for ModeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModeReason::Opened => f.write_str("it was opened"),
            ModeReason::Rate(rate) => write!(f, "about {rate} connections per second"),
            ModeReason::Limited(worker) => {
                write!(f, "worker {worker} limits its connections, so the listener stays in turns")
            }
            ModeReason::Foreign => f.write_str("another process has joined its group"),
            ModeReason::NumbersLost => f.write_str("workers have shut its sockets down"),
        }
    }
}

/// The current mode of a listener, since when, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentMode {
    /// The mode.
    pub mode: Mode,
    /// When it began.
    pub since: Time,
    /// Why it began, or why it lasts.
    pub reason: ModeReason,
}

/// Decides on the mode of one listener.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AutoMode {
    current: CurrentMode,
    /// The fraction of new connections that come to the primary's own socket.
    #[serde(with = "crate::snapshot::bits")]
    own: f64,
    /// The beginning of the interval of measurement.
    interval: Time,
    /// Connections that came to the primary's own socket in it.
    count: u32,
    /// Consecutive intervals beyond the threshold.
    beyond: u32,
    /// A worker that limits its connections.
    limited: Option<WorkerId>,
    is_foreign: bool,
    numbers_lost: bool,
}

impl AutoMode {
    pub(crate) fn new(now: Time) -> AutoMode {
        AutoMode {
            current: CurrentMode { mode: Mode::Turns, since: now, reason: ModeReason::Opened },
            own: 1.0,
            interval: now,
            count: 0,
            beyond: 0,
            limited: None,
            is_foreign: false,
            numbers_lost: false,
        }
    }

    pub(crate) fn current(&self) -> CurrentMode {
        self.current
    }

    pub(crate) fn is_steered(&self) -> bool {
        self.current.mode == Mode::Steered
    }

    /// Returns the fraction of new connections that come to the primary's own socket: all of them
    /// in turns, and a sample otherwise.
    pub(crate) fn own(&self) -> f64 {
        self.own
    }

    /// Counts connections that came to the primary's own socket.
    pub(crate) fn count(&mut self, connections: u32) {
        self.count = self.count.saturating_add(connections);
    }

    /// Keeps the listener in turns from now on, because a worker limits its connections.
    pub(crate) fn limit(&mut self, now: Time, worker: WorkerId) -> bool {
        self.limited.get_or_insert(worker);
        self.stay_if_held(now)
    }

    /// Keeps the listener in turns while another process is in its group.
    pub(crate) fn set_foreign(&mut self, now: Time, is_foreign: bool) -> bool {
        self.is_foreign = is_foreign;
        self.stay_if_held(now)
    }

    /// Keeps the listener in turns from now on, because the numbers of its sockets are unknown.
    pub(crate) fn lose_numbers(&mut self, now: Time) -> bool {
        self.numbers_lost = true;
        self.stay_if_held(now)
    }

    fn held(&self) -> Option<ModeReason> {
        match (self.limited, self.is_foreign) {
            (Some(worker), _) => Some(ModeReason::Limited(worker)),
            (None, true) => Some(ModeReason::Foreign),
            (None, false) => self.numbers_lost.then_some(ModeReason::NumbersLost),
        }
    }

    fn stay_if_held(&mut self, now: Time) -> bool {
        let Some(reason) = self.held() else { return false };
        let was_steered = self.is_steered();
        if was_steered {
            self.enter(now, Mode::Turns, reason, 1.0);
        }
        self.current.reason = reason;
        was_steered
    }

    fn enter(&mut self, now: Time, mode: Mode, reason: ModeReason, own: f64) {
        self.current = CurrentMode { mode, since: now, reason };
        (self.own, self.interval, self.count, self.beyond) = (own, now, 0, 0);
    }

    /// Returns the sample that is large enough for intervals of this length, if so many connections
    /// come per second.
    fn sample_of(rate: f64, interval: f64) -> f64 {
        (SAMPLE / (rate * interval)).min(MAX_FRACTION)
    }

    /// Whether the interval of measurement is over.
    pub(crate) fn is_due(&self, now: Time, limits: &AutoLimits) -> bool {
        let both = match self.current.mode {
            Mode::Turns => limits.hot_after,
            Mode::Steered => limits.calm_after,
        };
        now.since(self.interval) >= (both / INTERVALS).max(Duration::from_millis(1))
    }

    /// Evaluates the interval that has passed, if it is over. Returns true if connections must be
    /// spread otherwise from now on, because [`AutoMode::own`] has changed.
    pub(crate) fn evaluate(&mut self, now: Time, workers: usize, limits: &AutoLimits) -> bool {
        if !self.is_due(now, limits) {
            return false;
        }
        let elapsed = now.since(self.interval);
        let rate = f64::from(self.count) / elapsed.as_secs_f64() / self.own;
        (self.interval, self.count) = (now, 0);
        let hot = limits.hot_rate(workers);
        let calm = hot * CALM;
        let steered = limits.calm_after.as_secs_f64().max(0.002) / f64::from(INTERVALS);
        match self.current.mode {
            Mode::Turns => {
                let is_beyond = rate >= hot && self.held().is_none();
                self.beyond = if is_beyond { self.beyond + 1 } else { 0 };
                if self.beyond < INTERVALS {
                    return false;
                }
                let own = AutoMode::sample_of(rate, steered);
                self.enter(now, Mode::Steered, ModeReason::Rate(rate as u32), own);
                true
            }
            Mode::Steered => {
                // A smaller sample may be empty although connections come.
                let largest = AutoMode::sample_of(calm, steered);
                let is_telling = self.own * 2.0 > largest;
                self.beyond = if rate < calm && is_telling { self.beyond + 1 } else { 0 };
                if self.beyond >= INTERVALS {
                    self.enter(now, Mode::Turns, ModeReason::Rate(rate as u32), 1.0);
                    return true;
                }
                let own = AutoMode::sample_of(rate.max(calm), steered);
                let is_other = own > 2.0 * self.own || own < self.own / 2.0;
                if is_other {
                    self.own = own;
                }
                is_other
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Mixer;

    /// Connections at a listener, of which as many come to the primary's own socket as chance
    /// would have it.
    struct Flow {
        mode: AutoMode,
        limits: AutoLimits,
        now: Time,
        drawn: u32,
        /// All connections that came to the primary's own socket, and all others.
        own: u64,
        others: u64,
        rewrites: u32,
    }

    impl Flow {
        fn new(limits: AutoLimits) -> Flow {
            let (mode, now) = (AutoMode::new(Time(1)), Time(1));
            Flow { mode, limits, now, drawn: 0, own: 0, others: 0, rewrites: 0 }
        }

        /// A number from 0 to 1.
        fn draw(&mut self) -> f64 {
            self.drawn += 1;
            f64::from(Mixer::default().word(self.drawn).finish()) / 2f64.powi(32)
        }

        /// So many connections per second for so many milliseconds.
        fn pass(&mut self, rate: f64, ms: u64, workers: usize) {
            for _ in 0..ms {
                self.now = self.now + Duration::from_millis(1);
                let mut own = 0;
                let here =
                    (rate / 1000.0) as u32 + u32::from(self.draw() < (rate / 1000.0).fract());
                for _ in 0..here {
                    own += u32::from(self.mode.own() >= 1.0 || self.draw() < self.mode.own());
                }
                // Whatever comes is counted at once; without connections queues are still sampled.
                if own > 0 || self.now.0.is_multiple_of(50) {
                    let (now, limits) = (self.now, self.limits.clone());
                    self.rewrites += u32::from(self.mode.evaluate(now, workers, &limits));
                    self.mode.count(own);
                }
                self.own += u64::from(own);
                self.others += u64::from(here - own);
            }
        }

        fn mode(&self) -> Mode {
            self.mode.current().mode
        }
    }

    #[test]
    fn a_burst_is_handed_over_in_turns_and_a_flood_is_spread() {
        for burst in [64.0, 500.0, 5000.0] {
            let mut flow = Flow::new(AutoLimits::default());
            flow.pass(2.0, 3000, 2);
            flow.pass(burst * 1000.0, 1, 2);
            flow.pass(2.0, 3000, 2);
            assert_eq!((flow.mode(), flow.others), (Mode::Turns, 0), "burst of {burst}");
        }
        let mut flow = Flow::new(AutoLimits::default());
        flow.pass(5000.0, 190, 2);
        assert_eq!((flow.mode(), flow.others), (Mode::Turns, 0));
        flow.pass(5000.0, 120, 2);
        assert_eq!(flow.mode(), Mode::Steered);
        assert_eq!(flow.mode.current().since.0 / 10, 20);
    }

    #[test]
    fn a_flood_costs_the_primary_the_same_few_connections_whatever_its_rate() {
        for rate in [2000.0, 10_000.0, 100_000.0] {
            let mut flow = Flow::new(AutoLimits::default());
            flow.pass(rate, 1000, 2);
            flow.own = 0;
            flow.pass(rate, 10_000, 2);
            assert_eq!(flow.mode(), Mode::Steered, "{rate}");
            assert!((100..500).contains(&flow.own), "{} of {rate} per second", flow.own);
        }
    }

    #[test]
    fn connections_go_in_turns_again_when_they_are_few_and_not_while_they_are_many() {
        for (rate, expected) in [
            (0.0, Mode::Turns),
            (100.0, Mode::Turns),
            (300.0, Mode::Turns),
            (1000.0, Mode::Steered),
            (2000.0, Mode::Steered),
            (20_000.0, Mode::Steered),
        ] {
            let mut flow = Flow::new(AutoLimits::default());
            flow.pass(20_000.0, 1000, 2);
            assert_eq!(flow.mode(), Mode::Steered);
            flow.pass(rate, 1500, 2);
            assert_eq!(flow.mode(), Mode::Steered, "not after a moment");
            flow.pass(rate, 8500, 2);
            assert_eq!(flow.mode(), expected, "{rate} connections per second");
        }
    }

    #[test]
    fn a_steady_rate_does_not_change_the_mode_over_and_over() {
        for rate in [100.0, 450.0, 700.0, 900.0, 1100.0, 1500.0, 5000.0] {
            let mut flow = Flow::new(AutoLimits::default());
            flow.pass(rate, 600_000, 2);
            assert!(flow.rewrites <= 30, "{} changes at {rate} per second", flow.rewrites);
        }
    }

    #[test]
    fn many_workers_do_not_keep_a_flood_in_turns() {
        let mut flow = Flow::new(AutoLimits::default());
        flow.pass(2500.0, 500, 64);
        assert_eq!(flow.mode(), Mode::Steered);
        let mut flow = Flow::new(AutoLimits::default());
        flow.pass(800.0, 5000, 64);
        assert_eq!(flow.mode(), Mode::Turns);
        // A single worker.
        let mut flow = Flow::new(AutoLimits::default());
        flow.pass(800.0, 500, 1);
        assert_eq!(flow.mode(), Mode::Steered);
    }

    #[test]
    fn a_listener_stays_in_turns_while_it_has_to() {
        let mut flow = Flow::new(AutoLimits::default());
        flow.pass(5000.0, 1000, 2);
        assert_eq!(flow.mode(), Mode::Steered);
        assert!(flow.mode.set_foreign(flow.now, true), "back at once");
        flow.pass(5000.0, 1000, 2);
        assert_eq!((flow.mode(), flow.mode.own()), (Mode::Turns, 1.0));
        assert_eq!(flow.mode.current().reason, ModeReason::Foreign);
        assert!(!flow.mode.set_foreign(flow.now, false));
        flow.pass(5000.0, 500, 2);
        assert_eq!(flow.mode(), Mode::Steered);
        assert!(flow.mode.limit(flow.now, WorkerId(3)));
        assert!(!flow.mode.limit(flow.now, WorkerId(4)), "it is in turns already");
        flow.pass(5000.0, 60_000, 2);
        assert_eq!(flow.mode(), Mode::Turns);
        assert_eq!(flow.mode.current().reason, ModeReason::Limited(WorkerId(3)));
    }
}
