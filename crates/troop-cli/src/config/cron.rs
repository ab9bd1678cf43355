//! Times by a pattern, as `cron(8)` has them.

use std::str::FromStr as _;
use std::time::{Duration, SystemTime};

use croner::Cron;
use jiff::{Timestamp, Zoned};

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
}
