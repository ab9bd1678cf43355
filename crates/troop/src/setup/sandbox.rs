//! What workers are kept from beyond their user's rights.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use troop_sys::sandbox::{self, SandboxError};

pub use troop_sys::sandbox::SystemCalls;

use crate::error::{Error, Result};

fn failed(step: String, source: std::io::Error) -> Error {
    Error::Spawn { program: "a worker in its sandbox".into(), step, source }
}

/// What a worker, and whatever it starts, is kept from beyond its user's rights: by landlock
/// (`landlock(7)`) and seccomp (`seccomp(2)`). Implies
/// [`Setup::no_new_privileges`](super::Setup::no_new_privileges). Health commands get the same.
///
/// A path stands for the file, or the directory with all that is below; relative ones begin at the
/// workers' directory. They are looked up at each start of a worker; where the primary is root, no
/// symbolic link is followed that somebody else could have put there. No path may lead through one of
/// `write`, by a link or `..` either: a worker could have it lead elsewhere. The devices `null`, `zero`,
/// `full`, `random` and `urandom` can always be used. Files that are open already, networks and the
/// sockets of other programs are not restricted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Sandbox {
    /// All that can be read and executed, the program itself and its libraries among it. `None`:
    /// everything.
    pub read: Option<Vec<PathBuf>>,
    /// All that can be changed, and read. `None`: everything if `read` is `None` too, else nothing.
    /// The primary makes Unix sockets for workers nowhere else, but where
    /// [`Builder::may_listen`](crate::Builder::may_listen) names the path.
    pub write: Option<Vec<PathBuf>>,
    /// System calls that fail with `EPERM`. 32-bit programs are killed then.
    pub deny_system_calls: BTreeSet<SystemCalls>,
    /// Leaves out what the kernel does not know, instead of starting no workers.
    pub best_effort: bool,
}

impl Sandbox {
    /// Whether it keeps from nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.restricts_files() && self.deny_system_calls.is_empty()
    }

    fn restricts_files(&self) -> bool {
        self.read.is_some() || self.write.is_some()
    }

    /// What of it this kernel cannot do, in words.
    #[must_use]
    pub fn unsupported(&self) -> Option<String> {
        let files = self.restricts_files().then(sandbox::landlock_missing).flatten();
        let calls = (!self.deny_system_calls.is_empty()).then(sandbox::seccomp_missing).flatten();
        match (files, calls) {
            (Some(files), Some(calls)) => Some(format!("{files}; {calls}")),
            (files, calls) => files.or(calls),
        }
    }

    /// Makes it ready for a worker that runs in this directory.
    pub(crate) fn prepare(&self, cwd: Option<&Path>) -> Result<sandbox::Sandbox> {
        let seen_from = |paths: &Option<Vec<PathBuf>>| -> Option<Vec<PathBuf>> {
            let paths = paths.as_ref()?;
            Some(
                paths
                    .iter()
                    .map(|path| cwd.map_or_else(|| path.clone(), |cwd| cwd.join(path)))
                    .collect(),
            )
        };
        let (read, write) = (seen_from(&self.read), seen_from(&self.write));
        let files =
            sandbox::Sandbox::default().files(read.as_deref(), write.as_deref(), self.best_effort);
        files.and_then(|files| files.deny(&self.deny_system_calls, self.best_effort)).map_err(|e| {
            match e {
                SandboxError::Path(path, source) => {
                    failed(format!("let it use {}", path.display()), source)
                }
                SandboxError::System(doing, source) => failed(doing.into(), source),
                SandboxError::Unsupported(what) => Error::Settings(format!(
                    "{what}; the sandbox's `best_effort` starts workers without it"
                )),
            }
        })
    }
}
