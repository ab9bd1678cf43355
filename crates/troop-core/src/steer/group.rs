//! The sockets of one steered listener, and what is thought of each.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::program::{self, Instruction};
use crate::id::Time;
use crate::policy::{Sticky, partition};

/// The group's first socket is the primary's own and stays with it, so that no worker has one that
/// the program can be changed by. The places' numbers in the kernel follow.
const OWN_SHARDS: u16 = 1;

/// How often the queues are looked at while something waits in one, or shares are changing.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);
/// As much time passes for each socket from one look to the next, so that looking at many does not
/// cost more; but not more than this in all, so that there are enough looks in [`PROBATION`].
const INTERVAL_PER_SHARD: Duration = Duration::from_micros(250);
const MAX_BUSY_INTERVAL: Duration = Duration::from_millis(100);
/// How often otherwise.
const IDLE_INTERVAL: Duration = Duration::from_millis(500);
/// How long after the last sign of load the looks stay frequent.
const IDLE_AFTER: Duration = Duration::from_secs(2);

/// Looks at a queue that does not get shorter, beside others that are much shorter, until its
/// socket gets nothing new.
const SUSPECT_AFTER: u32 = 3;
/// More such looks until its worker is held to be hung.
const STALLED_AFTER: u32 = 3;
/// As [`SUSPECT_AFTER`], where the queue is not much longer than others, but some are empty.
const SUSPECT_AFTER_IF_EMPTY: u32 = 10;
/// How long a hung worker gets nothing, the first time and at most.
const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(8);
/// A worker that takes connections this long after a pause is as good as any.
const PROBATION: Duration = Duration::from_secs(2);

/// The smallest part of its share that a busy worker keeps.
const MIN_SHARE: f64 = 1.0 / 64.0;
/// The part that one gets that comes back from a pause.
const RESUMED_SHARE: f64 = 1.0 / 8.0;
/// What one look counts for, beside all those before.
const SMOOTHING: f64 = 0.05;
/// Differences of busyness that are taken for chance: below this factor, and for small numbers.
const RELATIVE_TOLERANCE: f64 = 0.35;
const ABSOLUTE_TOLERANCE: f64 = 3.0;
/// Looks in a row at which there must be a difference before it counts.
const MIN_DIVERGENT_CHECKS: i32 = 10;
/// How much of a difference is made good at each look.
const GAIN: f64 = 0.15;
/// How much of what it lost a worker gets back at each look while it is not busier than others, and
/// while nothing is going on.
const RECOVERY_GAIN: f64 = 0.02;
const IDLE_RECOVERY_GAIN: f64 = 0.05;
/// A queue that is so many connections longer than twice what is due to its weight, at so many
/// looks in a row, is cut down to that by the primary.
const LONG_QUEUE: u32 = 8;
const LONG_QUEUE_CHECKS: u32 = 3;
/// The same for a worker with less than this part of its share.
const LONG_QUEUE_IF_SLOW: u32 = 2;
const SLOW_SHARE: f64 = 0.5;
/// The most connections that are taken off a queue at one look.
const MAX_TAKEN: u32 = 64;

/// What is known about one place when its share is decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ShardLoad {
    /// Somebody accepts on the socket.
    pub(crate) present: bool,
    pub(crate) weight: u32,
    /// Connections open there, and reported load.
    pub(crate) busy: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum ShardHealth {
    Serving,
    /// Its queue does not move. It gets nothing new for a moment, which shows whether it does then.
    Suspect {
        looks: u32,
    },
    /// It is held to be hung. Its queue is taken over.
    Stalled {
        until: Time,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Shard {
    reported: ShardLoad,
    /// That of its last worker; a vacant place keeps it.
    weight: u32,
    /// The part of its share that it gets, from [`MIN_SHARE`] to 1.
    #[serde(with = "crate::snapshot::bits")]
    level: f64,
    /// Its queue and open connections, smoothed.
    #[serde(with = "crate::snapshot::bits")]
    load: f64,
    queue: u32,
    /// Looks in a row at which it was much longer than others'.
    long: u32,
    /// Looks in a row at which it was busier than others, or, below zero, less busy.
    apart: i32,
    /// Looks in a row at which the queue was not shorter than before.
    stuck: u32,
    health: ShardHealth,
    /// Since when it is hung, with attempts in between, until it has shown that it is not.
    hung_since: Option<Time>,
    pause: Duration,
    /// When it was last let out of a pause.
    back_at: Option<Time>,
    /// The primary accepts on it.
    watched: bool,
}

/// Something about the group that others have to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// The workers at this place do not take connections.
    Stalled(u16),
    /// They do again.
    Recovered(u16),
    /// The primary has to accept on this socket from now on, or no longer.
    Watch(u16, bool),
    /// The primary has to take so many connections off this socket's queue, for others.
    Take(u16, u32),
}

/// The sockets of one steered listener: their health, load and shares, and the kernel program that
/// follows from them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShardGroup {
    udp: bool,
    sticky: Option<Sticky>,
    shards: Vec<Shard>,
    /// What the kernel was last told to do.
    installed: Vec<Instruction>,
    /// Shares that it was told.
    installed_shares: Vec<u32>,
    /// It is not known any more which number is whose.
    numbers_lost: bool,
    next_look: Time,
    /// The last time there was load.
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
            numbers_lost: false,
            next_look: now + IDLE_INTERVAL,
            awake: now,
            changes: Vec::new(),
        }
    }

    /// One more socket is in the group.
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

    /// Whether clients or flows stay with a place, so that whoever comes next should have it too.
    pub(crate) fn keeps_shards(&self) -> bool {
        self.udp || self.sticky.is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.len()
    }

    /// Since when the workers at a place have been hung, if they are.
    pub(crate) fn hung_since(&self, index: u16) -> Option<Time> {
        self.shards.get(usize::from(index)).and_then(|shard| shard.hung_since)
    }

    /// Who accepts at a place has changed.
    pub(crate) fn set_load(&mut self, index: u16, reported: ShardLoad) {
        let Some(shard) = self.shards.get_mut(usize::from(index)) else { return };
        if shard.reported.present != reported.present {
            // Whoever comes is not to blame for who was there.
            if shard.recover() {
                self.changes.push(Change::Recovered(index));
            }
            shard.level = 1.0;
            shard.load = 0.0;
        }
        shard.assign(reported);
        self.watch();
    }

    /// Whoever is new at a place beside another gets a fresh start too.
    pub(crate) fn relieved(&mut self, index: u16) {
        if let Some(shard) = self.shards.get_mut(usize::from(index)) {
            if shard.recover() {
                self.changes.push(Change::Recovered(index));
            }
            shard.level = 1.0;
        }
        self.watch();
    }

    /// Two sockets have changed numbers.
    pub(crate) fn swap(&mut self, one: u16, other: u16) {
        self.shards.swap(usize::from(one), usize::from(other));
        self.installed.clear();
        self.installed_shares.clear();
    }

    /// The primary itself stood still: nobody can be blamed for that time.
    pub(crate) fn stood_still(&mut self, now: Time) {
        for shard in &mut self.shards {
            shard.stuck = 0;
            shard.hung_since = shard.hung_since.map(|_| now);
        }
    }

    /// True if that is news.
    pub(crate) fn lose_numbers(&mut self) -> bool {
        !std::mem::replace(&mut self.numbers_lost, true)
    }

    pub(crate) fn next_look(&self) -> Time {
        self.next_look
    }

    /// What waits in each socket (`None`: unknown), and who is how busy.
    pub(crate) fn look(&mut self, now: Time, queues: &[Option<u32>], reported: &[ShardLoad]) {
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
                // Somebody takes them.
                if shard.hung_since.is_some() && shard.recover() {
                    self.changes.push(Change::Recovered(number));
                }
            }
            shard.queue = queue;
            shard.assign(*reported);
            shard.load += SMOOTHING * (f64::from(queue) + f64::from(reported.busy) - shard.load);
        }
        self.judge(now);
        self.shift();
        self.even_out();
        self.watch();
        let serving = || self.shards.iter().filter(|shard| shard.reported.present);
        if serving().any(|shard| {
            shard.queue > 0 || shard.load > 0.5 || shard.health != ShardHealth::Serving
        }) {
            self.awake = now;
        }
        let unsettled = serving()
            .any(|shard| shard.queue > 0 || matches!(shard.health, ShardHealth::Suspect { .. }));
        let pace = if unsettled || now.since(self.awake) < IDLE_AFTER {
            BUSY_INTERVAL
        } else {
            IDLE_INTERVAL
        };
        let sockets = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        self.next_look =
            now + pace.max(INTERVAL_PER_SHARD.saturating_mul(sockets).min(MAX_BUSY_INTERVAL));
    }

    /// Whether a place is told apart from the others by its queue alone.
    fn judge(&mut self, now: Time) {
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
                        shard.health = ShardHealth::Suspect { looks: 0 };
                    } else if (!others
                        || shard.back_at.is_some_and(|at| now.since(at) >= PROBATION))
                        && shard.recover()
                    {
                        // An only one has nobody who could do better.
                        self.changes.push(Change::Recovered(number as u16));
                    }
                }
                ShardHealth::Suspect { .. } if shard.stuck == 0 || serving == 0 => {
                    shard.health = ShardHealth::Serving
                }
                ShardHealth::Suspect { looks } if looks + 1 < STALLED_AFTER => {
                    shard.health = ShardHealth::Suspect { looks: looks + 1 }
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

    /// Moves shares from those that are busier than others to those that are less so.
    fn shift(&mut self) {
        let serving: Vec<usize> = self.in_program(true).collect();
        if serving.len() < 2 {
            return;
        }
        // In relation to the weight: twice the weight is meant to be twice as busy.
        let load = |shard: &Shard| shard.load * 100.0 / f64::from(shard.weight.max(1));
        let mean =
            serving.iter().map(|n| load(&self.shards[*n])).sum::<f64>() / serving.len() as f64;
        let mut most = MIN_SHARE;
        for number in &serving {
            let shard = &mut self.shards[*number];
            let difference =
                ((mean + ABSOLUTE_TOLERANCE) / (load(shard) + ABSOLUTE_TOLERANCE)).ln();
            let beyond = difference.signum() * (difference.abs() - RELATIVE_TOLERANCE).max(0.0);
            shard.apart = match shard.apart {
                apart if beyond > 0.0 => apart.min(0) - 1,
                apart if beyond < 0.0 => apart.max(0) + 1,
                _ => 0,
            };
            if shard.apart.abs() > MIN_DIVERGENT_CHECKS {
                shard.level *= (GAIN * beyond).exp();
            }
            if beyond >= 0.0 {
                // What chance has taken away comes back.
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

    /// Queues that stay much longer than the others are cut down: whoever waits there would wait
    /// for long. One long queue may be chance, a worker that the system has not let run for a
    /// moment. (Clients that are meant for one worker wait for it all the same.)
    fn even_out(&mut self) {
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
            // Of a worker that has shown to be slower than others, any queue is long.
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
            // What the primary takes away is no sign of life.
            shard.queue -= count;
            self.changes.push(Change::Take(number as u16, count));
        }
    }

    /// What waits at a place.
    pub(crate) fn queue(&self, index: u16) -> u32 {
        self.shards.get(usize::from(index)).map_or(0, |shard| shard.queue)
    }

    /// The places that new connections go to: those where somebody takes them; without `strictly`,
    /// if there are none, those where somebody is; if there are none either, all.
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

    /// A queue that nobody takes from is the primary's. (Datagrams cannot be handed over; they wait
    /// for a successor.)
    fn watch(&mut self) {
        for (number, shard) in (0..).zip(&mut self.shards) {
            let watched = !self.udp
                && (!shard.reported.present || matches!(shard.health, ShardHealth::Stalled { .. }));
            if std::mem::replace(&mut shard.watched, watched) != watched {
                self.changes.push(Change::Watch(number, watched));
            }
        }
    }

    /// What the kernel is to do from now on, if that is not what it does.
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
        let program = if self.numbers_lost {
            let mut even = vec![100; self.shards.len()];
            even.insert(0, 0);
            self.installed_shares.clear();
            program::by_share(&even)
        } else if self.udp || self.sticky.is_some() {
            let sticky = self.sticky.clone().unwrap_or_default();
            // Datagrams of one flow stay together; a client's flows only if that is asked for.
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
            // The founder gets nothing.
            shares.insert(0, 0);
            program::by_share(&shares)
        };
        if program == self.installed {
            return None;
        }
        self.installed.clone_from(&program);
        Some(program)
    }

    /// The parts of new connections that the places get now, of 1.
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

    /// Forgets what was held against it. True if it was held to be hung.
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
