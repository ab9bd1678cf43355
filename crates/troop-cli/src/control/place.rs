//! Where control sockets are: one for each app, in a directory that only its owner can enter.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The most apps that may have the same name but for a number.
const MOST_ALIKE: usize = 1000;

/// The directory: `TROOP_RUNTIME_DIR`, or a place for such things. Made if it is not there.
///
/// # Errors
/// If it cannot be made, or others could get in.
pub(crate) fn directory() -> io::Result<PathBuf> {
    let own = rustix::process::geteuid().as_raw();
    let path = match (std::env::var_os("TROOP_RUNTIME_DIR"), std::env::var_os("XDG_RUNTIME_DIR")) {
        (Some(own), _) if !own.is_empty() => PathBuf::from(own),
        // After `su` it may still be another user's.
        (_, Some(runtime)) if Path::new(&runtime).metadata().is_ok_and(|found| found.uid() == own) => {
            Path::new(&runtime).join("troop")
        }
        _ if own == 0 => "/run/troop".into(),
        _ => format!("/tmp/troop-{own}").into(),
    };
    let about = |e: io::Error, what: &str| io::Error::new(e.kind(), format!("{what} {}: {e}", path.display()));
    if let Err(e) = DirBuilder::new().mode(0o700).create(&path)
        && e.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(about(e, "cannot make the directory for control sockets"));
    }
    // Not through a link that somebody else has laid there.
    let found = path.symlink_metadata().map_err(|e| about(e, "cannot look at"))?;
    if !found.is_dir() || found.uid() != own || found.mode() & 0o077 != 0 {
        let text = format!(
            "{} must be a directory of your own that nobody else can enter (mode 700); move it away or set TROOP_RUNTIME_DIR",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(path)
}

/// Whether an app can have this name.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(fits) && !name.starts_with(['.', '-']) && name != "all"
}

/// The name that a program gives its app.
pub(crate) fn name_of(program: &Path) -> String {
    let stem = program.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(48).collect();
    let name = name.trim_matches('-').to_owned();
    if is_name(&name) { name } else { "app".into() }
}

/// A name that is ours, and its socket, until this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) name: String,
    path: PathBuf,
    _lock: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Why there is no claim.
#[derive(Debug)]
pub(crate) enum Unclaimed {
    /// An app of this name runs already.
    Taken,
    Io(io::Error),
}

/// Takes a name and binds its socket. One that was not `asked` for gets a number if it is taken.
pub(crate) fn claim(name: &str, asked: bool) -> Result<(Claim, UnixListener), Unclaimed> {
    let directory = directory().map_err(Unclaimed::Io)?;
    for number in 1..=if asked { 1 } else { MOST_ALIKE } {
        let name = if number == 1 { name.to_owned() } else { format!("{name}-{number}") };
        let io = |what: &str, e: io::Error| Unclaimed::Io(io::Error::new(e.kind(), format!("{what} of {name}: {e}")));
        // The lock, unlike the socket, is gone with its process.
        let lock = File::create(directory.join(format!("{name}.lock"))).map_err(|e| io("cannot make the lock", e))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => continue,
            Err(e) => return Err(io("cannot take the lock", e.into())),
        }
        let path = directory.join(format!("{name}.sock"));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(|e| io("cannot bind the control socket", e))?;
        let claim = Claim { name: name.clone(), path: path.clone(), _lock: lock };
        // The directory keeps others out already.
        rustix::fs::chmod(&path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .map_err(|e| io("cannot close the control socket to others", e.into()))?;
        return Ok((claim, listener));
    }
    Err(Unclaimed::Taken)
}

/// The names of apps that have a socket, running or not.
pub(crate) fn names() -> io::Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(directory()?)?
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".sock")?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// An app's socket.
pub(crate) fn socket(name: &str) -> io::Result<PathBuf> {
    Ok(directory()?.join(format!("{name}.sock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_give_names() {
        for (program, name) in [
            ("server.js", "server"),
            ("/srv/my app/api.v2.mjs", "api-v2"),
            ("./hello", "hello"),
            ("...", "app"),
            ("all.js", "app"),
        ] {
            assert_eq!(name_of(Path::new(program)), name);
        }
        for bad in ["", "all", "../x", "a/b", ".hidden", "-n", "a b", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
