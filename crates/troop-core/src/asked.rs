//! Where workers have asked to listen, and which addresses are one worker's own because its program
//! names them after it.

use serde::{Deserialize, Serialize};

use crate::event::{Address, AddressType};
use crate::id::WorkerId;

/// The numbers by which a program can name what belongs to one worker. A successor has others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// Its process.
    pub pid: u32,
    /// Its id.
    pub id: WorkerId,
}

/// Where a worker has asked to listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Where, in the words of the worker that asked first.
    pub at: Address,
    /// The worker whose numbers are in its path, so that its program may have named it after the
    /// worker. That can be chance (`/srv/app-2/web.sock`), so what a successor asks for decides.
    pub named_after: Option<Numbers>,
}

impl Numbers {
    /// Whether a path contains one of the numbers, so that it may be named after the worker.
    fn are_in(self, path: &str) -> bool {
        Parts::of(path).any(|(_, part)| {
            part.parse().is_ok_and(|number: u32| number == self.pid || number == self.id.0)
        })
    }
}

impl Asked {
    /// What a worker with these numbers has asked for.
    #[must_use]
    pub fn new(at: Address, by: Numbers) -> Asked {
        let is_named = |path: &str| by.are_in(path);
        let named_after = at.path().is_some_and(is_named).then_some(by);
        Asked { at, named_after }
    }

    /// What workers have asked for under one name.
    #[must_use]
    pub fn by_several(at: Address) -> Asked {
        Asked { at, named_after: None }
    }

    /// Whether this address takes over a predecessor's: it is the same, or the same path with this
    /// worker's process number where the predecessor's had its own. Characters beside a process's
    /// number may differ, as they can be random.
    #[must_use]
    pub fn takes_over(&self, before: &Asked) -> bool {
        if self.at == before.at {
            return true;
        }
        let (Some(old), Some(new)) = (before.named_after, self.named_after) else { return false };
        let (Some(was), Some(is)) = (before.at.path(), self.at.path()) else { return false };
        if was.contains('\0') != is.contains('\0') {
            return false;
        }
        let is_exchanged = |was: &str, is: &str| {
            let (was, is) = (was.parse::<u32>(), is.parse::<u32>());
            (was == Ok(old.pid) && is == Ok(new.pid)) || (was == Ok(old.id.0) && is == Ok(new.id.0))
        };
        let same = Parts::of(was)
            .map(Some)
            .chain(std::iter::repeat(None))
            .zip(Parts::of(is).map(Some).chain(std::iter::repeat(None)))
            .take_while(|pair| *pair != (None, None))
            .all(|(was, is)| match (was, is) {
                (Some((_, was)), Some((_, is))) => was == is || is_exchanged(was, is),
                _ => false,
            });
        let places = |path, pid: u32| {
            Parts::of(path).filter(move |(_, part)| part.parse() == Ok(pid)).map(|(at, _)| at)
        };
        same || places(was, old.pid).any(|at| places(is, new.pid).any(|other| other == at))
    }
}

impl Address {
    fn path(&self) -> Option<&str> {
        self.address.as_deref().filter(|_| self.address_type == AddressType::Unix)
    }
}

/// The parts of a path in which numbers are looked for, each with the index of the name it is in:
/// words of directories, which may be random letters and digits otherwise, and digits of the file's
/// name; and what stands between them.
struct Parts<'a> {
    left: &'a str,
    name: usize,
}

impl<'a> Parts<'a> {
    fn of(path: &'a str) -> Parts<'a> {
        Parts { left: path, name: 0 }
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = (usize, &'a str);

    fn next(&mut self) -> Option<(usize, &'a str)> {
        let first = self.left.chars().next()?;
        let is_file = !self.left.contains('/');
        let is_word = |c: char| if is_file { c.is_ascii_digit() } else { c.is_alphanumeric() };
        let end = if first == '/' {
            self.name += 1;
            1
        } else {
            let ends = |c: char| c == '/' || is_word(c) != is_word(first);
            self.left.find(ends).unwrap_or(self.left.len())
        };
        let (part, left) = self.left.split_at(end);
        self.left = left;
        Some((self.name, part))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unix(path: &str) -> Address {
        Address {
            address: Some(path.into()),
            port: Some(-1),
            address_type: AddressType::Unix,
            fd: None,
        }
    }

    fn asked(path: &str, pid: u32, id: u32) -> Asked {
        Asked::new(unix(path), Numbers { pid, id: WorkerId(id) })
    }

    /// Whether worker 3 (pid 4712) that asks for the second path takes over the first one from
    /// worker 2 (pid 4711).
    fn takes_over(was: &str, is: &str) -> bool {
        asked(is, 4712, 3).takes_over(&asked(was, 4711, 2))
    }

    #[test]
    fn a_path_is_a_workers_own_only_if_its_successor_has_its_own_number_in_that_place() {
        for (was, is, expected) in [
            ("/srv/app-2/web.sock", "/srv/app-2/web.sock", true),
            ("/srv/app-2/web.sock", "/srv/app-3/web.sock", true),
            ("/srv/app-2/web.sock", "/srv/app-2/other.sock", false),
            ("/srv/app-2/web.sock", "/srv/app-3/other.sock", false),
            ("/srv/app-2/web.sock", "/srv/app-4/web.sock", false),
            ("/srv/app-2/web.sock", "/srv/web.sock", false),
            ("/run/ps-4711.sock", "/run/ps-4712.sock", true),
            ("/run/ps-4711.sock", "/run/ps-3.sock", false),
            ("/run/ps-2.sock", "/run/ps-4712.sock", false),
            ("/run/4711/2.sock", "/run/4712/3.sock", true),
            ("/run/worker2.sock", "/run/worker3.sock", true),
            ("/run/worker2.sock", "/run/worker3.sock2", false),
            ("/run/02.sock", "/run/03.sock", true),
            // Words of directories are whole, and may be random otherwise.
            ("/run/app2/web.sock", "/run/app3/web.sock", false),
            // A process's number is no chance where both have theirs, whatever is beside it.
            ("/tmp/4711-a81f/s", "/tmp/4712-77c0/s", true),
            ("/tmp/4711-a81f/s", "/run/4712-77c0/s", true),
            ("/tmp/4711-a81f/s", "/run/app/4712-77c0/s", false),
            // Abstract names.
            ("/srv/\0ps-4711", "/srv/\0ps-4712", true),
            ("/srv/\0ps-4711", "/srv/ps-4712", false),
        ] {
            assert_eq!(takes_over(was, is), expected, "{was:?} {is:?}");
        }
        // One that both generations had under the same name is no worker's own.
        let was = Asked::by_several(unix("/srv/app-2/web.sock"));
        assert!(!asked("/srv/app-3/web.sock", 4712, 3).takes_over(&was));
    }

    proptest! {
        #[test]
        fn parts_make_up_the_path_and_numbers_are_exchanged_both_ways(
            path in "(/?[a-z0-9-]{0,4}){0,4}",
        ) {
            prop_assert_eq!(Parts::of(&path).map(|(_, part)| part).collect::<String>(), path.clone());
            prop_assert!(takes_over(&path, &path));
            // A path without numbers of theirs is taken over under its own name alone.
            let other = format!("{path}x");
            if asked(&path, 4711, 2).named_after.is_none() {
                prop_assert!(!takes_over(&path, &other));
            }
        }
    }
}
