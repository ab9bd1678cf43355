//! Writes files without following links that other users may have created.

use std::ffi::OsString;
use std::fs::Metadata;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use troop::program::safe_path::{Directory, Safety, split};

/// Permissions of the directories that are created.
const DIRECTORY_MODE: u32 = 0o755;

/// Creates a file.
///
/// # Errors
/// Those of `open(2)`; `AlreadyExists` if there is one.
pub(crate) fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (parent, name) = split(path)?;
    Directory::open(&parent, Safety::Links)?.create_new(&name, mode)?.write_all(bytes)
}

/// Replaces a file or link atomically. Creates missing directories.
///
/// # Errors
/// Those of `open(2)` and `rename(2)`.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let directory = Directory::create(&parent, Safety::Links, DIRECTORY_MODE)?;
    let mut new = OsString::from(".");
    new.push(&name);
    new.push(format!(".{}", std::process::id()));
    // The new file is readable by no more users than the old one.
    let before =
        directory.entry(&name)?.filter(Metadata::is_file).map_or(mode, |found| found.mode());
    let mut file = directory.create_new(&new, mode & before)?;
    let written = file.write_all(bytes).and_then(|()| directory.rename(&new, &name));
    if written.is_err() {
        let _ = directory.remove(&new);
    }
    written
}
