//! The script that Node workers load before their program, by which idle connections outlive them.
//!
//! It is written to a directory of troop's own user, as a file that no other user can change or
//! exchange: workers get its path, so this must hold for every directory on the way. Node
//! loads it again in every thread that a program starts, so it must stay there for as long as the app
//! runs: not in `XDG_RUNTIME_DIR`, which goes at a logout, but among the user's caches, or, if troop
//! is root, in a directory where every user can open it by name.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use troop::Setup;
use troop::program::safe_path::{Directory, Safety};

use crate::control::sockets;
use crate::log;

const SCRIPT: &str = concat!(include_str!("moves.js"), include_str!("primary_part.js"));

/// The app of this process, by its claimed name.
static APP: OnceLock<String> = OnceLock::new();

/// Lays the script from now on, for the app with this name.
pub(crate) fn begin(app: &str) {
    let _ = APP.set(app.to_owned());
}

/// Has workers load the script. What is in the way is logged once.
pub(crate) fn add(setup: Setup) -> Setup {
    let is_node = setup.get_script().is_some()
        && setup
            .get_program()
            .and_then(Path::file_name)
            .is_some_and(|name| name == "node" || name == "nodejs");
    let Some(app) = APP.get().filter(|_| is_node) else { return setup };
    // A program that root starts may give its privileges up by itself, and its threads load the
    // script again.
    let own = rustix::process::geteuid();
    let is_public = own.is_root() || setup.get_uid().is_some_and(|uid| uid != own.as_raw());
    match lay(app, is_public) {
        Ok(path) => {
            let setup = setup.preload(path);
            match setup.preload_obstacle() {
                None => setup,
                Some(why) => {
                    say_once(why);
                    setup.preload("")
                }
            }
        }
        Err(e) => {
            say_once(format!("cannot write the script for that: {e}"));
            setup
        }
    }
}

/// Removes what was laid for an app. What is among the user's caches stays: other apps use it too.
pub(crate) fn remove(app: &str) {
    for path in [sockets::path(), public_path(std::env::var_os(RUNTIME_DIR).as_deref())] {
        if let Ok(Some(directory)) = Directory::find(&path, Safety::Ancestors) {
            let _ = directory.remove(&file(app));
            let _ = directory.remove(&unfinished(app));
        }
    }
}

/// What was said to be in the way.
static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn say_once(why: String) {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.insert(why.clone()) {
        say(&why);
    }
}

fn say(why: &str) {
    log::line(&format!(
        "troop: idle connections do not move to other workers when theirs drains: {why} (move_connections = false turns this off)"
    ));
}

/// Says again what is in the way, in the logs of an app in the background: it was said before there
/// were any.
pub(crate) fn say_in_logs() {
    SAID.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|why| say(why));
}

fn file(app: &str) -> OsString {
    // Not `.js`, which may be an ES module, depending on files around it.
    format!("{app}.cjs").into()
}

/// The script while it is being written.
fn unfinished(app: &str) -> OsString {
    format!(".{app}.cjs").into()
}

/// The variable that names the directory for control sockets.
const RUNTIME_DIR: &str = "TROOP_RUNTIME_DIR";

/// The directory in which every user can open a file by name. Root's `XDG_RUNTIME_DIR` is of no use:
/// nobody else may enter it.
fn public_path(runtime: Option<&OsStr>) -> PathBuf {
    let runtime = runtime.filter(|path| !path.is_empty());
    let mut path = match (runtime, rustix::process::geteuid().is_root()) {
        (Some(path), _) => path.to_owned(),
        (None, true) => "/run/troop".into(),
        (None, false) => sockets::path().into(),
    };
    path.push("-node");
    path.into()
}

/// The directory for the user's caches, unless another one was named for all that troop writes.
fn cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let variable = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if variable(RUNTIME_DIR).is_some() {
        return None;
    }
    let caches = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    caches.is_absolute().then(|| caches.join("troop"))
}

fn lay(app: &str, is_public: bool) -> io::Result<PathBuf> {
    if is_public {
        return write(&public_directory()?, &file(app), &unfinished(app));
    }
    let caches = cache(|name| std::env::var_os(name));
    if let Some(written) = caches.and_then(|path| lay_in_cache(&path).ok()) {
        return Ok(written);
    }
    let directory = Directory::open(sockets::directory()?.path(), Safety::Ancestors)?;
    write(&directory, &file(app), &unfinished(app))
}

/// Writes it under a name that other versions of it do not have.
fn lay_in_cache(path: &Path) -> io::Result<PathBuf> {
    let directory = Directory::create(path, Safety::Ancestors, 0o700)?;
    let found = directory.metadata();
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut hasher = DefaultHasher::new();
    SCRIPT.hash(&mut hasher);
    let name = format!("moves-{:016x}.cjs", hasher.finish());
    let unfinished = format!(".{name}-{}", std::process::id());
    write(&directory, name.as_ref(), unfinished.as_ref())
}

fn write(directory: &Directory, name: &OsStr, unfinished: &OsStr) -> io::Result<PathBuf> {
    let _ = directory.remove(unfinished);
    let mut file = directory.create_new(unfinished, 0o444)?;
    file.write_all(SCRIPT.as_bytes())?;
    // Whatever the umask says.
    file.set_permissions(std::fs::Permissions::from_mode(0o444))?;
    directory.rename(unfinished, name)?;
    std::path::absolute(directory.path().join(name))
}

/// A directory that others may enter, and not list or change.
fn public_directory() -> io::Result<Directory> {
    let path = public_path(std::env::var_os(RUNTIME_DIR).as_deref());
    let directory = Directory::create(&path, Safety::Ancestors, 0o711)?;
    let found = directory.metadata();
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} must be a directory of your own that nobody else can change",
                path.display()
            ),
        ));
    }
    if found.mode() & 0o711 != 0o711 {
        let at = directory.reach(".".as_ref());
        std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o711))?;
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_where_no_logout_removes_it_and_every_user_of_a_worker_may_enter() {
        let named = |pairs: &'static [(&str, &str)]| {
            cache(|name| Some(pairs.iter().find(|pair| pair.0 == name)?.1.into()))
        };
        assert_eq!(named(&[("HOME", "/home/x")]), Some("/home/x/.cache/troop".into()));
        assert_eq!(
            named(&[("HOME", "/home/x"), ("XDG_CACHE_HOME", "/c"), ("XDG_RUNTIME_DIR", "/r")]),
            Some("/c/troop".into())
        );
        // Everything is where it was said to be, and relative paths count for nothing.
        assert_eq!(named(&[("HOME", "/home/x"), (RUNTIME_DIR, "/r")]), None);
        assert_eq!(named(&[("XDG_CACHE_HOME", "c")]), None);
        assert_eq!(public_path(Some("/r/troop".as_ref())), Path::new("/r/troop-node"));
        if rustix::process::geteuid().is_root() {
            assert_eq!(public_path(None), Path::new("/run/troop-node"));
        }
    }

    #[test]
    fn apps_share_one_file_in_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("caches/troop");
        let first = lay_in_cache(&path).unwrap();
        assert_eq!(lay_in_cache(&path).unwrap(), first);
        assert_eq!(std::fs::read_to_string(&first).unwrap(), SCRIPT);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
    }

    #[test]
    fn it_is_not_where_another_user_could_exchange_it() {
        use std::os::unix::fs::chown;
        let home = tempfile::tempdir().unwrap();
        let caches = home.path().join("caches");
        std::fs::create_dir(&caches).unwrap();
        let lay = || lay_in_cache(&caches.join("troop"));
        let mode = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        assert!(lay().is_ok());
        mode(&caches, 0o777);
        assert_eq!(lay().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        mode(&caches, 0o1777);
        assert!(lay().is_ok());
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // As in a home that is `/tmp`.
        mode(home.path(), 0o1777);
        chown(&caches, Some(65_534), Some(65_534)).unwrap();
        for theirs in [0o777, 0o1777, 0o755] {
            mode(&caches, theirs);
            assert_eq!(lay().unwrap_err().kind(), io::ErrorKind::PermissionDenied, "{theirs:o}");
        }
    }
}
