//! The token of clients that may see and do everything.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use troop::program::safe_path::{Directory, split, who_can_change};

use crate::logs::paths::safety;
use crate::records::store;

/// The file beside the records of apps, if no other one is named.
const FILE: &str = "admin.token";
/// The random bytes of a token.
const BYTES: usize = 32;
/// The shortest token that somebody has chosen.
const MIN_LENGTH: usize = 16;
/// The longest one.
const MAX_LENGTH: u64 = 1024;

/// Returns the path of the token's file.
pub(crate) fn path(named: Option<&Path>) -> PathBuf {
    named.map_or_else(|| store::path().join(FILE), Path::to_owned)
}

/// Reads the token, and makes one if there is no file.
pub(super) fn read(named: Option<&Path>) -> Result<String, String> {
    let path = path(named);
    let failed = |e: io::Error| format!("the token in {}: {e}", path.display());
    let (directory, name) = split(&path).map_err(failed)?;
    let directory = Directory::create(&directory, safety(&directory, named.is_some()), 0o700)
        .map_err(failed)?;
    match directory.read(&name) {
        Ok(file) => checked(file).map_err(failed),
        Err(e) if e.kind() == io::ErrorKind::NotFound => make(&directory, &name).map_err(failed),
        Err(e) => Err(failed(e)),
    }
}

fn checked(file: File) -> io::Result<String> {
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(wrong("it is no file".into()));
    }
    if let Some(who) = who_can_change(&file, &found) {
        return Err(wrong(format!("{who} could have written it")));
    }
    use std::os::unix::fs::PermissionsExt as _;
    if found.permissions().mode() & 0o077 != 0 {
        return Err(wrong("other users can read it: chmod 600".into()));
    }
    let mut text = String::new();
    file.take(MAX_LENGTH + 1).read_to_string(&mut text)?;
    let token = text.trim();
    if text.len() as u64 > MAX_LENGTH {
        return Err(wrong(format!("it has more than {MAX_LENGTH} bytes")));
    }
    if token.is_empty() {
        return Err(wrong("it is empty: remove the file, and another one is made".into()));
    }
    let is_plain = token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.len() < MIN_LENGTH || !is_plain {
        return Err(wrong(format!(
            "a token has at least {MIN_LENGTH} letters, digits and signs, without spaces"
        )));
    }
    Ok(token.to_owned())
}

/// Makes a token. A worker that starts at the same time may have been quicker.
fn make(directory: &Directory, name: &OsStr) -> io::Result<String> {
    let mut bytes = [0; BYTES];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let token = BASE64_URL_SAFE_NO_PAD.encode(bytes);
    match directory.create_new(name, 0o600) {
        Ok(mut file) => {
            let written = file.write_all(format!("{token}\n").as_bytes());
            // A part of one is none.
            written.inspect_err(|_| drop(directory.remove(name)))?;
            Ok(token)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => checked(directory.read(name)?),
        Err(e) => Err(e),
    }
}
