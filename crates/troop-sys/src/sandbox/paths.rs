//! The paths of a sandbox, resolved as for a start.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::safe_path::{FileId, Held, LeadsThrough, Safety, file_id, hold};
use crate::within::within;

/// How long the file system of a path may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a path of a sandbox leads to.
#[derive(Debug)]
pub enum Resolved {
    /// A file or directory, which is held.
    Held(Box<Held>),
    /// It leads through this path of those that can be written. A process that may change that
    /// decides where it leads, from the next start on to everything.
    Through(PathBuf),
    /// It cannot be reached.
    Failed(io::Error),
}

/// The paths of a sandbox and what they lead to.
#[derive(Debug, Default)]
pub struct Paths {
    /// What can be read and executed.
    pub read: Vec<(PathBuf, Resolved)>,
    /// What can be written.
    pub write: Vec<(PathBuf, Resolved)>,
}

impl Paths {
    /// Resolves the paths of a sandbox as the kernel would, links and `..` included, and executes
    /// and opens nothing. Directories are recognised by what they are, not by their names. If this
    /// process is root, no link is followed that somebody else could have put there.
    ///
    /// A part of a file system that is mounted elsewhere once more is not recognised there as part
    /// of a directory that contains it.
    #[must_use]
    pub fn resolve(read: &[PathBuf], write: &[PathBuf]) -> Paths {
        let mut known = Vec::new();
        let mut written: Vec<(PathBuf, Resolved)> = write
            .iter()
            .map(|path| {
                let resolved = resolve_one(path, &known);
                if let Resolved::Held(held) = &resolved {
                    known.push((file_id(&held.found), path.clone()));
                }
                (path.clone(), resolved)
            })
            .collect();
        // Those before were resolved without knowing the later ones.
        for (path, resolved) in &mut written {
            let through = |held: &Held| {
                known.iter().find(|(at, _)| held.passed.contains(at)).map(|(_, above)| above)
            };
            let again = match resolved {
                Resolved::Held(held) => through(held).cloned().map(Resolved::Through),
                Resolved::Failed(_) => Some(resolve_one(path, &known)),
                Resolved::Through(_) => None,
            };
            if let Some(again) = again {
                *resolved = again;
            }
        }
        let read = read.iter().map(|path| (path.clone(), resolve_one(path, &known))).collect();
        Paths { read, write: written }
    }
}

/// Resolves a path that must not lead through these, which go by their names.
fn resolve_one(path: &Path, outside: &[(FileId, PathBuf)]) -> Resolved {
    let safety = if rustix::process::geteuid().is_root() { Safety::Links } else { Safety::Rights };
    let (named, ids) = (path.to_owned(), outside.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    match within(ANSWER_TIMEOUT, move || hold(&named, safety, &ids)) {
        Ok(held) => Resolved::Held(Box::new(held)),
        Err(e) => {
            let above = LeadsThrough::of(&e)
                .and_then(|at| outside.iter().find(|(id, _)| *id == at))
                .map(|(_, above)| above.clone());
            above.map_or(Resolved::Failed(e), Resolved::Through)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn through(resolved: &Resolved) -> Option<&Path> {
        match resolved {
            Resolved::Through(above) => Some(above),
            _ => None,
        }
    }

    fn real(resolved: &Resolved) -> Option<&Path> {
        match resolved {
            Resolved::Held(held) => Some(&held.real),
            _ => None,
        }
    }

    #[test]
    fn a_path_that_leads_through_a_writable_one_by_a_link_or_back_is_recognised() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        fs::create_dir_all(at("data/lib")).unwrap();
        fs::create_dir_all(at("lib")).unwrap();
        symlink("data/lib", at("current")).unwrap();
        symlink(at("data"), at("alias")).unwrap();
        symlink(at("lib"), at("data/out")).unwrap();
        let write = [at("data")];
        for (path, leads) in [
            ("current", Err("data")),
            ("alias/lib", Err("data")),
            ("lib/../data/lib", Err("data")),
            // Where it leads is a matter of who may change it, wherever that is now.
            ("data/out", Err("data")),
            ("data/lib/../../lib", Err("data")),
            // Nothing is looked up there.
            ("data/../lib", Ok("lib")),
            ("data", Ok("data")),
            ("alias", Ok("data")),
            ("./lib/.", Ok("lib")),
        ] {
            let paths = Paths::resolve(&[at(path)], &write);
            let (_, resolved) = &paths.read[0];
            assert_eq!(real(resolved), leads.ok().map(at).as_deref(), "{path}");
            assert_eq!(through(resolved), leads.err().map(at).as_deref(), "{path}");
        }
    }

    #[test]
    fn a_writable_path_that_leads_through_another_or_itself_is_recognised_in_any_order() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        fs::create_dir_all(at("data/lib")).unwrap();
        symlink("data/lib", at("current")).unwrap();
        for order in [["current", "data"], ["data", "current"], ["data/missing", "data"]] {
            let paths = Paths::resolve(&[], &order.map(at));
            for (path, resolved) in &paths.write {
                let expected = (*path != at("data")).then(|| at("data"));
                assert_eq!(through(resolved), expected.as_deref(), "{order:?}");
            }
        }
        let itself = Paths::resolve(&[], &[at("data/lib/..")]);
        assert_eq!(through(&itself.write[0].1), Some(at("data/lib/..").as_path()));
    }
}
