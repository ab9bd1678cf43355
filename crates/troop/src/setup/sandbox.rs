//! Restrictions of workers beyond their user's rights.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use troop_sys::sandbox::{self, SandboxError};

pub use troop_sys::sandbox::SystemCalls;

use crate::error::{Error, Result};

fn failed(step: String, source: std::io::Error) -> Error {
    Error::Spawn { program: "a worker in its sandbox".into(), step, source }
}

/// Restrictions of a worker and of all processes that it starts, beyond the rights of its user, by
/// landlock (`landlock(7)`) and seccomp (`seccomp(2)`).
///
/// Set by [`Setup::sandbox`](super::Setup::sandbox); the default restricts nothing. A sandbox turns
/// on [`Setup::no_new_privileges`](super::Setup::no_new_privileges), and applies to health commands
/// too.
///
/// A path is a file, or a directory with everything below it. Relative paths begin at the workers'
/// directory. Paths are looked up at each start of a worker; a root primary follows no symbolic
/// link that another user could have put there. No path may lead through one of `write`, neither by
/// a link nor by `..`, because a worker could change where it leads. The devices `null`, `zero`,
/// `full`, `random` and `urandom` can always be used. Open files, networks and sockets of other
/// programs are not restricted.
///
/// ```
/// use troop::Setup;
/// use troop::setup::Sandbox;
///
/// let mut sandbox = Sandbox::default();
/// sandbox.read = Some(vec!["/usr".into(), "/srv/app".into()]);
/// sandbox.write = Some(vec!["/srv/cache".into()]);
/// let setup = Setup::new().program("/srv/app/server").sandbox(sandbox);
/// assert!(setup.get_no_new_privileges());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Sandbox {
    /// Paths that can be read and executed; they must include the program, its interpreter and its
    /// libraries. `None`: everything.
    pub read: Option<Vec<PathBuf>>,
    /// Paths that can be read and written. `None`: everything if `read` is `None` too, otherwise
    /// nothing. The primary creates Unix sockets for workers only below these paths, and where
    /// [`Builder::may_listen`](crate::Builder::may_listen) names the path.
    pub write: Option<Vec<PathBuf>>,
    /// Groups of system calls that fail with `EPERM`. If it is not empty, 32-bit programs are killed.
    pub deny_system_calls: BTreeSet<SystemCalls>,
    /// Whether restrictions that the kernel does not support are left out. Otherwise no worker starts
    /// where one is not supported, and the error names it.
    pub best_effort: bool,
}

impl Sandbox {
    /// Whether nothing is restricted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.restricts_files() && self.deny_system_calls.is_empty()
    }

    fn restricts_files(&self) -> bool {
        self.read.is_some() || self.write.is_some()
    }

    /// Describes the restrictions that this kernel does not support; `None` if it supports all.
    #[must_use]
    pub fn unsupported(&self) -> Option<String> {
        let files = self.restricts_files().then(sandbox::landlock_missing).flatten();
        let calls = (!self.deny_system_calls.is_empty()).then(sandbox::seccomp_missing).flatten();
        match (files, calls) {
            (Some(files), Some(calls)) => Some(format!("{files}; {calls}")),
            (files, calls) => files.or(calls),
        }
    }

    /// Makes it ready for a worker that runs in this directory, and that may read this file too.
    pub(crate) fn prepare(
        &self,
        cwd: Option<&Path>,
        preload: Option<&Path>,
    ) -> Result<sandbox::Sandbox> {
        let seen_from = |paths: &Option<Vec<PathBuf>>| -> Option<Vec<PathBuf>> {
            let paths = paths.as_ref()?;
            Some(
                paths
                    .iter()
                    .map(|path| cwd.map_or_else(|| path.clone(), |cwd| cwd.join(path)))
                    .collect(),
            )
        };
        let (mut read, write) = (seen_from(&self.read), seen_from(&self.write));
        if let (Some(read), Some(preload)) = (&mut read, preload) {
            read.push(preload.into());
        }
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
