//! Patterns that select listeners by their address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::event::{Address, AddressType};

/// A pattern that selects listeners: `8000` or `:8000` (the port at any address), `127.0.0.1:8000`,
/// `[::1]:8000`, `/path/of/a/socket`, `@name` (an abstract socket), `fd:3` (a descriptor of the
/// primary); a prefix `udp:` selects UDP. Port 0 selects listeners whose program asked for port 0.
/// IPv4-mapped IPv6 addresses (`::ffff:127.0.0.1`) equal their IPv4 address, and paths are compared
/// without doubled slashes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    udp: bool,
    target: Target,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Target {
    Port(u16),
    Ip(IpAddr, u16),
    Path(String),
    Abstract(String),
    Fd(i64),
}

/// Removes `.` and empty components from a path. Returns `None` if it is relative or contains `..`,
/// which only the file system can resolve.
fn normal(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return None;
    }
    let mut normal = String::with_capacity(path.len());
    for component in path.split('/').filter(|component| !component.is_empty() && *component != ".")
    {
        if component == ".." {
            return None;
        }
        normal.push('/');
        normal.push_str(component);
    }
    Some(normal)
}

impl Pattern {
    /// Whether the pattern selects the listener that a worker asks for. A request for a descriptor
    /// matches by its number only, whatever address it names.
    #[must_use]
    pub fn matches(&self, asked: &Address) -> bool {
        self.means(asked, IpAddr::is_unspecified)
    }

    /// Whether the pattern permits what a worker asks for. Differs from [`Pattern::matches`] for
    /// requests without an address, which bind all addresses of both families: only `[::]:8000` and
    /// `8000` permit them. (For UDP over IPv4, no address is `0.0.0.0`.)
    #[must_use]
    pub fn covers(&self, asked: &Address) -> bool {
        let is_ipv4_only = asked.address_type == AddressType::Udp4;
        self.means(asked, |ip| ip.is_unspecified() && (ip.is_ipv6() || is_ipv4_only))
    }

    fn means(&self, asked: &Address, is_any: impl Fn(&IpAddr) -> bool) -> bool {
        if let Some(fd) = asked.fd.filter(|fd| *fd >= 0) {
            return self.target == Target::Fd(fd);
        }
        if self.udp != asked.address_type.is_udp() {
            return false;
        }
        let port = |port: u16| asked.port == Some(i64::from(port));
        let address = asked.address.as_deref();
        match (&self.target, asked.address_type) {
            (_, AddressType::Fd) | (Target::Fd(_), _) => false,
            // A worker sends an abstract name as `/its/directory/\0name`.
            (Target::Abstract(name), AddressType::Unix) => address
                .and_then(|address| address.split_once('\0'))
                .is_some_and(|(_, asked)| asked == name),
            (Target::Path(path), AddressType::Unix) => {
                address.filter(|address| !address.contains('\0')).and_then(normal).as_ref()
                    == Some(path)
            }
            (_, AddressType::Unix) | (Target::Abstract(_) | Target::Path(_), _) => false,
            (Target::Port(number), _) => port(*number),
            (Target::Ip(ip, number), _) => {
                let at = address.map(|a| a.parse::<IpAddr>().map(|at| at.to_canonical()));
                // Without an address, any address matches.
                port(*number) && at.map_or_else(|| is_any(ip), |at| at == Ok(ip.to_canonical()))
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.udp { "udp:" } else { "" })?;
        match &self.target {
            Target::Port(port) => write!(f, ":{port}"),
            Target::Ip(IpAddr::V6(ip), port) => write!(f, "[{ip}]:{port}"),
            Target::Ip(ip, port) => write!(f, "{ip}:{port}"),
            Target::Path(path) => f.write_str(path),
            Target::Abstract(name) => write!(f, "@{name}"),
            Target::Fd(fd) => write!(f, "fd:{fd}"),
        }
    }
}

impl FromStr for Pattern {
    type Err = super::BadScheduling;

    fn from_str(text: &str) -> Result<Pattern, super::BadScheduling> {
        let (udp, rest) = text.strip_prefix("udp:").map_or((false, text), |rest| (true, rest));
        let any = rest.strip_prefix('*').unwrap_or(rest);
        let number = |fd: &str| fd.parse::<u16>().ok().map(i64::from);
        let target = if rest.starts_with('/') && !udp {
            normal(rest).map(Target::Path)
        } else if let Some(name) = rest.strip_prefix('@').filter(|name| !name.is_empty() && !udp) {
            Some(Target::Abstract(name.into()))
        } else if let Some(fd) = rest.strip_prefix("fd:").filter(|_| !udp) {
            number(fd).map(Target::Fd)
        } else if let Ok(port) = any.strip_prefix(':').unwrap_or(any).parse() {
            Some(Target::Port(port))
        } else {
            rest.parse::<std::net::SocketAddr>().ok().map(|at| Target::Ip(at.ip(), at.port()))
        };
        target.map(|target| Pattern { udp, target }).ok_or_else(|| {
            let forms = "8000, 127.0.0.1:8000, [::1]:8000, /path/of/a/socket (without ..), @abstract, fd:3, or udp: and one of the first three";
            super::BadScheduling(format!("{text:?} is not a listener; write {forms}"))
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
    fn patterns_match_the_address_that_the_program_asks_for() {
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
        for bad in
            ["", "host", "1.2.3.4", "70000", "udp:/x", "/a/../b", "@", "fd:", "fd:-1", "udp:fd:3"]
        {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_pattern_that_covers_both_families_permits_a_worker_that_names_no_address() {
        let any = |address_type| Address { address: None, port: Some(80), address_type, fd: None };
        for (pattern, covers) in [
            ("80", [true, true, false, false]),
            ("*:80", [true, true, false, false]),
            ("[::]:80", [true, true, false, false]),
            ("0.0.0.0:80", [false; 4]),
            ("[::ffff:0.0.0.0]:80", [false; 4]),
            ("127.0.0.1:80", [false; 4]),
            ("udp:80", [false, false, true, true]),
            ("udp:0.0.0.0:80", [false, false, true, false]),
            ("udp:[::]:80", [false, false, true, true]),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            let asked =
                [AddressType::Tcp4, AddressType::Tcp6, AddressType::Udp4, AddressType::Udp6]
                    .map(any);
            assert_eq!(asked.map(|at| parsed.covers(&at)), covers, "{pattern}");
        }
        let named =
            |address: &str| Address { address: Some(address.into()), ..any(AddressType::Tcp4) };
        let parsed: Pattern = "0.0.0.0:80".parse().unwrap();
        assert!(
            parsed.covers(&named("0.0.0.0"))
                && !parsed.covers(&named("::"))
                && parsed.matches(&any(AddressType::Tcp4))
        );
    }

    #[test]
    fn no_other_spelling_of_an_address_is_another_address() {
        let asked = |address: Option<&str>, port: Option<i64>, address_type, fd| Address {
            address: address.map(str::to_owned),
            port,
            address_type,
            fd,
        };
        let unix = |path: &str| asked(Some(path), Some(-1), AddressType::Unix, None);
        let tcp = |address: &str, port| asked(Some(address), Some(port), AddressType::Tcp6, None);
        for (pattern, at, matches) in [
            ("127.0.0.1:80", tcp("::ffff:127.0.0.1", 80), true),
            ("[::ffff:127.0.0.1]:80", tcp("127.0.0.1", 80), true),
            ("127.0.0.1:80", tcp("::ffff:127.0.0.2", 80), false),
            // Host names and other notations do not match addresses.
            ("127.0.0.1:80", tcp("localhost", 80), false),
            ("[::]:80", tcp("somewhere", 80), false),
            ("127.0.0.1:80", tcp("127.1", 80), false),
            ("80", tcp("::", 80 + 65536), false),
            ("0", tcp("::", 80), false),
            ("80", tcp("::", 0), false),
            ("/run/s", unix("//run/./s"), true),
            ("//run//s", unix("/run/s"), true),
            ("/run/s", unix("/run/x/../s"), false),
            ("/run/s", unix("run/s"), false),
            ("/run/s", unix("/run/s\0"), false),
            ("/run/s", unix("/run/s\0x"), false),
            ("@s", unix("/its/directory/\0s"), true),
            ("@s", unix("\0s"), true),
            ("@s", unix("@s"), false),
            ("@s", unix("\0s\0"), false),
            // A request for a descriptor does not match by address.
            ("80", asked(None, Some(80), AddressType::Fd, Some(7)), false),
            ("80", asked(Some("::"), Some(80), AddressType::Tcp4, Some(7)), false),
            ("udp:80", asked(Some("::"), Some(80), AddressType::Udp4, Some(7)), false),
            ("/run/s", asked(Some("/run/s"), Some(-1), AddressType::Unix, Some(7)), false),
            ("fd:7", asked(None, None, AddressType::Fd, Some(7)), true),
            ("fd:7", asked(None, Some(80), AddressType::Tcp4, Some(8)), false),
            ("80", asked(None, Some(80), AddressType::Fd, None), false),
            // What Node sends for UDP without a descriptor.
            ("udp:80", asked(Some("0.0.0.0"), Some(80), AddressType::Udp4, Some(-1)), true),
        ] {
            assert_eq!(
                pattern.parse::<Pattern>().unwrap().matches(&at),
                matches,
                "{pattern} and {at:?}"
            );
        }
    }
}
