//! Records of apps: what is known of an app when its primary does not run, so that it stays listed
//! and can be started again.
//!
//! A record has the arguments and the environment that the app was started with, secrets included,
//! so only its owner can read it.
//!
//! | file | holds |
//! | --- | --- |
//! | `mod.rs` | what a record says, and the state of its app |
//! | `keeper.rs` | the primary's side: writes the record at the start and at the end |
//! | `listed.rs` | the apps that have a record, and their states |
//! | `pairs.rs` | environments as lists, as JSON has no keys but text |
//! | `process.rs` | whether the process of a record still runs |
//! | `saved.rs` | the list that `troop save` writes |
//! | `scaled.rs` | the number of workers that `troop scale` has set |
//! | `store.rs` | the directory of records, and reading and writing them |

pub(crate) mod keeper;
pub(crate) mod listed;
pub(crate) mod pairs;
pub(crate) mod process;
pub(crate) mod saved;
pub(crate) mod scaled;
pub(crate) mod store;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) use scaled::Scaled;
use serde::{Deserialize, Serialize};

/// Time for which the crash of an app that was run in the foreground stays listed.
const FOREGROUND_CRASH_LISTED: Duration = Duration::from_secs(3600);

/// What is known of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The number that `troop ls` shows.
    pub(crate) id: u32,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) namespace: Option<String>,
    /// The program, for people.
    pub(crate) program: String,
    pub(crate) workers: usize,
    /// The configuration file, if the app comes from one.
    #[serde(default)]
    pub(crate) file: Option<PathBuf>,
    /// Apps of this file that it starts after, and stops before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) after: Vec<String>,
    /// How `troop start` was called. `None` for an app that runs in the foreground, which only its
    /// terminal or service manager starts again.
    #[serde(default)]
    pub(crate) start: Option<StartCall>,
    /// The primary that runs the app, or ran it last.
    pub(crate) primary: process::Identity,
    /// The directory of its control socket.
    pub(crate) runtime: PathBuf,
    /// The number of workers that it is started again with. Only in the list of `troop save`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scaled: Option<Scaled>,
    /// How the app ended; `None` while it runs, and if its primary could not say.
    #[serde(default)]
    pub(crate) end: Option<End>,
}

/// A call of `troop start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartCall {
    /// The arguments after `troop`.
    pub(crate) args: Vec<Text>,
    pub(crate) cwd: PathBuf,
    pub(crate) env: Vec<(Text, Text)>,
    /// The app of the file; empty for a program without a file.
    pub(crate) app: String,
    /// Time that the start may take, in milliseconds.
    pub(crate) timeout_ms: u64,
}

/// The end of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) how: Ending,
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    #[serde(default)]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ending {
    /// It was stopped.
    Stopped,
    /// Its workers have ended, and none is restarted.
    Finished,
    /// It could not be kept running.
    Failed,
    /// Its primary ended without a word.
    Crashed,
}

impl Ending {
    /// Returns the state that `troop ls` shows.
    pub(crate) fn state(self) -> &'static str {
        match self {
            Ending::Stopped => "stopped",
            Ending::Finished => "finished",
            Ending::Failed => "failed",
            Ending::Crashed => "crashed",
        }
    }
}

/// Bytes that are text as a rule: an argument, a variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Text {
    Plain(String),
    Bytes(Vec<u8>),
}

impl From<&OsStr> for Text {
    fn from(text: &OsStr) -> Text {
        match text.to_str() {
            Some(text) => Text::Plain(text.into()),
            None => Text::Bytes(text.as_bytes().into()),
        }
    }
}

/// Returns the environment of this process, as an app would be started in it.
pub(crate) fn own_env() -> Vec<(Text, Text)> {
    let is_own = |name: &OsStr| {
        crate::build::OWN_VARIABLES.iter().any(|own| *own == name) && name != "TROOP_POLICY"
    };
    std::env::vars_os()
        .filter(|(name, _)| !is_own(name))
        .map(|(name, value)| (Text::from(name.as_os_str()), Text::from(value.as_os_str())))
        .collect()
}

impl Text {
    pub(crate) fn to_os(&self) -> OsString {
        match self {
            Text::Plain(text) => text.into(),
            Text::Bytes(bytes) => OsString::from_vec(bytes.clone()),
        }
    }
}

/// The state of the app of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Life {
    /// Its primary runs.
    Running,
    Ended(End),
    /// It ran in the foreground, and nothing is left to tell.
    Forgotten,
}

impl Record {
    /// Returns the state of the app, given the fate of its primary. `last_seen` is when it was seen
    /// alive last, if that is known.
    pub(crate) fn life(
        &self,
        fate: process::Fate,
        last_seen: Option<SystemTime>,
        now: SystemTime,
    ) -> Life {
        if fate == process::Fate::Running {
            return Life::Running;
        }
        let end = self.end.clone().unwrap_or_else(|| match fate {
            process::Fate::RestartedSystem(booted) => End {
                how: Ending::Stopped,
                at_ms: millis(booted),
                reason: Some("the system was restarted".into()),
            },
            _ => End {
                how: Ending::Crashed,
                at_ms: millis(last_seen.unwrap_or(now).min(now)),
                reason: Some("its primary ended without a word".into()),
            },
        });
        let age = millis(now).saturating_sub(end.at_ms);
        let is_old = u128::from(age) > FOREGROUND_CRASH_LISTED.as_millis();
        if self.start.is_none() && (end.how != Ending::Crashed || is_old) {
            return Life::Forgotten;
        }
        Life::Ended(end)
    }
}

pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the smallest number that no record has.
pub(crate) fn free_id(taken: impl IntoIterator<Item = u32>) -> u32 {
    let mut taken: Vec<_> = taken.into_iter().collect();
    taken.sort_unstable();
    taken.dedup();
    (0..).zip(&taken).take_while(|(at, id)| at == *id).count().try_into().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::process::{Fate, Identity};
    use super::*;

    fn record(is_background: bool) -> Record {
        let start = StartCall {
            args: vec![Text::from(OsStr::from_bytes(b"a\xff")), Text::Plain("b".into())],
            cwd: "/".into(),
            env: vec![(Text::Plain("A".into()), Text::Bytes(vec![0xff]))],
            app: String::new(),
            timeout_ms: 1,
        };
        Record {
            id: 3,
            name: "web".into(),
            namespace: None,
            program: "server.js".into(),
            workers: 1,
            file: None,
            after: Vec::new(),
            start: Some(start).filter(|_| is_background),
            primary: Identity::default(),
            runtime: "/run".into(),
            scaled: None,
            end: None,
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_kept() {
        let text = serde_json::to_string(&record(true)).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record(true));
        assert_eq!(Text::from(OsStr::from_bytes(b"a\xff")).to_os().as_bytes(), b"a\xff");
    }

    #[test]
    fn what_has_become_of_an_app_is_told_from_its_record_and_its_process() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let how = |record: &Record, fate, seen| match record.life(fate, seen, at(100_000)) {
            Life::Ended(end) => (end.how.state(), end.at_ms / 1000),
            Life::Running => ("running", 0),
            Life::Forgotten => ("forgotten", 0),
        };
        let mut typed = record(true);
        assert_eq!(how(&typed, Fate::Running, None), ("running", 0));
        assert_eq!(how(&typed, Fate::Gone, Some(at(99_000))), ("crashed", 99_000));
        assert_eq!(how(&typed, Fate::Gone, None), ("crashed", 100_000));
        assert_eq!(how(&typed, Fate::RestartedSystem(at(5)), None), ("stopped", 5));
        typed.end = Some(End { how: Ending::Stopped, at_ms: 7000, reason: None });
        assert_eq!(how(&typed, Fate::Gone, None), ("stopped", 7));
        // It has not come to its end yet.
        assert_eq!(how(&typed, Fate::Running, None), ("running", 0));
        let foreground = record(false);
        assert_eq!(how(&foreground, Fate::Gone, Some(at(99_000))), ("crashed", 99_000));
        assert_eq!(how(&foreground, Fate::Gone, Some(at(9_000))), ("forgotten", 0));
        assert_eq!(how(&foreground, Fate::RestartedSystem(at(5)), None), ("forgotten", 0));
    }

    #[test]
    fn the_smallest_free_number_is_given() {
        assert_eq!(free_id([]), 0);
        assert_eq!(free_id([1, 0, 3, 0]), 2);
        assert_eq!(free_id([1, 2]), 0);
    }
}
