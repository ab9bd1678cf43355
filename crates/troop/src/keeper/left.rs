//! What a keeper leaves to the program that it executes in its own place: lines of words in a file without
//! a name, which need no library.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{OwnedFd, RawFd};
use std::str::{FromStr, Split};

use rustix::fs::{MemfdFlags, memfd_create};

/// The first word.
const NAME: &str = "troop-keeper";
/// The major version of the lines. A new line that may be missing increments [`MINOR`] only, and is no part
/// of [`Left::sum`]: other minor versions are read.
const MAJOR: u32 = 1;
const MINOR: u32 = 0;

/// What is there in place of a number.
const NONE: &str = "-";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// The version of the program that has left it.
    pub(super) version: String,
    /// The process, which stays the same.
    pub(super) pid: u32,
    /// What [`Before`](super::before::Before) has changed.
    pub(super) oom_score: Option<i32>,
    pub(super) descriptors: Option<u64>,
    /// The engine's process, and the numbers of its pidfd and of the connection to it.
    pub(super) engine: u32,
    pub(super) pidfd: RawFd,
    pub(super) socket: Option<RawFd>,
    pub(super) is_wanting: bool,
    /// How long it is ready.
    pub(super) ready_ms: Option<u64>,
    pub(super) image: Option<RawFd>,
    pub(super) crashes: u32,
    pub(super) quick: u32,
    pub(super) unready: u32,
    pub(super) roomless: u32,
    pub(super) has_held: bool,
    pub(super) told: Option<u32>,
    pub(super) waiting: Vec<i32>,
    pub(super) unobeyed: Vec<i32>,
    /// Keys, and numbers of descriptors.
    pub(super) held: Vec<(u64, RawFd)>,
}

impl Left {
    pub(super) fn encode(&self) -> String {
        format!("{NAME} {MAJOR} {MINOR} {}\n{}end\n", self.version, self.lines())
    }

    /// What every version of this major one writes and reads.
    fn lines(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, values: &[String]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name} {}", values.join(" "));
        };
        let flag = |value: bool| u8::from(value).to_string();
        line("process", &[self.pid.to_string()]);
        line("before", &[shown(self.oom_score), shown(self.descriptors)]);
        let engine = [self.engine.to_string(), self.pidfd.to_string(), shown(self.socket)];
        line("engine", &engine);
        line("state", &[flag(self.is_wanting), shown(self.ready_ms), flag(self.has_held)]);
        line("image", &[shown(self.image)]);
        let counts = [self.crashes, self.quick, self.unready, self.roomless];
        line("crashes", &counts.map(|count| count.to_string()));
        line("told", &[shown(self.told)]);
        self.waiting.iter().for_each(|signal| line("waiting", &[signal.to_string()]));
        self.unobeyed.iter().for_each(|signal| line("unobeyed", &[signal.to_string()]));
        self.held.iter().for_each(|(key, fd)| line("held", &[key.to_string(), fd.to_string()]));
        text
    }

    /// A number that only who has understood all lines knows (FNV-1a).
    pub(super) fn sum(&self) -> u64 {
        self.lines().bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// # Errors
    /// If it is of another major version, or not complete.
    pub(super) fn decode(text: &str) -> io::Result<Left> {
        let mut lines = text.lines();
        let mut head = Words(lines.next().unwrap_or_default().split(' '));
        if head.0.next() != Some(NAME) {
            return Err(invalid("this is no state of a keeper".into()));
        }
        let (major, _minor): (u32, u32) = (head.number()?, head.number()?);
        let mut left =
            Left { version: head.0.next().unwrap_or_default().to_owned(), ..Left::default() };
        if major != MAJOR {
            return Err(invalid(format!(
                "the keeper's state is of version {major}, written by troop {}; troop {} reads version {MAJOR}",
                left.version,
                env!("CARGO_PKG_VERSION")
            )));
        }
        let mut is_complete = false;
        for line in lines {
            let (name, values) = line.split_once(' ').unwrap_or((line, ""));
            let mut values = Words(values.split(' '));
            match name {
                "process" => left.pid = values.number()?,
                "before" => (left.oom_score, left.descriptors) = (values.maybe()?, values.maybe()?),
                "engine" => {
                    (left.engine, left.pidfd) = (values.number()?, values.number()?);
                    left.socket = values.maybe()?;
                }
                "state" => {
                    (left.is_wanting, left.ready_ms) = (values.flag()?, values.maybe()?);
                    left.has_held = values.flag()?;
                }
                "image" => left.image = values.maybe()?,
                "crashes" => {
                    (left.crashes, left.quick) = (values.number()?, values.number()?);
                    (left.unready, left.roomless) = (values.number()?, values.number()?);
                }
                "told" => left.told = values.maybe()?,
                "waiting" => left.waiting.push(values.number()?),
                "unobeyed" => left.unobeyed.push(values.number()?),
                "held" => left.held.push((values.number()?, values.number()?)),
                "end" => is_complete = true,
                // Of a newer minor version.
                _ => {}
            }
        }
        if is_complete && left.pid > 0 && left.engine > 0 {
            return Ok(left);
        }
        Err(invalid("the keeper's state is not complete".into()))
    }

    /// # Errors
    /// When out of descriptors or memory.
    pub(super) fn to_file(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create("troop-keeper", MemfdFlags::CLOEXEC)?);
        file.write_all(self.encode().as_bytes())?;
        Ok(file.into())
    }

    /// # Errors
    /// As [`Left::decode`].
    pub(super) fn from_file(file: OwnedFd) -> io::Result<Left> {
        let (mut file, mut text) = (File::from(file), String::new());
        file.rewind()?;
        file.read_to_string(&mut text)?;
        Left::decode(&text)
    }
}

fn shown(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NONE.into(), |value| value.to_string())
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

struct Words<'a>(Split<'a, char>);

impl Words<'_> {
    fn maybe<T: FromStr>(&mut self) -> io::Result<Option<T>> {
        let word = self.0.next().unwrap_or_default();
        let bad = |_| invalid(format!("{word:?} is no number in the keeper's state"));
        if word == NONE { Ok(None) } else { word.parse().map(Some).map_err(bad) }
    }

    fn number<T: FromStr>(&mut self) -> io::Result<T> {
        self.maybe()?.ok_or_else(|| invalid("a number is missing in the keeper's state".into()))
    }

    fn flag(&mut self) -> io::Result<bool> {
        self.number::<u8>().map(|flag| flag != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 1.0 has written it. It is never changed.
    const SAMPLE: &str = "troop-keeper 1 0 0.1.0\nprocess 4711\nbefore -500 1024\nengine 4712 5 -\n\
        state 1 250 1\nimage -\ncrashes 1 2 3 4\ntold 99\nwaiting 1\nunobeyed 15\nunobeyed 21\n\
        held 0 7\nheld 9223372036854775808 9\nend\n";

    fn sample() -> Left {
        Left {
            version: "0.1.0".into(),
            pid: 4711,
            oom_score: Some(-500),
            descriptors: Some(1024),
            engine: 4712,
            pidfd: 5,
            socket: None,
            is_wanting: true,
            ready_ms: Some(250),
            image: None,
            crashes: 1,
            quick: 2,
            unready: 3,
            roomless: 4,
            has_held: true,
            told: Some(99),
            waiting: vec![1],
            unobeyed: vec![15, 21],
            held: vec![(0, 7), (1 << 63, 9)],
        }
    }

    #[test]
    fn a_keepers_state_of_this_and_of_newer_minor_versions_is_read() {
        assert_eq!(Left::decode(SAMPLE).unwrap(), sample());
        assert_eq!(Left::from_file(sample().to_file().unwrap()).unwrap(), sample());
        let newer = SAMPLE.replacen(" 1 0 ", " 1 7 ", 1).replace("end\n", "newer 1 2 3\nend\n");
        let read = Left::decode(&newer).unwrap();
        assert_eq!((read.sum(), &read), (sample().sum(), &sample()));
    }

    #[test]
    fn a_keepers_state_of_another_major_version_is_refused_by_its_number() {
        for other in [0, 2] {
            let text = SAMPLE.replacen(" 1 0 0.1.0", &format!(" {other} 0 9.9.9"), 1);
            let error = Left::decode(&text).unwrap_err().to_string();
            let expected = format!("is of version {other}, written by troop 9.9.9");
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn a_keepers_state_that_was_cut_off_or_changed_is_no_state() {
        for len in 0..SAMPLE.len() - 1 {
            assert!(Left::decode(&SAMPLE[..len]).is_err(), "{len}");
        }
        for (what, instead) in [("4712", "x"), ("-500", ""), ("9223372036854775808", "-")] {
            assert!(Left::decode(&SAMPLE.replace(what, instead)).is_err(), "{what}");
        }
        let mut other = sample();
        other.held[1].1 = 8;
        assert_ne!(other.sum(), sample().sum());
    }
}
