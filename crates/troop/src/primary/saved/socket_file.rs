//! Files of Unix sockets, written down.

use std::io;
use std::os::fd::AsFd as _;

use serde::{Deserialize, Serialize};
use troop_sys::sandbox::Sandbox;
use troop_sys::unix::{SavedUnixFile, UnixFile};

use super::{Key, Reader, Writer};

/// A socket's file, with the directory that it is in and what restricts the right to remove it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedFile {
    file: SavedUnixFile,
    directory: Key,
    ruleset: Option<Key>,
}

impl SavedFile {
    pub(crate) fn of<'a>(file: &'a UnixFile, to: &mut Writer<'a>) -> SavedFile {
        SavedFile {
            file: file.save(),
            directory: to.descriptor(file.directory()),
            ruleset: file.rights().sandbox.ruleset().map(|ruleset| to.descriptor(ruleset)),
        }
    }

    /// The same of a file that may be gone before it is written.
    pub(crate) fn of_copies(file: &UnixFile, to: &mut Writer<'_>) -> io::Result<SavedFile> {
        let directory = file.directory().as_fd().try_clone_to_owned()?;
        let ruleset = file.rights().sandbox.ruleset();
        let ruleset = ruleset.map(|ruleset| ruleset.try_clone()).transpose()?;
        Ok(SavedFile {
            file: file.save(),
            directory: to.owned(directory),
            ruleset: ruleset.map(|ruleset| to.owned(ruleset)),
        })
    }

    pub(crate) fn restore(self, from: &mut Reader) -> io::Result<UnixFile> {
        let SavedFile { file, directory, ruleset } = self;
        let ruleset = ruleset.map(|ruleset| from.descriptor(ruleset)).transpose()?;
        let sandbox = ruleset.map(Sandbox::of_ruleset).unwrap_or_default();
        UnixFile::restore(file, from.descriptor(directory)?, sandbox)
    }
}
