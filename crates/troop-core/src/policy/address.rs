//! Which listeners something is meant for.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::event::{Address, AddressType};

/// Names listeners: `8000` or `:8000` (the port at any address), `127.0.0.1:8000`, `[::1]:8000`, `/path/of/a/socket`, and with `udp:` before
/// it those of UDP. A listener on port 0 is named by the 0 that its program asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    udp: bool,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    Port(u16),
    Ip(IpAddr, u16),
    Path(String),
}

impl Pattern {
    /// Whether a worker that asks for this address asks for a listener that is meant.
    #[must_use]
    pub fn matches(&self, asked: &Address) -> bool {
        if self.udp != asked.address_type.is_udp() {
            return false;
        }
        let port = |port: u16| asked.port == Some(i64::from(port));
        match &self.place {
            Place::Path(path) => asked.address_type == AddressType::Unix && asked.address.as_deref() == Some(path),
            _ if asked.address_type == AddressType::Unix => false,
            Place::Port(number) => port(*number),
            Place::Ip(ip, number) => {
                let at = asked.address.as_deref().and_then(|a| a.parse::<IpAddr>().ok());
                // No address means any.
                port(*number) && at.map_or(ip.is_unspecified(), |at| at == *ip)
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.udp { "udp:" } else { "" })?;
        match &self.place {
            Place::Port(port) => write!(f, ":{port}"),
            Place::Ip(IpAddr::V6(ip), port) => write!(f, "[{ip}]:{port}"),
            Place::Ip(ip, port) => write!(f, "{ip}:{port}"),
            Place::Path(path) => f.write_str(path),
        }
    }
}

impl FromStr for Pattern {
    type Err = super::BadScheduling;

    fn from_str(text: &str) -> Result<Pattern, super::BadScheduling> {
        let (udp, rest) = text.strip_prefix("udp:").map_or((false, text), |rest| (true, rest));
        let any = rest.strip_prefix('*').unwrap_or(rest);
        let place = if rest.starts_with('/') && !udp {
            Some(Place::Path(rest.into()))
        } else if let Ok(port) = any.strip_prefix(':').unwrap_or(any).parse() {
            Some(Place::Port(port))
        } else {
            rest.parse::<std::net::SocketAddr>().ok().map(|at| Place::Ip(at.ip(), at.port()))
        };
        place.map(|place| Pattern { udp, place }).ok_or_else(|| {
            let forms = "8000, 127.0.0.1:8000, [::1]:8000, /path/of/a/socket, or udp: and one of the first three";
            super::BadScheduling(format!("{text:?} names no listener; write {forms}"))
        })
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_named_by_what_their_program_asks_for() {
        let asked = |address: Option<&str>, port: i64, address_type| Address {
            address: address.map(str::to_owned),
            port: Some(port),
            address_type,
            fd: None,
        };
        let (four, any, udp) = (
            asked(Some("127.0.0.1"), 80, AddressType::Tcp4),
            asked(None, 80, AddressType::Tcp4),
            asked(Some("0.0.0.0"), 80, AddressType::Udp4),
        );
        let unix = asked(Some("/run/s"), -1, AddressType::Unix);
        for (pattern, matches) in [
            ("80", [true, true, false, false]),
            (":80", [true, true, false, false]),
            ("*:80", [true, true, false, false]),
            ("127.0.0.1:80", [true, false, false, false]),
            ("0.0.0.0:80", [false, true, false, false]),
            ("[::]:80", [false, true, false, false]),
            ("81", [false; 4]),
            ("udp:80", [false, false, true, false]),
            ("udp:0.0.0.0:80", [false, false, true, false]),
            ("/run/s", [false, false, false, true]),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            assert_eq!([&four, &any, &udp, &unix].map(|a| parsed.matches(a)), matches, "{pattern}");
            assert_eq!(parsed.to_string().parse::<Pattern>().unwrap(), parsed);
        }
        for bad in ["", "host", "1.2.3.4", "70000", "udp:/x"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
