//! The key of a listener: what makes two requests ask for the same socket.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::event::AddressType;

/// Maximum length of a path (`PATH_MAX`) and of a host name, in bytes.
const MAX_PATH: usize = 4096;
const MAX_HOST: usize = 255;

/// Whether an address is too long for any listener.
pub(super) fn is_too_long(address: &str, kind: AddressType) -> bool {
    address.len() > if kind == AddressType::Unix { MAX_PATH } else { MAX_HOST }
}

/// Node's key of a listener: requests with equal keys share a socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct ListenKey {
    pub(super) address: Option<String>,
    pub(super) port: Option<i64>,
    pub(super) address_type: AddressType,
    pub(super) fd: Option<i64>,
    /// Distinguishes listeners on port 0, and several requests of one worker for the same address.
    pub(super) index: u32,
}

impl ListenKey {
    /// Whether both conflict in the kernel: the same port, and the same IP address, however it is
    /// written, or any address.
    pub(super) fn overlaps(&self, other: &ListenKey) -> bool {
        let ip = |key: &ListenKey| key.address.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
        let is_any = |key: &ListenKey| {
            key.address.is_none() || ip(key).is_some_and(|ip| ip.is_unspecified())
        };
        let is_same =
            self.address == other.address || ip(self).is_some_and(|at| ip(other) == Some(at));
        let is_ip = !matches!(self.address_type, AddressType::Unix | AddressType::Fd);
        is_ip
            && self.address_type.is_udp() == other.address_type.is_udp()
            && self.port.is_some_and(|port| port > 0)
            && self.port == other.port
            && (is_any(self) || is_any(other) || is_same)
    }

    /// Returns Node's text form, which is opaque to workers.
    pub(super) fn text(&self) -> String {
        let ListenKey { address, port, address_type, fd, index } = self;
        let address = address.as_deref().unwrap_or("null");
        let port = port.map_or("null".to_owned(), |p| p.to_string());
        let fd = fd.map_or("undefined".to_owned(), |fd| fd.to_string());
        format!("{address}:{port}:{address_type}:{fd}:{index}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_overlap_however_they_are_written() {
        let key = |address: Option<&str>, port: i64| ListenKey {
            address: address.map(str::to_owned),
            port: Some(port),
            address_type: AddressType::Tcp6,
            fd: None,
            index: 0,
        };
        let one = key(Some("127.0.0.1"), 80);
        for any in [None, Some("::"), Some("0:0:0:0:0:0:0:0"), Some("0.0.0.0")] {
            assert!(key(any, 80).overlaps(&one) && one.overlaps(&key(any, 80)), "{any:?}");
            assert!(!key(any, 81).overlaps(&one));
        }
        assert!(key(Some("::1"), 80).overlaps(&key(Some("0:0:0:0:0:0:0:1"), 80)));
        for other in ["::1", "127.0.0.2", "localhost"] {
            assert!(!key(Some(other), 80).overlaps(&one), "{other}");
        }
    }
}
