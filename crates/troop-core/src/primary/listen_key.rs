//! The key of a listener: what makes two requests ask for the same socket.

use serde::{Deserialize, Serialize};

use crate::event::AddressType;

/// The longest path that the kernel takes (`PATH_MAX`), and the longest name of a host.
const MAX_PATH: usize = 4096;
const MAX_HOST: usize = 255;

/// Whether no listener can be at this address, because of its length alone.
pub(super) fn is_too_long(address: &str, kind: AddressType) -> bool {
    address.len() > if kind == AddressType::Unix { MAX_PATH } else { MAX_HOST }
}

/// What Node calls the key: everything that makes two requests ask for the same socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct ListenKey {
    pub(super) address: Option<String>,
    pub(super) port: Option<i64>,
    pub(super) address_type: AddressType,
    pub(super) fd: Option<i64>,
    /// Counts for port 0, and when one worker asks for the same thing twice.
    pub(super) index: u32,
}

impl ListenKey {
    /// Whether the kernel takes both for one address: the same port, and the same IP address or
    /// any.
    pub(super) fn overlaps(&self, other: &ListenKey) -> bool {
        let is_any =
            |key: &ListenKey| matches!(key.address.as_deref(), None | Some("0.0.0.0" | "::"));
        let is_ip = !matches!(self.address_type, AddressType::Unix | AddressType::Fd);
        is_ip
            && self.address_type.is_udp() == other.address_type.is_udp()
            && self.port.is_some_and(|port| port > 0)
            && self.port == other.port
            && (is_any(self) || is_any(other) || self.address == other.address)
    }

    /// Node's text form, which is opaque to workers.
    pub(super) fn text(&self) -> String {
        let ListenKey { address, port, address_type, fd, index } = self;
        let address = address.as_deref().unwrap_or("null");
        let port = port.map_or("null".to_owned(), |p| p.to_string());
        let fd = fd.map_or("undefined".to_owned(), |fd| fd.to_string());
        format!("{address}:{port}:{address_type}:{fd}:{index}")
    }
}
