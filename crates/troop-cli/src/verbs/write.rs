//! Writes files where somebody asks for them, but not through links that others have put there.

use std::ffi::OsString;
use std::fs::Metadata;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use troop::program::safe_path::{Directory, Safety, split};

/// Permissions of directories that are made.
const DIRECTORY_MODE: u32 = 0o755;

/// Writes a file that is not there yet.
///
/// # Errors
/// As `open(2)`; `AlreadyExists`.
pub(crate) fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (parent, name) = split(path)?;
    Directory::open(&parent, Safety::Links)?.create_new(&name, mode)?.write_all(bytes)
}

/// Puts a file in place, whole, instead of whatever file or link is there. Makes directories that
/// are missing.
///
/// # Errors
/// As `open(2)` and `rename(2)`.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let directory = Directory::create(&parent, Safety::Links, DIRECTORY_MODE)?;
    let mut new = OsString::from(".");
    new.push(&name);
    new.push(format!(".{}", std::process::id()));
    // Not readable by more than the file was before.
    let before =
        directory.entry(&name)?.filter(Metadata::is_file).map_or(mode, |found| found.mode());
    let mut file = directory.create_new(&new, mode & before)?;
    let written = file.write_all(bytes).and_then(|()| directory.rename(&new, &name));
    if written.is_err() {
        let _ = directory.remove(&new);
    }
    written
}
