//! Writes down sockets by activation, and goes on with those that another primary has written down.

use std::io;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use troop_sys::options::Options;

use super::ActivationSocket;
use super::slots::{SavedSlots, Slots};
use super::upkeep::Upkeep;
use crate::primary::saved::{Key, Reader, SavedFile, Writer};

/// A socket, with all that is known of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedActivation {
    name: String,
    socket: Key,
    file: Option<SavedFile>,
    options: Options,
    address: String,
    slots: Option<SavedSlots>,
    is_inherited: bool,
    upkeep: Upkeep,
}

impl SavedActivation {
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Takes the socket over.
    pub(crate) fn restore(self, from: &mut Reader) -> io::Result<ActivationSocket> {
        let socket = from.descriptor(self.socket)?;
        let file = self.file.map(|file| file.restore(from)).transpose()?;
        let slots = self.slots.map(|slots| Slots::restore(slots, &socket, from)).transpose()?;
        Ok(ActivationSocket {
            name: self.name,
            file: Mutex::new(file),
            socket,
            options: self.options,
            address: self.address,
            slots,
            is_inherited: self.is_inherited,
            upkeep: Mutex::new(self.upkeep),
        })
    }
}

impl ActivationSocket {
    pub(crate) fn save<'a>(&'a self, to: &mut Writer<'a>) -> io::Result<SavedActivation> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(SavedActivation {
            name: self.name.clone(),
            socket: to.descriptor(&self.socket),
            file: file.as_ref().map(|file| SavedFile::of_copies(file, to)).transpose()?,
            options: self.options.clone(),
            address: self.address.clone(),
            slots: self.slots.as_ref().map(|slots| slots.save(to)),
            is_inherited: self.is_inherited,
            upkeep: self.upkeep().clone(),
        })
    }
}
