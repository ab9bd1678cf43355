//! The checks of `troop check` alone: whether the workers' user can reach the files of the app, and
//! what is likely to fail later.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use troop::program::identity::Identity;
use troop::supervise::RestartPolicy;

use super::App;
use crate::program::is_script;

/// Builtin commands of `sh`.
const BUILTINS: &str = ". alias bg break case cd command continue echo eval exec exit export false fg for getopts hash if jobs kill local printf pwd read readonly return set shift test times trap true type ulimit umask unalias unset until wait while";

/// The findings of `troop check` about an app.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Errors: what keeps the app from running.
    pub(crate) problems: Vec<String>,
    /// Warnings: what is probably a mistake.
    pub(crate) warnings: Vec<String>,
}

impl App {
    /// Checks the files of the app with the rights of its workers.
    pub(crate) fn inspect(&self, file: &Path) -> Found {
        let mut found = Found::default();
        let (directory, program) = (self.directory(file), self.program(file));
        let executed = self.executed(&program);
        self.inspect_reach(&directory, &program, &executed, &mut found);
        self.inspect_owner(&program, &executed, &mut found);
        self.inspect_health(&directory, &mut found);
        self.inspect_sandbox(&directory, &program, executed.as_deref(), &mut found);
        let usual = RestartPolicy::new(1);
        let or_default =
            |time: Option<super::Time>, usual: Duration| time.map_or(usual, |time| time.0);
        let (uptime, window) = (
            or_default(self.restart.min_uptime, usual.min_uptime),
            or_default(self.restart.window, usual.window),
        );
        if uptime > window {
            found.warnings.push(format!(
                "restart.min_uptime ({uptime:?}) is longer than restart.window ({window:?}): a worker that has been ready for all of that time \
                 and ends is still restarted with a delay, like one that does not start"
            ));
        }
        found
    }

    /// Returns the file that the kernel executes, if it exists: the program, or node for a script.
    fn executed(&self, program: &Path) -> Option<PathBuf> {
        let name = if is_script(program) { Path::new("node") } else { program };
        if name.components().count() > 1 {
            name.exists().then(|| name.to_owned())
        } else {
            self.on_path(name)
        }
    }

    /// Returns the first file of a name on the `PATH` that workers can execute, which is the one that
    /// they do; or else the first one.
    fn on_path(&self, name: &Path) -> Option<PathBuf> {
        let is_root = rustix::process::geteuid().is_root();
        let user = self.identity().filter(|_| is_root).map(|(identity, _)| identity);
        let can_execute = |file: &&PathBuf| match &user {
            Some(user) => refusal(user, file, Access::EXEC_OK).is_none(),
            None => crate::program::is_executable(file),
        };
        let all = self.all_on_path(name);
        all.iter().find(can_execute).or(all.first()).cloned()
    }

    fn all_on_path(&self, name: &Path) -> Vec<PathBuf> {
        let path = self
            .env
            .get("PATH")
            .map(Into::into)
            .or_else(|| std::env::var_os("PATH"))
            .unwrap_or_default();
        std::env::split_paths(&path)
            .map(|directory| directory.join(name))
            .filter(|file| file.is_file())
            .collect()
    }

    fn inspect_reach(
        &self,
        directory: &Path,
        program: &Path,
        executed: &Option<PathBuf>,
        found: &mut Found,
    ) {
        // Only root can take on another user's rights, and start workers of another user.
        let Some((identity, name)) =
            self.identity().filter(|_| rustix::process::geteuid().is_root())
        else {
            return;
        };
        if let Some(at) = refusal(&identity, directory, Access::EXEC_OK) {
            found.warnings.push(format!(
                "user {name} cannot enter {}, where workers run: {}",
                directory.display(),
                closed(&at)
            ));
        }
        if is_script(program)
            && let Some(at) = refusal(&identity, program, Access::READ_OK)
        {
            found.problems.push(format!(
                "user {name} cannot read {}: {}",
                program.display(),
                closed(&at)
            ));
        }
        if let Some(executed) = executed
            && let Some(at) = refusal(&identity, executed, Access::EXEC_OK)
        {
            found.problems.push(format!(
                "user {name} cannot execute {}: {}",
                executed.display(),
                closed(&at)
            ));
        }
    }

    /// Returns the identity that workers run as, with the name that was given.
    fn identity(&self) -> Option<(Identity, &str)> {
        let name = self.user.as_deref()?;
        let number = name.parse().ok();
        let user =
            uzers::get_user_by_name(name).or_else(|| number.and_then(uzers::get_user_by_uid));
        let group = self.group.as_deref().map(|name| {
            uzers::get_group_by_name(name).map(|g| g.gid()).or_else(|| name.parse().ok())
        });
        let usual = user.as_ref().map(uzers::User::primary_group_id);
        let groups = user
            .as_ref()
            .and_then(|user| uzers::get_user_groups(user.name(), user.primary_group_id()));
        let identity = Identity {
            uid: user.as_ref().map(uzers::User::uid).or(number)?,
            gid: group.unwrap_or(usual)?,
            groups: groups.unwrap_or_default().iter().map(uzers::Group::gid).collect(),
        };
        Some((identity, name))
    }

    fn inspect_owner(&self, program: &Path, executed: &Option<PathBuf>, found: &mut Found) {
        let own = rustix::process::geteuid().as_raw();
        let user = self.identity().map(|(identity, _)| identity);
        let files = executed
            .iter()
            .map(PathBuf::as_path)
            .chain(Some(program).filter(|path| is_script(path)));
        for file in files {
            let Ok(metadata) = file.metadata() else { continue };
            let (uid, gid, mode) = (metadata.uid(), metadata.gid(), metadata.mode());
            let is_owner_fine =
                uid == 0 || uid == own || user.as_ref().is_some_and(|user| uid == user.uid);
            // A group with the number of its user has no other members.
            let is_own_group = gid != 0 && gid == user.as_ref().map_or(own, |user| user.uid);
            if !is_owner_fine || mode & 0o002 != 0 || (mode & 0o020 != 0 && !is_own_group) {
                found.warnings.push(format!(
                    "{} can be changed by others (owned by user {uid}, group {gid}, mode {:o}), who so decide what workers run",
                    file.display(),
                    mode & 0o7777
                ));
            }
        }
    }

    fn inspect_health(&self, directory: &Path, found: &mut Found) {
        let Some(command) = self.health.as_ref().and_then(|health| health.command.as_deref())
        else {
            return;
        };
        // Other syntax is for `sh` to interpret.
        let is_plain =
            |word: &&str| word.chars().all(|c| c.is_ascii_alphanumeric() || "._/+-".contains(c));
        let Some(word) = command.split_whitespace().next().filter(is_plain) else {
            if command.trim().is_empty() {
                found.problems.push("health.command: there is no command in it".into());
            }
            return;
        };
        if BUILTINS.split(' ').any(|known| known == word) {
            return;
        }
        if !word.contains('/') {
            if self.on_path(Path::new(word)).is_none() {
                found
                    .problems
                    .push(format!("health.command: there is no program {word} on the PATH"));
            }
            return;
        }
        let path = directory.join(word);
        if !path.exists() {
            found.problems.push(format!("health.command: there is no program {}", path.display()));
        } else if let Some((identity, name)) =
            self.identity().filter(|_| rustix::process::geteuid().is_root())
            && let Some(at) = refusal(&identity, &path, Access::EXEC_OK)
        {
            found.problems.push(format!(
                "health.command: user {name} cannot execute {}: {}",
                path.display(),
                closed(&at)
            ));
        } else if !crate::program::is_executable(&path) {
            found.problems.push(format!("health.command: {} is not executable", path.display()));
        }
    }
}

/// Returns the first directory on a path, or the path itself, that is closed to an identity. Other
/// errors are ignored.
fn refusal(identity: &Identity, path: &Path, access: Access) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let way: Vec<&Path> = path.ancestors().skip(1).collect();
    let look = || {
        let steps = way
            .iter()
            .rev()
            .map(|directory| (*directory, Access::EXEC_OK))
            .chain([(path.as_path(), access)]);
        for (at, access) in steps {
            match accessat(CWD, at, access, AtFlags::EACCESS) {
                Err(Errno::ACCESS) => return Ok(Some(at.to_owned())),
                Err(_) => return Ok(None),
                Ok(()) => {}
            }
        }
        Ok(None)
    };
    identity.with_rights(look).ok().flatten()
}

/// Describes the owner and mode of a file or directory that is closed.
fn closed(at: &Path) -> String {
    let whose = at.metadata().map(|found| {
        format!("user {}, group {}, mode {:o}", found.uid(), found.gid(), found.mode() & 0o7777)
    });
    format!("{} is owned by {}", at.display(), whose.unwrap_or_else(|_| "somebody else".into()))
}
