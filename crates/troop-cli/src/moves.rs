//! The script that Node workers load before their program, by which idle connections outlive them.
//!
//! It is written to a directory of troop's own user, as a file that no other user can change: beside
//! the control socket, or, if troop is root, in a directory where every user can open it by name.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use troop::Setup;
use troop::program::safe_path::{Directory, Safety};

use crate::control::sockets;
use crate::log;

const SCRIPT: &str = include_str!("moves.js");

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

/// Removes what was laid for an app.
pub(crate) fn remove(app: &str) {
    for is_public in [false, true] {
        if let Ok(Some(directory)) = Directory::find(&path(is_public), Safety::Links) {
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

fn path(is_public: bool) -> PathBuf {
    let mut path = sockets::path().into_os_string();
    if is_public {
        path.push("-node");
    }
    path.into()
}

fn lay(app: &str, is_public: bool) -> io::Result<PathBuf> {
    let directory = if is_public { public_directory()? } else { sockets::directory()? };
    let (name, unfinished) = (file(app), unfinished(app));
    let _ = directory.remove(&unfinished);
    let mut file = directory.create_new(&unfinished, 0o444)?;
    file.write_all(SCRIPT.as_bytes())?;
    // Whatever the umask says.
    file.set_permissions(std::fs::Permissions::from_mode(0o444))?;
    directory.rename(&unfinished, &name)?;
    std::path::absolute(directory.path().join(name))
}

/// A directory that others may enter, and not list or change.
fn public_directory() -> io::Result<Directory> {
    let path = path(true);
    let directory = Directory::create(&path, Safety::Links, 0o711)?;
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
