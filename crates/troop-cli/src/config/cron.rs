//! Times by a pattern, as `cron(8)` has them.

use std::str::FromStr as _;
use std::time::{Duration, SystemTime};

use croner::Cron;
use jiff::{Timestamp, Zoned};

/// How far the clock must be set back for times to come a second time; the same as in `cron(8)`.
const MIN_SETBACK: Duration = Duration::from_secs(3 * 3600);

/// A pattern of times, in the time zone of the system: minute, hour, day of month, month and weekday,
/// with seconds before them or not.
#[derive(Debug, Clone)]
pub(crate) struct Times(Cron);

impl Times {
    /// Parses a pattern.
    ///
    /// # Errors
    /// The reason, for people.
    pub(crate) fn parse(pattern: &str) -> Result<Times, String> {
        let times = Cron::from_str(pattern).map(Times).map_err(|e| {
            format!("{pattern:?}: {e}; it must be a pattern of minute, hour, day, month and weekday, such as \"0 4 * * *\", with seconds before them or not")
        })?;
        let now = Zoned::now();
        match times.0.find_next_occurrence(&now, false) {
            Ok(_) => Ok(times),
            Err(_) => Err(format!("{pattern:?}: there is no such time")),
        }
    }

    /// Returns the first time after another one.
    pub(crate) fn next(&self, after: SystemTime) -> Option<SystemTime> {
        let after = Timestamp::try_from(after).ok()?.to_zoned(jiff::tz::TimeZone::system());
        let next = self.0.find_next_occurrence(&after, false).ok()?;
        let millis = u64::try_from(next.timestamp().as_millisecond()).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_millis(millis))
    }
}

/// The next time of a pattern, by a clock that may be set.
#[derive(Debug, Clone)]
pub(crate) struct NextTime {
    times: Times,
    at: SystemTime,
    /// The latest time of the clock since this one was determined.
    seen: SystemTime,
}

impl NextTime {
    /// Returns the first time after now.
    pub(crate) fn after(times: Times, now: SystemTime) -> Option<NextTime> {
        let at = times.next(now)?;
        Some(NextTime { times, at, seen: now })
    }

    pub(crate) fn at(&self) -> SystemTime {
        self.at
    }

    /// Returns the time that is left; `None` if the time has come. A clock that is set back by hours
    /// was wrong before, or is now: then the next time is that after now.
    pub(crate) fn left(&mut self, now: SystemTime) -> Option<Duration> {
        if is_set_back(self.seen, now) {
            self.seen = now;
            self.at = self.times.next(now).unwrap_or(self.at);
        }
        self.seen = self.seen.max(now);
        self.at.duration_since(now).ok()
    }

    /// Goes on to the following time. Returns false if there is none.
    pub(crate) fn advance(&mut self, now: SystemTime) -> bool {
        let after = if is_set_back(self.at, now) { now } else { self.at.max(now) };
        self.seen = after;
        self.times.next(after).map(|at| self.at = at).is_some()
    }
}

fn is_set_back(before: SystemTime, now: SystemTime) -> bool {
    before.duration_since(now).is_ok_and(|by| by > MIN_SETBACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_cron() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (pattern, after, next) in [
            ("* * * * *", 61, 120),
            ("*/5 * * * * *", 61, 65),
            ("*/10 * * * *", 1, 600),
            ("@hourly", 3601, 7200),
        ] {
            assert_eq!(Times::parse(pattern).unwrap().next(at(after)), Some(at(next)), "{pattern}");
        }
        for (pattern, part) in [
            ("", "minute"),
            ("soon", "minute"),
            ("61 * * * *", "61"),
            ("0 0 30 2 *", "no such time"),
        ] {
            let e = Times::parse(pattern).unwrap_err();
            assert!(e.contains(part) && e.contains(&format!("{pattern:?}")), "{e}");
        }
    }

    #[test]
    fn times_are_neither_missed_for_long_nor_come_twice_when_the_clock_is_set() {
        let at = |hours: u64, seconds: u64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(hours * 3600 + seconds)
        };
        let hourly = || Times::parse("@hourly").unwrap();
        // It was years ahead at the start of the system.
        let mut next = NextTime::after(hourly(), at(100_000, 1)).unwrap();
        assert_eq!(next.at(), at(100_001, 0));
        assert_eq!(next.left(at(9, 1800)), Some(Duration::from_secs(1800)));
        assert_eq!((next.at(), next.left(at(10, 0))), (at(10, 0), Some(Duration::ZERO)));
        // It is set back by a second right after a time.
        assert_eq!(next.left(at(10, 1)), None);
        assert!(next.advance(at(9, 3599)));
        assert_eq!(
            (next.at(), next.left(at(9, 3599))),
            (at(11, 0), Some(Duration::from_secs(3601)))
        );
        // It is set back by days while a job runs.
        assert!(next.advance(at(1, 5)));
        assert_eq!(next.at(), at(2, 0));
        // It is set forward: one time stands for all that were missed.
        assert_eq!(next.left(at(50, 7)), None);
        assert!(next.advance(at(50, 7)));
        assert_eq!(next.at(), at(51, 0));
    }
}
