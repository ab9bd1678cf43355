//! Lets messages that come in numbers gather before they are passed on.
//!
//! A relay that is faster than its sender is woken for each single message, which costs both of
//! them more than the message does. Node's own channel, whose reader is slower, never has that
//! problem. So a stream of messages is waited for a moment, which is less than it takes to do
//! something with what has gathered meanwhile; single messages, and connections, are never waited
//! for.

use std::time::Duration;

/// Turns in a row that a stream must have lasted.
const MIN_STREAM_TURNS: u32 = 64;
/// Two turns further apart than this do not follow each other.
const MAX_TURN_GAP: Duration = Duration::from_micros(20);
/// How long messages gather. (The system adds its timer slack, usually 50 µs.)
pub(in crate::primary::driver) const GATHER_TIME: Duration = Duration::from_micros(20);
/// With less than this gathered, the stream is over.
const MIN_BATCH_BYTES: usize = 1024;

/// What the last turns of the driver had to do.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Pace {
    streak: u32,
    /// Bytes that this turn has moved for programs.
    relayed: usize,
    /// This turn had other things to do.
    others: bool,
    gathered: bool,
    last: Duration,
}

impl Pace {
    /// Bytes of a relay's were read.
    pub(super) fn relayed(&mut self, bytes: usize) {
        self.relayed += bytes;
    }

    /// Something that must not wait.
    pub(super) fn urgent(&mut self) {
        self.others = true;
    }

    /// A turn is over, at this time. True if messages are to gather before the next one.
    pub(super) fn gathers(&mut self, now: Duration) -> bool {
        let follows = if self.gathered {
            self.relayed >= MIN_BATCH_BYTES
        } else {
            self.relayed > 0 && now - self.last < MAX_TURN_GAP
        };
        self.streak =
            if follows && !self.others { (self.streak + 1).min(MIN_STREAM_TURNS) } else { 0 };
        self.gathered = self.streak == MIN_STREAM_TURNS;
        (self.relayed, self.others, self.last) = (0, false, now);
        self.gathered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_micros(5);

    /// Turns that move this many bytes each, a step apart; says in which of them messages gather.
    fn turns(pace: &mut Pace, now: &mut Duration, count: u32, bytes: usize) -> u32 {
        (0..count)
            .filter(|_| {
                *now += STEP;
                pace.relayed(bytes);
                pace.gathers(*now)
            })
            .count() as u32
    }

    #[test]
    fn a_stream_gathers_as_long_as_it_lasts() {
        let (mut pace, mut now) = (Pace::default(), STEP);
        assert_eq!(turns(&mut pace, &mut now, MIN_STREAM_TURNS, 100), 1);
        // Now each turn brings many of them, also after a wait.
        for _ in 0..10 {
            now += MAX_TURN_GAP * 10;
            assert_eq!(turns(&mut pace, &mut now, 1, 10_000), 1);
        }
        now += MAX_TURN_GAP * 10;
        assert_eq!(turns(&mut pace, &mut now, 1, 100), 0);
    }

    #[test]
    fn single_messages_and_connections_are_not_waited_for() {
        let (mut pace, mut now) = (Pace::default(), STEP);
        for _ in 0..1000 {
            now += MAX_TURN_GAP;
            assert_eq!(turns(&mut pace, &mut now, 1, 100), 0);
        }
        for _ in 0..1000 {
            pace.urgent();
            assert_eq!(turns(&mut pace, &mut now, 1, 10_000), 0);
        }
    }
}
