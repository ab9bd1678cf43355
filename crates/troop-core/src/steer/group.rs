//! The shards of one steered listener: their health, load and shares.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::program::{self, Instruction};
use crate::id::Time;
use crate::policy::{Sticky, partition};

/// Number of sockets of the primary at the start of the group. The first socket stays with the
/// primary, so that no worker has a socket through which it could change the group's program. The
/// shards' numbers in the kernel follow.
const OWN_SHARDS: u16 = 1;

/// Interval between checks of the queues while connections wait in one, or shares are changing.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);
/// The interval grows by this much per shard, so that checks of many shards do not cost more, up to
/// [`MAX_BUSY_INTERVAL`], so that there are enough checks within [`PROBATION`].
const INTERVAL_PER_SHARD: Duration = Duration::from_micros(250);
const MAX_BUSY_INTERVAL: Duration = Duration::from_millis(100);
/// Interval between checks of an idle group.
const IDLE_INTERVAL: Duration = Duration::from_millis(500);
/// Time after the last sign of load until the group counts as idle.
const IDLE_AFTER: Duration = Duration::from_secs(2);

/// Consecutive checks that find a queue not shorter than before, and much longer than the others,
/// until its shard gets no new connections.
const SUSPECT_AFTER: u32 = 3;
/// Further such checks until the shard's worker counts as hung.
const STALLED_AFTER: u32 = 3;
/// As [`SUSPECT_AFTER`], for a queue that is not much longer than the others, while some of them
/// are empty.
const SUSPECT_AFTER_IF_EMPTY: u32 = 10;
/// Initial and maximum time for which a hung worker gets no connections.
const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(8);
/// A worker that still takes connections this long after a pause counts as recovered.
const PROBATION: Duration = Duration::from_secs(2);

/// Minimum fraction of its share that a busy worker keeps.
const MIN_SHARE: f64 = 1.0 / 64.0;
/// Fraction of its share that a worker gets after a pause.
const RESUMED_SHARE: f64 = 1.0 / 8.0;
/// Weight of a new sample in the moving average of the load.
const SMOOTHING: f64 = 0.05;
/// Differences of load that count as noise: relative, and absolute for small numbers.
const RELATIVE_TOLERANCE: f64 = 0.35;
const ABSOLUTE_TOLERANCE: f64 = 3.0;
/// Consecutive checks with a difference of load before shares change.
const MIN_DIVERGENT_CHECKS: i32 = 10;
/// Fraction of a difference that each check corrects.
const GAIN: f64 = 0.15;
/// Fraction of its lost share that a worker regains at each check while it is not busier than
/// others, and while the group is idle.
const RECOVERY_GAIN: f64 = 0.02;
const IDLE_RECOVERY_GAIN: f64 = 0.05;
/// A queue that exceeds twice its weighted share by this many connections, at [`LONG_QUEUE_CHECKS`]
/// consecutive checks, is long: the primary takes the excess off it.
const LONG_QUEUE: u32 = 8;
const LONG_QUEUE_CHECKS: u32 = 3;
/// The same limit for a worker whose share has fallen below [`SLOW_SHARE`].
const LONG_QUEUE_IF_SLOW: u32 = 2;
const SLOW_SHARE: f64 = 0.5;
/// Maximum share of the primary's own socket.
const MAX_OWN_SHARE: f64 = u32::MAX as f64;
/// Maximum number of connections that are taken off a queue at one check.
const MAX_TAKEN: u32 = 64;

/// The measured load of one shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ShardLoad {
    /// Whether a worker accepts on the socket.
    pub(crate) present: bool,
    pub(crate) weight: u32,
    /// Open connections of its workers, and the load that they report.
    pub(crate) busy: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum ShardHealth {
    Serving,
    /// Its queue does not shrink. It gets no new connections, to see whether the queue shrinks
    /// then.
    Suspect {
        checks: u32,
    },
    /// Its worker counts as hung. The primary takes over its queue.
    Stalled {
        until: Time,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Shard {
    reported: ShardLoad,
    /// The weight of its last worker; a vacant shard keeps it.
    weight: u32,
    /// The fraction of its share that it gets, from [`MIN_SHARE`] to 1.
    #[serde(with = "crate::snapshot::bits")]
    level: f64,
    /// Moving average of its queue and open connections.
    #[serde(with = "crate::snapshot::bits")]
    load: f64,
    queue: u32,
    /// Consecutive checks that found its queue much longer than the others.
    long: u32,
    /// Consecutive checks that found it busier than others or, if negative, less busy.
    apart: i32,
    /// Consecutive checks that found its queue not shorter than before.
    stuck: u32,
    health: ShardHealth,
    /// The time since which its worker counts as hung; retries in between do not reset it.
    hung_since: Option<Time>,
    pause: Duration,
    /// The end of its last pause.
    back_at: Option<Time>,
    /// Whether the primary accepts on it.
    watched: bool,
}

/// A change of the group that others act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// The workers of this shard do not take connections.
    Stalled(u16),
    /// The workers of this shard take connections again.
    Recovered(u16),
    /// The primary must accept on this shard's socket from now on, or stop doing so.
    Watch(u16, bool),
    /// The primary must take this many connections off the shard's queue, for other workers.
    Take(u16, u32),
}

/// The shards of one steered listener: their health, load and shares, and the kernel program that
/// implements them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShardGroup {
    udp: bool,
    sticky: Option<Sticky>,
    shards: Vec<Shard>,
    /// The program that is installed in the kernel.
    installed: Vec<Instruction>,
    /// The shares that this program implements.
    installed_shares: Vec<u32>,
    /// The fraction of new connections that come to the primary's own socket.
    #[serde(with = "crate::snapshot::bits")]
    own: f64,
    /// Whether the numbers of the sockets in the kernel are unknown. That of the primary's own
    /// socket is known.
    numbers_lost: bool,
    next_check: Time,
    /// The time of the last sign of load.
    awake: Time,
    pub(crate) changes: Vec<Change>,
}

impl ShardGroup {
    pub(crate) fn new(udp: bool, sticky: Option<Sticky>, now: Time) -> ShardGroup {
        ShardGroup {
            udp,
            sticky,
            shards: Vec::new(),
            installed: Vec::new(),
            installed_shares: Vec::new(),
            own: 0.0,
            numbers_lost: false,
            next_check: now + IDLE_INTERVAL,
            awake: now,
            changes: Vec::new(),
        }
    }

    /// Adds a shard at the end of the group.
    pub(crate) fn grow(&mut self) {
        self.shards.push(Shard {
            reported: ShardLoad::default(),
            weight: 100,
            level: 1.0,
            load: 0.0,
            queue: 0,
            long: 0,
            apart: 0,
            stuck: 0,
            health: ShardHealth::Serving,
            hung_since: None,
            pause: MIN_PAUSE,
            back_at: None,
            watched: false,
        });
        self.watch();
    }

    /// Whether clients or flows stay with a shard, so that a successor should get the same shard.
    pub(crate) fn keeps_shards(&self) -> bool {
        self.udp || self.sticky.is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.len()
    }

    /// Returns the time since which the workers of a shard count as hung, if they do.
    pub(crate) fn hung_since(&self, index: u16) -> Option<Time> {
        self.shards.get(usize::from(index)).and_then(|shard| shard.hung_since)
    }

    /// Sets the load of a shard after its workers have changed.
    pub(crate) fn set_load(&mut self, index: u16, reported: ShardLoad) {
        let Some(shard) = self.shards.get_mut(usize::from(index)) else { return };
        if shard.reported.present != reported.present {
            // A new worker does not inherit the state of its predecessor.
            if shard.recover() {
                self.changes.push(Change::Recovered(index));
            }
            shard.level = 1.0;
            shard.load = 0.0;
        }
        shard.assign(reported);
        self.watch();
    }

    /// Resets the state of a shard that a further worker has joined.
    pub(crate) fn relieved(&mut self, index: u16) {
        if let Some(shard) = self.shards.get_mut(usize::from(index)) {
            if shard.recover() {
                self.changes.push(Change::Recovered(index));
            }
            shard.level = 1.0;
        }
        self.watch();
    }

    /// Exchanges the numbers of two shards.
    pub(crate) fn swap(&mut self, one: u16, other: u16) {
        self.shards.swap(usize::from(one), usize::from(other));
        self.installed.clear();
        self.installed_shares.clear();
    }

    /// Restarts all measurements after the primary itself was stopped for a while.
    pub(crate) fn restart_measurement(&mut self, now: Time) {
        for shard in &mut self.shards {
            shard.stuck = 0;
            shard.hung_since = shard.hung_since.map(|_| now);
        }
    }

    /// Marks the numbers of the sockets as unknown. Returns true if they were known before.
    pub(crate) fn lose_numbers(&mut self) -> bool {
        !std::mem::replace(&mut self.numbers_lost, true)
    }

    pub(crate) fn next_check(&self) -> Time {
        self.next_check
    }

    /// Sets the fraction of new connections that come to the primary's own socket, for streams of
    /// which none belongs to a certain shard.
    pub(crate) fn set_own(&mut self, now: Time, own: f64) {
        if !self.keeps_shards() && self.own != own {
            self.own = own;
            self.installed_shares.clear();
            self.next_check = self.next_check.min(now + BUSY_INTERVAL);
        }
    }

    /// Whether all new connections come to the primary's own socket.
    pub(crate) fn is_own(&self) -> bool {
        self.own >= 1.0
    }

    pub(crate) fn has_lost_numbers(&self) -> bool {
        self.numbers_lost
    }

    /// Returns the number of shards whose workers take connections.
    pub(crate) fn serving(&self) -> usize {
        self.in_program(true).count()
    }

    /// Evaluates the queue of each shard (`None` if unknown) and its load.
    pub(crate) fn evaluate(&mut self, now: Time, queues: &[Option<u32>], reported: &[ShardLoad]) {
        for (((number, shard), queue), reported) in
            (0..).zip(&mut self.shards).zip(queues).zip(reported)
        {
            let queue = queue.unwrap_or(0);
            shard.stuck = if queue > 0 && queue >= shard.queue && !shard.watched {
                shard.stuck + 1
            } else {
                0
            };
            if queue < shard.queue && !shard.watched {
                // A worker takes connections from it.
                if shard.hung_since.is_some() && shard.recover() {
                    self.changes.push(Change::Recovered(number));
                }
            }
            shard.queue = queue;
            shard.assign(*reported);
            shard.load += SMOOTHING * (f64::from(queue) + f64::from(reported.busy) - shard.load);
        }
        self.update_health(now);
        self.shift_shares();
        self.shorten_queues();
        self.watch();
        let serving = || self.shards.iter().filter(|shard| shard.reported.present);
        if serving().any(|shard| {
            shard.queue > 0 || shard.load > 0.5 || shard.health != ShardHealth::Serving
        }) {
            self.awake = now;
        }
        let unsettled = serving()
            .any(|shard| shard.queue > 0 || matches!(shard.health, ShardHealth::Suspect { .. }));
        // Of connections that go elsewhere the queues tell nothing.
        let is_awake = now.since(self.awake) < IDLE_AFTER && !self.is_own();
        let pace = if unsettled || is_awake { BUSY_INTERVAL } else { IDLE_INTERVAL };
        let sockets = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        self.next_check =
            now + pace.max(INTERVAL_PER_SHARD.saturating_mul(sockets).min(MAX_BUSY_INTERVAL));
    }

    /// Updates the health of the shards by their queues.
    fn update_health(&mut self, now: Time) {
        let mut queues: Vec<u32> = self.in_program(true).map(|n| self.shards[n].queue).collect();
        queues.sort_unstable();
        let others = queues.len() > 1;
        let (least, middle) = (
            queues.first().copied().unwrap_or(0),
            queues.get(queues.len().saturating_sub(1) / 2).copied(),
        );
        let serving = self.in_program(true).count();
        for number in 0..self.shards.len() {
            let shard = &mut self.shards[number];
            match shard.health {
                ShardHealth::Serving if shard.reported.present => {
                    let far_behind = shard.queue > 4 * middle.unwrap_or(0) + LONG_QUEUE;
                    let suspicious = (shard.stuck >= SUSPECT_AFTER && far_behind)
                        || (shard.stuck >= SUSPECT_AFTER_IF_EMPTY && least == 0);
                    if suspicious && others {
                        shard.health = ShardHealth::Suspect { checks: 0 };
                    } else if (!others
                        || shard.back_at.is_some_and(|at| now.since(at) >= PROBATION))
                        && shard.recover()
                    {
                        // A single shard has no alternative.
                        self.changes.push(Change::Recovered(number as u16));
                    }
                }
                ShardHealth::Suspect { .. } if shard.stuck == 0 || serving == 0 => {
                    shard.health = ShardHealth::Serving
                }
                ShardHealth::Suspect { checks } if checks + 1 < STALLED_AFTER => {
                    shard.health = ShardHealth::Suspect { checks: checks + 1 }
                }
                ShardHealth::Suspect { .. } => {
                    shard.health = ShardHealth::Stalled { until: now + shard.pause };
                    shard.pause = (2 * shard.pause).min(MAX_PAUSE);
                    shard.level = RESUMED_SHARE;
                    if shard.hung_since.is_none() {
                        shard.hung_since = Some(now);
                        self.changes.push(Change::Stalled(number as u16));
                    }
                }
                ShardHealth::Stalled { until } if until <= now => {
                    shard.health = ShardHealth::Serving;
                    shard.stuck = 0;
                    shard.back_at = Some(now);
                }
                _ => {}
            }
        }
    }

    /// Moves shares from shards that are busier than others to those that are less busy.
    fn shift_shares(&mut self) {
        let serving: Vec<usize> = self.in_program(true).collect();
        if serving.len() < 2 || self.is_own() {
            return;
        }
        // Relative to the weight: a shard with twice the weight should be twice as busy.
        let load = |shard: &Shard| shard.load * 100.0 / f64::from(shard.weight.max(1));
        let mean =
            serving.iter().map(|n| load(&self.shards[*n])).sum::<f64>() / serving.len() as f64;
        let mut most = MIN_SHARE;
        for number in &serving {
            let shard = &mut self.shards[*number];
            let ratio = (mean + ABSOLUTE_TOLERANCE) / (load(shard) + ABSOLUTE_TOLERANCE);
            let difference = libm::log(ratio);
            let beyond = difference.signum() * (difference.abs() - RELATIVE_TOLERANCE).max(0.0);
            shard.apart = match shard.apart {
                apart if beyond > 0.0 => apart.min(0) - 1,
                apart if beyond < 0.0 => apart.max(0) + 1,
                _ => 0,
            };
            if shard.apart.abs() > MIN_DIVERGENT_CHECKS {
                shard.level *= libm::exp(GAIN * beyond);
            }
            if beyond >= 0.0 {
                // Shares that were lost to noise recover.
                shard.level += if mean < 1.0 { IDLE_RECOVERY_GAIN } else { RECOVERY_GAIN }
                    * (1.0 - shard.level);
            }
            most = shard.level.max(most);
        }
        for number in serving {
            let level = &mut self.shards[number].level;
            *level = (*level / most).clamp(MIN_SHARE, 1.0);
        }
    }

    /// Takes connections off queues that stay much longer than the others, where clients would wait
    /// long. A single long queue may be noise: a worker that the scheduler did not run for a
    /// moment. Does nothing where clients stay with their worker.
    fn shorten_queues(&mut self) {
        if self.udp || self.sticky.is_some() {
            return;
        }
        let serving: Vec<usize> = self.in_program(true).collect();
        let sum = |of: fn(&Shard) -> u32| {
            serving.iter().map(|n| u64::from(of(&self.shards[*n]))).sum::<u64>()
        };
        let (queues, weights) = (sum(|shard| shard.queue), sum(|shard| shard.weight).max(1));
        for number in serving {
            let shard = &mut self.shards[number];
            let due = u32::try_from(queues * u64::from(shard.weight) / weights).unwrap_or(u32::MAX);
            // A short queue of a worker that is slower than others is long too.
            let (long, stays) = if shard.level < SLOW_SHARE {
                (LONG_QUEUE_IF_SLOW, 1)
            } else {
                (LONG_QUEUE, LONG_QUEUE_CHECKS)
            };
            shard.long = if shard.queue > due.saturating_mul(2).saturating_add(long) {
                shard.long + 1
            } else {
                0
            };
            if shard.long < stays {
                continue;
            }
            let count = (shard.queue - due).min(MAX_TAKEN);
            // Connections that the primary takes are no sign that the worker is alive.
            shard.queue -= count;
            self.changes.push(Change::Take(number as u16, count));
        }
    }

    /// Returns the length of a shard's queue.
    pub(crate) fn queue(&self, index: u16) -> u32 {
        self.shards.get(usize::from(index)).map_or(0, |shard| shard.queue)
    }

    /// Returns the shards that get new connections: those whose workers take them. Without
    /// `strictly`, if there are none, those with workers, and if there are none of these, all.
    fn in_program(&self, strictly: bool) -> Box<dyn Iterator<Item = usize> + '_> {
        let serving = |shard: &Shard| {
            shard.reported.present && shard.weight > 0 && shard.health == ShardHealth::Serving
        };
        let present = |shard: &Shard| shard.reported.present;
        let numbers = self.shards.iter().enumerate();
        if strictly || self.shards.iter().any(serving) {
            Box::new(numbers.filter(move |(_, shard)| serving(shard)).map(|(n, _)| n))
        } else if self.shards.iter().any(present) {
            Box::new(numbers.filter(move |(_, shard)| present(shard)).map(|(n, _)| n))
        } else {
            Box::new(0..self.shards.len())
        }
    }

    /// Lets the primary accept on shards from which no worker takes connections. Datagrams cannot
    /// be handed over; they wait for a successor.
    fn watch(&mut self) {
        for (number, shard) in (0..).zip(&mut self.shards) {
            let watched = !self.udp
                && (!shard.reported.present || matches!(shard.health, ShardHealth::Stalled { .. }));
            if std::mem::replace(&mut shard.watched, watched) != watched {
                self.changes.push(Change::Watch(number, watched));
            }
        }
    }

    /// Returns the program to install, if it differs from the installed one.
    pub(crate) fn program(&mut self) -> Option<Vec<Instruction>> {
        if self.shards.is_empty() {
            return None;
        }
        let mut shares = vec![0u32; self.shards.len()];
        let steered: Vec<usize> = self.in_program(false).collect();
        for number in &steered {
            let shard = &self.shards[*number];
            let weight = f64::from(shard.weight.clamp(1, 1_000_000));
            shares[*number] =
                (weight * shard.level * 1000.0).round().clamp(1.0, f64::from(u32::MAX)) as u32;
        }
        let program = if self.is_own() {
            self.installed_shares.clear();
            program::always(0)
        } else if self.numbers_lost {
            let mut even = vec![100; self.shards.len()];
            even.insert(0, 0);
            self.installed_shares.clear();
            program::by_share(&even)
        } else if self.udp || self.sticky.is_some() {
            let sticky = self.sticky.clone().unwrap_or_default();
            // Datagrams of one flow stay together; all flows of a client only if the policy says
            // so.
            let (flows, prefix6) = (
                self.udp && self.sticky.is_none(),
                if self.sticky.is_some() { sticky.prefix6 } else { 128 },
            );
            let index = |n: usize| (self.shards[n].weight, shares[n] > 0);
            let mut table = partition(&(0..self.shards.len()).map(index).collect::<Vec<_>>());
            table.iter_mut().for_each(|number| *number += OWN_SHARDS);
            program::by_client(&table, sticky.prefix4, prefix6, flows)
        } else {
            let close = |(now, then): (&u32, &u32)| {
                now == then || (*then > 0 && *now > 0 && now.abs_diff(*then) * 50 < *then)
            };
            if shares.len() == self.installed_shares.len()
                && shares.iter().zip(&self.installed_shares).all(close)
            {
                return None;
            }
            self.installed_shares.clone_from(&shares);
            let all = shares.iter().map(|share| f64::from(*share)).sum::<f64>();
            // The primary's own socket gets no connections, or a sample.
            shares.insert(0, (all * self.own / (1.0 - self.own)).round().min(MAX_OWN_SHARE) as u32);
            program::by_share(&shares)
        };
        if program == self.installed {
            return None;
        }
        self.installed.clone_from(&program);
        Some(program)
    }

    /// Returns the fraction of new connections that each shard gets; they add up to 1.
    pub(crate) fn shares(&self) -> Vec<f64> {
        let sum = self.installed_shares.iter().map(|s| f64::from(*s)).sum::<f64>().max(1.0);
        self.installed_shares.iter().map(|share| f64::from(*share) / sum).collect()
    }
}

impl Shard {
    fn assign(&mut self, reported: ShardLoad) {
        self.reported = reported;
        if reported.present {
            self.weight = reported.weight;
        }
    }

    /// Resets its health. Returns true if it counted as hung.
    fn recover(&mut self) -> bool {
        if self.health != ShardHealth::Serving {
            self.stuck = 0;
        }
        self.health = ShardHealth::Serving;
        self.pause = MIN_PAUSE;
        self.back_at = None;
        self.hung_since.take().is_some()
    }
}

#[cfg(test)]
mod tests;
